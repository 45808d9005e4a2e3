//! The paper-size energy: the "12-layer" residual network of Li, Chen and Sommer (arXiv 1910.07762).

use tch::Tensor;

use super::layers::{Conv, Linear};
use super::parameters::{Layout, Weights};

/// Six pre-activation residual blocks `c -> 2c↓, 2c, 4c↓, 4c, 8c↓, 8c` on images padded to a multiple of
/// 8 and the quadratic head `E = (w1·h)(w2·h) + w3·(h∘h)`; ELU, no normalisation.
#[derive(Debug)]
pub struct ResNet {
    enter: Conv,
    blocks: Vec<Block>,
    heads: [Linear; 3],
    padding: [i64; 4],
}

impl ResNet {
    /// A network for images `[channels, height, width]` with `features` channels in the first layer
    /// (64: 9 M parameters, 128: 36 M, at 32 × 32).
    pub fn new(layout: &mut Layout, shape: [i64; 3], features: i64) -> Self {
        let [channels, height, width] = shape;
        let missing = |length: i64| (8 - length % 8) % 8;
        let (rows, columns) = (missing(height), missing(width));
        let c = features;
        let plan = [(c, 2 * c, true), (2 * c, 2 * c, false), (2 * c, 4 * c, true), (4 * c, 4 * c, false)];
        let plan = plan.into_iter().chain([(4 * c, 8 * c, true), (8 * c, 8 * c, false)]);
        let enter = Conv::same(layout, "enter", channels, c, 3);
        let blocks = plan
            .enumerate()
            .map(|(index, (from, to, halves))| {
                Block::new(layout, &format!("block.{index}"), from, to, halves)
            })
            .collect();
        let flat = 8 * c * ((height + rows) / 8) * ((width + columns) / 8);
        let heads =
            ["head.first", "head.second", "head.square"].map(|name| Linear::new(layout, name, flat, 1));
        let padding = [columns / 2, columns - columns / 2, rows / 2, rows - rows / 2];
        ResNet { enter, blocks, heads, padding }
    }

    /// Energy of each image, `[B, C, H, W] -> [B]`.
    pub fn forward(&self, weights: &Weights, x: &Tensor) -> Tensor {
        let mut h = self.enter.forward(weights, &x.constant_pad_nd(self.padding));
        for block in &self.blocks {
            h = block.forward(weights, &h);
        }
        let h = h.elu().flatten(1, -1);
        let [first, second, square] = &self.heads;
        let product = first.forward(weights, &h) * second.forward(weights, &h);
        (product + square.forward(weights, &h.square())).squeeze_dim(1)
    }
}

/// Two 3 × 3 convolutions, the first without a bias, beside a 1 × 1 convolution; a halving block widens in its second.
#[derive(Debug)]
struct Block {
    first: Conv,
    second: Conv,
    shortcut: Conv,
    halves: bool,
}

impl Block {
    fn new(layout: &mut Layout, name: &str, from: i64, to: i64, halves: bool) -> Self {
        let between = if halves { from } else { to };
        Block {
            first: Conv::same_without_bias(layout, &format!("{name}.first"), from, between, 3),
            second: Conv::same(layout, &format!("{name}.second"), between, to, 3),
            shortcut: Conv::same(layout, &format!("{name}.shortcut"), from, to, 1),
            halves,
        }
    }

    fn forward(&self, weights: &Weights, x: &Tensor) -> Tensor {
        let h = self.second.forward(weights, &self.first.forward(weights, &x.elu()).elu());
        let sum = h + self.shortcut.forward(weights, x);
        if self.halves { sum.avg_pool2d([2i64; 2], [2i64; 2], [0i64; 2], false, true, None) } else { sum }
    }
}
