//! Annealed Langevin dynamics through tempered levels of one energy.

use tch::{Device, Tensor};

use crate::config::AnnealedSchedule;
use crate::rng::Generator;
use crate::target::Target;

/// Unadjusted Langevin steps at falling noise levels, and one denoising step at the end.
///
/// At level sigma the target is tempered by T = (sigma/sigma0)², and a step is x ← x + h·sigma0²·s_q(x) +
/// sqrt(2h)·sigma·n: Langevin with step size h·sigma0² = h·sigma²/T for the tempered density. The denoising
/// step is x + sigma0²·s_q(x), the posterior mean of clean data given x (Tweedie) where x has noise of sigma0. A schedule that ends
/// at T = 0, gradient descent, has taken most of that noise away before.
#[derive(Debug, Clone, Copy)]
pub struct AnnealedLangevin {
    /// Number of Langevin steps, 1 or more.
    pub steps: u64,
    /// How the levels fall.
    pub schedule: AnnealedSchedule,
    /// Noise level of the first step.
    pub sigma_first: f64,
    /// Noise level of the last step; of `Li2019`, that from which the temperature falls to zero.
    pub sigma_last: f64,
    /// Noise level of the density that the target models.
    pub sigma0: f64,
    /// Step size h as a fraction of sigma², below 2.
    pub step_size: f64,
    /// Mean of the starting points; their standard deviation is `sigma_first`.
    pub start_mean: f64,
}

impl AnnealedLangevin {
    /// Noise level of step `step`, from 0.
    pub fn sigma(&self, step: u64) -> f64 {
        match self.schedule {
            AnnealedSchedule::Geometric => self.geometric(step, self.steps),
            AnnealedSchedule::Li2019 => {
                // 500, 2,000 and 200 of 2,700, each to the nearest step.
                let held = (self.steps * 5 + 13) / 27;
                let falling = (self.steps * 20 + 13) / 27;
                match step {
                    step if step < held => self.sigma_first,
                    step if step < held + falling => self.geometric(step - held, falling),
                    // T is linear, and sigma = sigma0·sqrt(T).
                    step => {
                        self.sigma_last
                            * (1.0 - along(step - held - falling, self.steps - held - falling)).sqrt()
                    }
                }
            }
        }
    }

    fn geometric(&self, step: u64, steps: u64) -> f64 {
        let t = along(step, steps);
        (self.sigma_first.ln() * (1.0 - t) + self.sigma_last.ln() * t).exp()
    }

    /// Evaluations of the target's gradient for one sample: one a step, and one to denoise.
    pub fn evaluations_per_sample(&self) -> u64 {
        self.steps + 1
    }

    /// Final points `[rows, …]` of `rows` independent chains run at once; `after_step` is told the number of
    /// steps done.
    pub fn run(
        &self,
        target: &dyn Target,
        generator: &mut Generator,
        rows: i64,
        device: Device,
        after_step: &mut dyn FnMut(u64),
    ) -> Tensor {
        let shape = [&[rows], target.shape()].concat();
        let start = generator.normal(&shape) * self.sigma_first + self.start_mean;
        self.continue_from(&start.to_device(device), target, generator, after_step)
    }

    /// As [`run`](Self::run), from given points `[rows, …]`, which have noise of level `sigma_first` already.
    pub fn continue_from(
        &self,
        start: &Tensor,
        target: &dyn Target,
        generator: &mut Generator,
        after_step: &mut dyn FnMut(u64),
    ) -> Tensor {
        let (shape, device) = (start.size(), start.device());
        let variance = self.sigma0.powi(2);
        let mut x = start.shallow_clone();
        for step in 0..self.steps {
            let noise = generator.normal(&shape).to_device(device)
                * ((2.0 * self.step_size).sqrt() * self.sigma(step));
            x = &x + target.score(&x) * (self.step_size * variance) + noise;
            after_step(step + 1);
        }
        &x + target.score(&x) * variance
    }
}

/// From 0 at the first of `steps` steps to 1 at the last; a single one is the last.
fn along(step: u64, steps: u64) -> f64 {
    if steps == 1 { 1.0 } else { step as f64 / (steps - 1) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use crate::target::Gaussian;
    use tch::Kind;

    #[test]
    fn chains_at_one_level_reach_the_variance_of_the_discretised_gaussian() {
        // For N(0, 1) at sigma = sigma0 = 1 a step is x(1 − h) + sqrt(2h) n, with stationary variance 2h / (1
        // − (1 − h)²) = 1/(1 − h/2) = 1.25 at h = 0.4. The denoising step x + s(x) = 0 would hide it, so the
        // target is wider: N(0, 2²) with sigma0 = 1, rate h/4: variance 2h/(1 − (1 − h/4)²) = 4/(1 − h/8).
        let target = Gaussian::new(&[0.0], &[vec![4.0]], Kind::Float, Device::Cpu).unwrap();
        let chain = AnnealedLangevin {
            steps: 100,
            schedule: AnnealedSchedule::Geometric,
            sigma_first: 1.0,
            sigma_last: 1.0,
            sigma0: 1.0,
            step_size: 0.4,
            start_mean: 0.0,
        };
        let mut generator = Generator::new(0, Stream::Chains, 0, 0);
        let samples = chain.run(&target, &mut generator, 20_000, Device::Cpu, &mut |_| {});
        let expected = 4.0 / (1.0 - 0.4 / 8.0) * 0.75f64.powi(2); // x + s(x) = 0.75 x
        let found = samples.to_kind(Kind::Double).var(true).double_value(&[]);
        // Standard error of a variance: sqrt(2/20000) = 1 %; bound 5 of them.
        assert!((found / expected - 1.0).abs() < 0.05, "{found} for {expected}");
        assert_eq!(chain.evaluations_per_sample(), 101);
    }

    #[test]
    fn levels_fall_geometrically() {
        let chain = AnnealedLangevin {
            steps: 3,
            schedule: AnnealedSchedule::Geometric,
            sigma_first: 4.0,
            sigma_last: 0.25,
            sigma0: 0.1,
            step_size: 0.5,
            start_mean: 0.0,
        };
        for (step, expected) in [(0, 4.0), (1, 1.0), (2, 0.25)] {
            assert!((chain.sigma(step) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn the_published_schedule_holds_a_level_then_falls_and_then_cools_to_nothing() {
        // Li, Chen and Sommer: T = 100 for 500 steps, geometric to 1 for 2,000, linear to 0 for 200; sigma = 0.1·sqrt(T).
        let chain = AnnealedLangevin {
            steps: 2700,
            schedule: AnnealedSchedule::Li2019,
            sigma_first: 1.0,
            sigma_last: 0.1,
            sigma0: 0.1,
            step_size: 0.02,
            start_mean: 0.5,
        };
        let temperature = |step| (chain.sigma(step) / 0.1).powi(2);
        let expected =
            [(0, 100.0), (499, 100.0), (500, 100.0), (1500, 100f64.powf(1.0 - 1000.0 / 1999.0)), (2499, 1.0)];
        let cooling = [(2500, 1.0), (2600, 1.0 - 100.0 / 199.0), (2699, 0.0)];
        for (step, expected) in expected.into_iter().chain(cooling) {
            assert!((temperature(step) - expected).abs() < 1e-9, "step {step}: {}", temperature(step));
        }
        // Of few steps none is outside of the levels.
        for steps in 1..30 {
            let short = AnnealedLangevin { steps, ..chain };
            let levels: Vec<f64> = (0..steps).map(|step| short.sigma(step)).collect();
            assert!(levels.iter().all(|level| (0.0..=1.0).contains(level)), "{levels:?}");
            assert!(levels.windows(2).all(|pair| pair[0] >= pair[1] - 1e-12), "{levels:?}");
        }
    }
}
