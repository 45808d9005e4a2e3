//! A target in coordinates in which it is roughly a standard normal.

use tch::{Kind, Tensor};

use super::{Target, TargetError};
use crate::rng::Generator;

/// The target of y where x = mean + L y is one of `T`: log q(mean + L y), on `[D]`.
///
/// The map and the target's own work are in the kind of `mean` and `factor`; give them in f64, as
/// [`Laplace`](super::Laplace) has them, where a narrow target far from zero would lose its digits in f32. Results have
/// the kind of y.
#[derive(Debug)]
pub struct Whitened<T> {
    target: T,
    mean: Tensor,
    /// Lᵀ, for rows of samples.
    transposed: Tensor,
    inverse_transposed: Tensor,
}

impl<T: Target> Whitened<T> {
    /// With `mean` `[D]` and an invertible `factor` L `[D, D]`, of one kind and on the target's device.
    ///
    /// # Errors
    /// If their shapes are not the target's, their kinds differ, or the factor has no finite inverse.
    pub fn new(target: T, mean: &Tensor, factor: &Tensor) -> Result<Self, TargetError> {
        let invalid = |message: String| Err(TargetError::Invalid(message));
        let &[d] = target.shape() else {
            return invalid(format!(
                "a target on [D] can be whitened, and this is one on {:?}",
                target.shape()
            ));
        };
        if mean.size() != [d] || factor.size() != [d, d] || mean.kind() != factor.kind() {
            return invalid(format!(
                "a mean [{d}] and a factor [{d}, {d}] of one kind were wanted, found {mean:?} and {factor:?}"
            ));
        }
        let inverse = Tensor::f_linalg_inv(factor).ok();
        let Some(inverse) = inverse.filter(|inverse| inverse.isfinite().all().int64_value(&[]) == 1) else {
            return invalid(
                "the factor of a whitened target should have an inverse, and has none".to_string(),
            );
        };
        Ok(Whitened {
            target,
            mean: mean.copy(),
            transposed: factor.transpose(0, 1).contiguous(),
            inverse_transposed: inverse.transpose(0, 1).contiguous(),
        })
    }

    /// The target of x.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// y = L⁻¹ (x − mean) `[B, D]` of samples `x` `[B, D]` of the target, in the kind of `x`.
    pub fn to_whitened(&self, x: &Tensor) -> Tensor {
        (self.inner(x) - &self.mean).matmul(&self.inverse_transposed).to_kind(x.kind())
    }

    /// x = mean + L y in the kind of the map.
    fn placed(&self, y: &Tensor) -> Tensor {
        self.inner(y).matmul(&self.transposed) + &self.mean
    }

    /// Lᵀ s for rows of gradients in x.
    fn pulled_back(&self, s: &Tensor, kind: Kind) -> Tensor {
        self.inner(s).matmul(&self.transposed.transpose(0, 1)).to_kind(kind)
    }

    fn inner(&self, t: &Tensor) -> Tensor {
        t.to_kind(self.mean.kind())
    }
}

impl<T: Target> Target for Whitened<T> {
    fn shape(&self) -> &[i64] {
        self.target.shape()
    }

    fn log_density(&self, y: &Tensor) -> Tensor {
        self.target.log_density(&self.placed(y)).to_kind(y.kind())
    }

    fn score(&self, y: &Tensor) -> Tensor {
        self.pulled_back(&self.target.score(&self.placed(&y.detach())), y.kind())
    }

    fn log_density_and_score(&self, y: &Tensor) -> (Tensor, Tensor) {
        let (value, score) = self.target.log_density_and_score(&self.placed(&y.detach()));
        (value.to_kind(y.kind()), self.pulled_back(&score, y.kind()))
    }

    fn score_and_product(
        &self,
        y: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let y = &y.detach();
        let (score, product) = self.target.score_and_product(&self.placed(y), &mut |score| {
            let v = direction(&self.pulled_back(score, y.kind()));
            self.inner(&v).matmul(&self.transposed)
        });
        (self.pulled_back(&score, y.kind()), self.pulled_back(&product, y.kind()))
    }

    fn is_recordable(&self) -> bool {
        self.target.is_recordable()
    }

    fn redraw(&self, generator: &mut Generator) {
        self.target.redraw(generator);
    }

    fn to_original(&self, y: &Tensor) -> Tensor {
        self.target.to_original(&self.placed(y)).to_kind(y.kind())
    }

    fn exact_samples(&self, generator: &mut Generator, rows: i64) -> Option<Tensor> {
        self.target.exact_samples(generator, rows).map(|x| self.to_whitened(&x))
    }
}
