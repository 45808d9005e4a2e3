//! `dft train`: a one-step sampler of the configured target.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use tch::Kind;
use tracing::warn;

use super::arguments::Train;
use super::metrics::{Inputs, point_plan};
use super::posterior::PosteriorMeasure;
use super::reference;
use super::rehearse;
use super::run_directory::RunDirectory;
use super::run_observer::{RunObserver, Yardsticks};
use super::run_record::{device_name, run_attributes, target_name};
use super::session::{Exit, STOPPED, Session};
use crate::comm::World;
use crate::config::{EvaluateSection, Plan, TargetSection, TrainFile, load};
use crate::metric::PointReference;
use crate::model::write_atomically;
use crate::record::RunFile;
use crate::target::{LogisticProblem, load_exact};
use crate::train::{Networks, Outcome, State, Stop, run as train};

/// Runs the command on this rank.
pub fn run(arguments: &Train) -> Result<(), Exit> {
    // Prepare: everything that can be wrong is found here, before any work.
    let file = load::<TrainFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    if let Some(ranks) = arguments.rehearse {
        return rehearse::run(&session, file, ranks as usize);
    }
    let world = &session.world;
    let plan = session.prepare(file.check(world.size))?;
    let networks = session.prepare(Networks::build(&plan, world))?;
    let inputs =
        session.prepare(Inputs::load(&plan.file.evaluate, networks.target.target(), world.device))?;
    let target = networks.target.target();
    let problem = networks.target.problem().cloned();
    let posterior = session.prepare(posterior(&plan, problem, world.is_root()))?;
    let points = session.prepare(point_plan(&plan.file.evaluate, &plan.file.target, target))?;
    // Trained on in f32, measured against in f64 where it has a closed form.
    let exact = points.as_ref().map(|_| load_exact(&plan.file.target, Kind::Double, world.device));
    let exact = session.prepare(exact.transpose())?;
    let mut state = State::initial(&plan, &networks, world.device);
    let path = plan.file.run.directory();
    let opened = session.prepare_on_root(|| open(&path, arguments.resume))?;
    let (directory, checkpoint) = opened.map_or((None, None), |(directory, found)| (Some(directory), found));
    // All ranks read the checkpoint that rank 0 chose.
    let chosen = checkpoint.map_or(String::new(), |path| path.display().to_string());
    let checkpoint = world.broadcast_string(world.is_root().then_some(chosen));
    if !checkpoint.is_empty() {
        session.prepare(state.restore(Path::new(&checkpoint), &plan))?;
        let (done, wanted) = (state.iteration, plan.file.train.iterations);
        session.prepare(if done <= wanted {
            Ok(())
        } else {
            Err(format!(
                "the run has done {done} iterations and train.iterations = {wanted}; set it to {done} or more"
            ))
        })?;
    }
    let stop = session.prepare(watch_signals())?;
    let record = session.prepare_on_root(|| start_record(&path, world, &plan, &state))?;
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
    let mut observer = RunObserver::new(&plan, world, &networks, yardsticks, record, first, true);
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

fn open(path: &Path, resume: bool) -> Result<(RunDirectory, Option<std::path::PathBuf>)> {
    if resume {
        return RunDirectory::resume(path);
    }
    Ok((RunDirectory::create(path)?, None))
}

pub(super) fn start_record(path: &Path, world: &World, plan: &Plan, state: &State) -> Result<RunFile> {
    let config = plan.to_toml();
    write_atomically(&path.join("config.toml"), config.as_bytes())
        .with_context(|| format!("cannot write in {}", path.display()))?;
    let file = path.join("run.h5");
    if file.exists() {
        // A resumed run, since a new one was refused: rows after its checkpoint are dropped and made again.
        let mut record = RunFile::resume(&file, state.iteration as i64)?;
        for (name, value) in run_attributes(world, &config) {
            record.set_attribute("/", name, value)?;
        }
        return Ok(record);
    }
    RunFile::create(&file, &run_attributes(world, &config))
}

/// SIGTERM and SIGUSR1 ask for a checkpoint and an end; SIGINT, from a person, as well.
pub(super) fn watch_signals() -> Result<Arc<Stop>> {
    let stop = Arc::new(Stop::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGUSR1, signal_hook::consts::SIGINT] {
        // A second one of the same kind ends the process at once.
        let again = Arc::new(Stop::new(false));
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&again))
            .and_then(|_| signal_hook::flag::register(signal, again))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot watch for signals")?;
    }
    Ok(stop)
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
    row(
        "training",
        format!(
            "{} iterations, {:?}, batch {} in {} shards",
            file.train.iterations, file.train.schedule, file.train.batch, file.compute.shards
        )
        .to_lowercase(),
    );
    if state.iteration > 0 {
        row("resumed at", format!("iteration {}", state.iteration));
    }
    println!("{table}");
}
