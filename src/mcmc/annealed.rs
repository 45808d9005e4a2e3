//! Annealed Langevin dynamics through tempered levels of one energy.

use tch::{Device, Tensor};

use crate::rng::Generator;
use crate::target::Target;

/// Unadjusted Langevin steps at geometrically falling noise levels, and one denoising step at the end.
///
/// At level sigma the target is tempered by T = (sigma/sigma0)², and a step is x ← x + h·sigma0²·s_q(x) +
/// sqrt(2h)·sigma·n: Langevin with step size h·sigma0² = h·sigma²/T for the tempered density. The denoising
/// step is x + sigma0²·s_q(x), the posterior mean of clean data given x (Tweedie).
#[derive(Debug, Clone, Copy)]
pub struct AnnealedLangevin {
    /// Number of Langevin steps, 1 or more.
    pub steps: u64,
    /// Noise level of the first step.
    pub sigma_first: f64,
    /// Noise level of the last step.
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
        if self.steps == 1 {
            return self.sigma_last;
        }
        let t = step as f64 / (self.steps - 1) as f64;
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
}
