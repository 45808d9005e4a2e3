//! A second-order expansion of a log-likelihood: what stands for the rows that an evaluation leaves out.

use tch::{Device, Kind, Tensor};

/// What is asked about a log-likelihood at parameters `p` `[B, d]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Its values `[B, 1]` at the queries p.
    Value,
    /// Its gradients `[B, d]` there.
    Score,
    /// Both, `[B, 1 + d]`.
    ValueAndScore,
    /// Products of its Hessian at p with v, `[B, d]`; the queries are p and v beside each other, `[B, 2 d]`.
    Product,
}

/// The queries of a product: p and v.
pub(super) fn halves(queries: &Tensor) -> (Tensor, Tensor) {
    let d = queries.size()[1] / 2;
    (queries.narrow(1, 0, d), queries.narrow(1, d, d))
}

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
    fn values(&self, delta: &Tensor) -> Tensor {
        let bend = (delta.matmul(&self.curvature) * delta).sum_dim_intlist(1i64, false, None);
        delta.matmul(&self.gradient) - bend * 0.5 + &self.value
    }

    /// Gradients `[B, d]` at `delta` `[B, d]`.
    fn scores(&self, delta: &Tensor) -> Tensor {
        &self.gradient + self.products(delta)
    }

    /// Products of the Hessian with `v` `[B, d]`.
    fn products(&self, v: &Tensor) -> Tensor {
        -v.matmul(&self.curvature)
    }

    /// What is asked of the queries; see [`Asked`].
    pub(super) fn answer(&self, asked: Asked, queries: &Tensor) -> Tensor {
        match asked {
            Asked::Value => self.values(queries).unsqueeze(1),
            Asked::Score => self.scores(queries),
            Asked::ValueAndScore => {
                Tensor::cat(&[self.values(queries).unsqueeze(1), self.scores(queries)], 1)
            }
            Asked::Product => self.products(&halves(queries).1),
        }
    }

    /// Value, gradient and curvature.
    pub(super) fn into_parts(self) -> [Tensor; 3] {
        [self.value, self.gradient, self.curvature]
    }

    /// The inverse of [`into_parts`](Self::into_parts).
    pub(super) fn from_parts([value, gradient, curvature]: [Tensor; 3]) -> Self {
        Expansion { value, gradient, curvature }
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
