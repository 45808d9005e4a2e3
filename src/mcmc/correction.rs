//! Markov steps that move draws of a one-step sampler on, towards the density it was trained for.

use tch::{Kind, Tensor};

use super::{McmcError, McmcRun};
use crate::config::McmcSection;
use crate::rng::Generator;
use crate::target::Target;

/// Steps of a kernel from draws of a sampler.
///
/// A sampler of a tempered target hands out clean data x0, and the lowest level that its target models is sigma0, at
/// temperature 1: the density of data with noise sigma0. So x0 gets that noise, x0 + sigma0·eps, the chain steps on
/// the target itself, and ends as [`AnnealedLangevin`](super::AnnealedLangevin) does with x + sigma0²·s_q(x), the mean
/// of clean data given x (Tweedie). Draws for any other target are meant to have its density already: the chain
/// starts at them and its last states are the result.
pub struct Correction<'a> {
    /// The target, in the coordinates of the draws.
    pub target: &'a dyn Target,
    /// sigma0, if the target is tempered.
    pub tempered_from: Option<f64>,
    /// The kernel, with a single step size.
    pub kernel: McmcSection,
}

/// Draws that were moved on, and what it took.
pub struct Corrected {
    /// As the draws were given: `[B, …]`.
    pub samples: Tensor,
    /// Mean acceptance probability over chains and steps, where the kernel has one.
    pub acceptance: Option<f64>,
    /// Gradients of one row each, with the one at the start that an accepting kernel needs and the one that removes noise.
    pub evaluations: u64,
    /// Chains with at least one accepted step. Others are as they were: where the density is steep MALA may reject every step
    /// of the size that suits the rest.
    pub moved: u64,
    /// Divergences of all chains, as [`McmcRun::divergences`] counts them.
    pub divergences: u64,
    /// Step size of the next step.
    pub step_size: f64,
}

impl Correction<'_> {
    /// `x` `[B, …]` after `steps` steps, in its own kind: give f64 where log q is so large that f32 loses its
    /// differences. More steps with an equal generator pass through the states of fewer.
    ///
    /// # Errors
    /// If the kernel's settings do not fit, or the target is not finite at a start.
    pub fn run(&self, x: &Tensor, steps: u64, mut generator: Generator) -> Result<Corrected, McmcError> {
        let rows = x.size()[0] as u64;
        let start = match self.tempered_from {
            Some(sigma0) => x + generator.normal(&x.size()).to_device(x.device()).to_kind(x.kind()) * sigma0,
            None => x.shallow_clone(),
        };
        let mut run = McmcRun::new(&self.kernel, self.target, &start, generator)?;
        let budget = run.evaluations() + steps * rows;
        run.run_until(Some(budget), None, &mut |_, _| {})?;
        let (mut samples, mut evaluations) = (run.positions(), run.evaluations());
        let is_moved = samples.not_equal_tensor(&start).flatten(1, -1).any_dim(1, false);
        let moved = is_moved.sum(Kind::Int64).int64_value(&[]) as u64;
        if let Some(sigma0) = self.tempered_from {
            samples = &samples + self.target.score(&samples) * sigma0.powi(2);
            evaluations += rows;
        }
        Ok(Corrected {
            samples,
            acceptance: run.acceptance(),
            evaluations,
            moved,
            divergences: run.divergences(),
            step_size: run.step_size(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MalaSettings, StepSizes, UlaSettings};
    use crate::rng::Stream;
    use crate::target::Gaussian;
    use tch::Device;

    fn mala(step_size: f64) -> McmcSection {
        McmcSection::Mala(MalaSettings { step_size, adaptation_steps: 0, ..MalaSettings::default() })
    }

    fn generator() -> Generator {
        Generator::new(3, Stream::Chains, 0, 0)
    }

    #[test]
    fn clean_draws_of_a_tempered_target_come_back_clean() {
        // exp(−E) = N(0, 1 + s²) models data N(0, 1) with noise s. From x0 ~ N(0, 1) the noisy start has the target's
        // density, MALA keeps it, and the last step gives x·(1 − s²/(1 + s²)), of variance 1/(1 + s²).
        let sigma0 = 0.5;
        let variance = 1.0 + sigma0 * sigma0;
        let target = Gaussian::new(&[0.0], &[vec![variance]], Kind::Double, Device::Cpu).unwrap();
        let x0 = Generator::new(4, Stream::Exact, 0, 0).normal(&[20_000, 1]).to_kind(Kind::Double);
        let correction = Correction { target: &target, tempered_from: Some(sigma0), kernel: mala(0.5) };
        let found = correction.run(&x0, 5, generator()).unwrap();
        let measured = found.samples.var(true).double_value(&[]);
        // Standard error of a variance of 20,000: 1 %; bound 5 of them. Without the last step it would be 1.25.
        assert!((measured * variance - 1.0).abs() < 0.05, "{measured}");
        // Start, 5 steps, noise removed.
        assert_eq!(found.evaluations, 7 * 20_000);
    }

    #[test]
    fn steps_of_another_target_start_at_the_draws_and_more_pass_through_fewer() {
        let target = Gaussian::new(&[0.0], &[vec![1.0]], Kind::Double, Device::Cpu).unwrap();
        let x = Tensor::from_slice(&[3.0, -2.0]).reshape([2, 1]);
        let kernel = McmcSection::Ula(UlaSettings { step_size: StepSizes::One(0.1) });
        let correction = Correction { target: &target, tempered_from: None, kernel };
        // One step of ULA is x·(1 − h) + sqrt(2h)·n: the noise of two steps of the same generator, taken out of the
        // first, gives the second.
        let after = |steps| correction.run(&x, steps, generator()).unwrap();
        let (one, two) = (after(1), after(2));
        let first_noise = (&one.samples - &x * 0.9) / 0.2f64.sqrt();
        let second_noise = (&two.samples - &one.samples * 0.9) / 0.2f64.sqrt();
        for noise in [&first_noise, &second_noise] {
            // Six standard deviations: numbers that were no normal draws would be anything.
            assert!(noise.abs().max().double_value(&[]) < 6.0, "{noise}");
        }
        let drawn = generator().normal(&[64, 2, 1]).to_kind(Kind::Double);
        let expected = Tensor::stack(&[drawn.get(0), drawn.get(1)], 0);
        let error = (Tensor::stack(&[first_noise, second_noise], 0) - expected).abs().max();
        assert!(error.double_value(&[]) < 1e-12);
        assert_eq!((one.evaluations, two.evaluations), (2, 4));
        assert_eq!(one.moved, 2);
        assert!(one.acceptance.is_none());
    }

    #[test]
    fn chains_that_reject_every_step_are_counted_as_unmoved() {
        // At h = 50 on N(0, 1) a proposal from near 0 is about 10 n − 49 x, accepted with a probability around exp(−50).
        let target = Gaussian::new(&[0.0], &[vec![1.0]], Kind::Double, Device::Cpu).unwrap();
        let x = Tensor::from_slice(&[1.0, -1.0, 1.5]).reshape([3, 1]);
        let correction = Correction { target: &target, tempered_from: None, kernel: mala(50.0) };
        let found = correction.run(&x, 2, generator()).unwrap();
        assert_eq!((found.moved, found.samples), (0, x));
        assert!(found.acceptance.unwrap() < 1e-3);
    }
}
