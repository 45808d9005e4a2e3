//! The run file as its writer sees it: rows, arrays, samples and draws, made durable by `flush`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hdf5::file::LibraryVersion;
use hdf5::{File, FileBuilder, Group};
use tch::Tensor;

use super::array;
use super::series::{INDEX, Series};
use super::{Attribute, Cell, Column};

/// Rows of one group that are held in memory at most, should the caller flush rarely.
const MOST_PENDING_ROWS: usize = 4096;

/// An open run file. One process, rank 0, has it; dropping it flushes.
pub struct RunFile {
    file: File,
    path: PathBuf,
    series: BTreeMap<String, Series>,
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
        let file = options()
            .create_excl(&path)
            .with_context(|| format!("creating {}", path.display()))?;
        for (name, value) in attributes {
            array::set_attribute(&file, name, value)?;
        }
        let mut run = Self {
            file,
            path,
            series: BTreeMap::new(),
        };
        run.flush()?;
        Ok(run)
    }

    /// Opens the file of an earlier process, also of a crashed one, and drops what came after `last_iteration`:
    /// rows of every group that has an `iteration` column, and later sample sets.
    pub fn resume(path: impl AsRef<Path>, last_iteration: i64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = options().open_rw(&path).with_context(|| {
            format!(
                "cannot open {} to resume it; if the process died while flushing, move the file away: the \
                 checkpoint does not need it and the log starts anew",
                path.display()
            )
        })?;
        let mut run = Self {
            file,
            path,
            series: BTreeMap::new(),
        };
        let mut names = Vec::new();
        group_names(&run.file, "", &mut names)?;
        for name in names {
            let group = run.file.group(&name)?;
            if group.link_exists(INDEX) {
                let mut series = Series::open(group)?;
                series.truncate(last_iteration)?;
                run.series.insert(name, series);
            }
        }
        run.drop_later_samples(last_iteration)?;
        run.flush()?;
        Ok(run)
    }

    /// Adds a row to `group`, whose datasets are created from the first row; later rows have the same columns.
    pub fn append(&mut self, group: &str, row: &[(Column, Cell)]) -> Result<()> {
        if !self.series.contains_key(group) {
            let series = Series::create(self.group(group)?, row).with_context(|| self.context())?;
            self.series.insert(group.to_owned(), series);
            self.flush_file()?;
        }
        let series = self
            .series
            .get_mut(group)
            .with_context(|| format!("group {group} was just created"))?;
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
        let Some(series) = self.series.get_mut(group) else {
            bail!(
                "{group}/{} belongs to a row, and the group has none; append the row first",
                column.name
            );
        };
        series.append_array(column, values, shape)?;
        self.flush_file()
    }

    /// Writes a few samples `[n, …]` as `/samples/iteration-000001000`, in place of an earlier set of that name.
    pub fn write_samples(&mut self, iteration: u64, samples: &Tensor) -> Result<()> {
        let group = self.group("samples")?;
        let mut axes = vec![("sample".to_owned(), "index of the sample".to_owned())];
        axes.extend(event_axes(samples.dim().saturating_sub(1)));
        let name = sample_set_name(iteration);
        let description = "samples of the sampler with averaged weights";
        array::write_tensor(&group, &name, samples, &axes, "units of the target", description)
            .with_context(|| self.context())?;
        self.flush_file()
    }

    /// Writes the final draws `[chain, draw, …]` as `/posterior/x`, in place of earlier ones.
    pub fn write_posterior(&mut self, draws: &Tensor) -> Result<()> {
        if self.file.link_exists("posterior") {
            self.file.unlink("posterior").with_context(|| self.context())?;
        }
        write_draws(&self.group("posterior")?, draws).with_context(|| self.context())?;
        self.flush_file()
    }

    /// Sets an attribute of a group, or of the file when `group` is `/`.
    pub fn set_attribute(&mut self, group: &str, name: &str, value: Attribute) -> Result<()> {
        let group = if group == "/" {
            self.file.as_group()?
        } else {
            self.group(group)?
        };
        array::set_attribute(&group, name, &value)?;
        self.flush_file()
    }

    /// Moves everything buffered to the file; after it returns, killing the process loses nothing so far.
    pub fn flush(&mut self) -> Result<()> {
        for series in self
            .series
            .values_mut()
            .filter(|series| series.pending_rows() > 0)
        {
            series
                .write_pending()
                .with_context(|| format!("{}: is the disk full?", self.path.display()))?;
        }
        self.flush_file()
    }

    fn flush_file(&self) -> Result<()> {
        self.file
            .flush()
            .with_context(|| format!("flushing {}: is the disk full?", self.path.display()))
    }

    fn group(&self, name: &str) -> Result<Group> {
        if self.file.link_exists(name) {
            self.file.group(name)
        } else {
            self.file.create_group(name)
        }
        .with_context(|| format!("{}: group {name}", self.path.display()))
    }

    fn drop_later_samples(&mut self, last_iteration: i64) -> Result<()> {
        if !self.file.link_exists("samples") {
            return Ok(());
        }
        let group = self.file.group("samples")?;
        for name in group.member_names()? {
            if sample_set_iteration(&name).is_some_and(|iteration| iteration as i64 > last_iteration) {
                array::remove(&group, &group.dataset(&name)?, &name)?;
            }
        }
        Ok(())
    }

    fn context(&self) -> String {
        format!("writing {}", self.path.display())
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!("the last rows were not written: {error:#}");
        }
    }
}

/// How run files are opened.
///
/// The format of HDF5 1.8: from 1.10 on, the superblock has a flag "open for writing" which stays set when a
/// process is killed and then forbids opening. No file locks: they fail on some network file systems, and they
/// would forbid reading the log of a running job.
fn options() -> FileBuilder {
    let mut options = FileBuilder::new();
    options.with_fapl(|access| {
        access
            .libver_bounds(LibraryVersion::V18, LibraryVersion::V18)
            .file_locking(false)
    });
    options
}

/// Opens a file for reading with the options it was written with.
pub fn open_for_reading(path: &Path) -> Result<File> {
    options()
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Creates a file, replacing an existing one.
pub fn create_or_replace(path: &Path) -> Result<File> {
    options()
        .create(path)
        .with_context(|| format!("creating {}", path.display()))
}

/// Writes draws `[chain, draw, …]` as `x` in `group`, with the dimension names that ArviZ uses.
pub fn write_draws(group: &Group, draws: &Tensor) -> Result<()> {
    ensure!(
        draws.dim() >= 2,
        "draws have the shape {:?}, wanted [chain, draw, …]; add an axis of one chain",
        draws.size()
    );
    let mut axes = vec![
        ("chain".to_owned(), "index of the chain".to_owned()),
        ("draw".to_owned(), "index of the draw in its chain".to_owned()),
    ];
    axes.extend(event_axes(draws.dim() - 2));
    array::write_tensor(
        group,
        "x",
        draws,
        &axes,
        "units of the target",
        "independent draws of the sampler",
    )
}

/// Name of a sample set; zero-padded, so that names sort as iterations do.
pub fn sample_set_name(iteration: u64) -> String {
    format!("iteration-{iteration:09}")
}

/// The inverse of [`sample_set_name`].
pub fn sample_set_iteration(name: &str) -> Option<u64> {
    name.strip_prefix("iteration-")?.parse().ok()
}

fn event_axes(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|axis| {
        (
            format!("x_dim_{axis}"),
            format!("index along axis {axis} of one sample"),
        )
    })
}

/// Paths of all groups below `group`.
fn group_names(group: &Group, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for child in group.groups()? {
        let path = child.name();
        let name = path.rsplit('/').next().unwrap_or(&path);
        let name = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        group_names(&child, &name, names)?;
        names.push(name);
    }
    Ok(())
}
