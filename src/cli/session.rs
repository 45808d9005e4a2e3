//! A command among ranks: how it starts, and how each kind of error ends it.
//!
//! Before any work, errors are agreed on: one rank reports, all leave with exit code 2. During work, what
//! happens on all ranks at once ends them together, and what happens on one rank ends the job from there.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use tracing::error;

use super::metrics::NotFinite;
use crate::comm::{CommError, StartOptions, World, cuda};
use crate::config::{ComputeSection, ConfigError, DeviceRequest};
use crate::train::TrainError;

/// The exit code of a command that did not succeed; its message has been printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

/// Exit code: a failure during work.
pub const FAILURE: u8 = 1;
/// Exit code: wrong usage or configuration, before any work.
pub const USAGE: u8 = 2;
/// Exit code: training diverged.
pub const DIVERGED: u8 = 3;
/// Exit code: stopped by a signal after writing a checkpoint (EX_TEMPFAIL, which schedulers requeue on).
pub const STOPPED: u8 = 75;

/// A command's ranks.
pub struct Session {
    /// The world.
    pub world: World,
}

impl Session {
    /// Starts the world that a configuration asks for; `file` is the configuration as read on this rank.
    ///
    /// A rank that cannot read it says so to the others before they look for devices: it does not know which
    /// to ask for.
    pub fn start<T>(
        file: Result<T, ConfigError>,
        compute: impl Fn(&T) -> &ComputeSection,
    ) -> Result<(Self, T), Exit> {
        Self::start_with(file, compute, false)
    }

    /// The same for a command whose ranks have long work of their own, after which they wait for each other for as
    /// long as that takes.
    pub fn start_apart<T>(
        file: Result<T, ConfigError>,
        compute: impl Fn(&T) -> &ComputeSection,
    ) -> Result<(Self, T), Exit> {
        Self::start_with(file, compute, true)
    }

    fn start_with<T>(
        file: Result<T, ConfigError>,
        compute: impl Fn(&T) -> &ComputeSection,
        work_apart: bool,
    ) -> Result<(Self, T), Exit> {
        let (asked, refusal) = match &file {
            Ok(file) => (compute(file).clone(), None),
            Err(error) => (ComputeSection::default(), Some(error.to_string())),
        };
        let options = StartOptions {
            share_gpus: asked.share_gpus,
            stall_limit: Duration::from_secs(asked.stall_seconds),
            work_apart,
            refusal,
            ..StartOptions::default()
        };
        let world =
            World::start(asked.device, asked.threads(), options).map_err(|error| start_failed(&error))?;
        let session = Session { world };
        session.prepare(cuda::set_up(session.world.device, &asked))?;
        match file {
            Ok(file) => Ok((session, file)),
            Err(_) => Err(Exit(USAGE)), // unreachable in practice: the refusal ended the start
        }
    }

    /// Starts the world of a command that has no configuration.
    pub fn start_on(device: DeviceRequest) -> Result<Self, Exit> {
        // Rank 0 may do all the work, and the others wait for it at the end.
        let options = StartOptions { work_apart: true, ..StartOptions::default() };
        let world = World::start(device, None, options).map_err(|error| start_failed(&error))?;
        let session = Session { world };
        session.prepare(cuda::set_up(session.world.device, &ComputeSection::default()))?;
        Ok(session)
    }

    /// Takes a step of preparation: if it failed on any rank, one reports and all leave.
    pub fn prepare<T, E: Display>(&self, step: Result<T, E>) -> Result<T, Exit> {
        self.world.agree(step).map_err(|failure| {
            if failure.is_reported_here() {
                error!("{failure}");
            }
            Exit(USAGE)
        })
    }

    /// Takes a step of preparation that only rank 0 makes, with what it makes on that rank.
    pub fn prepare_on_root<T, E: Display>(
        &self,
        step: impl FnOnce() -> Result<T, E>,
    ) -> Result<Option<T>, Exit> {
        self.prepare(if self.world.is_root() { step().map(Some) } else { Ok(None) })
    }

    /// Takes a step of work. Divergence is seen by all ranks at once, so they leave together; anything else
    /// may have happened on this rank alone, so it ends the job.
    pub fn work<T, E: Into<anyhow::Error>>(&self, step: Result<T, E>) -> Result<T, Exit> {
        step.map_err(|error| {
            let error: anyhow::Error = error.into();
            if let Some(code) = code_of_all_ranks(&error) {
                if self.world.is_root() {
                    error!("{error:#}");
                }
                return Exit(code);
            }
            let World { rank, size, host, .. } = &self.world;
            if *size == 1 {
                error!("{error:#}");
                return Exit(FAILURE);
            }
            error!("rank {rank} of {size} on {host}: {error:#}");
            self.world.abort(i32::from(FAILURE))
        })
    }
}

/// Exit code of an error that all ranks see at once, because they see it after a collective.
fn code_of_all_ranks(error: &anyhow::Error) -> Option<u8> {
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Diverged { .. } | TrainError::WarmStart { .. }) => Some(DIVERGED),
        Some(TrainError::Replicas { .. }) => Some(FAILURE),
        Some(TrainError::Observer(inner)) => inner.is::<NotFinite>().then_some(DIVERGED),
        Some(TrainError::Comm(_)) => None,
        None => error.is::<NotFinite>().then_some(DIVERGED),
    }
}

/// Reports that ranks could not start, from the rank that knows why.
pub fn start_failed(error: &CommError) -> Exit {
    if error.is_reported_here() {
        error!("{error}");
    }
    Exit(USAGE)
}

/// Reports the error of `dft doctor`: ranks that could not start (2), or a check that failed on all of them
/// (1).
pub fn report(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<CommError>() {
        Some(CommError::Backend { .. }) | None => {
            error!("{error:#}");
            Exit(FAILURE)
        }
        Some(start) => start_failed(start),
    }
}

/// Prints clap's help or error from rank 0 alone.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    // Under a launcher ranks must meet before they leave, or the launcher kills those still printing.
    let world = World::start(DeviceRequest::Cpu, Some(1), StartOptions::default());
    if world.as_ref().map(World::is_root).unwrap_or(true) {
        let _ = error.print();
    }
    drop(world);
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}
