//! `dft fit-features`: trains the classifier whose features FD-LeNet is measured on.

use tracing::info;

use super::arguments::Fit;
use super::fit_record::FitRun;
use super::session::{Exit, Session};
use super::signals::watch_signals;
use crate::config::{FeaturesFile, load};
use crate::data::{Mnist, Split};
use crate::model::LeNet;
use crate::train::{accuracy, fit_features};

/// Runs the command on this rank.
pub fn run(arguments: &Fit) -> Result<(), Exit> {
    let watched = watch_signals();
    let file = load::<FeaturesFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let stop = session.prepare(watched)?;
    let plan = session.prepare(file.check(world.size))?;
    let file = &plan.file;
    let mnist = session.prepare(Mnist::load(&file.train.data))?;
    let network = LeNet::default();
    let text = toml::to_string(file).expect("a configuration is a table of plain values");
    let settings = (&file.run, &file.train, text.as_str());
    let (mut record, mut state) =
        FitRun::start(&session, arguments, network.layout(), settings, plan.identity())?;

    let checkpoints = record.checkpoints();
    let (images, labels) = (mnist.images(Split::Train), mnist.labels(Split::Train));
    let of = (&network, &images, &labels);
    let outcome = fit_features(&plan, world, of, &mut state, &mut record, &checkpoints, &stop);
    record.end(&session, session.work(outcome)?, &state)?;
    // Measured once, after training: the test split decides nothing.
    let (x, y) = (mnist.images(Split::Test), mnist.labels(Split::Test));
    let (x, y) = (x.to_device(world.device), y.to_device(world.device));
    let test_accuracy = accuracy(&network, state.average.parameters.frozen(), &x, &y);
    let metadata = [("classifier", "lenet-5".to_string()), ("test_accuracy", format!("{test_accuracy:.4}"))];
    let path = session.work(record.finish(&state, &metadata))?;
    if world.is_root() {
        info!("LeNet-5 with test accuracy {:.2} % in {}", 100.0 * test_accuracy, path.display());
    }
    Ok(())
}
