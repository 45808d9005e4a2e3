//! From a configuration's `[target]` to the target.

use tch::{Device, Kind};

use super::planar::{self, Bend, Bent, Donut, Funnel};
use super::{EnergyTarget, Gaussian, Mixture, Target, TargetError, TorchScriptTarget};
use crate::config::TargetSection;

/// Loads the target that a configuration describes, computing in `kind` on `device`: f32 to train on, f64 to measure
/// against. Energies and TorchScript modules compute in f32 whatever `kind` is, since their weights are f32.
///
/// # Errors
/// If its file or its definition cannot be used.
pub fn load_exact(
    section: &TargetSection,
    kind: Kind,
    device: Device,
) -> Result<Box<dyn Target>, TargetError> {
    Ok(match section {
        TargetSection::Gaussian { mean, covariance } => match (mean, covariance) {
            (Some(mean), Some(covariance)) => Box::new(Gaussian::new(mean, covariance, kind, device)?),
            (None, None) => Box::new(Gaussian::new(
                &planar::GAUSSIAN_MEAN,
                &planar::GAUSSIAN_COVARIANCE.map(Vec::from),
                kind,
                device,
            )?),
            (found, _) => {
                let (there, missing) =
                    if found.is_some() { ("mean", "covariance") } else { ("covariance", "mean") };
                return Err(TargetError::Invalid(format!(
                    "target.mean and target.covariance belong together, and there is only target.{there}; add \
                     target.{missing}, or leave out both for the paper's Gaussian"
                )));
            }
        },
        TargetSection::Mog2 { weights } => Box::new(planar::mog2(weights, kind, device)?),
        TargetSection::Rosenbrock {} => Box::new(Bent::new(Bend::Rosenbrock, kind, device)),
        TargetSection::Donut {} => Box::new(Donut::new(kind, device)),
        TargetSection::Funnel {} => Box::new(Funnel::new(kind, device)),
        TargetSection::Squiggle {} => Box::new(Bent::new(Bend::Squiggle, kind, device)),
        TargetSection::Gmm40 {} => Box::new(planar::gmm40(kind, device)),
        TargetSection::Ring { modes, radius, deviation } => {
            Box::new(planar::ring(*modes, *radius, *deviation, kind, device)?)
        }
        TargetSection::Mixture { means, deviations, weights } => {
            Box::new(Mixture::new(means, deviations.values(), weights, kind, device)?)
        }
        TargetSection::Logistic(_) => {
            return Err(TargetError::Invalid(
                "a posterior comes with data, which LogisticProblem::load reads".to_string(),
            ));
        }
        TargetSection::Energy { file, .. } => Box::new(EnergyTarget::load(file, device)?),
        TargetSection::Torchscript { file, shape, .. } => {
            Box::new(TorchScriptTarget::load(file, shape, device)?)
        }
    })
}
