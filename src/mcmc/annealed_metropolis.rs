//! Annealed chains whose steps are accepted or rejected, through tempered levels of one energy.

use tch::{Device, Kind, Tensor};

use super::AnnealedLangevin;
use super::evaluated::Evaluated;
use super::kernel::row_sums;
use crate::rng::Generator;
use crate::target::Target;

/// The levels, starts and last step of [`AnnealedLangevin`], and at each level one proposal that is accepted by
/// Metropolis and Hastings for the tempered density q^(1/T), T = (sigma/sigma0)².
///
/// Without leapfrog steps the proposal is the Langevin step itself. With them it is Hamiltonian: from a standard normal
/// momentum, so many leapfrog steps of size h in units of sigma.
///
/// A change of level changes T alone, so log-density and score of the present state serve every level, and the last step,
/// which removes the noise, as well.
#[derive(Debug, Clone, Copy)]
pub struct AnnealedMetropolis {
    /// Levels and starts; `step_size` is h as a fraction of sigma², of sigma with leapfrog steps; below 2.
    pub levels: AnnealedLangevin,
    /// Leapfrog steps of a Hamiltonian proposal, 1 or more; none for a Langevin one.
    pub leapfrog: Option<u64>,
}

/// The target evaluated at flat rows `x` `[N, D]`.
fn evaluated(x: Tensor, target: &dyn Target) -> Evaluated {
    // One pass for both. Where a target has a closed form of its score that would be faster, but those are not tempered.
    let shaped = shaped(&x, target).detach().set_requires_grad(true);
    let log_density = target.log_density(&shaped);
    let score = Tensor::run_backward(&[log_density.sum(None)], &[&shaped], false, false).remove(0);
    Evaluated { x, log_density: log_density.detach(), score: score.flatten(1, -1) }
}

fn shaped(x: &Tensor, target: &dyn Target) -> Tensor {
    x.reshape([&[x.size()[0]], target.shape()].concat())
}

impl AnnealedMetropolis {
    /// Evaluations of the target's gradient for one sample: the start, and those of all proposals. The one that removes
    /// the noise is known by then.
    pub fn evaluations_per_sample(&self) -> u64 {
        self.levels.steps * self.leapfrog.unwrap_or(1) + 1
    }

    /// Final points `[rows, …]` of `rows` independent chains run at once, and the mean acceptance probability over chains
    /// and steps.
    pub fn run(
        &self,
        target: &dyn Target,
        generator: &mut Generator,
        rows: i64,
        device: Device,
    ) -> (Tensor, f64) {
        let AnnealedLangevin { steps, sigma_first, sigma0, start_mean, .. } = self.levels;
        let shape = [rows, target.shape().iter().product()];
        let start = (generator.normal(&shape) * sigma_first + start_mean).to_device(device);
        let mut state = evaluated(start, target);
        let mut accepted = Tensor::zeros([], (Kind::Double, device));
        for step in 0..steps {
            let n = generator.normal(&shape).to_device(device);
            let sigma = self.levels.sigma(step);
            let (next, ratio) = match self.leapfrog {
                None => self.langevin(&state, target, &n, sigma),
                Some(leapfrog) => self.hamiltonian(&state, target, n, leapfrog, sigma),
            };
            // Not a number, or a state of infinite density, is a proposal that cannot be: never accepted.
            let never = f64::NEG_INFINITY;
            let ratio = ratio.nan_to_num(never, never, never);
            let is_accepted = generator.uniform(&[rows]).to_device(device).log().less_tensor(&ratio);
            accepted += ratio.clamp_max(0.0).exp().mean(Kind::Double);
            state = next.or(&is_accepted, &state);
        }
        let x = &state.x + &state.score * sigma0.powi(2);
        (shaped(&x, target), accepted.double_value(&[]) / steps as f64)
    }

    /// x' = x + h·sigma0²·s_q(x) + sqrt(2h)·sigma·n, which is a step of h·sigma² along the tempered score, and the log of
    /// its acceptance ratio `[N]`.
    fn langevin(
        &self,
        state: &Evaluated,
        target: &dyn Target,
        n: &Tensor,
        sigma: f64,
    ) -> (Evaluated, Tensor) {
        let AnnealedLangevin { step_size: h, sigma0, .. } = self.levels;
        let along = h * sigma0.powi(2);
        let next = evaluated(&state.x + &state.score * along + n * ((2.0 * h).sqrt() * sigma), target);
        let back = &state.x - &next.x - &next.score * along;
        let forth_and_back = row_sums(&(n.square() * 0.5 - back.square() / (4.0 * h * sigma.powi(2))));
        let ratio = (&next.log_density - &state.log_density) * (sigma0 / sigma).powi(2) + forth_and_back;
        (next, ratio)
    }

    /// Leapfrog steps from the momentum `p` `[N, D]` in units of sigma, y = x/sigma: there the tempered score is
    /// sigma0²/sigma · s_q. With the log of the acceptance ratio `[N]`.
    fn hamiltonian(
        &self,
        state: &Evaluated,
        target: &dyn Target,
        p: Tensor,
        leapfrog: u64,
        sigma: f64,
    ) -> (Evaluated, Tensor) {
        let AnnealedLangevin { step_size: h, sigma0, .. } = self.levels;
        let kick = h * sigma0.powi(2) / sigma;
        let first = p.square();
        let mut p = p + &state.score * (kick / 2.0);
        let mut x = &state.x + &p * (h * sigma);
        for _ in 1..leapfrog {
            p += target.score(&shaped(&x, target)).detach().flatten(1, -1) * kick;
            x += &p * (h * sigma);
        }
        let next = evaluated(x, target);
        p += &next.score * (kick / 2.0);
        let ratio = (&next.log_density - &state.log_density) * (sigma0 / sigma).powi(2)
            + row_sums(&(first - p.square())) * 0.5;
        (next, ratio)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::config::AnnealedSchedule;
    use crate::rng::Stream;
    use crate::target::Gaussian;

    /// N(0, 2²) in each of two coordinates.
    fn wide() -> Gaussian {
        Gaussian::new(&[0.0, 0.0], &[vec![4.0, 0.0], vec![0.0, 4.0]], Kind::Float, Device::Cpu).unwrap()
    }

    fn chains(sigma: f64, sigma0: f64, step_size: f64, leapfrog: Option<u64>) -> AnnealedMetropolis {
        let levels = AnnealedLangevin {
            steps: 60,
            schedule: AnnealedSchedule::Geometric,
            sigma_first: sigma,
            sigma_last: sigma,
            sigma0,
            step_size,
            start_mean: 0.0,
        };
        AnnealedMetropolis { levels, leapfrog }
    }

    #[track_caller]
    fn reaches(chains: AnnealedMetropolis, expected: f64) {
        let mut generator = Generator::new(0, Stream::Chains, 0, 0);
        let (samples, acceptance) = chains.run(&wide(), &mut generator, 10_000, Device::Cpu);
        let found = samples.to_kind(Kind::Double).var(true).double_value(&[]);
        // 20,000 numbers: a standard error of 1 %, bound 5 of them.
        assert!((found / expected - 1.0).abs() < 0.05, "{found} for {expected}");
        assert!(acceptance > 0.1 && acceptance < 0.999, "{acceptance}");
    }

    #[test]
    fn acceptance_leaves_the_variance_of_the_target_exact() {
        // The last step x + sigma0²·s(x) = 0.75 x. Langevin steps of h = 1.5 without acceptance have the variance
        // 4/(1 − h/8) (see AnnealedLangevin), 23 % more; leapfrog steps of h = 1.8 the one of their shadow Hamiltonian,
        // 4/(1 − (h/2)²/4), 25 % more.
        for (step_size, leapfrog) in [(1.5, None), (1.8, Some(1)), (1.8, Some(3))] {
            reaches(chains(1.0, 1.0, step_size, leapfrog), 4.0 * 0.75f64.powi(2));
        }
    }

    #[test]
    fn the_density_of_a_level_is_tempered() {
        // sigma = 3 sigma0: q^(1/9) = N(0, 36), whose last step is x·(1 − 0.5²/4).
        for leapfrog in [None, Some(3)] {
            reaches(chains(1.5, 0.5, 1.5, leapfrog), 36.0 * (1.0 - 0.0625f64).powi(2));
        }
    }

    /// The same density, which counts the rows that it is asked about.
    struct Counting(Gaussian, Cell<i64>);

    impl Target for Counting {
        fn shape(&self) -> &[i64] {
            self.0.shape()
        }

        fn log_density(&self, x: &Tensor) -> Tensor {
            self.1.set(self.1.get() + x.size()[0]);
            self.0.log_density(x)
        }
    }

    #[test]
    fn evaluations_are_those_that_the_target_is_asked_for() {
        // 60 proposals and the start; a proposal of four leapfrog steps asks four times.
        for (leapfrog, expected) in [(None, 61), (Some(4), 241)] {
            let target = Counting(wide(), Cell::new(0));
            let chains = chains(1.0, 1.0, 0.5, leapfrog);
            let _ = chains.run(&target, &mut Generator::new(0, Stream::Chains, 0, 0), 7, Device::Cpu);
            assert_eq!(target.1.get(), 7 * expected);
            assert_eq!(chains.evaluations_per_sample(), expected as u64);
        }
    }
}
