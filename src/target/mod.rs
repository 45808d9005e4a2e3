//! Targets: unnormalised densities q with their score s_q = ∇ log q and products with its Jacobian.
//!
//! Anything with a log-density that autograd can follow twice is a target; one with closed forms
//! overrides the two provided methods.

mod energy;
mod gaussian;
mod level;
mod load;
mod logistic;
mod mixture;
pub mod planar;
mod probe;
mod smoothed;
mod torchscript;
mod whitened;

use tch::{Tensor, no_grad};

pub use energy::EnergyTarget;
pub use gaussian::Gaussian;
pub use level::{StartingGaussian, TargetAtLevel, TargetOnPath};
pub use load::load_exact;
pub use logistic::{Laplace, Logistic, LogisticPrior, LogisticProblem};
pub use mixture::Mixture;
pub use probe::last_line;
pub use torchscript::TorchScriptTarget;
pub use whitened::Whitened;

use crate::rng::Generator;

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Its weights cannot be used.
    #[error(transparent)]
    Weights(#[from] crate::model::WeightsError),
    /// Its definition makes no density; says what was wanted and found.
    #[error("{0}")]
    Invalid(String),
}

/// Modes of a target: a sample belongs to the one with the nearest centre.
#[derive(Debug)]
pub struct Modes {
    /// Centres, `[M, D]`.
    pub centres: Tensor,
    /// Probability of each mode; they sum to 1.
    pub weights: Vec<f64>,
}

/// An unnormalised density on `[…shape]`.
pub trait Target {
    /// Shape of one sample: `[D]` or `[C, H, W]`.
    fn shape(&self) -> &[i64];

    /// log q up to a constant: `x` `[B, …shape]` to `[B]`, differentiable twice in `x`.
    fn log_density(&self, x: &Tensor) -> Tensor;

    /// s_q(x) = ∇ log q(x), the shape of `x`, as a constant.
    fn score(&self, x: &Tensor) -> Tensor {
        score_by_autograd(self, x)
    }

    /// [`log_density`](Self::log_density) and [`score`](Self::score) at `x`, both as constants: one pass where a
    /// target can share the work.
    fn log_density_and_score(&self, x: &Tensor) -> (Tensor, Tensor) {
        // Two calls, so that closed forms of the score are used where a target has them.
        (no_grad(|| self.log_density(x)), self.score(x))
    }

    /// s_q(x) and H(x)·v, H the Hessian of log q and v = `direction`(s_q(x)); all have the shape of `x`.
    ///
    /// The direction may depend on the score, because a Fisher field's does: the score is computed once and
    /// differentiated once.
    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        score_and_product_by_autograd(self, x, direction)
    }

    /// Draws the mini-batches that evaluations use from here on, where the target is a sum over data and estimates
    /// it; others have nothing to draw. Where the data are spread over ranks, every rank gives a generator of the
    /// same key.
    fn redraw(&self, _generator: &mut Generator) {}

    /// Whether every evaluation of as many samples is the same operations on the same memory, none of which reads results
    /// back, nor reads numbers of the host: then it can be recorded as a CUDA graph.
    fn is_recordable(&self) -> bool {
        false
    }

    /// Samples `[B, …shape]` in the coordinates that a user knows: `x` itself, unless the target was moved into
    /// others for the sake of the computation.
    fn to_original(&self, x: &Tensor) -> Tensor {
        x.shallow_clone()
    }

    /// Coordinates in which distances between samples are measured, `[B, D]` to `[B, D]`: the samples themselves
    /// unless a tail is so heavy that a few of them would decide every distance.
    fn chart(&self, x: &Tensor) -> Tensor {
        x.shallow_clone()
    }

    /// The modes, where there are several: what mode cover is measured against.
    fn modes(&self) -> Option<Modes> {
        None
    }

    /// `rows` exact samples `[rows, …shape]`, where the target has a sampler: ground truth for scores.
    fn exact_samples(&self, _generator: &mut Generator, _rows: i64) -> Option<Tensor> {
        None
    }
}

/// [`Target::score`] of any log-density that autograd can follow.
fn score_by_autograd(target: &(impl Target + ?Sized), x: &Tensor) -> Tensor {
    let x = x.detach().set_requires_grad(true);
    let total = target.log_density(&x).sum(None);
    Tensor::run_backward(&[total], &[&x], false, false).remove(0)
}

/// [`Target::score_and_product`] of any log-density that autograd can follow twice.
fn score_and_product_by_autograd(
    target: &(impl Target + ?Sized),
    x: &Tensor,
    direction: &mut dyn FnMut(&Tensor) -> Tensor,
) -> (Tensor, Tensor) {
    let x = x.detach().set_requires_grad(true);
    let total = target.log_density(&x).sum(None);
    let score = Tensor::run_backward(&[total], &[&x], true, true).remove(0);
    let along = (&score * direction(&score.detach())).sum(None);
    let product = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
    (score.detach(), product)
}
