//! Turns a plan into a target and networks, before any work is done.

use crate::comm::World;
use crate::config::{EnergyKind, Plan, SamplerKind, ScoreKind, Start, TargetSection};
use crate::model::{Parameters, SamplerNetwork, SamplerSpec, ScoreNetwork, ScoreSpec};
use crate::target::{EnergyTarget, TargetAtLevel, TargetError};

/// Why a plan cannot be carried out. Exit code 2: nothing has been done yet.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The target cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A network does not fit the target.
    #[error("{0}")]
    Network(String),
}

/// The fixed parts of a run: what does not change during training.
pub struct Networks {
    /// The target.
    pub target: TargetAtLevel,
    /// The sampler, without weights.
    pub sampler: SamplerNetwork,
    /// The score network, without weights.
    pub score: ScoreNetwork,
    /// Weights of the energy's own network, if something starts from them.
    pub energy_parameters: Option<Parameters>,
}

impl Networks {
    /// Loads the target and builds both networks around its shape.
    ///
    /// # Errors
    /// If the target cannot be used, or a network does not fit it.
    pub fn build(plan: &Plan, world: &World) -> Result<Self, SetupError> {
        let (file, device) = (&plan.file, world.device);
        let starts = [file.sampler.start, file.score.start];
        let (target, energy_parameters) = match (&file.target, starts.contains(&Start::Energy)) {
            (TargetSection::Energy { file, tempered }, true) => {
                let energy = EnergyTarget::load(file, device)?;
                check_copy(plan, &energy)?;
                let parameters = energy.parameters().duplicate();
                let level = tempered.then(|| energy.sigma0());
                (TargetAtLevel::new(Box::new(energy), level), Some(parameters))
            }
            (_, true) => {
                return Err(SetupError::Network(
                    "start = \"energy\" copies an energy's own network, and this target has none; set target.kind = \
                     \"energy\", or sampler.start and score.start = \"random\""
                        .into(),
                ));
            }
            (section, false) => (TargetAtLevel::load(section, file.run.seed, &file.compute, world)?, None),
        };
        let shape = target.target().shape().to_vec();
        if file.method.smoothing > 0 && (shape.len() != 1 || target.tempered_from().is_some()) {
            return Err(SetupError::Network(format!(
                "method.smoothing is for vectors and a target that is not tempered, and this one makes samples {shape:?}{}; \
                 set it to 0",
                if target.tempered_from().is_some() { ", tempered" } else { "" }
            )));
        }
        for (section, is_there) in
            [("[warm_start]", file.warm_start.is_some()), ("[regression]", file.regression.is_some())]
        {
            if is_there {
                check_flow(section, file.sampler.kind, &target)?;
            }
        }
        check_pool(plan, &target)?;
        let sampler = SamplerNetwork::new(&SamplerSpec {
            kind: file.sampler.kind,
            shape: shape.clone(),
            latent: file.sampler.latent,
            width: file.sampler.width,
            depth: file.sampler.depth,
            stages: file.sampler.stages,
            output: file.sampler.output,
            initial_scale: file.sampler.initial_scale,
            initial_offset: file.sampler.initial_offset,
            initial_gain: file.sampler.initial_gain,
        })
        .map_err(SetupError::Network)?;
        let score = ScoreNetwork::new(&ScoreSpec {
            kind: file.score.kind,
            shape,
            width: file.score.width,
            depth: file.score.depth,
            scale: file.sampler.initial_scale,
            offset: file.sampler.initial_offset,
            base: file.score.base,
            tail_scaling: file.score.tail_scaling,
            frequencies: file.score.frequencies,
            linear_skip: file.score.linear_skip,
            noise_scaling: file.score.noise_scaling,
            conservative: file.score.conservative,
            starts_as_denoiser: file.score.start == Start::Energy,
        })
        .map_err(SetupError::Network)?;
        Ok(Networks { target, sampler, score, energy_parameters })
    }
}

/// What a section whose chains start from the sampler's latents wants of the target and the sampler.
fn check_flow(section: &str, sampler: SamplerKind, target: &TargetAtLevel) -> Result<(), SetupError> {
    let refuse = |text: String| Err(SetupError::Network(text));
    if target.tempered_from().is_none() {
        return refuse(format!(
            "{section} follows the noise levels of a tempered target, and this one is not; set target.tempered = true, or \
             leave {section} out"
        ));
    }
    if sampler == SamplerKind::Generator {
        return refuse(format!(
            "{section} carries a latent in the shape of a sample along a flow, and that of sampler.kind = \"generator\" has \
             another; choose sampler.kind = \"unet\", or leave {section} out"
        ));
    }
    Ok(())
}

/// A regression compares images over squares that have to fit them.
fn check_pool(plan: &Plan, target: &TargetAtLevel) -> Result<(), SetupError> {
    let Some(pool) = plan.file.regression.as_ref().map(|section| section.pool) else { return Ok(()) };
    let refuse = |text: String| Err(SetupError::Network(text));
    match *target.target().shape() {
        [_, height, width] if height % pool != 0 || width % pool != 0 => refuse(format!(
            "regression.pool = {pool} does not divide images of {height} × {width}; choose one that divides both"
        )),
        [_] if pool != 1 => refuse(format!(
            "regression.pool = {pool} is for images, and this target is on vectors; leave it out"
        )),
        _ => Ok(()),
    }
}

/// A network can start as a copy only of a network of its own kind and width.
fn check_copy(plan: &Plan, energy: &EnergyTarget) -> Result<(), SetupError> {
    let file = &plan.file;
    let spec = energy.spec();
    let sampler = ("sampler", file.sampler.start, file.sampler.kind == SamplerKind::Unet, file.sampler.width);
    let score = ("score", file.score.start, file.score.kind == ScoreKind::Unet, file.score.width);
    for (section, start, is_unet, width) in [sampler, score] {
        if start == Start::Energy && !(spec.kind == EnergyKind::Unet && is_unet && width == spec.width) {
            return Err(SetupError::Network(format!(
                "{section}.start = \"energy\" needs a U-Net of the energy's width; the energy is a {:?} of width {} and \
                 {section}.width = {width}; set {section}.kind = \"unet\" and {section}.width = {}, or {section}.start = \
                 \"random\"",
                spec.kind, spec.width, spec.width
            )));
        }
    }
    Ok(())
}
