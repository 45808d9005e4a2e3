//! `dft data`: brings a data set to the machine.

use super::arguments::Data;
use super::session::{Exit, Session};
use crate::config::DeviceRequest;
use crate::data::fetch;

/// Runs the command; under a launcher rank 0 fetches.
pub fn run(arguments: &Data) -> Result<(), Exit> {
    let session = Session::start_on(DeviceRequest::Cpu)?;
    let directory = arguments.directory.clone().unwrap_or_else(|| arguments.dataset.default_directory());
    // A fetch that fails has changed nothing but .partial files, and it is the whole work: exit code 1.
    let fetched = session.world.agree(if session.world.is_root() {
        fetch(arguments.dataset, &directory).map(Some)
    } else {
        Ok(None)
    });
    match fetched {
        Ok(report) => {
            if let Some(report) = report {
                println!("{report}");
            }
            Ok(())
        }
        Err(failure) => {
            if failure.is_reported_here() {
                tracing::error!("{failure}");
            }
            Err(Exit(super::session::FAILURE))
        }
    }
}
