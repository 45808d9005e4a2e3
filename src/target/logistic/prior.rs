//! The prior of the weights and of their precision.

use tch::Tensor;

/// w | α ~ N(0, I/α) with α ~ Gamma(shape, rate): a density on (w, a), a = log α.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogisticPrior {
    /// Shape a0 of the precision's Gamma distribution, above 0.
    pub shape: f64,
    /// Its rate b0 (not its scale), above 0.
    pub rate: f64,
}

/// Rows of unknowns `[B, d + 1]` with what the formulas share.
struct Parts {
    w: Tensor,
    /// α, `[B, 1]`.
    alpha: Tensor,
    /// |w|²/2 + b0, `[B, 1]`.
    rate: Tensor,
}

impl LogisticPrior {
    /// (d/2 + a0) a − α (|w|²/2 + b0), up to a constant, `[B]` for `x` `[B, d + 1]`. The Jacobian of α = exp(a) is
    /// the a0 in place of a0 − 1. Autograd follows it.
    pub(super) fn log_density(&self, x: &Tensor) -> Tensor {
        let Parts { alpha, rate, .. } = self.parts(x);
        (x.narrow(1, x.size()[1] - 1, 1) * self.exponent(x) - alpha * rate).squeeze_dim(1)
    }

    /// Its gradient (−α w, d/2 + a0 − α (|w|²/2 + b0)), `[B, d + 1]`.
    pub(super) fn score(&self, x: &Tensor) -> Tensor {
        let Parts { w, alpha, rate } = self.parts(x);
        Tensor::cat(&[-(w * &alpha), self.exponent(x) - alpha * rate], 1)
    }

    /// Products of its Hessian at `x` with `v`, both `[B, d + 1]`.
    pub(super) fn product(&self, x: &Tensor, v: &Tensor) -> Tensor {
        let Parts { w, alpha, rate } = self.parts(x);
        let d = w.size()[1];
        let (of_w, of_a) = (v.narrow(1, 0, d), v.narrow(1, d, 1));
        let along = (&w * &of_w).sum_dim_intlist(1i64, true, None);
        Tensor::cat(&[-(of_w + &w * &of_a) * &alpha, -(along + rate * of_a) * &alpha], 1)
    }

    /// The value of a that suits the weights `w` `[d]` best.
    pub(super) fn best_log_precision(&self, w: &Tensor) -> f64 {
        let rate = w.square().sum(None).double_value(&[]) / 2.0 + self.rate;
        ((w.size()[0] as f64 / 2.0 + self.shape) / rate).ln()
    }

    fn exponent(&self, x: &Tensor) -> f64 {
        (x.size()[1] - 1) as f64 / 2.0 + self.shape
    }

    fn parts(&self, x: &Tensor) -> Parts {
        let d = x.size()[1] - 1;
        let w = x.narrow(1, 0, d);
        let rate = w.square().sum_dim_intlist(1i64, true, None) * 0.5 + self.rate;
        Parts { w, alpha: x.narrow(1, d, 1).exp(), rate }
    }
}
