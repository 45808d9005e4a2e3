//! `dft fit-energy`: trains an energy-based model on images.

use anyhow::Context;
use tracing::info;

use super::arguments::Fit;
use super::fit_record::FitRun;
use super::session::{Exit, Session};
use super::signals::watch_signals;
use crate::config::{EnergyFile, load};
use crate::data::{Mnist, Split};
use crate::train::{energy_network, fit_energy};

/// Runs the command on this rank.
pub fn run(arguments: &Fit) -> Result<(), Exit> {
    let watched = watch_signals();
    let file = load::<EnergyFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let stop = session.prepare(watched)?;
    let plan = session.prepare(file.check(world.size))?;
    let file = &plan.file;
    let images = session.prepare(Mnist::load(&file.train.data).map(|mnist| mnist.images(Split::Train)))?;
    let network = energy_network(&file.energy, &images);
    let text = toml::to_string(file).expect("a configuration is a table of plain values");
    let settings = (&file.run, &file.train, text.as_str());
    let (mut record, mut state) =
        FitRun::start(&session, arguments, network.layout(), settings, plan.identity())?;

    let checkpoints = record.checkpoints();
    let of = (&network, &images);
    let outcome = fit_energy(&plan, world, of, &mut state, &mut record, &checkpoints, &stop);
    record.end(&session, session.work(outcome)?, &state)?;
    let spec = serde_json::to_string(network.spec()).context("a network's description is plain data");
    let metadata = [("energy", session.work(spec)?)];
    let path = session.work(record.finish(&state, &metadata))?;
    if world.is_root() {
        info!("energy of {} parameters in {}", state.parameters.count(), path.display());
    }
    Ok(())
}
