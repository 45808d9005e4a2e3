//! Training: the loop that alternates score and sampler updates, and the fits of an energy and of a
//! classifier's features; and the mean-field Gaussian that samplers are compared with. Scores and records of a run are
//! the observer's business, not the loop's.

mod adam;
mod average;
mod build;
mod checkpoint;
mod clip;
mod contrast;
mod energy;
mod features;
mod fit;
mod mean_field;
mod observer;
mod recorded;
mod reduce;
mod regression;
mod rehearse;
mod run;
mod schedule;
mod state;
mod updates;
mod warm_start;

pub use adam::Adam;
pub use average::Average;
pub use build::{Networks, SetupError};
pub use checkpoint::{Newest, newest as newest_checkpoint, remove_partial as remove_partial_checkpoints};
pub use clip::RunningNorm;
pub use energy::{energy_network, fit_energy};
pub use features::{accuracy, fit_features};
pub use fit::FitState;
pub use mean_field::{MeanField, MeanFieldError};
pub use observer::{Event, FitObserver, FitRow, Observer, Row};
pub use reduce::{Reduced, reduce};
pub use rehearse::{Rehearsal, rehearse};
pub use run::{Outcome, Stop, run};
pub use schedule::learning_rate_factor;
pub use state::{State, StateError};

/// Why training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A loss or a gradient stopped being a finite number on all ranks together. Exit code 3.
    #[error(
        "training diverged at iteration {iteration}: the {what} is not finite after the reduction over ranks; lower the \
         learning rate, raise the noise levels, or set a clip norm"
    )]
    Diverged {
        /// The iteration.
        iteration: u64,
        /// Which quantity.
        what: &'static str,
    },
    /// The regression of the warm start stopped being finite on all ranks together. Exit code 3.
    #[error(
        "the warm start diverged at its update {update}: its loss or gradient is not finite after the reduction over ranks; \
         lower warm_start.lr"
    )]
    WarmStart {
        /// The update, from 1.
        update: u64,
    },
    /// The ranks' copies of the networks differ.
    #[error(
        "at iteration {iteration} ranks {ranks:?} hold other parameters than the rest, or than each other: their hardware or \
         libraries differ; resume from the last checkpoint without those hosts"
    )]
    Replicas {
        /// The iteration.
        iteration: u64,
        /// The ranks that are not of the majority; all if there is none.
        ranks: Vec<usize>,
    },
    /// Ranks could not exchange numbers.
    #[error(transparent)]
    Comm(#[from] crate::comm::CommError),
    /// The observer failed, e.g. to write the record.
    #[error(transparent)]
    Observer(#[from] anyhow::Error),
}
