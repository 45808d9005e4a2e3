//! The configurations of `dft fit-energy` and `dft fit-features`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::network::EnergyKind;
use super::run::{ComputeSection, RunSection, require};

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
    /// `[train]`.
    #[serde(default)]
    pub train: FitSection,
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

impl EnergyFile {
    /// Checks the configuration for this world size.
    ///
    /// # Errors
    /// The first value that does not fit, what it should be, and what to do.
    pub fn check(self, world_size: usize) -> Result<EnergyPlan, ConfigError> {
        self.compute.check("train.batch", self.train.batch, world_size)?;
        self.train.check()?;
        let [low, high] = self.energy.sigma;
        require(&[
            (self.energy.width > 0, "energy.width", &self.energy.width, "1 or more"),
            (self.energy.sigma0 > 0.0, "energy.sigma0", &self.energy.sigma0, "a number above 0"),
            (
                low > 0.0 && low <= high,
                "energy.sigma",
                &format!("[{low}, {high}]"),
                "[low, high] with 0 < low ≤ high",
            ),
        ])?;
        Ok(EnergyPlan { file: self })
    }
}

impl FeaturesFile {
    /// Checks the configuration for this world size.
    ///
    /// # Errors
    /// The first value that does not fit, what it should be, and what to do.
    pub fn check(self, world_size: usize) -> Result<FeaturesPlan, ConfigError> {
        self.compute.check("train.batch", self.train.batch, world_size)?;
        self.train.check()?;
        Ok(FeaturesPlan { file: self })
    }
}
