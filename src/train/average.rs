//! Exponential moving average of a network's weights.

use tch::no_grad;

use crate::model::Parameters;

/// Averaged weights of a sampler.
#[derive(Debug)]
pub struct Average {
    /// The averaged values.
    pub parameters: Parameters,
    half_life_samples: f64,
}

impl Average {
    /// Starts at `parameters`; a half-life of 0 means that the average is the latest value.
    pub fn new(parameters: &Parameters, half_life_samples: f64) -> Self {
        Average { parameters: parameters.duplicate(), half_life_samples }
    }

    /// Takes in the values after an update that saw `batch` samples; `seen` samples were seen in all.
    ///
    /// The half-life is in samples, so it does not depend on the batch, and it is at most a tenth of the samples seen,
    /// so that the average forgets its start (both as in Karras et al. 2022).
    pub fn update(&self, latest: &Parameters, batch: f64, seen: f64) {
        let half_life = self.half_life_samples.min(0.1 * seen);
        let weight = if half_life > 0.0 { 1.0 - 0.5f64.powf(batch / half_life) } else { 1.0 };
        no_grad(|| {
            let average = self.parameters.flat();
            let _ = average.shallow_clone().g_add_(&((latest.flat() - average) * weight));
        });
    }
}
