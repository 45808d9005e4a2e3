//! A command among ranks: how it starts, and how each kind of error ends it.
//!
//! Before any work, errors are agreed on: one rank reports, all leave with exit code 2. During work, what happens on all
//! ranks at once ends them together, and what happens on one rank ends the job from there.

use std::fmt::Display;
use std::process::ExitCode;

use tracing::error;

use crate::comm::{CommError, StartOptions, World};
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
    /// A configuration that cannot be read names no device, so ranks then meet on the CPU to report it once.
    pub fn start<T>(
        file: Result<T, ConfigError>,
        compute: impl Fn(&T) -> &ComputeSection,
    ) -> Result<(Self, T), Exit> {
        let asked = file
            .as_ref()
            .ok()
            .map(|file| compute(file).clone())
            .unwrap_or_else(|| ComputeSection { device: DeviceRequest::Cpu, ..ComputeSection::default() });
        let options = StartOptions { share_gpus: asked.share_gpus, ..StartOptions::default() };
        let world =
            World::start(asked.device, asked.threads, options).map_err(|error| start_failed(&error))?;
        let session = Session { world };
        let file = session.prepare(file)?;
        Ok((session, file))
    }

    /// Starts the world of a command that has no configuration.
    pub fn start_on(device: DeviceRequest) -> Result<Self, Exit> {
        let world =
            World::start(device, None, StartOptions::default()).map_err(|error| start_failed(&error))?;
        Ok(Session { world })
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

    /// Takes a step of work. Divergence is seen by all ranks at once, so they leave together; anything else may have
    /// happened on this rank alone, so it ends the job.
    pub fn work<T, E: Into<anyhow::Error>>(&self, step: Result<T, E>) -> Result<T, Exit> {
        step.map_err(|error| {
            let error: anyhow::Error = error.into();
            if let Some(TrainError::Diverged { .. }) = error.downcast_ref() {
                if self.world.is_root() {
                    error!("{error:#}");
                }
                return Exit(DIVERGED);
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

/// Reports that ranks could not start, from the rank that knows why.
pub fn start_failed(error: &CommError) -> Exit {
    if error.is_reported_here() {
        error!("{error}");
    }
    Exit(USAGE)
}

/// Reports an error that has not been agreed on: ranks that could not start, or a check that failed.
pub fn report(error: &anyhow::Error) -> Exit {
    match error.downcast_ref::<CommError>() {
        Some(start) => start_failed(start),
        None => {
            error!("{error:#}");
            Exit(FAILURE)
        }
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
