//! The run directory: made, locked, and never overwritten.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs4::fs_std::FileExt;

use crate::train::latest_checkpoint;

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
        if path.join("run.h5").exists() || path.join("config.toml").exists() {
            bail!(
                "{} already holds a run, and a run never overwrites another; continue it with --resume where the command \
                 has that, choose another directory with --run, or remove it",
                path.display()
            );
        }
        for part in ["checkpoints", "figures"] {
            let part = path.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot make run directory {}", part.display()))?;
        }
        Self::lock(path)
    }

    /// Opens the directory of a run to continue; also returns its newest checkpoint. A run that stopped
    /// before its first checkpoint has none and starts again, so that a requeued job needs no other command
    /// line.
    ///
    /// # Errors
    /// If there is no run in it, or another process works in it.
    pub fn resume(path: &Path) -> Result<(Self, Option<PathBuf>)> {
        if !path.join("config.toml").exists() {
            bail!("there is no run to resume in {}; start it without --resume", path.display());
        }
        let newest = latest_checkpoint(&path.join("checkpoints"))
            .with_context(|| format!("cannot read the checkpoints in {}", path.display()))?;
        Ok((Self::lock(path)?, newest.map(|(_, checkpoint)| checkpoint)))
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
