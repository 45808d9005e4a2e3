//! A second-order expansion of a log-likelihood: what stands for the rows that an evaluation leaves out.

use tch::{Device, Kind, Tensor};

/// c + g·δ − ½ δ·K δ, all in f64: δ is the distance of the weights from the point of expansion.
#[derive(Debug)]
pub(super) struct Expansion {
    /// c, a scalar.
    pub(super) value: Tensor,
    /// g, `[d]`.
    pub(super) gradient: Tensor,
    /// K, minus the Hessian, `[d, d]`.
    pub(super) curvature: Tensor,
}

impl Expansion {
    pub(super) fn zero(d: i64, device: Device) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, device));
        Expansion { value: zeros(&[]), gradient: zeros(&[d]), curvature: zeros(&[d, d]) }
    }

    /// `self` + `factor` · `other`.
    pub(super) fn plus(&self, factor: f64, other: &Expansion) -> Self {
        Expansion {
            value: &self.value + &other.value * factor,
            gradient: &self.gradient + &other.gradient * factor,
            curvature: &self.curvature + &other.curvature * factor,
        }
    }

    /// Values `[B]` at `delta` `[B, d]`; autograd follows them.
    pub(super) fn values(&self, delta: &Tensor) -> Tensor {
        let bend = (delta.matmul(&self.curvature) * delta).sum_dim_intlist(1i64, false, None);
        delta.matmul(&self.gradient) - bend * 0.5 + &self.value
    }

    /// Gradients `[B, d]` at `delta` `[B, d]`.
    pub(super) fn scores(&self, delta: &Tensor) -> Tensor {
        &self.gradient + self.products(delta)
    }

    /// Products of the Hessian with `v` `[B, d]`.
    pub(super) fn products(&self, v: &Tensor) -> Tensor {
        -v.matmul(&self.curvature)
    }

    /// All numbers in one tensor `[1 + d + d²]`, to be summed over ranks.
    pub(super) fn to_flat(&self) -> Tensor {
        Tensor::cat(&[self.value.view([1]), self.gradient.shallow_clone(), self.curvature.flatten(0, 1)], 0)
    }

    /// The inverse of [`to_flat`](Self::to_flat).
    pub(super) fn from_flat(flat: &Tensor, d: i64) -> Self {
        Expansion {
            value: flat.get(0),
            gradient: flat.narrow(0, 1, d),
            curvature: flat.narrow(0, 1 + d, d * d).view([d, d]),
        }
    }
}
