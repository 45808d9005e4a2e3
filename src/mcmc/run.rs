//! One run of a baseline: to a budget, and on to the next.

use std::rc::Rc;
use std::time::Instant;

use tch::Tensor;

use super::McmcError;
use super::adaptation::AdaptiveStep;
use super::evaluator::Evaluator;
use super::kernel::{Kernel, finite_rows};
use super::langevin::Langevin;
use super::metropolis::{Metropolis, Proposal};
use super::noise::Noise;
use super::nuts::Nuts;
use super::snapshots::Snapshots;
use super::svgd::Svgd;
use crate::config::{ConfigError, McmcSection, StepSizes};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// States of all chains that are kept: with these, 16 in the second half are always distinct and equally spaced.
const SNAPSHOTS: usize = 64;

/// Chains or particles on a target, with what they have cost.
///
/// A run can be stopped at one budget, read, and continued to the next: what it draws does not depend on the
/// stops. All states are kept in the kind and on the device of the starts.
pub struct McmcRun<'a> {
    target: Rc<Evaluator<'a>>,
    kernel: Box<dyn Kernel + 'a>,
    noise: Noise,
    /// Of the mini-batches, where the target is estimated.
    seed: u64,
    takes_estimates: bool,
    snapshots: Snapshots,
    /// N: rows of a set of draws.
    set: i64,
    steps: u64,
    /// Steps after which the step size stayed.
    adapted_at: u64,
    seconds: f64,
}

impl<'a> McmcRun<'a> {
    /// Chains of the kind and settings of `section` that start at `start` `[N, …shape]`. A kind that needs the
    /// target at its starts evaluates it here.
    ///
    /// # Errors
    /// If a setting does not fit, `section` has several step sizes (see [`McmcSection::candidates`]), or the
    /// starts do not fit the target.
    pub fn new(
        section: &McmcSection,
        target: &'a dyn Target,
        start: &Tensor,
        generator: Generator,
    ) -> Result<Self, McmcError> {
        Self::with_chains(
            section,
            target,
            start,
            start.size().first().map_or(0, |&rows| rows as usize),
            generator,
        )
    }

    /// As [`new`](Self::new), with chains from the first `chains` of the starts only; a set of draws still has N rows,
    /// taken at as many more steps. Particles and `nuts`, which has a number of its own, are not affected.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_chains(
        section: &McmcSection,
        target: &'a dyn Target,
        start: &Tensor,
        chains: usize,
        generator: Generator,
    ) -> Result<Self, McmcError> {
        let began = Instant::now();
        section.check("mcmc")?;
        let start = checked_start(start, target)?;
        let target = Rc::new(Evaluator::new(target));
        let first = start.narrow(0, 0, (chains as i64).clamp(1, start.size()[0]));
        let seed = Noise::new(generator.clone(), &first).seed();
        let mut noise = Noise::new(generator, &first);
        let kernel: Box<dyn Kernel + 'a> = match section {
            McmcSection::Ula(s) => Box::new(Langevin::unadjusted(&first, single(&s.step_size)?)),
            McmcSection::Sgld(s) => Box::new(Langevin::falling(&first, single(&s.step_size)?, s)),
            McmcSection::Mala(s) => {
                let step = AdaptiveStep::new(s.step_size, s.target_acceptance, s.adaptation_steps);
                Box::new(Metropolis::new(&first, &target, Proposal::Langevin, step)?)
            }
            McmcSection::Hmc(s) => {
                let step = AdaptiveStep::new(s.step_size, s.target_acceptance, s.adaptation_steps);
                let proposal = Proposal::Hamiltonian { leapfrog: s.leapfrog, jitter: s.jitter };
                Box::new(Metropolis::new(&first, &target, proposal, step)?)
            }
            McmcSection::Svgd(s) => Box::new(Svgd::new(&start, single(&s.step_size)?, s)),
            McmcSection::Nuts(s) => Box::new(Nuts::new(&start, &target, s, &mut noise)?),
        };
        let set = start.size()[0];
        let rows = kernel.positions().size()[0];
        Ok(McmcRun {
            target,
            kernel,
            seed,
            takes_estimates: section.takes_estimates(),
            noise,
            snapshots: Snapshots::new(SNAPSHOTS * per_set(set, rows) as usize),
            set,
            steps: 0,
            adapted_at: 0,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Steps until `evaluations` of the target or `seconds` are spent, counted from the beginning of the run and
    /// whichever comes first. `progress` is told evaluations and seconds after each step, and its own time
    /// counts. The evaluations are never exceeded, but by `nuts` by one draw of its chains, whose cost is not
    /// known beforehand; the seconds are by one step. Work that a device still has queued is waited for.
    ///
    /// # Errors
    /// If neither budget is given, or `nuts` fails.
    pub fn run_until(
        &mut self,
        evaluations: Option<u64>,
        seconds: Option<f64>,
        progress: &mut dyn FnMut(u64, f64),
    ) -> Result<(), McmcError> {
        if evaluations.is_none() && seconds.is_none() {
            return Err(McmcError::NoBudget);
        }
        let (began, before) = (Instant::now(), self.seconds);
        while evaluations.is_none_or(|most| self.evaluations() + self.kernel.cost() <= most)
            && seconds.is_none_or(|most| self.seconds < most)
        {
            let is_adapting = self.kernel.is_adapting();
            if self.takes_estimates {
                self.target.redraw(&mut Generator::new(self.seed, Stream::MiniBatch, self.steps, 0));
            }
            self.kernel.step(&self.target, &mut self.noise)?;
            self.steps += 1;
            if is_adapting && !self.kernel.is_adapting() {
                self.adapted_at = self.steps;
            }
            self.snapshots.offer(self.steps, || self.kernel.positions());
            self.seconds = before + began.elapsed().as_secs_f64();
            progress(self.evaluations(), self.seconds);
        }
        // Reading a number waits for the device.
        finite_rows(&self.kernel.positions()).all().int64_value(&[]);
        self.seconds = before + began.elapsed().as_secs_f64();
        Ok(())
    }

    /// `repeats` sets of N draws `[N·repeats, …shape]`, one set after the other, N the number of starts: the
    /// states at equally spaced steps of the second half of the run so far, later if the step size was still
    /// adapted then. 16 sets are always there once the run is long enough to have them; fewer steps give fewer
    /// sets, and none before the first step gives the starts.
    ///
    /// Particles (`svgd`) have one set only, the last. The draws of `nuts` are dealt out to the sets in turn, so
    /// that each covers the whole time; where it made fewer than N·repeats, all there are come back.
    pub fn draws(&self, repeats: u64) -> Tensor {
        let now = || self.target.shaped(&self.kernel.positions());
        if !self.kernel.is_chain() {
            return now();
        }
        let half = self.steps / 2;
        let from = if self.adapted_at < self.steps { half.max(self.adapted_at) } else { half };
        let rows = self.kernel.positions().size()[0];
        let found = self.snapshots.spread(from, self.steps, repeats * per_set(self.set, rows));
        if found.is_empty() {
            return now();
        }
        let sets: Vec<Tensor> = (0..found.len().min(repeats as usize))
            .map(|number| {
                let states: Vec<&Tensor> =
                    found.iter().skip(number).step_by(repeats as usize).map(|(_, state)| state).collect();
                let states = Tensor::cat(&states, 0);
                states.narrow(0, 0, states.size()[0].min(self.set))
            })
            .collect();
        self.target.shaped(&Tensor::cat(&sets, 0))
    }

    /// Current states `[rows, …shape]`; rows are the chains: N if no other number was given.
    pub fn positions(&self) -> Tensor {
        self.target.shaped(&self.kernel.positions())
    }

    /// Steps of all chains so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Gradients of one row each so far, those at the starts included.
    pub fn evaluations(&self) -> u64 {
        self.target.count()
    }

    /// Seconds in [`McmcRun::new`] and [`McmcRun::run_until`] so far.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Mean acceptance probability since the step size stays, or so far while it is adapted; for `mala` and `hmc`.
    pub fn acceptance(&self) -> Option<f64> {
        self.kernel.acceptance()
    }

    /// Step size of the next step; for `nuts` the mean over its chains, not a number before the first draw.
    pub fn step_size(&self) -> f64 {
        self.kernel.step_size()
    }

    /// Whether the step size is still adapted.
    pub fn is_adapting(&self) -> bool {
        self.kernel.is_adapting()
    }

    /// Divergences of all chains. `ula`, `sgld`, `svgd`: a state had a coordinate beyond 1e6 or not a number, and
    /// its chain was put back to its start. `mala`, `hmc`, `nuts`: a proposal had an energy error above 1000 or was not finite, and was
    /// rejected; counted since the step size stays, or so far while `mala` or `hmc` adapt it.
    pub fn divergences(&self) -> u64 {
        self.kernel.divergences().sum(None).int64_value(&[]) as u64
    }

    /// Chains or particles with at least one divergence.
    pub fn diverged_chains(&self) -> u64 {
        self.kernel.divergences().greater(0).sum(None).int64_value(&[]) as u64
    }
}

/// The one step size there should be.
fn single(sizes: &StepSizes) -> Result<f64, McmcError> {
    match sizes.values() {
        [size] => Ok(*size),
        several => Err(ConfigError::Invalid(format!(
            "mcmc.step_size = {several:?}; a run has one step size, choose one of them"
        ))
        .into()),
    }
}

/// Starts as flat rows `[N, D]` of their own.
fn checked_start(start: &Tensor, target: &dyn Target) -> Result<Tensor, McmcError> {
    let shape = start.size();
    if shape.len() < 2 || shape[0] == 0 || &shape[1..] != target.shape() {
        return Err(McmcError::Start(format!(
            "starts should be [N, …] samples of shape {:?}, and are {shape:?}",
            target.shape()
        )));
    }
    let start = start.detach().flatten(1, -1).copy();
    if finite_rows(&start).all().int64_value(&[]) == 0 {
        return Err(McmcError::Start("starts should be finite numbers, and some are not".into()));
    }
    Ok(start)
}

/// Steps whose states make a set of `set` rows, at `rows` a step.
fn per_set(set: i64, rows: i64) -> u64 {
    (set as u64).div_ceil(rows as u64)
}
