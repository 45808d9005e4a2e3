//! What a crash did to a run file: nothing, damage that a copy of it makes good, or the loss of the record alone.
//!
//! HDF5 rewrites its tables in place, so a process that is killed in the middle of a flush, or a disk that loses
//! power, can leave a file that does not open or has holes. Hence a copy at every checkpoint, written like a
//! checkpoint: under a temporary name, synced, renamed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tracing::warn;

use super::file::open_for_reading;
use super::layout::group_names;
use super::reader::RunReader;
use super::series::INDEX;
use super::{Attribute, RunFile, array};
use crate::model::replace_atomically;

/// Attribute of `/`: iterations that were done when the file was created; its rows begin after them.
const RECORDS_AFTER: &str = "records_after_iteration";

/// The copy of a run file at its last checkpoint.
pub fn backup_of(path: &Path) -> PathBuf {
    with_suffix(path, ".backup")
}

/// Brings a copy of `path` to disk beside it, in place of an earlier one.
///
/// # Errors
/// If the disk is full or cannot be written; an earlier copy is then left as it was.
pub fn back_up(path: &Path) -> Result<()> {
    copy_durably(path, &backup_of(path))
}

/// Opens the record of a run that goes on after `last_iteration`, without the rows that came later; `group` has a
/// row for every iteration.
///
/// A file that is damaged is kept as `<name>.damaged`, and its copy at the last checkpoint takes its place, both with
/// a warning. `None` if there is neither file nor copy: [`start_after`] begins a new one.
///
/// # Errors
/// If the disk is full, or the file cannot be read or written: that is no damage, and nothing is moved.
pub fn recover(path: &Path, group: &str, last_iteration: u64) -> Result<Option<RunFile>> {
    let (backup, name) = (backup_of(path), path.display());
    if path.exists() {
        // A file system that fails for a moment has damaged nothing.
        fs::read(path).with_context(|| format!("cannot read {name}"))?;
        match check(path, group, last_iteration) {
            Ok(()) => back_up(path)?,
            Err(error) => {
                let kept = free_name(path);
                fs::rename(path, &kept)
                    .with_context(|| format!("cannot rename {name} to {}", kept.display()))?;
                warn!("{name} is damaged ({error:#}); it is kept as {}", kept.display());
            }
        }
    }
    if !path.exists() {
        if !backup.exists() {
            return Ok(None);
        }
        if let Err(error) = check(&backup, group, last_iteration) {
            warn!("{} is of no help: {error:#}", backup.display());
            return Ok(None);
        }
        copy_durably(&backup, path)?;
        warn!("{name} was restored from its copy of the last checkpoint, {}", backup.display());
    }
    RunFile::resume(path, i64::try_from(last_iteration)?).map(Some)
}

/// Begins the record of a run that has done `iteration` iterations.
///
/// # Errors
/// When the file exists, which is never overwritten, or its directory cannot be written.
pub fn start_after(path: &Path, iteration: u64, attributes: &[(&str, Attribute)]) -> Result<RunFile> {
    if iteration > 0 {
        warn!("{} begins after iteration {iteration}; the rows before it are lost", path.display());
    }
    let after = (RECORDS_AFTER, Attribute::Integer(i64::try_from(iteration)?));
    let attributes: Vec<_> =
        attributes.iter().map(|(name, value)| (*name, value.clone())).chain([after]).collect();
    RunFile::create(path, &attributes)
}

/// Whether all of a file can be read, and its `group` has each iteration up to `last_iteration` once, with finite
/// values: where HDF5's tables point nowhere, it reads 0 and NaN.
fn check(path: &Path, group: &str, last_iteration: u64) -> Result<()> {
    let file = open_for_reading(path)?;
    let mut names = Vec::new();
    group_names(&file, "", &mut names)?;
    for name in names {
        for dataset in file.group(&name)?.datasets()? {
            let _ = array::read_tensor(&dataset).with_context(|| format!("reading {}", dataset.name()))?;
        }
    }
    let reader = RunReader::open(path)?;
    let after = match reader.attributes()?.get(RECORDS_AFTER) {
        Some(Attribute::Integer(after)) => *after,
        _ => 0,
    };
    let last = i64::try_from(last_iteration)?;
    if last <= after {
        return Ok(());
    }
    let wanted = usize::try_from(last - after)?;
    let columns = reader.columns(group)?;
    let has_index = columns.iter().any(|column| column == INDEX);
    ensure!(has_index, "it has no iterations, wanted {} to {last}", after + 1);
    let index = reader.series(group, INDEX)?;
    let found =
        index.iter().zip(after + 1..=last).take_while(|(found, wanted)| **found == *wanted as f64).count();
    ensure!(found == wanted, "iteration {} is missing, wanted all up to {last}", after + 1 + found as i64);
    for column in columns {
        let values = reader.series(group, &column)?;
        let finite = values.iter().take(wanted).take_while(|value| value.is_finite()).count();
        ensure!(finite == wanted, "{group}/{column} has no value at iteration {}", after + 1 + finite as i64);
    }
    Ok(())
}

fn copy_durably(from: &Path, to: &Path) -> Result<()> {
    replace_atomically(to, |partial| fs::copy(from, partial).map(|_| ()))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// `run.h5.damaged`, or with a number if that exists.
fn free_name(path: &Path) -> PathBuf {
    let numbered = (2..).map(|number| with_suffix(path, &format!(".damaged-{number}")));
    let mut names = std::iter::once(with_suffix(path, ".damaged")).chain(numbered);
    names.find(|name| !name.exists()).expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cell, Column};

    /// Rows of `iterations`, and the copy of a checkpoint after them.
    fn record(path: &Path, iterations: impl IntoIterator<Item = u64>) {
        let mut run = RunFile::create(path, &[]).unwrap();
        for iteration in iterations {
            let row = [
                (Column::new("iteration", "1", "iterations done"), Cell::from(iteration)),
                (Column::new("score_loss", "1", "loss"), Cell::from(0.5)),
            ];
            run.append("train", &row).unwrap();
        }
        run.back_up().unwrap();
    }

    fn rows(path: &Path) -> Vec<f64> {
        RunReader::open(path).unwrap().series("train", INDEX).unwrap()
    }

    /// What is damaged is put back, and what passes for whole is: either way the rows are 1 to 4.
    #[test]
    fn whatever_is_cut_off_or_flipped_the_rows_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.h5");
        record(&path, 1..=5);
        let (whole, backup) = (fs::read(&path).unwrap(), fs::read(backup_of(&path)).unwrap());
        let mut restored = 0;
        for part in 0..60 {
            let at = whole.len() * part / 60;
            let mut bytes = whole.clone();
            match part % 2 {
                0 => bytes.truncate(at),
                _ => bytes[at] ^= 0x10,
            }
            fs::write(&path, bytes).unwrap();
            fs::write(backup_of(&path), &backup).unwrap();
            drop(recover(&path, "train", 4).unwrap().unwrap());
            assert_eq!(rows(&path), [1.0, 2.0, 3.0, 4.0], "part {part}");
            let damaged = with_suffix(&path, ".damaged");
            restored += usize::from(damaged.exists());
            let _ = fs::remove_file(damaged);
        }
        // Every cut at least, since the file ends where its last table does.
        assert!(restored >= 29, "{restored} of 60 were seen to be damaged");
    }

    #[test]
    fn a_row_that_is_missing_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.h5");
        record(&path, [1, 2, 4]);
        assert!(check(&path, "train", 2).is_ok());
        assert!(check(&path, "train", 4).unwrap_err().to_string().contains("iteration 3 is missing"));
        // The copy is of the same file, so neither serves, and both stay.
        assert!(recover(&path, "train", 4).unwrap().is_none());
        assert!(with_suffix(&path, ".damaged").exists() && backup_of(&path).exists());
    }

    #[test]
    fn a_record_that_begins_later_says_after_what() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.h5");
        drop(start_after(&path, 7, &[("version", "0.1.0".into())]).unwrap());
        let attributes = RunReader::open(&path).unwrap().attributes().unwrap();
        assert_eq!(attributes[RECORDS_AFTER], Attribute::Integer(7));
        assert!(check(&path, "train", 7).is_ok());
        assert!(check(&path, "train", 8).is_err());
    }

    #[test]
    fn without_a_file_or_a_copy_there_is_nothing_to_recover() {
        let directory = tempfile::tempdir().unwrap();
        assert!(recover(&directory.path().join("run.h5"), "train", 3).unwrap().is_none());
    }
}
