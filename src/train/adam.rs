//! Adam on a flat buffer, with its state in the open so that a checkpoint can hold it.

use pulp::Arch;
use tch::{Tensor, no_grad};

use crate::comm::memory::{elements, elements_mut, is_plain};

/// State of Adam (Kingma and Ba 2015, algorithm 1) for one flat buffer `[P]`.
#[derive(Debug)]
pub struct Adam {
    /// Running mean of the gradient, `[P]`.
    pub mean: Tensor,
    /// Running mean of the squared gradient, `[P]`.
    pub square: Tensor,
    /// Updates made so far.
    pub updates: i64,
    betas: [f64; 2],
}

/// PyTorch's and the paper's default.
const EPSILON: f64 = 1e-8;

impl Adam {
    /// The state before the first update of `flat` `[P]`.
    pub fn new(flat: &Tensor, betas: [f64; 2]) -> Self {
        Adam { mean: flat.zeros_like(), square: flat.zeros_like(), updates: 0, betas }
    }

    /// Moves `flat` `[P]` one step of size `learning_rate` against `gradient` `[P]`, in place.
    pub fn update(&mut self, flat: &Tensor, gradient: &Tensor, learning_rate: f64) {
        self.update_with(self.betas, flat, gradient, learning_rate);
    }

    /// As [`update`](Self::update), with other decay rates. They are not to change between two clearings of the state.
    pub fn update_with(
        &mut self,
        [beta1, beta2]: [f64; 2],
        flat: &Tensor,
        gradient: &Tensor,
        learning_rate: f64,
    ) {
        assert_eq!(flat.size(), gradient.size(), "one derivative for each parameter");
        self.updates += 1;
        let step = self.step([beta1, beta2], learning_rate);
        let (mut flat, mean, square) = (flat.shallow_clone(), &mut self.mean, &mut self.square);
        if [&flat, gradient, mean, square].into_iter().all(is_plain::<f32>) {
            step.take_in_memory(&mut flat, mean, square, gradient);
        } else {
            step.take(&mut flat, mean, square, gradient);
        }
    }

    /// The numbers of the update that `updates` counts already.
    fn step(&self, [beta1, beta2]: [f64; 2], learning_rate: f64) -> Step {
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        Step {
            keep_mean: beta1,
            take_mean: 1.0 - beta1,
            keep_square: beta2,
            take_square: 1.0 - beta2,
            root: correction(beta2).sqrt(),
            size: learning_rate / correction(beta1),
        }
    }

    /// Forgets all updates.
    pub fn clear(&mut self) {
        self.updates = 0;
        no_grad(|| {
            let _ = self.mean.zero_();
            let _ = self.square.zero_();
        });
    }
}

/// The numbers of one update, the same for all parameters.
struct Step {
    keep_mean: f64,
    take_mean: f64,
    keep_square: f64,
    take_square: f64,
    /// Root of the correction of the squares' mean for its start at 0.
    root: f64,
    /// The learning rate over the correction of the mean.
    size: f64,
}

impl Step {
    /// By operations on tensors of any kind and device.
    fn take(&self, flat: &mut Tensor, mean: &mut Tensor, square: &mut Tensor, gradient: &Tensor) {
        no_grad(|| {
            let _ = mean.g_mul_scalar_(self.keep_mean);
            let _ = mean.g_add_(&(gradient * self.take_mean));
            let _ = square.g_mul_scalar_(self.keep_square);
            let _ = square.g_add_(&(gradient.square() * self.take_square));
            let denominator = square.sqrt() / self.root + EPSILON;
            let _ = flat.g_sub_(&(&*mean / denominator * self.size));
        });
    }

    /// As [`take`](Self::take) for f32 in host memory, in one pass for its eleven: each operation rounds to f32 as there, and
    /// its constants are rounded before. Only the roots may differ, in their last bit: these are the nearest f32, and MKL's,
    /// which libtorch asks, miss it for 0.6 % of all numbers.
    fn take_in_memory(&self, flat: &mut Tensor, mean: &mut Tensor, square: &mut Tensor, gradient: &Tensor) {
        let (keep_mean, take_mean) = (self.keep_mean as f32, self.take_mean as f32);
        let (keep_square, take_square) = (self.keep_square as f32, self.take_square as f32);
        let (root, epsilon, size) = (self.root as f32, EPSILON as f32, self.size as f32);
        let state = elements_mut::<f32>(mean).iter_mut().zip(elements_mut::<f32>(square));
        let values = elements_mut::<f32>(flat).iter_mut().zip(elements::<f32>(gradient));
        Arch::new().dispatch(|| {
            for ((mean, square), (value, gradient)) in state.zip(values) {
                *mean = *mean * keep_mean + gradient * take_mean;
                *square = *square * keep_square + gradient * gradient * take_square;
                *value -= *mean / (square.sqrt() / root + epsilon) * size;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Generator, Stream};

    #[test]
    fn one_pass_over_memory_keeps_the_bits_of_the_moments_and_moves_as_operations_on_tensors_do() {
        // One element, odd sizes beside libtorch's vectors of 8 and 32, and one that it splits over its threads.
        for count in [1, 7, 33, 1001, 40_003] {
            for betas in [[0.9, 0.99], [0.0, 0.99]] {
                let draw =
                    |iteration| Generator::new(2, Stream::Data, iteration, count as u64).normal(&[count]);
                let (flat, mut expected) = (draw(0), draw(0));
                let (mut adam, mut tensors) = (Adam::new(&flat, betas), Adam::new(&flat, betas));
                for iteration in 1..=6 {
                    // Sizes from 1e-34, whose squares are 0, to 10, and exact zeros.
                    let size = (draw(100 + iteration).abs() * -20.0 + 2.0).exp();
                    let gradient = draw(iteration) * size * draw(200 + iteration).ge(-1.0);
                    adam.update(&flat, &gradient, 0.01);
                    tensors.updates += 1;
                    let step = tensors.step(betas, 0.01);
                    step.take(&mut expected, &mut tensors.mean, &mut tensors.square, &gradient);
                    for (found, wanted) in [(&adam.mean, &tensors.mean), (&adam.square, &tensors.square)] {
                        assert_eq!(bits(found), bits(wanted), "{count} parameters, update {iteration}");
                    }
                    // A root's last bit is 1.2e-7 of a step of about 0.01, and f32 near 4 are 2.4e-7 or 4.8e-7 apart.
                    let error = (&flat - &expected).abs().max().double_value(&[]);
                    assert!(error <= 4.8e-7, "{count} parameters, update {iteration}: {error}");
                }
            }
        }
    }

    fn bits(t: &Tensor) -> Vec<u32> {
        Vec::<f32>::try_from(t).unwrap().into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn three_updates_equal_pytorch() {
        // PyTorch 2.11.0, CPU:
        //   p = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
        //   opt = torch.optim.Adam([p], lr=0.01, betas=(0.9, 0.99))
        //   for g in ([0.1, -0.2, 0.3], [0.4, 0.1, -0.5], [0.0, 3.0, 1e-4]):
        //       p.grad = torch.tensor(g); opt.step()
        //   print(p.tolist())
        let expected = [0.474_335_670_471_191_4, -0.993_522_882_461_547_9, 1.995_203_495_025_634_8];
        let p = Tensor::from_slice(&[0.5f32, -1.0, 2.0]);
        let mut adam = Adam::new(&p, [0.9, 0.99]);
        for gradient in [[0.1f32, -0.2, 0.3], [0.4, 0.1, -0.5], [0.0, 3.0, 1e-4]] {
            adam.update(&p, &Tensor::from_slice(&gradient), 0.01);
        }
        for (index, expected) in expected.into_iter().enumerate() {
            // f32 rounding of a number near 2.
            assert!(
                (p.double_value(&[index as i64]) - expected).abs() < 5e-7,
                "{}",
                p.double_value(&[index as i64])
            );
        }
    }
}
