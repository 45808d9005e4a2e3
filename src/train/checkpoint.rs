//! Names of checkpoints on disk, and which of them to keep.

use std::fs;
use std::path::{Path, PathBuf};

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

/// The newest checkpoint in a directory, if there is one.
///
/// # Errors
/// If the directory cannot be read.
pub fn latest(directory: &Path) -> std::io::Result<Option<(u64, PathBuf)>> {
    Ok(list(directory)?.pop())
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
}
