//! Data sets: bringing their files to `data/`, and reading them once their content is verified.
//!
//! Nothing here guesses: a file is the one whose SHA-256 is written in the table of [`Dataset`], wherever its
//! bytes came from, or it is refused.

mod compact;
mod covertype;
mod csv;
mod dataset;
mod design;
mod fetch;
mod http;
mod idx;
mod mnist;
mod packages;
mod table;
mod verify;

pub use covertype::load_covertype;
pub use csv::load_csv;
pub use dataset::{DataFile, Dataset};
pub use design::{Design, ScaledFeature};
pub use fetch::{FetchReport, fetch};
pub use mnist::{Mnist, Split};

pub use table::Table;
pub use verify::file_sha256;
