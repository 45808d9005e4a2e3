//! What a fit leaves behind: its directory, its log, and weights that say where they come from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::arguments::Fit;
use super::progress::Progress;
use super::run_directory::RunDirectory;
use super::run_record::run_attributes;
use super::session::{Exit, Session};
use super::summary::command_line;
use crate::config::RunSection;
use crate::model::{Parameters, WeightsFile, write_atomically};
use crate::record::{Cell, Column, RunFile};
use crate::train::FitRow;

/// Updates between rows of the log.
const ROW_EVERY: u64 = 10;

/// A fit in progress, seen from one rank; only rank 0 writes.
pub struct FitRun {
    directory: Option<(RunDirectory, RunFile)>,
    output: PathBuf,
    seed: u64,
    iterations: u64,
    progress: Progress,
    /// Mean loss over the recent past, for the display alone.
    recent: f64,
}

impl FitRun {
    /// Makes the run directory and its record.
    pub fn start(
        session: &Session,
        arguments: &Fit,
        run: &RunSection,
        config: &str,
        iterations: u64,
    ) -> Result<Self, Exit> {
        let path = run.directory();
        let output = arguments.output.clone().unwrap_or_else(|| path.join("weights.safetensors"));
        let directory = session.prepare_on_root(|| -> Result<_> {
            let directory = RunDirectory::create(&path)?;
            check_output(&output, arguments.force)?;
            write_atomically(&directory.file("config.toml"), config.as_bytes())
                .with_context(|| format!("cannot write in {}", path.display()))?;
            let record = RunFile::create(directory.file("run.h5"), &run_attributes(&session.world, config))?;
            Ok((directory, record))
        })?;
        let is_root = session.world.is_root();
        Ok(FitRun {
            directory,
            output,
            seed: run.seed,
            iterations,
            progress: Progress::new("fit", 0, iterations, is_root),
            recent: f64::NAN,
        })
    }

    /// Takes in an update.
    pub fn row(&mut self, row: &FitRow) -> Result<()> {
        self.recent = if self.recent.is_nan() { row.loss } else { 0.98 * self.recent + 0.02 * row.loss };
        let recent = self.recent;
        self.progress.set(row.iteration, || format!("loss {recent:.3}"));
        let Some((_, record)) = &mut self.directory else { return Ok(()) };
        if row.iteration.is_multiple_of(ROW_EVERY) || row.iteration == self.iterations {
            record.append(
                "train",
                &[
                    (Column::new("iteration", "1", "updates done"), Cell::from(row.iteration)),
                    (
                        Column::new("wall_seconds", "s", "seconds since the start"),
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
        }
        if row.iteration.is_multiple_of(100 * ROW_EVERY) {
            record.flush()?;
        }
        Ok(())
    }

    /// Writes the weights with `metadata` and where they come from; returns where they are.
    pub fn finish(self, parameters: &Parameters, metadata: &[(&str, String)]) -> Result<PathBuf> {
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
            WeightsFile::save(&self.output, &parameters.named(), &metadata)
                .with_context(|| format!("cannot write weights {}", self.output.display()))?;
        }
        Ok(self.output)
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
