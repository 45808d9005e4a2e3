//! Langevin chains without a test of their steps: unadjusted, and with falling steps.

use tch::Tensor;

use super::McmcError;
use super::evaluator::Evaluator;
use super::kernel::{Kernel, no_events, rows_inside};
use super::noise::Noise;
use crate::config::SgldSettings;

/// x ← x + h_t·(s(x) + gradient noise) + sqrt(2·h_t)·n with h_t = step_size·(1 + t/delay)^(−decay).
///
/// With decay 0 it is unadjusted Langevin. A chain whose next state has a coordinate beyond 1e6, or not a
/// number, is put back to its own start and counted: held where it was it would only leave again, and dropping it
/// would change N.
pub(super) struct Langevin {
    x: Tensor,
    start: Tensor,
    step_size: f64,
    delay: f64,
    decay: f64,
    gradient_noise: f64,
    steps: u64,
    divergences: Tensor,
}

impl Langevin {
    /// Chains that start at `start` `[N, D]` and step by `step_size` always.
    pub(super) fn unadjusted(start: &Tensor, step_size: f64) -> Self {
        Langevin {
            x: start.shallow_clone(),
            start: start.shallow_clone(),
            step_size,
            delay: 1.0,
            decay: 0.0,
            gradient_noise: 0.0,
            steps: 0,
            divergences: no_events(start),
        }
    }

    /// Chains that start at `start` `[N, D]` with a step of `step_size`, which falls.
    pub(super) fn falling(start: &Tensor, step_size: f64, settings: &SgldSettings) -> Self {
        Langevin {
            delay: settings.delay,
            decay: settings.decay,
            gradient_noise: settings.gradient_noise,
            ..Self::unadjusted(start, step_size)
        }
    }
}

impl Kernel for Langevin {
    fn step(&mut self, target: &Evaluator, noise: &mut Noise) -> Result<(), McmcError> {
        let h = self.step_size();
        let mut drift = target.score(&self.x);
        if self.gradient_noise > 0.0 {
            drift += noise.normal() * self.gradient_noise;
        }
        let next = &self.x + drift * h + noise.normal() * (2.0 * h).sqrt();
        let is_inside = rows_inside(&next);
        self.x = next.where_self(&is_inside.unsqueeze(1), &self.start);
        self.divergences += is_inside.logical_not();
        self.steps += 1;
        Ok(())
    }

    fn cost(&self) -> u64 {
        self.x.size()[0] as u64
    }

    fn positions(&self) -> Tensor {
        self.x.shallow_clone()
    }

    fn step_size(&self) -> f64 {
        self.step_size * (1.0 + self.steps as f64 / self.delay).powf(-self.decay)
    }

    fn divergences(&self) -> Tensor {
        self.divergences.shallow_clone()
    }
}
