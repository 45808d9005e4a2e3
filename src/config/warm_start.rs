//! `[warm_start]`: what the sampler learns before the first iteration.

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::run::{require, require_falling};

/// The sampler is regressed on short deterministic chains of a tempered target: from latents to where the probability
/// flow carries them. It starts with every mode that the flow finds, blurred; training sharpens it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmStartSection {
    /// Updates, each on fresh chains; as many samples in one as `train.batch`.
    pub updates: u64,
    /// Steps of the flow; each takes one evaluation of the target, and one more is taken at the end.
    pub steps: u64,
    /// Noise levels that the flow starts from and ends at.
    pub sigma: [f64; 2],
    /// Adam's step size: it rises over the first 50 updates and falls along a cosine over the second half.
    pub lr: f64,
}

impl Default for WarmStartSection {
    fn default() -> Self {
        WarmStartSection { updates: 500, steps: 4, sigma: [3.0, 0.1], lr: 1e-3 }
    }
}

impl WarmStartSection {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        require(&[
            (
                self.updates > 0,
                "warm_start.updates",
                &self.updates,
                "1 or more; leave [warm_start] out for none",
            ),
            (self.steps > 0, "warm_start.steps", &self.steps, "1 or more"),
            (self.lr > 0.0, "warm_start.lr", &self.lr, "a number above 0"),
        ])?;
        require_falling("warm_start.sigma", self.sigma)
    }
}
