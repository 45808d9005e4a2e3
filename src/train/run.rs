//! The training loop of `dft train`: score updates and sampler updates in turn, or both at once.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::TrainError;
use super::build::Networks;
use super::checkpoint;
use super::observer::{Event, Observer, Row};
use super::state::State;
use super::updates::{Round, Trainer};
use crate::comm::World;
use crate::config::Plan;

/// A request to stop at the next iteration boundary, set from a signal handler.
pub type Stop = AtomicBool;

/// How training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All iterations are done.
    Done,
    /// A rank was asked to stop; a checkpoint holds everything.
    Stopped,
}

/// Trains from `state` to the plan's last iteration. Checkpoints go to `checkpoints` (rank 0 writes).
///
/// # Errors
/// If a loss or gradient is not finite, a collective fails, or the observer fails; see [`TrainError`].
pub fn run(
    plan: &Plan,
    world: &World,
    networks: &Networks,
    state: &mut State,
    observer: &mut dyn Observer,
    checkpoints: &Path,
    stop: &Stop,
) -> Result<Outcome, TrainError> {
    let settings = &plan.file.train;
    let mut trainer = Trainer::new(plan, world, networks);
    let started = Instant::now();
    let seconds_before = state.wall_seconds;
    let mut evaluating = Duration::ZERO; // no part of training

    // Warm start: the sampler learns where short chains of the target end.
    if let Some(section) = &plan.file.warm_start {
        while state.warm_start_updates < section.updates {
            let loss = trainer.warm_start_update(state, section)?;
            observer.observe(&Event::WarmStart(state.warm_start_updates, section.updates, loss))?;
            state.wall_seconds = seconds_before + started.elapsed().as_secs_f64();
            if world.any(stop.load(Ordering::Relaxed)) {
                save(plan, world, state, observer, checkpoints)?;
                return Ok(Outcome::Stopped);
            }
        }
    }

    // Pairs: what a regression holds the sampler to.
    if state.iteration < settings.iterations {
        let is_done = trainer.make_pairs(state, &mut |done, total| {
            observer.observe(&Event::Pairs(done, total))?;
            Ok(!world.any(stop.load(Ordering::Relaxed)))
        })?;
        state.wall_seconds = seconds_before + started.elapsed().as_secs_f64();
        if !is_done {
            save(plan, world, state, observer, checkpoints)?;
            return Ok(Outcome::Stopped);
        }
    }

    // Warm-up: the score network catches up with the sampler it starts beside.
    while state.iteration == 0 && state.score_updates < settings.warmup_updates {
        let update = trainer.score_update(state, 0.0)?;
        observer.observe(&Event::Warmup(state.score_updates, settings.warmup_updates, update.loss))?;
        // An exchange of its own: in the loop below the wish to stop travels with the gradient.
        state.wall_seconds = seconds_before + started.elapsed().as_secs_f64();
        if world.any(stop.load(Ordering::Relaxed)) {
            save(plan, world, state, observer, checkpoints)?;
            return Ok(Outcome::Stopped);
        }
    }

    while state.iteration < settings.iterations {
        let fraction = state.iteration as f64 / settings.iterations as f64;

        // K score updates and one of the sampler.
        let Round { score, sampler, is_stop_asked } = trainer.round(state, fraction, stop)?;

        // Report.
        state.wall_seconds = seconds_before + (started.elapsed() - evaluating).as_secs_f64();
        let (low, high) = plan.file.method.sigma.band(fraction);
        observer.observe(&Event::Iteration(&Row {
            iteration: state.iteration,
            wall_seconds: state.wall_seconds,
            score_loss: score.loss,
            sampler_loss: sampler.loss,
            score_gradient_norm: score.gradient_norm,
            sampler_gradient_norm: sampler.gradient_norm,
            sigma: (low * high).sqrt(),
            target_evaluations: state.target_evaluations,
        }))?;

        // Evaluate, then save: a checkpoint stands for everything up to its iteration.
        let is_last = state.iteration == settings.iterations;
        let every = plan.file.evaluate.every;
        if is_last || (every > 0 && state.iteration.is_multiple_of(every)) {
            let began = Instant::now();
            observer.observe(&Event::Evaluation(state))?;
            evaluating += began.elapsed();
        }
        if is_last || is_stop_asked || state.iteration.is_multiple_of(plan.file.checkpoint.every) {
            save(plan, world, state, observer, checkpoints)?;
        }
        if is_stop_asked && !is_last {
            return Ok(Outcome::Stopped);
        }
    }
    Ok(Outcome::Done)
}

/// Writes a checkpoint once all ranks are known to hold the same, and returns on all ranks when it is on disk.
fn save(
    plan: &Plan,
    world: &World,
    state: &State,
    observer: &mut dyn Observer,
    checkpoints: &Path,
) -> Result<(), TrainError> {
    same_on_all_ranks(world, state.iteration, &state.parameters_sha256())?;
    observer.observe(&Event::Checkpoint(state.iteration))?;
    if world.is_root() {
        state.save(&checkpoints.join(checkpoint::file_name(state.iteration)), plan)?;
        checkpoint::prune(checkpoints, plan.file.checkpoint.keep).map_err(anyhow::Error::from)?;
    }
    Ok(world.collective().barrier()?)
}

/// Every rank makes the same updates from the same sums, so all hold the same bits; a rank that does not has
/// a hardware or library fault, and nothing it computes can be trusted. `sha256` is that of this rank's parameters.
pub(super) fn same_on_all_ranks(world: &World, iteration: u64, sha256: &str) -> Result<(), TrainError> {
    let hashes = world.gather_strings(sha256);
    let holders = |hash: &String| hashes.iter().filter(|other| *other == hash).count();
    let most = hashes.iter().map(holders).max().unwrap_or(0);
    if most == hashes.len() {
        return Ok(());
    }
    // Without a majority nobody knows who is right.
    let is_known = 2 * most > hashes.len();
    let ranks = (0..hashes.len()).filter(|rank| !is_known || holders(&hashes[*rank]) < most).collect();
    Err(TrainError::Replicas { iteration, ranks })
}
