//! `dft fit-energy`: trains an energy-based model on images.

use anyhow::Context;
use tracing::info;

use super::arguments::Fit;
use super::fit_record::FitRun;
use super::session::{Exit, Session};
use crate::config::{EnergyFile, load};
use crate::data::{Mnist, Split};
use crate::train::fit_energy;

/// Runs the command on this rank.
pub fn run(arguments: &Fit) -> Result<(), Exit> {
    let file = load::<EnergyFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let plan = session.prepare(file.check(world.size))?;
    let images =
        session.prepare(Mnist::load(&plan.file.train.data).map(|mnist| mnist.images(Split::Train)))?;
    let text = toml::to_string(&plan.file).expect("a configuration is a table of plain values");
    let mut record = FitRun::start(&session, arguments, &plan.file.run, &text, plan.file.train.iterations)?;

    let fitted = fit_energy(&plan, world, &images, &mut |row| record.row(row));
    let (network, parameters) = session.work(fitted)?;
    let spec = serde_json::to_string(network.spec()).context("a network's description is plain data");
    let metadata = [("energy", session.work(spec)?)];
    let path = session.work(record.finish(&parameters, &metadata))?;
    if world.is_root() {
        info!("energy of {} parameters in {}", parameters.count(), path.display());
    }
    Ok(())
}
