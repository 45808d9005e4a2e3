//! What tests of passes by hand share.

use tch::{Tensor, no_grad};

use super::Parameters;

/// Moves weights away from their start, where a last layer is zero and no gradient passes.
pub(super) fn shift(parameters: &Parameters, by: &Tensor) {
    let _ = no_grad(|| parameters.flat().shallow_clone().g_add_(by));
}

/// Fails if `found` is off by `bound` or more of the largest of `expected`.
pub(super) fn assert_near(found: &Tensor, expected: &Tensor, bound: f64, what: &str) {
    let scale = expected.abs().max().double_value(&[]);
    let error = (found - expected).abs().max().double_value(&[]) / scale;
    assert!(error < bound, "{what}: {error}");
}
