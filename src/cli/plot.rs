//! `dft plot`: the figures of a run.

use super::arguments::Plot;
use super::session::{Exit, Session};
use crate::config::DeviceRequest;
use crate::plot::figures;

/// Runs the command; under a launcher rank 0 draws.
pub fn run(arguments: &Plot) -> Result<(), Exit> {
    let session = Session::start_on(DeviceRequest::Cpu)?;
    let drawn = session.prepare_on_root(|| {
        let drawn = figures(&arguments.run)?;
        anyhow::ensure!(
            !drawn.is_empty(),
            "{} holds nothing that can be drawn; figures are made of runs of dft train",
            arguments.run.display()
        );
        Ok(drawn)
    })?;
    for path in drawn.unwrap_or_default() {
        println!("{}", path.display());
    }
    Ok(())
}
