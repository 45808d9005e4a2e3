//! Adam on a flat buffer, with its state in the open so that a checkpoint can hold it.

use tch::{Tensor, no_grad};

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
        self.updates += 1;
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        let step = learning_rate / correction(beta1);
        let root = correction(beta2).sqrt();
        no_grad(|| {
            let _ = self.mean.g_mul_scalar_(beta1);
            let _ = self.mean.g_add_(&(gradient * (1.0 - beta1)));
            let _ = self.square.g_mul_scalar_(beta2);
            let _ = self.square.g_add_(&(gradient.square() * (1.0 - beta2)));
            let denominator = self.square.sqrt() / root + EPSILON;
            let _ = flat.shallow_clone().g_sub_(&(&self.mean / denominator * step));
        });
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

#[cfg(test)]
mod tests {
    use super::*;

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
