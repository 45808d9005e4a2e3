//! A small U-Net between images of one shape: the trunk of the CPU-size energy, and with it of the
//! sampler and score network that start as copies of it.

use tch::Tensor;

use super::layers::{Conv, Linear};
use super::parameters::{Layout, Weights};

/// Two halvings, a fully connected bottleneck, two doublings with a skip connection in between; SiLU, no
/// normalisation (smooth everywhere, so energies built from it are twice differentiable).
///
/// With `width` w: `[B, C, H, W] -> w × H/2 -> 2w × H/4 -> 128 -> 128 -> 2w × H/4 -> w × H/2 -> [B, C, H,
/// W]`. A noise-conditional network adds a bias from an embedding of log sigma at three places; its last
/// layer starts at zero, so a conditional copy of an unconditional network starts as the same function.
#[derive(Debug)]
pub struct UNet {
    pub(super) enter: Conv,
    pub(super) outer: Conv,
    pub(super) down: Conv,
    pub(super) squeeze: Linear,
    pub(super) middle: Linear,
    pub(super) expand: Linear,
    pub(super) inner: Conv,
    pub(super) up: Conv,
    pub(super) merge: Conv,
    pub(super) leave: Conv,
    noise: Option<NoiseEmbedding>,
    width: i64,
}

/// Width of the fully connected bottleneck.
const BOTTLENECK: i64 = 128;

impl UNet {
    /// A network for images `[channels, height, width]` (multiples of 4) with `features` channels at half
    /// size.
    pub fn new(layout: &mut Layout, shape: [i64; 3], features: i64, is_conditional: bool) -> Self {
        let [channels, height, width] = shape;
        let flat = 2 * features * (height / 4) * (width / 4);
        UNet {
            enter: Conv::halve(layout, "enter", channels, features),
            outer: Conv::same(layout, "outer", features, features, 3),
            down: Conv::halve(layout, "down", features, 2 * features),
            squeeze: Linear::new(layout, "squeeze", flat, BOTTLENECK),
            middle: Linear::new(layout, "middle", BOTTLENECK, BOTTLENECK),
            expand: Linear::new(layout, "expand", BOTTLENECK, flat),
            inner: Conv::same(layout, "inner", 2 * features, 2 * features, 3),
            up: Conv::double(layout, "up", 2 * features, features),
            merge: Conv::same(layout, "merge", features, features, 3),
            leave: Conv::double(layout, "leave", features, channels),
            noise: is_conditional.then(|| NoiseEmbedding::new(layout, features)),
            width: features,
        }
    }

    /// `x` `[B, C, H, W]` and, for a conditional network, log sigma `[B]`; returns `[B, C, H, W]`.
    pub fn forward(&self, weights: &Weights, x: &Tensor, log_sigma: Option<&Tensor>) -> Tensor {
        let bias = match (&self.noise, log_sigma) {
            (Some(embedding), Some(log_sigma)) => Some(embedding.forward(weights, log_sigma)),
            (None, None) => None,
            _ => panic!("a noise level belongs to a conditional U-Net, and only there"),
        };
        let shifted = |h: Tensor, offset: i64, length: i64| match &bias {
            Some(bias) if h.dim() == 4 => h + bias.narrow(1, offset, length).unsqueeze(-1).unsqueeze(-1),
            Some(bias) => h + bias.narrow(1, offset, length),
            None => h,
        };
        let w = self.width;
        let half = shifted(channels_last(&self.enter.forward(weights, x)), 0, w).silu();
        let half = &half + self.outer.forward(weights, &half).silu();
        let quarter = shifted(self.down.forward(weights, &half), w, 2 * w).silu();
        let code = self.squeeze.forward(weights, &quarter.flatten(1, -1));
        let code = self.middle.forward(weights, &shifted(code, 3 * w, BOTTLENECK).silu()).silu();
        let expanded = channels_last(&self.expand.forward(weights, &code).view_as(&quarter));
        let quarter = (quarter + expanded).silu();
        let quarter = self.inner.forward(weights, &quarter).silu();
        let merged = (self.up.forward(weights, &quarter) + &half).silu();
        let merged = &merged + self.merge.forward(weights, &merged).silu();
        self.leave.forward(weights, &merged)
    }
}

/// The same images `[B, C, H, W]` with a pixel's channels side by side in memory.
///
/// Convolutions of such images give such images, and libraries compute theirs so: for others, oneDNN reorders what comes in
/// and what goes out of every layer.
pub(super) fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0i64, 2, 3, 1]).contiguous().permute([0i64, 3, 1, 2])
}

/// Biases for the three conditioned places from Fourier features of log sigma.
#[derive(Debug)]
struct NoiseEmbedding {
    hidden: Linear,
    last: Linear,
}

impl NoiseEmbedding {
    /// Pairs of sine and cosine features; angular frequencies per unit of log sigma.
    const FREQUENCIES: [f64; 4] = [0.5, 1.0, 2.0, 4.0];

    fn new(layout: &mut Layout, features: i64) -> Self {
        let inputs = 2 * Self::FREQUENCIES.len() as i64;
        NoiseEmbedding {
            hidden: Linear::new(layout, "noise.hidden", inputs, 64),
            last: Linear::zero(layout, "noise.last", 64, 3 * features + BOTTLENECK),
        }
    }

    /// `[B] -> [B, 3w + 128]`.
    fn forward(&self, weights: &Weights, log_sigma: &Tensor) -> Tensor {
        let column = log_sigma.unsqueeze(1);
        let angles = Tensor::cat(&Self::FREQUENCIES.map(|frequency| &column * frequency), 1);
        let features = Tensor::cat(&[angles.sin(), angles.cos()], 1);
        self.last.forward(weights, &self.hidden.forward(weights, &features).silu())
    }
}
