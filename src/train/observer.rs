//! What training tells the outside: rows for the record, moments to evaluate or to save.

use super::state::State;

/// One iteration of `dft train`, equal on all ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Iterations done, from 1.
    pub iteration: u64,
    /// Seconds of training so far, earlier parts of a resumed run included.
    pub wall_seconds: f64,
    /// Mean denoising loss of the score network in the last of its updates.
    pub score_loss: f64,
    /// Mean denoising Fisher loss of the samples, weighted like the field.
    pub sampler_loss: f64,
    /// Norm of the score network's gradient in the last of its updates, before clipping.
    pub score_gradient_norm: f64,
    /// Norm of the sampler's gradient, before clipping.
    pub sampler_gradient_norm: f64,
    /// Geometric mean of the band of noise levels.
    pub sigma: f64,
    /// Evaluations of the target's gradient so far, over all ranks.
    pub target_evaluations: u64,
}

/// One update of a fit, equal on all ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitRow {
    /// Updates done, from 1.
    pub iteration: u64,
    /// Seconds so far, earlier parts of a resumed fit included.
    pub wall_seconds: f64,
    /// Mean loss over the global batch.
    pub loss: f64,
    /// Norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// Step size of this update.
    pub learning_rate: f64,
}

/// Something that happened in `dft train`.
pub enum Event<'a> {
    /// An update of the warm start: how many are done, of how many, and the loss.
    WarmStart(u64, u64, f64),
    /// Pairs were made: of how many of this rank's shards, and how many it has.
    Pairs(u64, u64),
    /// A score update before the first iteration: how many are done, of how many, and the loss.
    Warmup(u64, u64, f64),
    /// An iteration is done.
    Iteration(&'a Row),
    /// It is time to evaluate: all ranks are here, collectives are allowed.
    Evaluation(&'a State),
    /// A checkpoint of this iteration is about to be written: what was recorded must be on disk before it.
    Checkpoint(u64),
}

/// Watches training. Called on every rank, in the same order.
pub trait Observer {
    /// Takes in an event. An error ends the run.
    fn observe(&mut self, event: &Event) -> anyhow::Result<()>;
}

/// Watches a fit. Called on every rank, in the same order; an error ends the fit.
pub trait FitObserver {
    /// Takes in an update.
    fn row(&mut self, row: &FitRow) -> anyhow::Result<()>;

    /// A checkpoint is about to be written: what was recorded must be on disk before it.
    fn checkpoint(&mut self) -> anyhow::Result<()>;
}
