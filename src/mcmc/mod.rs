//! MCMC and particle baselines: many chains at once, on the target a sampler is trained for.
//!
//! [`McmcRun`] moves all chains together until a budget of target evaluations or of seconds is spent. One
//! evaluation is one gradient for one chain; a log-density that comes with its gradient is not counted again,
//! and no sampler here asks for a log-density alone.

mod adaptation;
mod annealed;
mod annealed_metropolis;
mod correction;
mod evaluated;
mod evaluator;
mod kernel;
mod langevin;
mod metropolis;
mod noise;
mod nuts;
mod run;
mod snapshots;
mod surrogate;
mod svgd;

pub use annealed::AnnealedLangevin;
pub use annealed_metropolis::AnnealedMetropolis;
pub use correction::{Corrected, Correction};
pub use run::McmcRun;
pub use surrogate::Surrogate;

/// Why a baseline cannot run.
#[derive(Debug, thiserror::Error)]
pub enum McmcError {
    /// Its settings do not fit.
    #[error(transparent)]
    Settings(#[from] crate::config::ConfigError),
    /// The starting points do not fit the target; says what was wanted and found.
    #[error("{0}")]
    Start(String),
    /// A run was asked for without an end.
    #[error("a run without a budget never ends; give a number of evaluations, of seconds, or both")]
    NoBudget,
    /// The No-U-Turn Sampler failed.
    #[error("nuts chain {chain}: {message}")]
    Nuts {
        /// Which chain.
        chain: usize,
        /// What it said.
        message: String,
    },
}
