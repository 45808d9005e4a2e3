//! The run directory: made, locked, and never overwritten.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs4::fs_std::FileExt;
use tracing::warn;

use super::session::{Exit, Session};
use crate::comm::World;
use crate::model::WeightsError;
use crate::train::{Newest, StateError, newest_checkpoint, remove_partial_checkpoints};

/// Files in it that are written under a temporary name first, which a killed process may leave.
const WRITTEN: [&str; 7] = [
    "config.toml",
    "summary.json",
    "sampler.safetensors",
    BEST_SAMPLER,
    "weights.safetensors",
    "run.h5",
    "run.h5.backup",
];

/// The sampler of the evaluation with the least Fréchet distance.
pub const BEST_SAMPLER: &str = "sampler-best.safetensors";

/// A run directory that this process owns until it is dropped.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: File,
}

impl RunDirectory {
    /// Makes the directory for a new run.
    ///
    /// # Errors
    /// If it holds a run already, cannot be written, or another process works in it.
    pub fn create(path: &Path) -> Result<Self> {
        refuse_a_run(path)?;
        for part in ["checkpoints", "figures"] {
            let part = path.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot make run directory {}", part.display()))?;
        }
        let directory = Self::lock(path)?;
        // Another process may have come in between.
        refuse_a_run(path)?;
        Ok(directory)
    }

    /// Opens the directory of a run to continue; also returns its newest checkpoint that is whole. A run that stopped
    /// before its first checkpoint has none and starts again, so that a requeued job needs no other command
    /// line.
    ///
    /// Newer checkpoints that are damaged are skipped with a warning and renamed, so that they neither count as
    /// checkpoints to keep nor come up again.
    ///
    /// # Errors
    /// If there is no run in it, another process works in it, or it has checkpoints and all are damaged.
    pub fn resume(path: &Path) -> Result<(Self, Option<PathBuf>)> {
        if !path.join("config.toml").exists() {
            bail!("there is no run to resume in {}; start it without --resume", path.display());
        }
        let directory = Self::lock(path)?;
        directory.remove_partial()?;
        let checkpoints = path.join("checkpoints");
        let Newest { whole, damaged } = newest_checkpoint(&checkpoints)
            .with_context(|| format!("cannot read the checkpoints in {}", path.display()))?;
        if whole.is_none() && !damaged.is_empty() {
            let reasons: Vec<String> =
                damaged.iter().map(|(file, reason)| format!("{}: {reason}", file.display())).collect();
            bail!(
                "all checkpoints in {} are damaged; put back a copy of one, or start again in another directory with --run\n{}",
                checkpoints.display(),
                reasons.join("\n")
            );
        }
        for (file, reason) in damaged {
            let kept = file.with_extension("safetensors.damaged");
            warn!("skipped checkpoint {}, kept as {}: {reason}", file.display(), kept.display());
            fs::rename(&file, &kept).with_context(|| format!("cannot rename {}", file.display()))?;
        }
        Ok((directory, whole))
    }

    fn remove_partial(&self) -> Result<()> {
        remove_partial_checkpoints(&self.file("checkpoints"))
            .with_context(|| format!("cannot tidy the checkpoints in {}", self.path.display()))?;
        for name in WRITTEN {
            let partial = self.file(&format!("{name}.partial"));
            if partial.exists() {
                fs::remove_file(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
            }
        }
        Ok(())
    }

    /// Opens a directory of whatever content.
    ///
    /// # Errors
    /// If it cannot be written, or another process works in it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::lock(path)
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join("lock");
        let lock = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        if !lock.try_lock_exclusive().unwrap_or(true) {
            bail!(
                "another process works in {}; wait for it, or choose another directory with --run",
                path.display()
            );
        }
        Ok(RunDirectory { path: path.to_path_buf(), _lock: lock })
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Makes the directory of a run on rank 0, or opens it to continue. Every rank gets the checkpoint that rank 0 chose to go
/// on from.
///
/// # Errors
/// Those of [`RunDirectory::create`] and [`RunDirectory::resume`], on all ranks.
pub fn open(
    session: &Session,
    path: &Path,
    resume: bool,
) -> Result<(Option<RunDirectory>, Option<PathBuf>), Exit> {
    let opened = session.prepare_on_root(|| match resume {
        true => RunDirectory::resume(path),
        false => RunDirectory::create(path).map(|directory| (directory, None)),
    })?;
    let (directory, chosen) = opened.map_or((None, None), |(directory, found)| (Some(directory), found));
    let chosen = chosen.map_or(String::new(), |path| path.display().to_string());
    let chosen = session.world.broadcast_string(session.world.is_root().then_some(chosen));
    Ok((directory, (!chosen.is_empty()).then(|| PathBuf::from(chosen))))
}

/// Explains the error of a rank that cannot read the checkpoint which rank 0 has read before.
///
/// # Errors
/// The one that it was given.
pub fn explain(restored: Result<(), StateError>, world: &World) -> Result<()> {
    match &restored {
        Err(StateError::Weights(WeightsError::Unreadable { .. } | WeightsError::Damaged { .. }))
            if !world.is_root() =>
        {
            restored.context(
                "rank 0 could read this checkpoint and this rank cannot; put the run directory on a file system that \
                 all hosts share",
            )
        }
        _ => Ok(restored?),
    }
}

fn refuse_a_run(path: &Path) -> Result<()> {
    if path.join("run.h5").exists() || path.join("config.toml").exists() {
        bail!(
            "{} already holds a run, and a run never overwrites another; continue it with --resume where the command \
             has that, choose another directory with --run, or remove it",
            path.display()
        );
    }
    Ok(())
}
