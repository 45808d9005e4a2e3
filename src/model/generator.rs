//! A convolutional generator from a latent vector, for image energies whose network is not ours.

use tch::Tensor;

use super::layers::{Conv, Linear};
use super::parameters::{Layout, Weights};

/// `[B, Z] -> [B, C, H, W]`: a linear map to `4w × H/4 × W/4`, two doublings, a last 3 × 3 convolution.
///
/// A linear map of the latent to pixels is added with standard deviation `initial_scale`, and the
/// convolutional part starts at zero: training begins from a Gaussian that spans the target (a wide
/// start), not from a point.
#[derive(Debug)]
pub struct Generator {
    project: Linear,
    first: Conv,
    second: Conv,
    refine: Conv,
    leave: Conv,
    features: i64,
    shape: [i64; 3],
}

impl Generator {
    /// A generator of images `shape` (height and width multiples of 4) from `latent` numbers.
    pub fn new(layout: &mut Layout, shape: [i64; 3], latent: i64, features: i64) -> Self {
        let [channels, height, width] = shape;
        Generator {
            project: Linear::new(layout, "project", latent, 4 * features * (height / 4) * (width / 4)),
            first: Conv::double(layout, "first", 4 * features, 2 * features),
            second: Conv::double(layout, "second", 2 * features, features),
            refine: Conv::same(layout, "refine", features, features, 3),
            leave: Conv::same_zero(layout, "leave", features, channels, 3),
            features,
            shape,
        }
    }

    /// The convolutional part, which starts as the zero function.
    pub fn forward(&self, weights: &Weights, z: &Tensor) -> Tensor {
        let [_, height, width] = self.shape;
        let h = self.project.forward(weights, z).silu();
        let h = h.view([-1, 4 * self.features, height / 4, width / 4]);
        let h = self.first.forward(weights, &h).silu();
        let h = self.second.forward(weights, &h).silu();
        let h = &h + self.refine.forward(weights, &h).silu();
        self.leave.forward(weights, &h)
    }
}
