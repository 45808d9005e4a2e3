//! `[regression]`: what holds the sampler beside the field.

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::run::{require, require_falling};

/// While it trains, the sampler is also held near the ends of chains of a tempered target that start from its own latents,
/// by their distance, squared or pseudo-Huber: the regression loss of distribution matching distillation (Yin et al. 2024, arXiv
/// 2311.18828, section 3.2). A field hardly sees how much mass separate modes have; the chains do.
///
/// A latent and the end of its chain are a pair. The chain is the probability flow, and from there annealed Langevin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegressionSection {
    /// Weight of that distance beside the field.
    pub weight: f64,
    /// Pairs, over all ranks: made before the first iteration, and anew where a run is resumed.
    pub pairs: usize,
    /// Pairs of an update, over all ranks.
    pub batch: usize,
    /// Images are compared as means over squares of so many pixels a side: a sample may choose its details.
    pub pool: i64,
    /// A distance |d| beyond this scale counts linearly instead of squared (pseudo-Huber, one scale for an image): where the
    /// ends of latents close by differ, the sampler is drawn to most of them and not to their mean. It also holds less: a
    /// sampler that is far from its ends may be lost. 0: squared throughout.
    #[serde(skip_serializing_if = "is_zero")]
    pub huber_scale: f64,
    /// Steps of the flow.
    pub steps: u64,
    /// Noise levels that the flow starts from and ends at.
    pub sigma: [f64; 2],
    /// Steps of annealed Langevin after it.
    pub langevin_steps: u64,
    /// Noise levels of these steps, first and last.
    pub langevin_sigma: [f64; 2],
    /// Their step size, as a fraction of the variance sigma² of each level.
    pub langevin_step_size: f64,
}

/// What came later is written only where it is used, so that runs from before go on.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for RegressionSection {
    fn default() -> Self {
        RegressionSection {
            weight: 0.05,
            pairs: 3000,
            batch: 24,
            pool: 1,
            huber_scale: 0.0,
            steps: 16,
            sigma: [3.0, 0.1],
            langevin_steps: 0,
            langevin_sigma: [0.5, 0.1],
            langevin_step_size: 0.5,
        }
    }
}

impl RegressionSection {
    pub(super) fn check(&self, shards: usize) -> Result<(), ConfigError> {
        let divides = |rows: usize| rows > 0 && rows.is_multiple_of(shards);
        let multiple = format!("a multiple of compute.shards = {shards}, above 0");
        require(&[
            (
                self.weight > 0.0 && self.weight.is_finite(),
                "regression.weight",
                &self.weight,
                "a number above 0; leave [regression] out for none",
            ),
            (divides(self.pairs), "regression.pairs", &self.pairs, &multiple),
            (divides(self.batch), "regression.batch", &self.batch, &multiple),
            (self.pool > 0, "regression.pool", &self.pool, "1 or more"),
            (
                self.huber_scale >= 0.0 && self.huber_scale.is_finite(),
                "regression.huber_scale",
                &self.huber_scale,
                "a number above 0, or 0 for the squared distance",
            ),
            (self.steps > 0, "regression.steps", &self.steps, "1 or more"),
            (
                self.langevin_step_size > 0.0 && self.langevin_step_size < 2.0,
                "regression.langevin_step_size",
                &self.langevin_step_size,
                "a number between 0 and 2 (at 2 the chain is unstable)",
            ),
        ])?;
        require_falling("regression.sigma", self.sigma)?;
        require_falling("regression.langevin_sigma", self.langevin_sigma)
    }
}
