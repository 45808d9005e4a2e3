//! Linear and convolution layers, and how their parameters start.

use tch::{Kind, Tensor};

use super::parameters::{Layout, Slot, Weights};
use crate::rng::Generator;

/// The distribution a parameter starts from.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// All zero.
    Zero,
    /// Uniform in ±`bound`; with bound 1/sqrt(fan-in) this is PyTorch's default for linear and convolution
    /// layers.
    Uniform(f64),
}

impl Init {
    /// Draws initial values of this shape.
    pub fn draw(self, shape: &[i64], generator: &mut Generator) -> Tensor {
        match self {
            Init::Zero => Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu)),
            Init::Uniform(bound) => (generator.uniform(shape) * 2.0 - 1.0) * bound,
        }
    }
}

/// Reshapes a value per row, `[B]`, so that it broadcasts over `x` `[B, …]`.
pub fn per_row(value: &Tensor, x: &Tensor) -> Tensor {
    let mut shape = vec![1; x.dim()];
    shape[0] = -1;
    value.reshape(shape)
}

/// `y = x W^T + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Slot,
    bias: Slot,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features, PyTorch's default initialisation.
    pub fn new(layout: &mut Layout, name: &str, inputs: i64, outputs: i64) -> Self {
        Self::scaled(layout, name, inputs, outputs, 1.0)
    }

    /// As [`new`](Self::new), with a factor on the initial values.
    pub fn scaled(layout: &mut Layout, name: &str, inputs: i64, outputs: i64, gain: f64) -> Self {
        Self::with(layout, name, inputs, outputs, Init::Uniform((inputs as f64).powf(-0.5) * gain))
    }

    /// A layer that starts as the zero function.
    pub fn zero(layout: &mut Layout, name: &str, inputs: i64, outputs: i64) -> Self {
        Self::with(layout, name, inputs, outputs, Init::Zero)
    }

    fn with(layout: &mut Layout, name: &str, inputs: i64, outputs: i64, init: Init) -> Self {
        Linear {
            weight: layout.add(format!("{name}.weight"), &[outputs, inputs], init),
            bias: layout.add(format!("{name}.bias"), &[outputs], init),
        }
    }

    /// Slots of weight `[outputs, inputs]` and bias `[outputs]`.
    pub fn slots(&self) -> (Slot, Slot) {
        (self.weight, self.bias)
    }

    /// `[B, inputs] -> [B, outputs]`.
    pub fn forward(&self, weights: &Weights, x: &Tensor) -> Tensor {
        self.apply(weights, x, true)
    }

    /// As [`forward`](Self::forward), or without its bias: what the layer makes of a change of `x`.
    pub fn apply(&self, weights: &Weights, x: &Tensor, has_bias: bool) -> Tensor {
        x.linear(&weights[self.weight], has_bias.then(|| &weights[self.bias]))
    }

    /// The adjoint of the map without its bias, `[B, outputs] -> [B, inputs]`.
    pub fn adjoint(&self, weights: &Weights, y: &Tensor) -> Tensor {
        y.mm(&weights[self.weight])
    }
}

/// A two-dimensional convolution, or its transpose.
#[derive(Debug)]
pub struct Conv {
    weight: Slot,
    bias: Option<Slot>,
    stride: i64,
    padding: i64,
    transposed: bool,
}

impl Conv {
    /// `size × size` kernel, stride 1, "same" padding.
    pub fn same(layout: &mut Layout, name: &str, inputs: i64, outputs: i64, size: i64) -> Self {
        let bound = ((inputs * size * size) as f64).powf(-0.5);
        let shape = [outputs, inputs, size, size];
        Self::with(layout, name, shape, Some(outputs), Init::Uniform(bound), (1, size / 2, false))
    }

    /// As [`Conv::same`], without a bias.
    pub fn same_without_bias(layout: &mut Layout, name: &str, inputs: i64, outputs: i64, size: i64) -> Self {
        let bound = ((inputs * size * size) as f64).powf(-0.5);
        Self::with(
            layout,
            name,
            [outputs, inputs, size, size],
            None,
            Init::Uniform(bound),
            (1, size / 2, false),
        )
    }

    /// As [`Conv::same`], starting as the zero function.
    pub fn same_zero(layout: &mut Layout, name: &str, inputs: i64, outputs: i64, size: i64) -> Self {
        Self::with(
            layout,
            name,
            [outputs, inputs, size, size],
            Some(outputs),
            Init::Zero,
            (1, size / 2, false),
        )
    }

    /// Without padding: `[H, W] -> [H − size + 1, W − size + 1]`.
    pub fn valid(layout: &mut Layout, name: &str, inputs: i64, outputs: i64, size: i64) -> Self {
        let bound = ((inputs * size * size) as f64).powf(-0.5);
        let shape = [outputs, inputs, size, size];
        Self::with(layout, name, shape, Some(outputs), Init::Uniform(bound), (1, 0, false))
    }

    /// 4 × 4 kernel, stride 2: halves height and width.
    pub fn halve(layout: &mut Layout, name: &str, inputs: i64, outputs: i64) -> Self {
        let bound = ((inputs * 16) as f64).powf(-0.5);
        let shape = [outputs, inputs, 4, 4];
        Self::with(layout, name, shape, Some(outputs), Init::Uniform(bound), (2, 1, false))
    }

    /// Transposed 4 × 4 kernel, stride 2: doubles height and width.
    pub fn double(layout: &mut Layout, name: &str, inputs: i64, outputs: i64) -> Self {
        // An output pixel sees a quarter of the kernel, hence fan-in 4 · inputs.
        let bound = ((inputs * 4) as f64).powf(-0.5);
        let shape = [inputs, outputs, 4, 4];
        Self::with(layout, name, shape, Some(outputs), Init::Uniform(bound), (2, 1, true))
    }

    fn with(
        layout: &mut Layout,
        name: &str,
        shape: [i64; 4],
        bias: Option<i64>,
        init: Init,
        (stride, padding, transposed): (i64, i64, bool),
    ) -> Self {
        Conv {
            weight: layout.add(format!("{name}.weight"), &shape, init),
            bias: bias.map(|outputs| layout.add(format!("{name}.bias"), &[outputs], Init::Zero)),
            stride,
            padding,
            transposed,
        }
    }

    /// `[B, C, H, W] -> [B, C', H', W']`.
    pub fn forward(&self, weights: &Weights, x: &Tensor) -> Tensor {
        self.apply(weights, x, true)
    }

    /// As [`forward`](Self::forward), or without its bias: what the layer makes of a change of `x`.
    pub fn apply(&self, weights: &Weights, x: &Tensor, has_bias: bool) -> Tensor {
        let bias = self.bias.filter(|_| has_bias).map(|slot| &weights[slot]);
        self.convolve(&weights[self.weight], bias, x, self.transposed)
    }

    /// The adjoint of the map without its bias, `[B, C', H', W'] -> [B, C, H, W]`, where the stride divides H and W.
    pub fn adjoint(&self, weights: &Weights, y: &Tensor) -> Tensor {
        self.convolve(&weights[self.weight], None, y, !self.transposed)
    }

    fn convolve(&self, weight: &Tensor, bias: Option<&Tensor>, x: &Tensor, transposed: bool) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        if transposed {
            x.conv_transpose2d(weight, bias, stride, padding, [0i64; 2], 1, [1i64; 2])
        } else {
            x.conv2d(weight, bias, stride, padding, [1i64; 2], 1)
        }
    }
}
