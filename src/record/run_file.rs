//! The run file as its writer sees it: rows, arrays, samples and draws, made durable by `flush`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hdf5::{File, Group};
use tch::Tensor;

use super::array;
use super::file::options;
use super::layout::{event_axes, group_names, sample_set_iteration, sample_set_name, write_draws};
use super::recover::{back_up, backup_of};
use super::series::{INDEX, Series};
use super::{Attribute, Cell, Column};

/// Rows of one group that are held in memory at most, should the caller flush rarely.
const MOST_PENDING_ROWS: usize = 4096;

/// Free space below which nothing more is written: what a flush of HDF5's own tables may need. They are
/// rewritten in place, so a disk that fills up among them would cost the whole file.
const RESERVED_BYTES: u64 = 1 << 20;

/// An open run file. One process, rank 0, has it; dropping it flushes.
///
/// After a failed write the file is left as the last successful flush made it, and later writes are refused.
pub struct RunFile {
    file: File,
    path: PathBuf,
    series: BTreeMap<String, Series>,
    failed: bool,
}

impl RunFile {
    /// Creates the file, with attributes of `/`.
    ///
    /// # Errors
    /// When the file exists, which is never overwritten, or its directory cannot be written.
    pub fn create(path: impl AsRef<Path>, attributes: &[(&str, Attribute)]) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        ensure!(
            !path.exists(),
            "{} exists and a run never overwrites another; resume it, or choose another run directory",
            path.display()
        );
        let file = options().create_excl(&path).with_context(|| format!("creating {}", path.display()))?;
        let mut run = Self { file, path, series: BTreeMap::new(), failed: false };
        run.write(|run| {
            attributes.iter().try_for_each(|(name, value)| array::set_attribute(&run.file, name, value))
        })?;
        Ok(run)
    }

    /// Opens the file of an earlier process, also of a crashed one, and drops what came after
    /// `last_iteration`: rows of every group that has an `iteration` column, and later sample sets.
    pub fn resume(path: impl AsRef<Path>, last_iteration: i64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = options().open_rw(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut run = Self { file, path, series: BTreeMap::new(), failed: false };
        run.write(|run| run.drop_after(last_iteration))?;
        Ok(run)
    }

    /// Adds a row to `group`, whose datasets are created from the first row; later rows have the same
    /// columns.
    pub fn append(&mut self, group: &str, row: &[(Column, Cell)]) -> Result<()> {
        if !self.series.contains_key(group) {
            self.write(|run| {
                let series = Series::create(run.group(group)?, row)?;
                run.series.insert(group.to_owned(), series);
                Ok(())
            })?;
        }
        let series = self.series.get_mut(group).with_context(|| format!("group {group} was just created"))?;
        series.append(row)?;
        if series.pending_rows() >= MOST_PENDING_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    /// Adds an array of `shape` to the latest row of `group`, as the growing dataset `[rows, shape…]`.
    ///
    /// Rows that got no array read as NaN.
    pub fn append_array(
        &mut self,
        group: &str,
        column: Column,
        values: &[f64],
        shape: &[usize],
    ) -> Result<()> {
        self.write(|run| {
            let Some(series) = run.series.get_mut(group) else {
                bail!(
                    "{group}/{} belongs to a row, and the group has none; append the row first",
                    column.name
                );
            };
            series.append_array(column, values, shape)
        })
    }

    /// Writes a few samples `[n, …]` as `/samples/iteration-000001000`, in place of an earlier set of that
    /// name.
    pub fn write_samples(&mut self, iteration: u64, samples: &Tensor) -> Result<()> {
        let mut axes = vec![("sample".to_owned(), "index of the sample".to_owned())];
        axes.extend(event_axes(samples.dim().saturating_sub(1)));
        let name = sample_set_name(iteration);
        let description = "samples of the sampler with averaged weights";
        self.write(|run| {
            let group = run.group("samples")?;
            array::write_tensor(&group, &name, samples, &axes, "units of the target", description)
        })
    }

    /// Writes the final draws `[chain, draw, …]` as `/posterior/x`, in place of earlier ones.
    pub fn write_posterior(&mut self, draws: &Tensor) -> Result<()> {
        self.write(|run| {
            if run.file.link_exists("posterior") {
                run.file.unlink("posterior")?;
            }
            write_draws(&run.group("posterior")?, draws)
        })
    }

    /// Removes a group and all in it, if it is there.
    pub fn remove(&mut self, group: &str) -> Result<()> {
        self.write(|run| {
            run.series.remove(group);
            if run.file.link_exists(group) {
                run.file.unlink(group)?;
            }
            Ok(())
        })
    }

    /// Sets an attribute of a group, or of the file when `group` is `/`.
    pub fn set_attribute(&mut self, group: &str, name: &str, value: Attribute) -> Result<()> {
        self.write(|run| {
            let group = if group == "/" { run.file.as_group()? } else { run.group(group)? };
            array::set_attribute(&group, name, &value)
        })
    }

    /// Moves everything buffered to the file; after it returns, killing the process loses nothing so far.
    pub fn flush(&mut self) -> Result<()> {
        self.write(|run| {
            let series = run.series.values_mut();
            series.filter(|series| series.has_pending()).try_for_each(Series::write_pending)
        })
    }

    /// Flushes, and brings a copy of the file to disk for [`recover`](super::recover()): to be called before a
    /// checkpoint is written, so that no crash costs rows from before it.
    pub fn back_up(&mut self) -> Result<()> {
        self.flush()?;
        back_up(&self.path)
    }

    /// Removes that copy, once the run is done.
    pub fn remove_backup(&self) -> Result<()> {
        let backup = backup_of(&self.path);
        match std::fs::remove_file(&backup) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", backup.display()))
            }
            _ => Ok(()),
        }
    }

    /// Runs one change of the file and flushes it, so that between two calls the file is always whole.
    fn write(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let path = self.path.clone();
        ensure!(!self.failed, "{} is no longer written, because an earlier write failed", path.display());
        let result = self.check_space().and_then(|()| change(self)).and_then(|()| Ok(self.file.flush()?));
        self.failed = result.is_err();
        result.with_context(|| format!("writing {}", path.display()))
    }

    /// The raw data is written before the tables that refer to it, so this is the space the tables have at
    /// least.
    fn check_space(&self) -> Result<()> {
        // A file system that does not tell its free space is taken at its word when it refuses a write.
        let free = fs4::available_space(&self.path).unwrap_or(u64::MAX);
        ensure!(
            free >= RESERVED_BYTES,
            "the disk has {free} bytes left, wanted at least {RESERVED_BYTES}; free some space and resume"
        );
        Ok(())
    }

    fn group(&self, name: &str) -> Result<Group> {
        if self.file.link_exists(name) { self.file.group(name) } else { self.file.create_group(name) }
            .with_context(|| format!("{}: group {name}", self.path.display()))
    }

    fn drop_after(&mut self, last_iteration: i64) -> Result<()> {
        let mut names = Vec::new();
        group_names(&self.file, "", &mut names)?;
        for name in names {
            let group = self.file.group(&name)?;
            if group.link_exists(INDEX) {
                let mut series = Series::open(group)?;
                series.truncate(last_iteration)?;
                self.series.insert(name, series);
            }
        }
        if !self.file.link_exists("samples") {
            return Ok(());
        }
        let group = self.file.group("samples")?;
        for name in group.member_names()? {
            let iteration = sample_set_iteration(&name).and_then(|iteration| i64::try_from(iteration).ok());
            if iteration.is_some_and(|iteration| iteration > last_iteration) {
                array::remove(&group, &group.dataset(&name)?, &name)?;
            }
        }
        Ok(())
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        if self.failed {
            // Closing would write what HDF5 still caches into a file that misses the rest. The handle is
            // given away instead, and the file stays as the last successful flush left it.
            std::mem::forget(self.file.clone());
        } else if let Err(error) = self.flush() {
            tracing::error!("the last rows were not written: {error:#}");
            std::mem::forget(self.file.clone());
        }
    }
}
