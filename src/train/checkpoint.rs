//! Names of checkpoints on disk, and which of them to keep.

use std::fs;
use std::path::{Path, PathBuf};

use crate::model::{WeightsError, WeightsFile};

/// File name of the checkpoint of an iteration.
pub fn file_name(iteration: u64) -> String {
    format!("iteration-{iteration:09}.safetensors")
}

/// The checkpoints in a directory, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn list(directory: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("iteration-").and_then(|rest| rest.strip_suffix(".safetensors"));
        if let Some(Ok(iteration)) = number.map(str::parse) {
            found.push((iteration, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The checkpoint that a run goes on from.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest that is whole.
    pub whole: Option<PathBuf>,
    /// Newer ones that are not, newest first, each with the reason.
    pub damaged: Vec<(PathBuf, String)>,
}

/// The newest whole checkpoint in a directory. All of a file is read: only its checksums tell.
///
/// # Errors
/// If the directory, or a checkpoint in it, cannot be read: that is no damage.
pub fn newest(directory: &Path) -> std::io::Result<Newest> {
    let mut newest = Newest::default();
    for (_, path) in list(directory)?.into_iter().rev() {
        let reason = match WeightsFile::load(&path) {
            Ok(_) => {
                newest.whole = Some(path);
                break;
            }
            Err(WeightsError::Damaged { reason, .. }) => reason,
            // A file system that fails for a moment has damaged nothing.
            Err(WeightsError::Unreadable { reason, .. }) => {
                return Err(std::io::Error::new(reason.kind(), format!("{}: {reason}", path.display())));
            }
            Err(error @ WeightsError::OtherNetwork { .. }) => error.to_string(),
        };
        newest.damaged.push((path, reason));
    }
    Ok(newest)
}

/// Removes what a process that was killed while it wrote a checkpoint has left; whole checkpoints are under their
/// own names.
///
/// # Errors
/// If the directory cannot be read or a file cannot be removed.
pub fn remove_partial(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("iteration-") && name.ends_with(".safetensors.partial") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Removes all but the newest `keep` checkpoints.
///
/// # Errors
/// If the directory cannot be read or a file cannot be removed.
pub fn prune(directory: &Path, keep: usize) -> std::io::Result<()> {
    let found = list(directory)?;
    for (_, path) in &found[..found.len().saturating_sub(keep)] {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_by_number_and_foreign_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for name in [&file_name(900), &file_name(10_000), &file_name(1000), "notes.txt"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        prune(directory.path(), 2).unwrap();
        let left: Vec<u64> =
            list(directory.path()).unwrap().into_iter().map(|(iteration, _)| iteration).collect();
        assert_eq!(left, [1000, 10_000]);
        assert!(directory.path().join("notes.txt").exists());
    }

    #[test]
    fn the_newest_whole_one_is_found_behind_damaged_ones_and_halves_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |iteration| directory.path().join(file_name(iteration));
        for iteration in [100, 200] {
            WeightsFile::save(&path(iteration), &[], &[]).unwrap();
        }
        fs::write(path(300), "").unwrap();
        fs::write(path(400), "no checkpoint").unwrap();
        let half = directory.path().join("iteration-000000500.safetensors.partial");
        fs::write(&half, "").unwrap();
        let found = newest(directory.path()).unwrap();
        assert_eq!(found.whole, Some(path(200)));
        let damaged: Vec<_> = found.damaged.into_iter().map(|(path, _)| path).collect();
        assert_eq!(damaged, [path(400), path(300)]);
        remove_partial(directory.path()).unwrap();
        assert!(!half.exists() && path(200).exists());
        // One that cannot be read is not damaged: a directory cannot, whoever asks.
        fs::create_dir(path(600)).unwrap();
        let error = newest(directory.path()).unwrap_err().to_string();
        assert!(error.contains("iteration-000000600"), "{error}");
    }
}
