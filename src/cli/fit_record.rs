//! What a fit leaves behind: its directory, its log, checkpoints, and weights that say where they come from.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use tracing::{info, warn};

use super::arguments::Fit;
use super::progress::Progress;
use super::run_directory::{self, RunDirectory};
use super::run_record::start_record;
use super::session::{Exit, STOPPED, Session};
use super::summary::command_line;
use crate::config::{FitSection, Identity, RunSection};
use crate::model::{Layout, WeightsFile};
use crate::record::{Cell, Column, RunFile};
use crate::train::{FitObserver, FitRow, FitState, Outcome};

/// Updates between flushes of the log, for who watches it.
const FLUSH_EVERY: u64 = 100;

/// A fit in progress, seen from one rank; only rank 0 writes.
pub struct FitRun {
    path: PathBuf,
    directory: Option<(RunDirectory, RunFile)>,
    output: PathBuf,
    seed: u64,
    progress: Progress,
    /// Mean loss over the recent past, for the display alone.
    recent: f64,
}

impl FitRun {
    /// Makes the run directory, its record and the first state; or opens them, with the state where the fit was.
    ///
    /// # Errors
    /// If the directory holds a run already, or none to resume; if its checkpoint is of another fit; or if the weights
    /// must not or could not be written.
    pub fn start(
        session: &Session,
        arguments: &Fit,
        layout: &Rc<Layout>,
        (run, train, config): (&RunSection, &FitSection, &str),
        identity: Identity,
    ) -> Result<(Self, FitState), Exit> {
        let (world, path) = (&session.world, run.directory());
        let output = arguments.output.clone().unwrap_or_else(|| path.join("weights.safetensors"));
        let (directory, checkpoint) = run_directory::open(session, &path, arguments.resume)?;
        session.prepare_on_root(|| check_output(&output, arguments.force))?;
        let mut state = FitState::initial(layout, train, run.seed, world.device);
        let iterations = train.iterations;
        if let Some(checkpoint) = checkpoint {
            session.prepare(run_directory::explain(state.restore(&checkpoint, identity), world))?;
            if world.is_root() {
                info!("resumed at update {} of {iterations}", state.iteration);
            }
        }
        let record = session.prepare_on_root(|| start_record(&path, world, config, state.iteration))?;
        let record = FitRun {
            path,
            directory: directory.zip(record),
            output,
            seed: run.seed,
            progress: Progress::new("fit", state.iteration, iterations, world.is_root()),
            recent: f64::NAN,
        };
        Ok((record, state))
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Leaves, on all ranks together, if the fit was stopped.
    ///
    /// # Errors
    /// The exit code of a run that was stopped.
    pub fn end(&self, session: &Session, outcome: Outcome, state: &FitState) -> Result<(), Exit> {
        if outcome == Outcome::Done {
            return Ok(());
        }
        if session.world.is_root() {
            warn!("stopped by a signal at update {}; --resume goes on from there", state.iteration);
        }
        session.work(session.world.collective().barrier())?;
        Err(Exit(STOPPED))
    }

    /// Writes the averaged weights with `metadata` and where they come from; returns where they are.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn finish(self, state: &FitState, metadata: &[(&str, String)]) -> Result<PathBuf> {
        self.progress.finish();
        if let Some((_directory, mut record)) = self.directory {
            record.flush()?;
            let mut metadata = metadata.to_vec();
            metadata.extend([
                ("command", command_line()),
                ("seed", self.seed.to_string()),
                ("commit", env!("DFT_COMMIT").to_string()),
                ("version", env!("CARGO_PKG_VERSION").to_string()),
            ]);
            WeightsFile::save(&self.output, &state.average.parameters.named(), &metadata)
                .with_context(|| format!("cannot write weights {}", self.output.display()))?;
            record.remove_backup()?;
        }
        Ok(self.output)
    }
}

impl FitObserver for FitRun {
    fn row(&mut self, row: &FitRow) -> Result<()> {
        self.recent = if self.recent.is_nan() { row.loss } else { 0.98 * self.recent + 0.02 * row.loss };
        let recent = self.recent;
        self.progress.set(row.iteration, || format!("loss {recent:.3}"));
        let Some((_, record)) = &mut self.directory else { return Ok(()) };
        record.append(
            "train",
            &[
                (Column::new("iteration", "1", "updates done"), Cell::from(row.iteration)),
                (
                    Column::new(
                        "wall_seconds",
                        "s",
                        "seconds of fitting, earlier parts of a resumed fit included",
                    ),
                    Cell::from(row.wall_seconds),
                ),
                (Column::new("loss", "1", "mean loss over the global batch"), Cell::from(row.loss)),
                (
                    Column::new("gradient_norm", "1", "norm of the gradient before clipping"),
                    Cell::from(row.gradient_norm),
                ),
                (Column::new("learning_rate", "1", "step size of Adam"), Cell::from(row.learning_rate)),
            ],
        )?;
        if row.iteration.is_multiple_of(FLUSH_EVERY) {
            record.flush()?;
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.directory.as_mut().map_or(Ok(()), |(_, record)| record.back_up())
    }
}

/// Fails now rather than after an hour of training if the weights must not or could not be written.
fn check_output(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        bail!("weights {} exist; add --force to overwrite them, or choose another --output", path.display());
    }
    let mut probe = path.as_os_str().to_owned();
    probe.push(format!(".{}", std::process::id()));
    std::fs::write(&probe, b"")
        .and_then(|()| std::fs::remove_file(&probe))
        .with_context(|| format!("cannot write weights {}; choose another --output", path.display()))
}
