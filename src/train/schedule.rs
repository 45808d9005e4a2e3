//! The step size over training.

use std::f64::consts::PI;

/// Factor on the step size after `fraction` of training: 1 until `cosine_from`, then along half a cosine to
/// `last`.
pub fn learning_rate_factor(fraction: f64, cosine_from: f64, last: f64) -> f64 {
    if fraction <= cosine_from || cosine_from >= 1.0 {
        return 1.0;
    }
    let t = ((fraction - cosine_from) / (1.0 - cosine_from)).min(1.0);
    last + (1.0 - last) * 0.5 * (1.0 + (PI * t).cos())
}

/// Factor on the step size of update `update`, from 0, when it rises to 1 over the first `over` updates.
pub(super) fn rise(update: u64, over: u64) -> f64 {
    ((update + 1) as f64 / over.max(1) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_is_one_then_half_way_at_the_middle_of_the_cosine_then_last() {
        assert_eq!(learning_rate_factor(0.4, 0.5, 0.1), 1.0);
        assert!((learning_rate_factor(0.75, 0.5, 0.1) - 0.55).abs() < 1e-12);
        assert!((learning_rate_factor(1.0, 0.5, 0.1) - 0.1).abs() < 1e-12);
    }
}
