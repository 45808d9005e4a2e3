//! `dft train`: a one-step sampler of the configured target.

use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use comfy_table::{Table, presets};
use tch::Kind;
use tracing::warn;

use super::arguments::Train;
use super::metrics::{Inputs, point_plan};
use super::posterior::PosteriorMeasure;
use super::reference;
use super::rehearse;
use super::run_directory;
use super::run_observer::{RunObserver, Shown, Yardsticks};
use super::run_record::{device_name, start_record, target_name};
use super::session::{Exit, STOPPED, Session};
use super::signals::watch_signals;
use crate::comm::World;
use crate::config::{EvaluateSection, Plan, TargetSection, TrainFile, load};
use crate::metric::PointReference;
use crate::target::{LogisticProblem, load_exact};
use crate::train::{Networks, Outcome, State, run as train};

/// Runs the command on this rank.
pub fn run(arguments: &Train) -> Result<(), Exit> {
    if let Some(ranks) = arguments.rehearse {
        return rehearse::run(&arguments.config, &arguments.set, ranks as usize);
    }
    // Prepare: everything that can be wrong is found here, before any work. A signal from now on stops at the first
    // iteration.
    let watched = watch_signals();
    let file = load::<TrainFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let stop = session.prepare(watched)?;
    let plan = session.prepare(file.check(world.size))?;
    let networks = session.prepare(Networks::build(&plan, world))?;
    let inputs =
        Inputs::load(&plan.file.evaluate, "evaluate.samples", networks.target.target(), world.device);
    let inputs = session.prepare(inputs)?;
    let target = networks.target.target();
    let problem = networks.target.problem().cloned();
    let posterior = session.prepare(posterior(&plan, problem, world.is_root()))?;
    let points = session.prepare(point_plan(&plan.file.evaluate, &plan.file.target, target))?;
    // Trained on in f32, measured against in f64 where it has a closed form.
    let exact = points.as_ref().map(|_| load_exact(&plan.file.target, Kind::Double, world.device));
    let exact = session.prepare(exact.transpose())?;
    let mut state = State::initial(&plan, &networks, world.device);
    let path = plan.file.run.directory();
    let (directory, checkpoint) = run_directory::open(&session, &path, arguments.resume)?;
    if let Some(checkpoint) = checkpoint {
        session.prepare(run_directory::explain(state.restore(&checkpoint, &plan), world))?;
        let (done, wanted) = (state.iteration, plan.file.train.iterations);
        session.prepare(if done <= wanted {
            Ok(())
        } else {
            Err(format!(
                "the run has done {done} iterations and train.iterations = {wanted}; set it to {done} or more"
            ))
        })?;
    }
    let record = session.prepare_on_root(|| start_record(&path, world, &plan.to_toml(), state.iteration))?;
    if world.is_root() {
        print_plan(&plan, world, &networks, &state, &path);
    }

    // Work.
    let measure = session.work(inputs.map(|inputs| inputs.measure(world)).transpose())?;
    let points = points.zip(exact.as_deref());
    let points = points.map(|(points, exact)| PointReference::new(exact, points, world)).transpose();
    let points = session.work(points)?;
    let yardsticks =
        Yardsticks { images: measure.as_ref(), points: points.as_ref(), posterior: posterior.as_ref() };
    let first = state.iteration;
    let mut observer =
        RunObserver::new(&plan, world, &networks, yardsticks, record, Shown::Run(world.is_root()));
    observer.keep_best(&path);
    let checkpoints = path.join("checkpoints");
    let outcome = train(&plan, world, &networks, &mut state, &mut observer, &checkpoints, &stop);
    let outcome = session.work(outcome)?;
    if outcome == Outcome::Stopped {
        session.work(observer.flush())?;
        if world.is_root() {
            warn!("stopped by a signal at iteration {}; --resume goes on from there", state.iteration);
        }
        // A launcher ends the other ranks at the first exit code that is not 0: leave together.
        session.work(world.collective().barrier())?;
        return Err(Exit(STOPPED));
    }
    if first == plan.file.train.iterations {
        // Resumed after the last iteration: nothing to train, and its scores are recorded; the results are
        // written again.
        session.work(observer.score(&state))?;
    }
    let finished = observer.finish(&state, directory.as_ref());
    session.work(finished)?;
    session.work(world.collective().barrier())
}

/// How draws of a posterior are scored, with the reference draws if there are any.
fn posterior(
    plan: &Plan,
    problem: Option<Rc<LogisticProblem>>,
    is_root: bool,
) -> Result<Option<PosteriorMeasure>> {
    let (Some(problem), TargetSection::Logistic(section)) = (problem, &plan.file.target) else {
        return Ok(None);
    };
    let EvaluateSection { samples, point_sets, references, .. } = &plan.file.evaluate;
    let mut found = None;
    if *point_sets > 0 {
        found = reference::find(section, plan.file.run.seed, references)?;
        if found.is_none() && is_root {
            warn!(
                "no reference draws of this posterior in {}; `dft reference CONFIG` makes them",
                references.display()
            );
        }
    }
    PosteriorMeasure::new(problem, (*samples, (*point_sets).max(1)), found.as_ref()).map(Some)
}

fn print_plan(plan: &Plan, world: &World, networks: &Networks, state: &State, path: &Path) {
    let file = &plan.file;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_string(), value]);
    };
    row("run", format!("{} (seed {})", path.display(), file.run.seed));
    row(
        "ranks",
        format!("{} × {} threads, {}, {}", world.size, world.threads, device_name(world), world.backend),
    );
    row("target", format!("{} {:?}", target_name(&file.target), networks.target.target().shape()));
    let network = |kind: String, count: i64| format!("{}, {count} parameters", kind.to_lowercase());
    row("sampler", network(format!("{:?}", file.sampler.kind), state.sampler.count()));
    row("score network", network(format!("{:?}", file.score.kind), state.score.count()));
    row("method", format!("{}, sigma {}", file.method.name(), file.method.sigma));
    if let Some(section) = &file.warm_start {
        let [first, last] = section.sigma;
        row(
            "warm start",
            format!(
                "{} updates on a flow of {} steps, sigma {first} to {last}",
                section.updates, section.steps
            ),
        );
    }
    if let Some(section) = &file.regression {
        row(
            "regression",
            format!(
                "weight {} on {} pairs: a flow of {} steps, {} steps of Langevin",
                section.weight, section.pairs, section.steps, section.langevin_steps
            ),
        );
    }
    row(
        "training",
        format!(
            "{} iterations, {:?}, batch {} in {} shards",
            file.train.iterations, file.train.schedule, file.train.batch, file.compute.shards
        )
        .to_lowercase(),
    );
    if state.score_updates + state.warm_start_updates > 0 {
        row("resumed at", format!("iteration {}", state.iteration));
    }
    println!("{table}");
}
