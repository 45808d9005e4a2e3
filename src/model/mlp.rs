//! The multilayer perceptron of the low-dimensional experiments.

use tch::Tensor;

use super::layers::Linear;
use super::parameters::{Layout, Weights};

/// `depth` hidden SiLU layers of `width` units; the last layer starts at zero, so the network starts as
/// the zero function and the caller's residual form decides where training begins.
#[derive(Debug)]
pub struct Mlp {
    hidden: Vec<Linear>,
    last: Linear,
}

impl Mlp {
    /// A network from `inputs` to `outputs` features; the hidden layers start from PyTorch's default times `gain`.
    pub fn new(
        layout: &mut Layout,
        name: &str,
        [inputs, outputs]: [i64; 2],
        (width, depth): (i64, usize),
        gain: f64,
    ) -> Self {
        let hidden = (0..depth)
            .map(|layer| {
                let from = if layer == 0 { inputs } else { width };
                Linear::scaled(layout, &format!("{name}.{layer}"), from, width, gain)
            })
            .collect();
        let from = if depth == 0 { inputs } else { width };
        Mlp { hidden, last: Linear::zero(layout, &format!("{name}.last"), from, outputs) }
    }

    /// `[B, inputs] -> [B, outputs]`.
    pub fn forward(&self, weights: &Weights, x: &Tensor) -> Tensor {
        let mut h = x.shallow_clone();
        for layer in &self.hidden {
            h = layer.forward(weights, &h).silu();
        }
        self.last.forward(weights, &h)
    }
}
