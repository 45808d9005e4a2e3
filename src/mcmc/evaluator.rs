//! A target that counts: rows in, log-densities and scores out.

use std::cell::Cell;

use tch::Tensor;

use crate::rng::Generator;
use crate::target::Target;

/// Evaluates a target at flat rows `[N, D]` and counts one evaluation a row.
pub(super) struct Evaluator<'a> {
    target: &'a dyn Target,
    count: Cell<u64>,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(target: &'a dyn Target) -> Self {
        Evaluator { target, count: Cell::new(0) }
    }

    /// Evaluations so far.
    pub(super) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Draws the mini-batches of the next evaluations, where the target is estimated.
    pub(super) fn redraw(&self, generator: &mut Generator) {
        self.target.redraw(generator);
    }

    /// Score `[N, D]` at `x` `[N, D]`.
    pub(super) fn score(&self, x: &Tensor) -> Tensor {
        self.count.set(self.count.get() + x.size()[0] as u64);
        self.target.score(&self.shaped(x)).detach().flatten(1, -1)
    }

    /// Log-density `[N]` and score `[N, D]` at `x` `[N, D]`, counted once.
    pub(super) fn log_density_and_score(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.count.set(self.count.get() + x.size()[0] as u64);
        let (log_density, score) = self.target.log_density_and_score(&self.shaped(x));
        (log_density.detach(), score.detach().flatten(1, -1))
    }

    /// `x` `[N, D]` as samples of the target, `[N, …shape]`.
    pub(super) fn shaped(&self, x: &Tensor) -> Tensor {
        x.reshape([&[x.size()[0]], self.target.shape()].concat())
    }
}
