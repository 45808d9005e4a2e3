//! Scoring samples against a run's reference: the same measurement for a sampler and for MCMC.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use tch::{Device, Tensor, no_grad};

use super::energies::METRIC as ENERGY_W1;
use super::summary::{ExtractorId, Score};
use crate::comm::World;
use crate::config::{EvaluateSection, Features, MethodSection, TargetSection};
use crate::data::{Mnist, Split};
use crate::metric::{
    Extractor, Moments, PointError, PointPlan, PointReference, Reference, Seen, chunks, exact_samples,
};
use crate::model::{Parameters, SamplerNetwork};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// Samples hold numbers that are not finite. Known on all ranks at once, since it is seen after a sum over
/// them.
#[derive(Debug, thiserror::Error)]
#[error("{0}: the sampler or the chain diverged; lower its learning rate or step size")]
pub struct NotFinite(String);

impl NotFinite {
    /// What was found.
    pub fn new(found: &dyn std::fmt::Display) -> Self {
        NotFinite(found.to_string())
    }
}

/// How many samples of an evaluation are kept for pictures and records.
pub const SHOWN: i64 = 100;

/// Metrics of images as tables show them, in their order: name and heading. What is not here (the share of each class)
/// is in the records.
pub const OF_IMAGES: [(&str, &str); 9] = [
    ("fd_lenet", "FD-LeNet"),
    ("fd", "FD"),
    ("pixel_deviation", "pixel sd"),
    ("class_entropy", "class entropy"),
    ("class_least", "rarest class"),
    ("class_most", "commonest class"),
    ("unsure", "unsure"),
    ("nearest_image", "nearest image"),
    (ENERGY_W1, "energy W1"),
];

/// A reference and its floors for a number of samples.
pub struct Measure {
    reference: Reference,
    samples: i64,
    floor: Seen,
    /// A matrix root of all features: taken once.
    fd_floor: f64,
    /// Of images.
    nearest_floor: Option<f64>,
}

/// The scores of a set of samples.
pub struct Scores {
    /// Metrics by name.
    pub metrics: BTreeMap<String, Score>,
    /// Sums over the features, for the record.
    pub moments: Moments,
    /// The first samples, the same on all ranks, on the CPU.
    pub shown: Tensor,
}

/// What a measurement needs, loaded and checked on this rank, before any collective.
pub struct Inputs {
    extractor: Extractor,
    real: Tensor,
    samples: i64,
    features: i64,
}

impl Inputs {
    /// Loads what the configuration asks for; `None` if it asks for no Fréchet distance. `key` is where a user sets the
    /// number of samples.
    ///
    /// # Errors
    /// If data or extractor cannot be used or do not fit the target, there are fewer real samples than the floor needs,
    /// or no more samples than features.
    pub fn load(
        section: &EvaluateSection,
        key: &str,
        target: &dyn Target,
        device: Device,
    ) -> Result<Option<Self>> {
        let images = || Mnist::load(&section.data).map(|mnist| mnist.images(Split::Train));
        let (extractor, real) = match &section.features {
            Features::None => return Ok(None),
            Features::Identity => match exact_samples(target) {
                Some(samples) => (Extractor::Identity, samples),
                None => bail!(
                    "evaluate.features = \"identity\" compares with exact samples, and this target has no sampler; \
                     choose \"lenet\", a TorchScript file or \"none\""
                ),
            },
            Features::Lenet => {
                let file = section.features_file.clone().unwrap_or_default();
                (Extractor::lenet(&file, device)?, images()?)
            }
            Features::TorchScript(file) => (Extractor::torchscript(file, target.shape(), device)?, images()?),
        };
        if real.size()[1..] != *target.shape() {
            bail!(
                "evaluate.data holds images {:?} and the target makes {:?}; set evaluate.features = \"none\"",
                &real.size()[1..],
                target.shape()
            );
        }
        let (samples, most) = (section.samples as i64, real.size()[0] / 2);
        if samples > most {
            bail!(
                "{key} = {samples}, and the floor needs as many real samples beside the reference, of which \
                 there are {most}; choose that or fewer"
            );
        }
        let features = extractor.check(&real, device)?;
        if most <= features {
            bail!(
                "evaluate.features gives {features} features, whose covariance needs more samples than that, and the \
                 floor has {most} real ones; choose an extractor with fewer features"
            );
        }
        let inputs = Inputs { extractor, real, samples, features };
        inputs.require_enough(key, section.samples)?;
        Ok(Some(inputs))
    }

    /// Says whether a Fréchet distance of so many samples, the setting `key`, can be measured.
    ///
    /// # Errors
    /// If there are no more of them than features.
    pub fn require_enough(&self, key: &str, samples: usize) -> Result<()> {
        let features = self.features;
        if samples as i64 <= features {
            bail!(
                "{key} = {samples}, and the covariance of {features} features needs more samples than that: \
                 with fewer it is singular, and the distance mostly bias; set {key} to {} or more",
                features + 1
            );
        }
        Ok(())
    }

    /// Measures the reference and its floor, over all ranks.
    ///
    /// # Errors
    /// If a collective fails, or features of real samples are not finite.
    pub fn measure(self, world: &World) -> Result<Measure> {
        let reference = Reference::new(self.extractor, &self.real, world)?;
        let floor = reference.floor(self.samples, world)?;
        let fd_floor = reference.distance(&floor);
        if !fd_floor.is_finite() {
            bail!(
                "the extractor {} gives features that are not finite for some of the real samples, though not for the \
                 first; look for a division by 0 or a logarithm in it",
                reference.extractor().identity().0
            );
        }
        let shown = self.samples.min(SHOWN);
        let nearest_floor = reference.nearest(&reference.real(shown));
        Ok(Measure { reference, samples: self.samples, floor, fd_floor, nearest_floor })
    }
}

impl Measure {
    /// The reference.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// How many samples are scored.
    pub fn samples(&self) -> i64 {
        self.samples
    }

    /// Name and hash of the extractor.
    pub fn extractor(&self) -> ExtractorId {
        let (name, sha256) = self.reference.extractor().identity();
        ExtractorId { name: name.to_string(), sha256: sha256.to_string() }
    }

    /// Real samples for a picture.
    pub fn real(&self, rows: i64) -> Tensor {
        self.reference.real(rows.min(self.samples))
    }

    /// Scores of the real samples themselves: the floors.
    pub fn floors(&self) -> BTreeMap<String, Score> {
        self.named("", self.fd_floor, &self.floor, self.nearest_floor)
    }

    /// Scores by name, `fd` the distance of what was seen. `nearest` is of images alone, as is what depends on pixels and
    /// classes.
    fn named(&self, suffix: &str, fd: f64, seen: &Seen, nearest: Option<f64>) -> BTreeMap<String, Score> {
        let mut metrics = BTreeMap::new();
        let mut add = |name: &str, value: f64, floor: f64, samples: i64| {
            let score = Score {
                value,
                deviation: None,
                floor: Some(floor),
                floor_deviation: None,
                samples: samples as u64,
            };
            metrics.insert(format!("{name}{suffix}"), score);
        };
        let (floor, samples) = (&self.floor, self.samples);
        add(self.reference.extractor().metric(), fd, self.fd_floor, samples);
        let (Some(nearest), Some(nearest_floor)) = (nearest, self.nearest_floor) else { return metrics };
        add("pixel_deviation", seen.spread.value(), floor.spread.value(), samples);
        add("nearest_image", nearest, nearest_floor, samples.min(SHOWN));
        if let (Some(classes), Some(real), Some(all)) =
            (&seen.classes, &floor.classes, self.reference.classes())
        {
            add("class_entropy", classes.entropy(), real.entropy(), samples);
            add("class_least", classes.least_against(all), real.least_against(all), samples);
            add("class_most", classes.most_against(all), real.most_against(all), samples);
            add("unsure", classes.unsure(), real.unsure(), samples);
            for (class, (share, real)) in classes.shares().into_iter().zip(real.shares()).enumerate() {
                add(&format!("class_{class}"), share, real, samples);
            }
        }
        metrics
    }

    /// Scores what `draw`(chunk, rows) returns for the chunks of this rank; all ranks together draw as many
    /// samples as the floor was measured with.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn score(
        &self,
        suffix: &str,
        world: &World,
        mut draw: impl FnMut(u64, i64) -> Tensor,
    ) -> Result<Scores> {
        let mut shown = None;
        let seen = self.reference.measure(self.samples, world, |chunk, rows| {
            let x = draw(chunk, rows);
            if chunk == 0 {
                shown = Some(x.narrow(0, 0, rows.min(SHOWN)).contiguous());
            }
            x
        })?;
        if !seen.moments.is_finite() {
            return Err(NotFinite("samples hold values that are not finite".into()).into());
        }
        // Chunk 0 belongs to rank 0; the others make room for what it sends.
        let shape = [&[self.samples.min(SHOWN)], &self.reference.real(1).size()[1..]].concat();
        let mut shown = shown.unwrap_or_else(|| Tensor::zeros(shape, (tch::Kind::Float, world.device)));
        world.collective().broadcast(&mut shown, 0)?;
        let shown = shown.to_device(Device::Cpu);
        let nearest = self.reference.nearest(&shown);
        let fd = self.reference.distance(&seen);
        Ok(Scores { metrics: self.named(suffix, fd, &seen, nearest), moments: seen.moments, shown })
    }
}

/// What points are scored against, if the configuration asks for that.
///
/// # Errors
/// If the target's samples are no vectors.
pub fn point_plan(
    section: &EvaluateSection,
    kind: &TargetSection,
    target: &dyn Target,
) -> Result<Option<PointPlan>> {
    // A posterior has reference draws in place of exact samples, and scores of its own.
    if section.point_sets == 0 || matches!(kind, TargetSection::Logistic(_)) {
        return Ok(None);
    }
    if target.shape().len() != 1 {
        bail!(
            "evaluate.point_sets = {} scores vectors, and this target makes samples {:?}; set it to 0",
            section.point_sets,
            target.shape()
        );
    }
    Ok(Some(PointPlan {
        samples: section.samples,
        repeats: section.point_sets,
        is_ring: is_ring(kind),
        ..PointPlan::default()
    }))
}

/// Whether the angle about the origin is uniform.
pub fn is_ring(target: &TargetSection) -> bool {
    matches!(target, TargetSection::Donut { .. })
}

/// Scores of points by name, the names ending in `suffix`.
///
/// # Errors
/// [`NotFinite`] if samples, or the target's scores at them, are not finite; otherwise what the reference returns.
pub fn point_scores(reference: &PointReference, x: &Tensor, suffix: &str) -> Result<BTreeMap<String, Score>> {
    let scores = match reference.scores(x) {
        Err(error @ (PointError::NotFinite { .. } | PointError::Overflow { .. })) => {
            return Err(NotFinite(error.to_string()).into());
        }
        scores => scores?,
    };
    Ok(scores.into_iter().map(|(name, measured)| (format!("{name}{suffix}"), measured.into())).collect())
}

/// `rows` samples x0 + sigma·eps, the same on any number of ranks.
pub fn draw_points(
    network: &SamplerNetwork,
    parameters: &Parameters,
    seed: u64,
    rows: i64,
    sigma: f64,
    device: Device,
) -> Tensor {
    let all: Vec<(u64, i64)> = chunks(rows).collect();
    let of_pass = |pass: &[(u64, i64)]| draw_together(network, parameters, seed, pass, sigma, device);
    Tensor::cat(&all.chunks(chunks_of_a_pass(network)).map(of_pass).collect::<Vec<_>>(), 0)
}

/// The noise that makes samples of a finished run exact: the level that training ends at if it is a single
/// one and the target is neither tempered nor smoothed, otherwise 0.
///
/// At a single level sigma the optimum is that x0 + sigma·eps has the target's distribution; over a band with
/// a tempered target, or against a target with the same noise, it is x0 itself.
pub fn output_sigma(method: &MethodSection, is_tempered: bool) -> f64 {
    let (low, high) = method.sigma.band(1.0);
    if is_tempered || low != high || method.smoothing > 0 { 0.0 } else { low }
}

/// From here on are the chunks of draws that only the best sampler of several looks is scored on: those that it was chosen by
/// would flatter it.
pub const FRESH_CHUNKS: u64 = 1 << 32;

/// Samples of chunk `chunk`: x0 + sigma·eps `[rows, …]`; the same on any number of ranks.
pub fn draw_samples(
    network: &SamplerNetwork,
    parameters: &Parameters,
    seed: u64,
    chunk: (u64, i64),
    sigma: f64,
    device: Device,
) -> Tensor {
    draw_together(network, parameters, seed, &[chunk], sigma, device)
}

/// Chunks of samples that one pass through the network makes, where they are all drawn in one place: a chunk is too few
/// rows for a perceptron to be fast, and of images more take too much memory.
pub fn chunks_of_a_pass(network: &SamplerNetwork) -> usize {
    let dimension: i64 = network.spec().shape.iter().product();
    (3200 / dimension).clamp(1, 64) as usize
}

/// Samples of several chunks in one pass, one chunk after the other. Their noise is that of [`draw_samples`]; a last digit may
/// depend on how many chunks are drawn together.
pub fn draw_together(
    network: &SamplerNetwork,
    parameters: &Parameters,
    seed: u64,
    chunks: &[(u64, i64)],
    sigma: f64,
    device: Device,
) -> Tensor {
    let noise = |&(chunk, rows): &(u64, i64)| {
        let mut generator = Generator::new(seed, Stream::Evaluation, 0, chunk);
        let z = generator.normal(&network.latent_shape(rows));
        let shape = [&[rows], network.spec().shape.as_slice()].concat();
        (z, (sigma != 0.0).then(|| generator.normal(&shape)))
    };
    let (z, eps): (Vec<Tensor>, Vec<Option<Tensor>>) = chunks.iter().map(noise).unzip();
    let z = Tensor::cat(&z, 0).to_device(device);
    let x0 = no_grad(|| network.forward(parameters.frozen(), &z));
    match eps.into_iter().collect::<Option<Vec<Tensor>>>() {
        Some(eps) => x0 + Tensor::cat(&eps, 0).to_device(device) * sigma,
        None => x0,
    }
}
