//! The HDF5 run file: what a run leaves behind, written by rank 0 and read by plots, `h5py`, xarray and
//! ArviZ.
//!
//! Every dataset carries `units` and `description`, and every axis has an attached dimension scale, so each
//! group opens as an xarray dataset and the whole file as ArviZ inference data. Nothing is written between
//! two flushes: rows wait in memory, so a killed process leaves the file as the last flush made it.

mod array;
mod file;
mod growing;
mod layout;
mod reader;
mod recover;
mod run_file;
mod samples_file;
mod scale;
mod series;

pub use reader::RunReader;
pub use recover::{recover, start_after};
pub use run_file::RunFile;
pub use samples_file::{write_described_samples, write_samples_file};

/// What a dataset is called and what its numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name of the dataset in its group.
    pub name: &'static str,
    /// Physical or statistical units; `1` for a pure number, `s` for seconds (a spelt-out time unit is
    /// refused, because xarray would turn the numbers into durations).
    pub units: &'static str,
    /// One line for the reader of the file.
    pub description: &'static str,
}

impl Column {
    /// A column of this name, with its units and one line about it.
    pub const fn new(name: &'static str, units: &'static str, description: &'static str) -> Self {
        Column { name, units, description }
    }
}

/// One entry of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// Stored as a 64-bit float.
    Float(f64),
    /// Stored as a signed 64-bit integer.
    Integer(i64),
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u64> for Cell {
    /// HDF5 counters are signed here; 2^63 iterations are out of reach, so larger values saturate.
    fn from(value: u64) -> Self {
        Self::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

/// Value of an attribute of the file or of a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// UTF-8 text of any length, without NUL.
    Text(String),
    /// A 64-bit float.
    Float(f64),
    /// A signed 64-bit integer.
    Integer(i64),
}

impl From<&str> for Attribute {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Attribute {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<f64> for Attribute {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<i64> for Attribute {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u64> for Attribute {
    /// Saturates at 2^63 − 1, see [`Cell`].
    fn from(value: u64) -> Self {
        Self::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}
