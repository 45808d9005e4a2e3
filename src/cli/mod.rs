//! The command line: one verb a file. Here the arguments, and which verb runs.

mod arguments;
mod compare;
mod corrections;
mod data;
pub mod doctor;
mod energies;
mod evaluate;
mod fit_energy;
mod fit_features;
mod fit_record;
mod metrics;
mod plot;
mod posterior;
mod progress;
mod reference;
mod rehearse;
mod run_directory;
mod run_observer;
mod run_record;
mod sample;
mod session;
mod signals;
mod summary;
mod train;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use session::Exit;

/// Parses the arguments of this process, runs the command, and returns its exit code.
///
/// Under a launcher every rank runs this; messages come from one of them.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return session::report_usage(&error),
    };
    progress::start_log(arguments.log_format);
    let result = match arguments.command {
        Command::Train(train) => train::run(&train),
        Command::FitEnergy(fit) => fit_energy::run(&fit),
        Command::FitFeatures(fit) => fit_features::run(&fit),
        Command::Sample(sample) => sample::run(&sample),
        Command::Evaluate(evaluate) => evaluate::run(&evaluate),
        Command::Reference(posterior) => reference::run(&posterior),
        Command::Compare(comparison) => compare::run(&comparison),
        Command::Plot(plot) => plot::run(&plot),
        Command::Doctor(check) => doctor::run(check.device, check.threads, check.share_gpus)
            .map_err(|error| session::report(&error)),
        Command::Data(data) => data::run(&data),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit(code)) => ExitCode::from(code),
    }
}
