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

    /// Starts again at `parameters`.
    pub fn restart(&self, parameters: &Parameters) {
        no_grad(|| self.parameters.flat().shallow_clone().copy_(parameters.flat()));
    }

    /// Takes in the values after an update that saw `batch` samples; `seen` samples were seen in all.
    ///
    /// The half-life is in samples, so it does not depend on the batch, and it is at most a tenth of the
    /// samples seen, so that the average forgets its start (both as in Karras et al. 2022).
    pub fn update(&self, latest: &Parameters, batch: f64, seen: f64) {
        let half_life = self.half_life_samples.min(0.1 * seen);
        let weight = if half_life > 0.0 { 1.0 - 0.5f64.powf(batch / half_life) } else { 1.0 };
        no_grad(|| {
            let average = self.parameters.flat();
            let _ = average.shallow_clone().g_add_(&((latest.flat() - average) * weight));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tch::Tensor;

    use super::*;
    use crate::model::Layout;

    #[test]
    fn after_one_half_life_the_old_and_the_new_weigh_alike() {
        let mut layout = Layout::default();
        layout.add("a".into(), &[2], crate::model::Init::Zero);
        let layout = Rc::new(layout);
        let start = Parameters::from_flat(&layout, Tensor::from_slice(&[1f32, -1.0]));
        let later = Parameters::from_flat(&layout, Tensor::from_slice(&[3f32, 1.0]));
        let average = Average::new(&start, 100.0);
        // 100 samples at a half-life of 100, long after the start: the mean of old and new.
        average.update(&later, 100.0, 1e6);
        assert_eq!(*average.parameters.flat(), Tensor::from_slice(&[2f32, 0.0]));
        // At the start the half-life is a tenth of the samples seen: 10 of 100 seen are one half-life.
        average.update(&start, 10.0, 100.0);
        assert_eq!(*average.parameters.flat(), Tensor::from_slice(&[1.5f32, -0.5]));
    }

    #[test]
    fn without_a_half_life_the_average_is_the_latest_value() {
        let mut layout = Layout::default();
        layout.add("a".into(), &[1], crate::model::Init::Zero);
        let layout = Rc::new(layout);
        let value = |value: f32| Parameters::from_flat(&layout, Tensor::from_slice(&[value]));
        let average = Average::new(&value(1.0), 0.0);
        average.update(&value(5.0), 10.0, 10.0);
        assert_eq!(*average.parameters.flat(), Tensor::from_slice(&[5f32]));
    }
}
