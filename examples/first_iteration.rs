//! Writes down the first iterations of a training run, so that another program can repeat them and compare.
//!
//! ```sh
//! cargo run --release --example first_iteration -- CONFIG OUTPUT.safetensors [ITERATIONS] [--set section.key=value ...]
//! ```
//!
//! The file has f32 tensors, named by what they are:
//! - `before.sampler.*`, `before.score.*`: the initial weights, by the parameters' names;
//! - `noise.I.score.K.{z,eps,sigma}` and `noise.I.sampler.{z,eps,sigma}`: the random numbers of update K of iteration I,
//!   in the shapes of latents, of samples, and `[B]`;
//! - `rows.x` `[N, d]` and `rows.y` `[N]`: a regression's training rows with their column of ones, and labels 0 or 1;
//! - `losses.I` `[2]`, in f64: the last score loss and the sampler's loss of iteration I;
//! - `after.sampler.*`, `after.score.*`, `after.average.*`: the weights after the last of these iterations;
//! - `gradient.sampler.*`, `gradient.score.*`: Adam's running mean of the gradients by then, the last gradient itself
//!   where `train.*_betas` start with 0.
//!
//! Its metadata have the configuration, every default written out, as `config`. Losses and weights are those of the
//! library's own loop; only the noise, which that loop does not show, is drawn here once more.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use dft::comm::World;
use dft::config::{LogisticSection, Plan, Schedule, TargetSection, TrainFile, Variance, load};
use dft::data::{Design, load_csv};
use dft::model::{Parameters, WeightsFile};
use dft::rng::{Shards, Stream};
use dft::train::{Event, Networks, Observer, State, Stop, run};
use tch::{Device, Tensor};

/// Named tensors in the order they were found.
type Tensors = Vec<(String, Tensor)>;

struct Arguments {
    config: PathBuf,
    output: PathBuf,
    iterations: u64,
    settings: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let plan = load::<TrainFile>(&arguments.config, &arguments.settings)?.check(1)?;
    let file = &plan.file;
    ensure!(
        file.train.warmup_updates == 0 && file.warm_start.is_none(),
        "{} warms up before its first iteration; set train.warmup_updates = 0 and leave [warm_start] out",
        arguments.config.display()
    );
    ensure!(
        file.method.smoothing == 0 && file.method.variance == Variance::Plain,
        "probes and copies of the noise are not written down; set method.smoothing = 0 and method.variance = \"plain\""
    );
    ensure!(
        arguments.iterations <= file.train.iterations,
        "{} iterations of {} were asked for",
        arguments.iterations,
        file.train.iterations
    );
    let world = World::solo(Device::Cpu);
    let networks = Networks::build(&plan, &world)?;
    let mut state = State::initial(&plan, &networks, world.device);

    let mut tensors = weights("before.sampler", &state.sampler);
    tensors.extend(weights("before.score", &state.score));
    for iteration in 0..arguments.iterations {
        tensors.extend(noise(&plan, &networks, iteration));
    }
    if let TargetSection::Logistic(section) = &file.target {
        tensors.extend(rows(section, file.run.seed)?);
    }
    tensors.extend(train(&plan, &world, &networks, &mut state, arguments.iterations)?);
    tensors.extend(weights("after.sampler", &state.sampler));
    tensors.extend(weights("after.score", &state.score));
    tensors.extend(weights("after.average", &state.average.parameters));
    let mean = |mean: &Tensor, layout| Parameters::from_flat(layout, mean.copy());
    tensors.extend(weights("gradient.sampler", &mean(&state.sampler_adam.mean, networks.sampler.layout())));
    tensors.extend(weights("gradient.score", &mean(&state.score_adam.mean, networks.score.layout())));

    let metadata = [("config", plan.to_toml()), ("iterations", arguments.iterations.to_string())];
    WeightsFile::save(&arguments.output, &tensors, &metadata)
}

fn arguments() -> Result<Arguments> {
    let (mut words, mut settings) = (Vec::new(), Vec::new());
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        if word == "--set" {
            settings.push(given.next().context("--set wants section.key=value")?);
        } else {
            words.push(word);
        }
    }
    let (config, output, iterations) = match &words[..] {
        [config, output] => (config, output, 1),
        [config, output, iterations] => {
            let count = iterations.parse().ok().filter(|count| *count > 0);
            (config, output, count.with_context(|| format!("{iterations} is no number of iterations"))?)
        }
        _ => bail!("first_iteration CONFIG OUTPUT.safetensors [ITERATIONS] [--set section.key=value ...]"),
    };
    Ok(Arguments { config: config.into(), output: output.into(), iterations, settings })
}

fn weights(prefix: &str, parameters: &Parameters) -> Tensors {
    // A copy: training goes on in the same buffer.
    parameters.named().into_iter().map(|(name, value)| (format!("{prefix}.{name}"), value.copy())).collect()
}

/// The random numbers of all updates of iteration `iteration`, from 0: K of the score network and one of the sampler,
/// the last two from the same samples if simultaneous.
fn noise(plan: &Plan, networks: &Networks, iteration: u64) -> Tensors {
    let settings = &plan.file.train;
    let own = match settings.schedule {
        Schedule::Alternating => settings.score_updates(),
        Schedule::Simultaneous => settings.score_updates() - 1,
    };
    let fraction = iteration as f64 / settings.iterations as f64;
    // The score updates before, of both kinds: a simultaneous update counts as one too.
    let done = iteration * settings.score_updates();
    let mut tensors = Vec::new();
    for update in 0..own {
        let name = format!("noise.{iteration}.score.{update}");
        tensors.extend(draw(plan, networks, (Stream::ScoreUpdate, done + update), fraction, &name));
    }
    let name = format!("noise.{iteration}.sampler");
    tensors.extend(draw(plan, networks, (Stream::SamplerUpdate, iteration), fraction, &name));
    tensors
}

/// Latents, noise and noise levels of one update, of all shards.
fn draw(
    plan: &Plan,
    networks: &Networks,
    (stream, update): (Stream, u64),
    fraction: f64,
    name: &str,
) -> Tensors {
    let (file, batch) = (&plan.file, plan.file.train.batch);
    let shards = Shards::of_rank(batch, file.compute.shards, 0, 1);
    let band = file.method.sigma.band(fraction);
    let shape = &networks.sampler.spec().shape;
    let drawn = shards.draw((file.run.seed, stream, update), Device::Cpu, |generator, rows| {
        let count = rows.end - rows.start;
        let z = generator.normal(&networks.sampler.latent_shape(count));
        let eps = generator.normal(&[&[count], shape.as_slice()].concat());
        [z, eps, generator.stratified_levels(band, rows, batch)]
    });
    ["z", "eps", "sigma"]
        .into_iter()
        .zip(drawn)
        .map(|(part, value)| (format!("{name}.{part}"), value))
        .collect()
}

/// The training rows of a regression on a CSV file.
fn rows(section: &LogisticSection, seed: u64) -> Result<Tensors> {
    let (Some(path), Some(label)) = (section.csv(), &section.label) else {
        bail!("the rows of a regression are written down where target.data is a .csv file");
    };
    let table = load_csv(path, label, section.positive.as_deref())?;
    let design = Design::new(&table, section.scaling, section.test_fraction, section.split.unwrap_or(seed))?;
    Ok(vec![("rows.x".to_string(), design.train_x), ("rows.y".to_string(), design.train_y)])
}

/// Runs the library's loop for `iterations` iterations of the plan, and returns their losses.
fn train(
    plan: &Plan,
    world: &World,
    networks: &Networks,
    state: &mut State,
    iterations: u64,
) -> Result<Tensors> {
    // Asked to stop while the last of them runs: fewer iterations in the plan would be another schedule.
    let stop = Stop::new(iterations == 1);
    let losses = RefCell::new(Vec::new());
    let mut watch = Watch { losses: &losses, stop: &stop, iterations };
    let checkpoints = tempfile::tempdir()?;
    run(plan, world, networks, state, &mut watch, checkpoints.path(), &stop)?;
    ensure!(state.iteration == iterations, "{} iterations were done, not {iterations}", state.iteration);
    Ok(losses.into_inner())
}

/// Collects losses, and asks for the end in time.
struct Watch<'a> {
    losses: &'a RefCell<Tensors>,
    stop: &'a Stop,
    iterations: u64,
}

impl Observer for Watch<'_> {
    fn observe(&mut self, event: &Event) -> Result<()> {
        if let Event::Iteration(row) = event {
            let name = format!("losses.{}", row.iteration - 1);
            self.losses.borrow_mut().push((name, Tensor::from_slice(&[row.score_loss, row.sampler_loss])));
            self.stop.store(row.iteration + 1 >= self.iterations, Ordering::Relaxed);
        }
        Ok(())
    }
}
