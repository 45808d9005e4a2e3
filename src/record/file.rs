//! How HDF5 files are opened here: in a format and with settings that survive a killed process.

use std::path::Path;

use anyhow::{Context, Result};
use hdf5::file::LibraryVersion;
use hdf5::{File, FileBuilder};

/// How run files are opened.
///
/// The format of HDF5 1.8: from 1.10 on, the superblock has a flag "open for writing" which stays set when a
/// process is killed and then forbids opening. No file locks: they fail on some network file systems, and
/// they would forbid reading the log of a running job. No cache of chunks: rows come in batches already, and
/// raw data that goes straight to the file is refused by a full disk before any of HDF5's tables has changed.
pub fn options() -> FileBuilder {
    let mut options = FileBuilder::new();
    options.with_fapl(|access| {
        access.libver_bounds(LibraryVersion::V18, LibraryVersion::V18).file_locking(false)
    });
    options
}

/// Opens a file for reading with the options it was written with.
pub fn open_for_reading(path: &Path) -> Result<File> {
    options().open(path).with_context(|| format!("opening {}", path.display()))
}

/// Creates a file, replacing an existing one.
pub fn create_or_replace(path: &Path) -> Result<File> {
    options().create(path).with_context(|| format!("creating {}", path.display()))
}
