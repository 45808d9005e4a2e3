//! One rank doing the work of many, to learn what a job will take before it waits in a queue.

use std::time::{Duration, Instant};

use super::TrainError;
use super::build::Networks;
use super::run::Stop;
use super::state::State;
use super::updates::Trainer;
use crate::comm::World;
use crate::config::{Plan, Reduction, Schedule};

/// Iterations that are measured, after one that is not.
const MEASURED: usize = 3;

/// What an iteration of a job takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// Ranks of the job.
    pub ranks: usize,
    /// Time that one of them spends on its part of the batch and on adding up its shards, in all updates of an iteration.
    pub computing: Duration,
    /// Time that every rank spends besides, however many there are: clipping, Adam and the average.
    pub updating: Duration,
    /// Bytes of each all-reduce of an iteration, in their order, without the few of an exact sum's exponents.
    pub reductions: Vec<usize>,
}

/// Does one iteration of the job that `plan`, checked for `ranks` ranks, describes, and measures three more: the parts of all
/// ranks one after the other, in the shapes they have there, and summed as they are there.
///
/// `world` is one rank, and `state` moves on by four iterations. A target whose data are spread over the ranks is
/// evaluated over all of them for each part, which takes as long in sum.
///
/// # Errors
/// If a loss or gradient is not finite.
///
/// # Panics
/// If the world has several ranks.
pub fn rehearse(
    plan: &Plan,
    world: &World,
    networks: &Networks,
    state: &mut State,
    ranks: usize,
) -> Result<Rehearsal, TrainError> {
    assert_eq!(world.size, 1, "a rehearsal is a play of one");
    let trainer = Trainer::rehearsing(plan, world, networks, ranks);
    let stop = Stop::new(false);
    let mut measured = Vec::with_capacity(MEASURED);
    for iteration in 0..=MEASURED {
        let (before, started) = (trainer.computing(), Instant::now());
        trainer.round(state, 0.0, &stop)?;
        world.collective().barrier()?; // a GPU has done its work
        let (all, computing) = (started.elapsed(), trainer.computing() - before);
        if iteration > 0 {
            measured.push((computing, all.saturating_sub(computing)));
        }
    }
    let median = |of: fn(&(Duration, Duration)) -> Duration| {
        let mut times: Vec<Duration> = measured.iter().map(of).collect();
        times.sort();
        times[MEASURED / 2]
    };
    Ok(Rehearsal {
        ranks,
        computing: median(|times| times.0) / ranks as u32,
        updating: median(|times| times.1),
        reductions: reductions(plan, state),
    })
}

/// Bytes of each all-reduce of an iteration: gradients and, beside each, its statistics.
fn reductions(plan: &Plan, state: &State) -> Vec<usize> {
    let settings = &plan.file.train;
    let width = match plan.file.compute.reduction {
        Reduction::Fast => size_of::<f32>(),
        Reduction::Exact => size_of::<i64>(),
    };
    let (score, sampler) = (state.score.count() as usize + 1, state.sampler.count() as usize + 2);
    let updates = settings.score_updates() as usize;
    let numbers = match settings.schedule {
        Schedule::Alternating => [vec![score; updates], vec![sampler]].concat(),
        Schedule::Simultaneous => [vec![score; updates - 1], vec![score + sampler]].concat(),
    };
    numbers.into_iter().map(|count| count * width).collect()
}
