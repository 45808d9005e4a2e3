//! Limits on a gradient's norm: a fixed one, and one that follows the norms seen so far.

use tch::Tensor;

/// Weight of the newest norm in the running one: it remembers about fifty updates.
const NEWEST: f64 = 0.02;

/// The running norm of one network's gradient, after limiting; 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RunningNorm(pub f64);

impl RunningNorm {
    /// Scales a gradient down in place to at most `limit` and at most `factor` times the running norm (0: no
    /// such limit). Returns the norm from before.
    ///
    /// Rows are never limited one by one: that would cut a heavy-tailed field of mean zero unevenly.
    pub fn clip(&mut self, gradient: &Tensor, limit: f64, factor: f64) -> f64 {
        let norm = gradient.norm().double_value(&[]);
        let limits = [(limit, limit > 0.0), (factor * self.0, factor > 0.0 && self.0 > 0.0)];
        let most = limits.into_iter().filter(|(_, holds)| *holds).map(|(most, _)| most).fold(norm, f64::min);
        if most < norm {
            let _ = gradient.shallow_clone().g_mul_scalar_(most / norm);
        }
        if factor > 0.0 && norm.is_finite() {
            self.0 = if self.0 == 0.0 { most } else { self.0 + NEWEST * (most - self.0) };
        }
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient() -> Tensor {
        Tensor::from_slice(&[3f32, 4.0]) // of norm 5
    }

    #[test]
    fn a_fixed_limit_scales_long_gradients_to_it_and_leaves_short_ones() {
        let mut running = RunningNorm::default();
        for (limit, expected) in [(0.0, [3f32, 4.0]), (6.0, [3.0, 4.0]), (2.5, [1.5, 2.0])] {
            let gradient = gradient();
            assert_eq!(running.clip(&gradient, limit, 0.0), 5.0);
            assert_eq!(gradient, Tensor::from_slice(&expected));
        }
        assert_eq!(running, RunningNorm(0.0));
    }

    #[test]
    fn a_factor_limits_to_a_multiple_of_the_running_norm_which_follows_the_limited_ones() {
        let mut running = RunningNorm::default();
        assert_eq!(running.clip(&gradient(), 0.0, 2.0), 5.0); // the first has nothing to compare with
        assert_eq!(running, RunningNorm(5.0));
        let long = gradient() * 10.0;
        assert_eq!(running.clip(&long, 0.0, 2.0), 50.0);
        assert_eq!(long, gradient() * 2.0);
        assert!((running.0 - 5.1).abs() < 1e-12); // 5 + 0.02 (10 − 5)
    }

    #[test]
    fn a_norm_that_is_not_finite_is_reported_and_not_remembered() {
        let mut running = RunningNorm(5.0);
        assert!(running.clip(&(gradient() * f64::NAN), 0.0, 2.0).is_nan());
        assert_eq!(running, RunningNorm(5.0));
    }
}
