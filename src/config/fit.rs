//! The configurations of `dft fit-energy` and `dft fit-features`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::network::EnergyKind;
use super::run::{ComputeSection, Identity, RunSection, require};
use super::train::CheckpointSection;

/// `[train]` of a fit: one network, one loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FitSection {
    /// Directory of the data set.
    pub data: PathBuf,
    /// Updates.
    pub iterations: u64,
    /// Rows of the global batch, over all ranks.
    pub batch: usize,
    /// Adam's step size.
    pub lr: f64,
    /// Adam's decay rates.
    pub betas: [f64; 2],
    /// Updates over which the step size rises from zero.
    pub warmup_updates: u64,
    /// Fraction of the iterations after which the step size falls along a cosine to zero.
    pub cosine_from: f64,
    /// Largest norm of the gradient; longer ones are scaled down. 0 means no limit.
    pub clip_norm: f64,
    /// Half-life of the averaged weights, in samples. 0 means no averaging.
    pub ema_half_life_samples: f64,
}

impl Default for FitSection {
    fn default() -> Self {
        FitSection {
            data: PathBuf::from("data/mnist"),
            iterations: 3000,
            batch: 96,
            lr: 1e-3,
            betas: [0.9, 0.99],
            warmup_updates: 100,
            cosine_from: 0.5,
            clip_norm: 20.0,
            ema_half_life_samples: 0.0,
        }
    }
}

impl FitSection {
    fn check(&self) -> Result<(), ConfigError> {
        require(&[
            (self.iterations > 0, "train.iterations", &self.iterations, "1 or more"),
            (self.lr > 0.0, "train.lr", &self.lr, "a number above 0"),
            (
                (0.0..=1.0).contains(&self.cosine_from),
                "train.cosine_from",
                &self.cosine_from,
                "a fraction 0 to 1",
            ),
            (self.clip_norm >= 0.0, "train.clip_norm", &self.clip_norm, "0 or more"),
            (
                self.betas.iter().all(|beta| (0.0..1.0).contains(beta)),
                "train.betas",
                &format!("{:?}", self.betas),
                "two in [0, 1)",
            ),
            (
                self.ema_half_life_samples >= 0.0,
                "train.ema_half_life_samples",
                &self.ema_half_life_samples,
                "0 or more",
            ),
        ])
    }
}

/// `[energy]`: the network and its noise levels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergySection {
    /// Which network.
    pub kind: EnergyKind,
    /// Channels of the first layer.
    pub width: i64,
    /// Noise level of the density that exp(−E) models, in units of pixels.
    pub sigma0: f64,
    /// Band of noise levels of the training loss.
    pub sigma: [f64; 2],
    /// Power p of the weight (1 + sigma²/sigma_data²)^p that a level has in the loss besides 1/sigma², its mean over the
    /// band being 1. At 0, as in the source, nearly all weight is on levels where the class is long decided; 1 is
    /// that of Karras et al. (2022).
    #[serde(default)]
    pub weight_power: f64,
    /// Standard deviation of the data around their mean, in units of pixels.
    #[serde(default = "default_sigma_data")]
    pub sigma_data: f64,
}

fn default_sigma_data() -> f64 {
    0.33
}

/// `[contrast]`: persistent chains that the energy is contrasted with towards the end of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContrastSection {
    /// Fraction of the iterations after which it begins.
    pub from: f64,
    /// Weight of the mean difference of energies, in nats, beside the denoising loss.
    pub weight: f64,
    /// Chains in all: a multiple of train.batch, as one of those of each row moves in an update.
    pub chains: usize,
    /// Langevin steps of a chain in an update.
    pub steps: u64,
    /// Size of these steps, as a fraction of the variance sigma² of the chain's level.
    pub step_size: f64,
    /// Band of the chains' noise levels; each keeps its own.
    pub sigma: [f64; 2],
    /// Probability that a chain starts anew from noisy data before it moves.
    pub restart: f64,
}

impl Default for ContrastSection {
    fn default() -> Self {
        ContrastSection {
            from: 0.75,
            weight: 0.2,
            chains: 960,
            steps: 5,
            step_size: 0.4,
            sigma: [0.1, 2.0],
            restart: 0.01,
        }
    }
}

impl ContrastSection {
    fn check(&self, batch: usize) -> Result<(), ConfigError> {
        let [low, high] = self.sigma;
        require(&[
            ((0.0..1.0).contains(&self.from), "contrast.from", &self.from, "a fraction 0 to 1, below 1"),
            (self.weight > 0.0, "contrast.weight", &self.weight, "above 0; leave [contrast] out for none"),
            (
                self.chains > 0 && self.chains.is_multiple_of(batch),
                "contrast.chains",
                &self.chains,
                &format!("a multiple of train.batch = {batch}"),
            ),
            (self.steps > 0, "contrast.steps", &self.steps, "1 or more"),
            (
                self.step_size > 0.0 && self.step_size < 2.0,
                "contrast.step_size",
                &self.step_size,
                "a number between 0 and 2 (at 2 the chain is unstable)",
            ),
            (
                low > 0.0 && low <= high && high.is_finite(),
                "contrast.sigma",
                &format!("[{low}, {high}]"),
                "[low, high] with 0 < low ≤ high",
            ),
            ((0.0..=1.0).contains(&self.restart), "contrast.restart", &self.restart, "a probability"),
        ])
    }
}

/// What a user writes for `dft fit-energy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyFile {
    /// `[run]`.
    pub run: RunSection,
    /// `[compute]`.
    #[serde(default)]
    pub compute: ComputeSection,
    /// `[energy]`.
    pub energy: EnergySection,
    /// `[contrast]`; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<ContrastSection>,
    /// `[train]`.
    #[serde(default)]
    pub train: FitSection,
    /// `[checkpoint]`.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
}

/// What a user writes for `dft fit-features`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturesFile {
    /// `[run]`.
    pub run: RunSection,
    /// `[compute]`.
    #[serde(default)]
    pub compute: ComputeSection,
    /// `[train]`.
    #[serde(default)]
    pub train: FitSection,
    /// `[checkpoint]`.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
}

/// A checked configuration of `dft fit-energy`.
#[derive(Debug, Clone)]
pub struct EnergyPlan {
    /// The configuration with every default filled in.
    pub file: EnergyFile,
}

/// A checked configuration of `dft fit-features`.
#[derive(Debug, Clone)]
pub struct FeaturesPlan {
    /// The configuration with every default filled in.
    pub file: FeaturesFile,
}

impl EnergyPlan {
    /// What must not change between the parts of a fit.
    pub fn identity(&self) -> Identity {
        let EnergyFile { run, compute, energy, contrast, train, .. } = &self.file;
        let mut identity = identity(run, compute, train);
        identity.extend([("[energy]", json(energy)), ("[contrast]", json(contrast))]);
        identity
    }
}

impl FeaturesPlan {
    /// What must not change between the parts of a fit.
    pub fn identity(&self) -> Identity {
        identity(&self.file.run, &self.file.compute, &self.file.train)
    }
}

fn check_compute(compute: &ComputeSection, batch: usize, world_size: usize) -> Result<(), ConfigError> {
    if compute.cuda_graphs {
        return Err(ConfigError::Invalid(
            "compute.cuda_graphs is for dft train, and a fit is computed call by call; leave it out".into(),
        ));
    }
    compute.check("train.batch", batch, world_size)
}

fn identity(run: &RunSection, compute: &ComputeSection, train: &FitSection) -> Identity {
    let mut identity = compute.identity();
    identity.extend([("run.seed", run.seed.to_string()), ("[train]", json(train))]);
    identity
}

fn json<T: Serialize>(section: &T) -> String {
    serde_json::to_string(section).expect("a section is plain data")
}

impl EnergyFile {
    /// Checks the configuration for this world size.
    ///
    /// # Errors
    /// The first value that does not fit, what it should be, and what to do.
    pub fn check(self, world_size: usize) -> Result<EnergyPlan, ConfigError> {
        check_compute(&self.compute, self.train.batch, world_size)?;
        self.train.check()?;
        self.checkpoint.check()?;
        let [low, high] = self.energy.sigma;
        require(&[
            (self.energy.width > 0, "energy.width", &self.energy.width, "1 or more"),
            (self.energy.sigma0 > 0.0, "energy.sigma0", &self.energy.sigma0, "a number above 0"),
            (
                low > 0.0 && low <= high && high.is_finite(),
                "energy.sigma",
                &format!("[{low}, {high}]"),
                "[low, high] with 0 < low ≤ high",
            ),
            (
                (0.0..=2.0).contains(&self.energy.weight_power),
                "energy.weight_power",
                &self.energy.weight_power,
                "a number 0 to 2",
            ),
            (self.energy.sigma_data > 0.0, "energy.sigma_data", &self.energy.sigma_data, "a number above 0"),
        ])?;
        self.contrast.iter().try_for_each(|contrast| contrast.check(self.train.batch))?;
        Ok(EnergyPlan { file: self })
    }
}

impl FeaturesFile {
    /// Checks the configuration for this world size.
    ///
    /// # Errors
    /// The first value that does not fit, what it should be, and what to do.
    pub fn check(self, world_size: usize) -> Result<FeaturesPlan, ConfigError> {
        check_compute(&self.compute, self.train.batch, world_size)?;
        self.train.check()?;
        self.checkpoint.check()?;
        Ok(FeaturesPlan { file: self })
    }
}
