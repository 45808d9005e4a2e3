//! Chains whose proposals are accepted or rejected: Metropolis-adjusted Langevin and Hamiltonian Monte Carlo.

use tch::{Kind, Tensor};

use super::McmcError;
use super::adaptation::AdaptiveStep;
use super::evaluated::Evaluated;
use super::evaluator::Evaluator;
use super::kernel::{Kernel, finite_rows, no_events, require_finite_starts, row_sums};
use super::noise::Noise;

/// How a chain proposes its next state.
pub(super) enum Proposal {
    /// x' = x + h·s(x) + sqrt(2h)·n, h the step size.
    Langevin,
    /// `leapfrog` steps from a standard normal momentum, each chain's step size scaled by a factor uniform in
    /// [1 − jitter, 1 + jitter).
    Hamiltonian {
        /// Leapfrog steps, 1 or more.
        leapfrog: u64,
        /// Below 1.
        jitter: f64,
    },
}

/// A log acceptance ratio below this is a divergence: the bound of Stan on the energy error.
const DIVERGENT: f64 = -1000.0;

/// Least factor of a step during the adaptation.
const SHORTEST: f64 = 1e-3;

/// The target evaluated at `x` `[N, D]`.
fn evaluated(x: Tensor, target: &Evaluator) -> Evaluated {
    let (log_density, score) = target.log_density_and_score(&x);
    Evaluated { x, log_density, score }
}

/// Chains with a common step size, adapted over the first steps. Meanwhile every second transition, by chance, takes
/// a step shorter by a factor log-uniform in (1e-3, 1] and teaches nothing: a chain that starts where the density is
/// steep would reject every step that suits the others, and stay there for the rest of the run. Computes in the kind of the starts: where
/// |log q| is large, use f64, for the ratio is a difference of two such numbers.
pub(super) struct Metropolis {
    proposal: Proposal,
    state: Evaluated,
    step: AdaptiveStep,
    /// Sum over `counted` steps of the mean acceptance probability, a scalar on the device.
    acceptance: Tensor,
    counted: u64,
    divergences: Tensor,
}

impl Metropolis {
    /// Chains that start at `start` `[N, D]`; one evaluation each.
    ///
    /// # Errors
    /// If log-density or score is not finite at a start: every ratio to it would be undefined.
    pub(super) fn new(
        start: &Tensor,
        target: &Evaluator,
        proposal: Proposal,
        step: AdaptiveStep,
    ) -> Result<Self, McmcError> {
        let state = evaluated(start.shallow_clone(), target);
        let is_finite = state.log_density.isfinite().logical_and(&finite_rows(&state.score));
        require_finite_starts(&is_finite)?;
        Ok(Metropolis {
            proposal,
            state,
            step,
            acceptance: Tensor::zeros([], (Kind::Double, start.device())),
            counted: 0,
            divergences: no_events(start),
        })
    }

    /// Step size of each chain `[N, 1]`, and which chains' acceptance counts `[N]`.
    fn steps(&self, noise: &mut Noise) -> (Tensor, Tensor) {
        let mut factor = match self.proposal {
            Proposal::Langevin => self.state.log_density.ones_like(),
            Proposal::Hamiltonian { jitter, .. } => noise.uniform() * (2.0 * jitter) + (1.0 - jitter),
        };
        let mut counts = factor.ones_like();
        if self.step.is_adapting() {
            let shortening = (noise.uniform() * 2.0 - 1.0).clamp_min(0.0);
            counts = shortening.less_equal(0.0).to_kind(factor.kind());
            factor *= (shortening * SHORTEST.ln()).exp();
        }
        ((factor * self.step.value()).unsqueeze(1), counts)
    }

    /// States proposed with the steps `step` `[N, 1]`, and the log of their acceptance ratio `[N]`; that may be
    /// anything, also not a number.
    fn propose(&self, step: &Tensor, target: &Evaluator, noise: &mut Noise) -> (Evaluated, Tensor) {
        let Evaluated { x, log_density, score } = &self.state;
        match self.proposal {
            Proposal::Langevin => {
                let n = noise.normal();
                let next = evaluated(x.addcmul(step, score).addcmul(&(step * 2.0).sqrt(), &n), target);
                let back = x - &next.x - &next.score * step;
                let ratio = &next.log_density - log_density
                    + row_sums(&(n.square() * 0.5 - back.square() / (step * 4.0)));
                (next, ratio)
            }
            Proposal::Hamiltonian { leapfrog, .. } => {
                let momentum = noise.normal();
                let half = step * 0.5;
                let mut p = momentum.addcmul(&half, score);
                let mut at = x.addcmul(step, &p);
                for _ in 1..leapfrog {
                    p = p.addcmul(step, &target.score(&at));
                    at = at.addcmul(step, &p);
                }
                let next = evaluated(at, target);
                p = p.addcmul(&half, &next.score);
                let ratio =
                    &next.log_density - log_density + row_sums(&(momentum.square() - p.square())) * 0.5;
                (next, ratio)
            }
        }
    }
}

impl Kernel for Metropolis {
    fn step(&mut self, target: &Evaluator, noise: &mut Noise) -> Result<(), McmcError> {
        let (step, counts) = self.steps(noise);
        let (next, ratio) = self.propose(&step, target, noise);
        // Not a number, or a state of infinite density, is a proposal that cannot be: never accepted.
        let never = f64::NEG_INFINITY;
        let ratio = ratio.nan_to_num(never, never, never);
        let is_accepted = noise.uniform().log().less_tensor(&ratio);
        self.state = next.or(&is_accepted, &self.state);
        self.divergences += ratio.less(DIVERGENT);

        let probability = ratio.clamp_max(0.0).exp() * &counts;
        let acceptance = probability.sum(Kind::Double) / counts.sum(Kind::Double);
        if !self.step.is_adapting() {
            self.acceptance += acceptance;
            self.counted += 1;
            return Ok(());
        }
        // Not a number where no chain counts, as happens with a few.
        let acceptance = Some(acceptance.double_value(&[])).filter(|value| !value.is_nan());
        self.step.learn(acceptance);
        if let Some(value) = acceptance {
            self.acceptance += value;
            self.counted += 1;
        }
        if !self.step.is_adapting() {
            // From here on the chains are the ones that results come from.
            self.acceptance = self.acceptance.zeros_like();
            self.divergences = self.divergences.zeros_like();
            self.counted = 0;
        }
        Ok(())
    }

    fn cost(&self) -> u64 {
        let rows = self.state.x.size()[0] as u64;
        match self.proposal {
            Proposal::Langevin => rows,
            Proposal::Hamiltonian { leapfrog, .. } => rows * leapfrog,
        }
    }

    fn positions(&self) -> Tensor {
        self.state.x.shallow_clone()
    }

    fn step_size(&self) -> f64 {
        self.step.value()
    }

    fn divergences(&self) -> Tensor {
        self.divergences.shallow_clone()
    }

    fn is_adapting(&self) -> bool {
        self.step.is_adapting()
    }

    fn acceptance(&self) -> Option<f64> {
        (self.counted > 0).then(|| self.acceptance.double_value(&[]) / self.counted as f64)
    }
}
