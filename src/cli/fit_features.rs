//! `dft fit-features`: trains the classifier whose features FD-LeNet is measured on.

use tracing::info;

use super::arguments::Fit;
use super::fit_record::FitRun;
use super::session::{Exit, Session};
use crate::config::{FeaturesFile, load};
use crate::data::{Mnist, Split};
use crate::train::{accuracy, fit_features};

/// Runs the command on this rank.
pub fn run(arguments: &Fit) -> Result<(), Exit> {
    let file = load::<FeaturesFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let plan = session.prepare(file.check(world.size))?;
    let mnist = session.prepare(Mnist::load(&plan.file.train.data))?;
    let text = toml::to_string(&plan.file).expect("a configuration is a table of plain values");
    let mut record = FitRun::start(&session, arguments, &plan.file.run, &text, plan.file.train.iterations)?;

    let (images, labels) = (mnist.images(Split::Train), mnist.labels(Split::Train));
    let fitted = fit_features(&plan, world, &images, &labels, &mut |row| record.row(row));
    let (network, parameters) = session.work(fitted)?;
    // Measured once, after training: the test split decides nothing.
    let (x, y) = (mnist.images(Split::Test), mnist.labels(Split::Test));
    let test_accuracy =
        accuracy(&network, parameters.frozen(), &x.to_device(world.device), &y.to_device(world.device));
    let metadata = [("classifier", "lenet-5".to_string()), ("test_accuracy", format!("{test_accuracy:.4}"))];
    let path = session.work(record.finish(&parameters, &metadata))?;
    if world.is_root() {
        info!("LeNet-5 with test accuracy {:.2} % in {}", 100.0 * test_accuracy, path.display());
    }
    Ok(())
}
