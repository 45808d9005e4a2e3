//! What a run asks of a sampler.

use tch::{Kind, Tensor};

use super::McmcError;
use super::evaluator::Evaluator;
use super::noise::Noise;

/// A sampler that moves all its rows by one step at a time.
pub(super) trait Kernel {
    /// One step of every row.
    fn step(&mut self, target: &Evaluator, noise: &mut Noise) -> Result<(), McmcError>;

    /// Evaluations of one step of all rows; where that varies, the least.
    fn cost(&self) -> u64;

    /// Current states `[rows, D]`.
    fn positions(&self) -> Tensor;

    /// Step size of the next step.
    fn step_size(&self) -> f64;

    /// Divergences of each row so far, `[rows]`.
    fn divergences(&self) -> Tensor;

    /// Whether the step size still moves.
    fn is_adapting(&self) -> bool {
        false
    }

    /// Mean acceptance since the adaptation ended, or so far while it goes on.
    fn acceptance(&self) -> Option<f64> {
        None
    }

    /// Whether states at different times are draws of one density; only the last set of particles is.
    fn is_chain(&self) -> bool {
        true
    }
}

/// Refuses starts that `is_finite` `[N]` does not hold for.
pub(super) fn require_finite_starts(is_finite: &Tensor) -> Result<(), McmcError> {
    let lost = is_finite.logical_not().sum(None).int64_value(&[]);
    if lost == 0 {
        return Ok(());
    }
    Err(McmcError::Start(format!(
        "log-density or score is not finite at {lost} of {} starts; choose starts inside the target's support",
        is_finite.size()[0]
    )))
}

/// Which rows of `x` `[N, D]` hold finite numbers only, `[N]`: a sum is finite exactly then, short of overflow.
pub(super) fn finite_rows(x: &Tensor) -> Tensor {
    row_sums(x).isfinite()
}

/// A chain with a coordinate beyond this has left for infinity. Targets in such units want scaling first;
/// waiting until a state is not finite would leave states of 1e33 among the draws, whose squares are not.
const ESCAPED: f64 = 1e6;

/// Which rows of `x` `[N, D]` have no coordinate beyond 1e6 or not a number, `[N]`.
pub(super) fn rows_inside(x: &Tensor) -> Tensor {
    x.abs().amax([1i64], false).less_equal(ESCAPED)
}

/// Sums over the rows of `x` `[N, D]`, `[N]`.
pub(super) fn row_sums(x: &Tensor) -> Tensor {
    x.sum_dim_intlist(1i64, false, None)
}

/// No events yet, for the rows of `x` `[N, D]`.
pub(super) fn no_events(x: &Tensor) -> Tensor {
    Tensor::zeros([x.size()[0]], (Kind::Int64, x.device()))
}
