//! A step size that learns from the acceptance of all chains, then stays.

/// Dual averaging of the log step size towards a mean acceptance: Hoffman and Gelman (2014), algorithm 5, with
/// their constants. The acceptance of a step is the mean over all chains, where they had one chain.
pub(super) struct AdaptiveStep {
    step: f64,
    target_acceptance: f64,
    remaining: u64,
    centre: f64,
    count: f64,
    mean_error: f64,
    mean_log_step: f64,
}

// Hoffman and Gelman (2014), section 3.2.1.
const GAMMA: f64 = 0.05;
const T0: f64 = 10.0;
const KAPPA: f64 = 0.75;

impl AdaptiveStep {
    /// Starts from `step` and adapts over `steps` steps; with 0 it is `step` always.
    pub(super) fn new(step: f64, target_acceptance: f64, steps: u64) -> Self {
        AdaptiveStep {
            step,
            target_acceptance,
            remaining: steps,
            centre: (10.0 * step).ln(),
            count: 0.0,
            mean_error: 0.0,
            mean_log_step: 0.0,
        }
    }

    /// The step size to use next.
    pub(super) fn value(&self) -> f64 {
        self.step
    }

    pub(super) fn is_adapting(&self) -> bool {
        self.remaining > 0
    }

    /// Learns from the mean acceptance of one step, if there was one; the last step fixes the averaged step size.
    pub(super) fn learn(&mut self, acceptance: Option<f64>) {
        if let Some(acceptance) = acceptance {
            self.count += 1.0;
            let weight = 1.0 / (self.count + T0);
            self.mean_error += weight * (self.target_acceptance - acceptance - self.mean_error);
            let log_step = self.centre - self.count.sqrt() / GAMMA * self.mean_error;
            self.mean_log_step += self.count.powf(-KAPPA) * (log_step - self.mean_log_step);
            self.step = log_step.exp();
        }
        self.remaining -= 1;
        if self.remaining == 0 && self.count > 0.0 {
            self.step = self.mean_log_step.exp();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_size_settles_where_the_acceptance_is_the_one_asked_for() {
        // With acceptance exp(−step), from starts 100 times too small and too large. The average still holds some
        // of the way there after 200 steps: 0.013 of acceptance from the second.
        for start in [2e-3, 20.0] {
            let mut step = AdaptiveStep::new(start, 0.8, 200);
            while step.is_adapting() {
                step.learn(Some((-step.value()).exp()));
            }
            assert!(((-step.value()).exp() - 0.8).abs() < 0.02, "{}", step.value());
        }
    }

    #[test]
    fn without_steps_to_adapt_over_the_step_size_is_the_one_given() {
        let step = AdaptiveStep::new(0.3, 0.8, 0);
        assert!(!step.is_adapting());
        assert_eq!(step.value(), 0.3);
    }
}
