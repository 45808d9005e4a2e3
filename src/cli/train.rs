//! `dft train`: a one-step sampler of the configured target.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use tch::Tensor;
use tracing::{info, warn};

use super::arguments::Train;
use super::metrics::{Inputs, Measure, SHOWN, Scores, draw_samples, output_sigma};
use super::progress::Progress;
use super::run_directory::RunDirectory;
use super::session::{Exit, STOPPED, Session};
use super::summary::{Score, Summary, command_line};
use crate::comm::World;
use crate::config::{Plan, TargetSection, TrainFile, load};
use crate::metric::Moments;
use crate::model::{WeightsFile, write_atomically};
use crate::record::{Attribute, Cell, Column, RunFile};
use crate::train::{Event, Networks, Observer, Outcome, Row, State, Stop, run as train};

/// Iterations between flushes of the record.
const FLUSH_EVERY: u64 = 100;

/// Runs the command on this rank.
pub fn run(arguments: &Train) -> Result<(), Exit> {
    // Prepare: everything that can be wrong is found here, before any work.
    let file = load::<TrainFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let plan = session.prepare(file.check(world.size))?;
    let networks = session.prepare(Networks::build(&plan, world.device))?;
    let inputs =
        session.prepare(Inputs::load(&plan.file.evaluate, networks.target.target(), world.device))?;
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
    let record = session.prepare_on_root(|| start_record(&path, world, &plan, &state))?;
    let stop = session.prepare(watch_signals())?;
    if world.is_root() {
        print_plan(&plan, world, &networks, &state, &path);
    }

    // Work.
    let measure = session.work(inputs.map(|inputs| inputs.measure(world)).transpose())?;
    let sigma = output_sigma(&plan.file.method.sigma, networks.target.tempered_from().is_some());
    let first = state.iteration;
    let mut observer = RunObserver {
        plan: &plan,
        world,
        networks: &networks,
        measure: measure.as_ref(),
        record,
        progress: Progress::new("train", first, plan.file.train.iterations, world.is_root()),
        sigma,
        metrics: BTreeMap::new(),
        steady: Steady::default(),
        recent: [f64::NAN; 2],
    };
    let checkpoints = path.join("checkpoints");
    let outcome = train(&plan, world, &networks, &mut state, &mut observer, &checkpoints, &stop);
    let outcome = session.work(outcome)?;
    if outcome == Outcome::Stopped {
        session.work(observer.flush())?;
        if world.is_root() {
            warn!("stopped by a signal at iteration {}; --resume goes on from there", state.iteration);
        }
        return Err(Exit(STOPPED));
    }
    if first == plan.file.train.iterations {
        // Resumed after the last iteration: nothing to train, and its scores are recorded; the results are written again.
        session.work(observer.score(&state))?;
    }
    let finished = observer.finish(&state, directory.as_ref());
    session.work(finished)?;
    session.work(world.collective().barrier())
}

fn open(path: &Path, resume: bool) -> Result<(RunDirectory, Option<std::path::PathBuf>)> {
    if resume {
        return RunDirectory::resume(path);
    }
    Ok((RunDirectory::create(path)?, None))
}

fn start_record(path: &Path, world: &World, plan: &Plan, state: &State) -> Result<RunFile> {
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
fn watch_signals() -> Result<Arc<Stop>> {
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

/// Attributes of `/` in a run file.
pub fn run_attributes(world: &World, config: &str) -> Vec<(&'static str, Attribute)> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    vec![
        ("format_version", Attribute::Integer(1)),
        ("config", config.into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("commit", env!("DFT_COMMIT").into()),
        ("libtorch_version", env!("DFT_BUILD_LIBTORCH").into()),
        ("hdf5_version", hdf5_version().into()),
        ("world_size", Attribute::Integer(world.size as i64)),
        ("backend", world.backend.into()),
        ("device", device_name(world).into()),
        ("started_at_unix_seconds", Attribute::Integer(started as i64)),
    ]
}

fn hdf5_version() -> String {
    let (major, minor, patch) = hdf5::library_version();
    format!("{major}.{minor}.{patch}")
}

/// `cpu` or `cuda`.
pub fn device_name(world: &World) -> &'static str {
    if world.device.is_cuda() { "cuda" } else { "cpu" }
}

fn target_name(target: &TargetSection) -> &'static str {
    match target {
        TargetSection::Gaussian { .. } => "gaussian",
        TargetSection::Energy { .. } => "energy",
        TargetSection::Torchscript { .. } => "torchscript",
    }
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
    row("method", format!("{:?}, sigma {:?}", file.method.kind, file.method.sigma).to_lowercase());
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

/// Rate of iterations without the first ones and without evaluations.
#[derive(Default)]
struct Steady {
    last: Option<std::time::Instant>,
    iterations: u64,
    seconds: f64,
    skipped: u64,
}

impl Steady {
    const WARM_UP: u64 = 5;

    fn iteration(&mut self) {
        let now = std::time::Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.skipped += 1;
            if self.skipped > Self::WARM_UP {
                self.iterations += 1;
                self.seconds += (now - last).as_secs_f64();
            }
        }
    }

    fn pause(&mut self) {
        self.last = None;
    }

    fn rate(&self) -> f64 {
        if self.iterations == 0 { 0.0 } else { self.iterations as f64 / self.seconds }
    }
}

/// Shows, records and scores a run.
struct RunObserver<'a> {
    plan: &'a Plan,
    world: &'a World,
    networks: &'a Networks,
    measure: Option<&'a Measure>,
    record: Option<RunFile>,
    progress: Progress,
    sigma: f64,
    metrics: BTreeMap<String, Score>,
    steady: Steady,
    recent: [f64; 2],
}

impl Observer for RunObserver<'_> {
    fn observe(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Warmup(done, total, loss) => {
                if *done == *total && self.world.is_root() {
                    info!("score network warmed up: {total} updates, loss {loss:.3}");
                }
                Ok(())
            }
            Event::Iteration(row) => self.iteration(row),
            Event::Evaluation(state) => {
                let result = self.evaluate(state);
                self.steady.pause();
                result
            }
            Event::Checkpoint(_) => {
                self.steady.pause();
                self.flush()
            }
        }
    }
}

impl RunObserver<'_> {
    fn flush(&mut self) -> Result<()> {
        self.record.as_mut().map_or(Ok(()), RunFile::flush)
    }

    fn iteration(&mut self, row: &Row) -> Result<()> {
        self.steady.iteration();
        for (recent, value) in self.recent.iter_mut().zip([row.score_loss, row.sampler_loss]) {
            *recent = if recent.is_nan() { value } else { 0.95 * *recent + 0.05 * value };
        }
        let [score_loss, sampler_loss] = self.recent;
        self.progress
            .set(row.iteration, || format!("score loss {score_loss:.4} · sampler loss {sampler_loss:.4}"));
        let Some(record) = &mut self.record else { return Ok(()) };
        record.append("train", &train_row(row))?;
        if row.iteration.is_multiple_of(FLUSH_EVERY) {
            record.flush()?;
        }
        Ok(())
    }

    /// Scores the averaged sampler on all ranks; `None` if the run measures nothing.
    fn score(&mut self, state: &State) -> Result<Option<Scores>> {
        let Some(measure) = self.measure else { return Ok(None) };
        let (world, network) = (self.world, &self.networks.sampler);
        let parameters = &state.average.parameters;
        let seed = self.plan.file.run.seed;
        let draw = |sigma| {
            move |chunk, rows| draw_samples(network, parameters, seed, (chunk, rows), sigma, world.device)
        };
        let scores = measure.score("", world, draw(self.sigma))?;
        self.metrics.clone_from(&scores.metrics);
        if self.sigma > 0.0 {
            self.metrics.extend(measure.score("_clean", world, draw(0.0))?.metrics);
        }
        Ok(Some(scores))
    }

    /// Scores the averaged sampler on all ranks and records the result.
    fn evaluate(&mut self, state: &State) -> Result<()> {
        let world = self.world;
        let scores = self.score(state)?;
        let (Some(scores), Some(measure)) = (scores, self.measure) else {
            let (parameters, seed) = (&state.average.parameters, self.plan.file.run.seed);
            let network = &self.networks.sampler;
            let shown = draw_samples(network, parameters, seed, (0, SHOWN), self.sigma, world.device);
            return match &mut self.record {
                Some(record) => record.write_samples(state.iteration, &shown.to_device(tch::Device::Cpu)),
                None => Ok(()),
            };
        };
        if world.is_root() {
            let values: Vec<String> = self
                .metrics
                .iter()
                .map(|(name, score)| format!("{name} {:.4} (floor {:.4})", score.value, score.floor))
                .collect();
            info!("iteration {}: {}", state.iteration, values.join(" · "));
        }
        let Some(record) = &mut self.record else { return Ok(()) };
        record_evaluation(record, state.iteration, &self.metrics)?;
        record_moments(record, state.iteration, measure, &self.metrics, &scores.moments)?;
        record.write_samples(state.iteration, &scores.shown)?;
        record.flush()
    }

    /// Writes the sampler, the posterior draws and the summary.
    fn finish(mut self, state: &State, directory: Option<&RunDirectory>) -> Result<()> {
        self.progress.finish();
        let (Some(record), Some(directory)) = (&mut self.record, directory) else { return Ok(()) };
        let file = &self.plan.file;
        let network = &self.networks.sampler;
        let parameters = &state.average.parameters;
        let metadata = [
            ("sampler", serde_json::to_string(network.spec())?),
            ("output_sigma", format!("{:e}", self.sigma)),
            ("iteration", state.iteration.to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_string()),
            ("commit", env!("DFT_COMMIT").to_string()),
        ];
        WeightsFile::save(&directory.file("sampler.safetensors"), &parameters.named(), &metadata)?;
        let draws: Vec<Tensor> = (0..10)
            .map(|chunk| {
                let rows = (chunk, SHOWN);
                draw_samples(network, parameters, file.run.seed, rows, self.sigma, self.world.device)
            })
            .collect();
        record.write_posterior(&Tensor::cat(&draws, 0).to_device(tch::Device::Cpu).unsqueeze(0))?;
        record.flush()?;
        let summary = Summary {
            command: command_line(),
            target: target_name(&file.target).to_string(),
            method: format!("{:?}", file.method.kind).to_lowercase(),
            world_size: self.world.size,
            device: device_name(self.world).to_string(),
            iterations: state.iteration,
            seconds: state.wall_seconds,
            iterations_per_second: self.steady.rate(),
            target_evaluations: state.target_evaluations,
            parameters_sha256: state.parameters_sha256(),
            metrics: self.metrics,
            extractor: self.measure.map(Measure::extractor),
            comparison: vec![],
        };
        summary.write(&directory.file("summary.json"))?;
        info!(
            "{} iterations in {:.0} s ({:.2} a second); sampler and summary in {}",
            summary.iterations,
            summary.seconds,
            summary.iterations_per_second,
            directory.file("").display()
        );
        Ok(())
    }
}

fn column(name: &'static str, units: &'static str, description: &'static str) -> Column {
    Column { name, units, description }
}

fn train_row(row: &Row) -> [(Column, Cell); 8] {
    [
        (column("iteration", "1", "iterations done"), row.iteration.into()),
        (
            column("wall_seconds", "s", "seconds of training, earlier parts of a resumed run included"),
            row.wall_seconds.into(),
        ),
        (
            column("score_loss", "1", "mean weighted denoising loss of the score network, last update"),
            row.score_loss.into(),
        ),
        (
            column("sampler_loss", "1", "mean denoising Fisher loss of the samples, weighted like the field"),
            row.sampler_loss.into(),
        ),
        (
            column(
                "score_gradient_norm",
                "1",
                "norm of the score network's gradient before clipping, last update",
            ),
            row.score_gradient_norm.into(),
        ),
        (
            column("sampler_gradient_norm", "1", "norm of the sampler's gradient before clipping"),
            row.sampler_gradient_norm.into(),
        ),
        (
            column("sigma", "units of the target", "geometric mean of the band of noise levels"),
            row.sigma.into(),
        ),
        (
            column("target_evaluations", "1", "evaluations of the target's gradient so far, over all ranks"),
            row.target_evaluations.into(),
        ),
    ]
}

/// Column names live as long as the program: there is a handful of metrics.
fn leaked(name: String) -> &'static str {
    Box::leak(name.into_boxed_str())
}

fn record_evaluation(record: &mut RunFile, iteration: u64, metrics: &BTreeMap<String, Score>) -> Result<()> {
    let mut row = vec![(column("iteration", "1", "iterations done"), Cell::from(iteration))];
    for (name, score) in metrics {
        let (value, floor) = (leaked(name.clone()), leaked(format!("{name}_floor")));
        row.push((column(value, "1", "score of the averaged sampler"), score.value.into()));
        row.push((column(floor, "1", "the same score of as many real samples"), score.floor.into()));
    }
    if let Some(score) = metrics.values().next() {
        row.push((column("samples", "1", "number of samples"), score.samples.into()));
    }
    record.append("evaluation", &row)
}

fn record_moments(
    record: &mut RunFile,
    iteration: u64,
    measure: &Measure,
    metrics: &BTreeMap<String, Score>,
    moments: &Moments,
) -> Result<()> {
    let extractor = measure.reference().extractor();
    let Some(score) = metrics.get(extractor.metric()) else { return Ok(()) };
    record.append(
        "fid",
        &[
            (column("iteration", "1", "iterations done"), Cell::from(iteration)),
            (column("value", "1", "Fréchet distance of the features to the reference"), score.value.into()),
            (column("floor", "1", "the same distance for as many real samples"), score.floor.into()),
        ],
    )?;
    let (name, sha256) = extractor.identity();
    record.set_attribute("fid", "extractor", name.into())?;
    record.set_attribute("fid", "extractor_sha256", sha256.into())?;
    record.set_attribute("fid", "samples", Attribute::Integer(score.samples as i64))?;
    let values = |tensor: &Tensor| Vec::<f64>::try_from(tensor.reshape([-1]));
    let features = moments.mean().size()[0] as usize;
    record.append_array(
        "fid",
        column("mu", "1", "mean of the features"),
        &values(&moments.mean())?,
        &[features],
    )?;
    record.append_array(
        "fid",
        column("sigma", "1", "covariance of the features"),
        &values(&moments.covariance())?,
        &[features, features],
    )
}
