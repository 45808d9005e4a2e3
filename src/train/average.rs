//! Exponential moving average of a network's weights.

use pulp::Arch;
use tch::{Tensor, no_grad};

use crate::comm::memory::{elements, elements_mut, is_plain};
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
        let (mut average, latest) = (self.parameters.flat().shallow_clone(), latest.flat());
        if is_plain::<f32>(&average) && is_plain::<f32>(latest) {
            approach_in_memory(elements_mut(&mut average), elements(latest), weight);
        } else {
            approach(&mut average, latest, weight);
        }
    }
}

/// average + (latest − average) · weight in place, on any device.
fn approach(average: &mut Tensor, latest: &Tensor, weight: f64) {
    no_grad(|| {
        let _ = average.g_add_(&((latest - &*average) * weight));
    });
}

/// As [`approach`], in one pass over host memory where that makes three, with the same bits.
fn approach_in_memory(average: &mut [f32], latest: &[f32], weight: f64) {
    let weight = weight as f32;
    Arch::new().dispatch(|| {
        average.iter_mut().zip(latest).for_each(|(average, latest)| *average += (latest - *average) * weight);
    });
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::model::Layout;
    use crate::rng::{Generator, Stream};

    #[test]
    fn one_pass_over_memory_gives_the_bits_of_the_operations_on_tensors() {
        // Odd sizes beside libtorch's vectors of 8 and 32, and one that it splits over its threads.
        for count in [1, 7, 33, 40_003] {
            let draw = |shard| Generator::new(3, Stream::Data, count as u64, shard).normal(&[count]);
            let (mut found, mut expected) = (draw(0), draw(0));
            for (shard, weight) in [(1, 0.5), (2, 1e-3), (3, 1.0 / 3.0), (4, 1.0)] {
                approach_in_memory(elements_mut(&mut found), elements(&draw(shard)), weight);
                approach(&mut expected, &draw(shard), weight);
                let bits = |t: &Tensor| elements::<f32>(t).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&expected), "{count} numbers, weight {weight}");
            }
        }
    }

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
