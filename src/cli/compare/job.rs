//! One method on one target with one seed: a training run, or chains with the budget of one.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};
use tracing::warn;

use super::results::{ResultRow, Rows, key_of};
use crate::cli::metrics::{NotFinite, draw_points, is_ring, output_sigma, point_scores};
use crate::cli::run_directory::RunDirectory;
use crate::cli::run_observer::{RunObserver, Yardsticks};
use crate::cli::summary::Score;
use crate::cli::train::start_record;
use crate::comm::World;
use crate::config::{Budget, ComparePlan, McmcSection, Plan};
use crate::mcmc::McmcRun;
use crate::metric::{Cloud, PointPlan, PointReference, ksd};
use crate::record::write_samples_file;
use crate::rng::{Generator, Stream};
use crate::target::{Target, TargetError, load_exact};
use crate::train::{Networks, Outcome, State, Stop, TrainError, run as train};

/// Purpose of a chain's random numbers, as the iteration of their stream.
const STARTS: u64 = 0;
const STEPS: u64 = 1;
const TUNING: u64 = 2;

/// Part of the budget of evaluations that each of several step sizes is tried with.
const TRIAL: u64 = 20;

/// One target, as chains run on it and as samples are measured against it.
pub struct LoadedTarget {
    /// In f32.
    pub single: Box<dyn Target>,
    /// In f64, where it has a closed form.
    pub exact: Box<dyn Target>,
}

/// Loads the targets of a comparison.
///
/// # Errors
/// If one cannot be used, or makes no vectors.
pub fn load_targets(plan: &ComparePlan, device: Device) -> Result<Vec<LoadedTarget>, TargetError> {
    let load = |recipe: &Plan| {
        let [single, exact] =
            [Kind::Float, Kind::Double].map(|kind| load_exact(&recipe.file.target, kind, device));
        let (single, exact) = (single?, exact?);
        if exact.shape().len() != 1 {
            return Err(TargetError::Invalid(format!(
                "dft compare scores vectors, and a target makes samples {:?}; leave it out",
                exact.shape()
            )));
        }
        Ok(LoadedTarget { single, exact })
    };
    plan.recipes.iter().map(load).collect()
}

/// A method on a target with a seed, by their numbers in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Target.
    pub target: usize,
    /// Method.
    pub method: usize,
    /// Seed.
    pub seed: u64,
}

/// All jobs, target by target.
pub fn list(plan: &ComparePlan) -> Vec<Job> {
    let file = &plan.file;
    let mut jobs = Vec::new();
    for (target, entry) in file.targets.iter().enumerate() {
        for &seed in &file.run.seeds {
            let runs = |&(_, method): &(usize, &crate::config::MethodEntry)| method.runs_on(entry);
            let methods = file.methods.iter().enumerate().filter(runs);
            jobs.extend(methods.map(|(method, _)| Job { target, method, seed }));
        }
    }
    jobs
}

impl Job {
    /// Whether it trains.
    pub fn is_trained(&self, plan: &ComparePlan) -> bool {
        plan.file.methods[self.method].mcmc.is_none()
    }

    /// Its directory below that of the comparison: `target/method/seed-n`.
    pub fn slug(&self, plan: &ComparePlan) -> String {
        let (target, method) = (&plan.file.targets[self.target], &plan.file.methods[self.method]);
        format!("{}/{}/seed-{}", target.name, method.name, self.seed)
    }

    /// The training run whose budget it gets.
    fn budget(&self, plan: &ComparePlan) -> Job {
        let is_budget = |method: &crate::config::MethodEntry| method.name == plan.file.run.budget_of;
        let method = plan.file.methods.iter().position(is_budget);
        Job { method: method.expect("the plan has checked that there is one"), ..*self }
    }

    fn row(&self, plan: &ComparePlan, setting: &str) -> ResultRow {
        ResultRow {
            target: plan.file.targets[self.target].name.clone(),
            method: plan.file.methods[self.method].name.clone(),
            setting: setting.to_string(),
            seed: self.seed,
            target_evaluations: 0,
            seconds: 0.0,
            sampling_seconds: None,
            step_size: None,
            acceptance: None,
            tuning_evaluations: None,
            diverged_chains: None,
            parameters_sha256: None,
            failure: None,
            metrics: BTreeMap::new(),
        }
    }
}

/// Where jobs are done: targets with their yardsticks, on this rank.
pub struct Bench<'a> {
    /// The comparison.
    pub plan: &'a ComparePlan,
    targets: &'a [LoadedTarget],
    yardsticks: Vec<[OnceCell<PointReference<'a>>; 2]>,
    world: &'a World,
}

impl<'a> Bench<'a> {
    /// A bench of the one rank that `world` holds.
    pub fn new(plan: &'a ComparePlan, targets: &'a [LoadedTarget], world: &'a World) -> Self {
        let yardsticks = targets.iter().map(|_| [OnceCell::new(), OnceCell::new()]).collect();
        Bench { plan, targets, yardsticks, world }
    }

    /// Does a job, or finds that it is done; `None` if it was stopped.
    ///
    /// # Errors
    /// If files cannot be written or read. A method that fails on its target is a result.
    pub fn run(&self, job: &Job, home: &Path, directory: &Path, stop: &Stop) -> Result<Option<Rows>> {
        let method = &self.plan.file.methods[job.method];
        match &method.mcmc {
            None => self.train(job, home, stop),
            Some(section) => self.chains(job, section, home, directory).map(Some),
        }
    }

    /// Scores `x` `[rows, D]`, whole sets only: all of them, or one where there is only one.
    fn scores(&self, job: &Job, x: &Tensor, suffix: &str) -> Result<BTreeMap<String, Score>> {
        let section = &self.plan.file.score;
        let sets = x.size()[0] as usize / section.samples;
        let (cell, sets) = if sets >= section.sets { (0, section.sets) } else { (1, 1) };
        let yardstick = match self.yardsticks[job.target][cell].get() {
            Some(yardstick) => yardstick,
            None => {
                let points = PointPlan {
                    samples: section.samples,
                    repeats: sets,
                    is_ring: is_ring(&self.plan.recipes[job.target].file.target),
                    ..PointPlan::default()
                };
                let exact = self.targets[job.target].exact.as_ref();
                let made = PointReference::new(exact, points, self.world)?;
                self.yardsticks[job.target][cell].get_or_init(|| made)
            }
        };
        point_scores(yardstick, &x.narrow(0, 0, (sets * section.samples) as i64), suffix)
    }

    /// Keeps the first set of the first seed for the figure.
    fn keep_samples(&self, job: &Job, home: &Path, setting: &str, x: &Tensor) -> Result<()> {
        if job.seed != self.plan.file.run.seeds[0] {
            return Ok(());
        }
        let rows = (self.plan.file.score.samples as i64).min(x.size()[0]);
        let x = x.narrow(0, 0, rows).to_kind(Kind::Float).to_device(Device::Cpu);
        write_samples_file(home.join(samples_file(setting)).as_path(), &x, true)
    }

    fn train(&self, job: &Job, home: &Path, stop: &Stop) -> Result<Option<Rows>> {
        let file = &self.plan.file;
        let method = &file.methods[job.method];
        let target = &file.targets[job.target];
        let plan = file.train_plan(target, &method.settings(target), job.seed)?;
        let key = key_of(&[&plan.to_toml(), &format!("{:?}", file.score)]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(Some(rows));
        }
        let world = self.world;
        let networks = Networks::build(&plan, world.device)?;
        let mut state = State::initial(&plan, &networks, world.device);
        let directory = continue_or_start(home, &plan, &mut state)?;
        let record = start_record(home, world, &plan, &state)?;
        let first = state.iteration;
        let mut observer =
            RunObserver::new(&plan, world, &networks, Yardsticks::default(), Some(record), first, false);
        let checkpoints = home.join("checkpoints");
        let mut row = job.row(self.plan, "trained");
        match train(&plan, world, &networks, &mut state, &mut observer, &checkpoints, stop) {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Stopped) => {
                observer.flush()?;
                return Ok(None);
            }
            Err(error @ TrainError::Diverged { .. }) => row.failure = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        row.target_evaluations = state.target_evaluations;
        row.seconds = state.wall_seconds;
        row.parameters_sha256 = Some(state.parameters_sha256());
        observer.finish(&state, Some(&directory))?;
        if row.failure.is_none() {
            let sigma = output_sigma(&plan.file.method.sigma, networks.target.tempered_from().is_some());
            let draw = |sigma| {
                let rows = (file.score.samples * file.score.sets) as i64;
                draw_points(&networks.sampler, &state.average.parameters, job.seed, rows, sigma, world.device)
            };
            let began = Instant::now();
            let x = draw(sigma);
            row.sampling_seconds = Some(began.elapsed().as_secs_f64() / file.score.sets as f64);
            self.keep_samples(job, home, "trained", &x)?;
            let clean = if sigma > 0.0 { Some(draw(0.0)) } else { None };
            let mut found = self.scores(job, &x, "");
            if let (Ok(found), Some(clean)) = (&mut found, &clean) {
                found.extend(self.scores(job, clean, "_clean")?);
            }
            record_scores(&mut row, found)?;
        }
        Rows::keep(home, key, vec![row]).map(Some)
    }

    fn chains(&self, job: &Job, section: &McmcSection, home: &Path, directory: &Path) -> Result<Rows> {
        let file = &self.plan.file;
        let method = &file.methods[job.method];
        let spent = Rows::any(&directory.join(job.budget(self.plan).slug(self.plan)))?;
        let (evaluations, seconds) = (spent[0].target_evaluations, spent[0].seconds);
        let recipe = &self.plan.recipes[job.target].file;
        let budgets = method.budgets();
        let parts = (section, &recipe.target, &recipe.sampler, &file.score, &budgets);
        let key = key_of(&[
            &serde_json::to_string(&parts)?,
            &evaluations.to_string(),
            &format!("{seconds:e} {}", job.seed),
        ]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(rows);
        }
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        // NUTS runs single chains on the host and adapts a mass matrix: it gets the closed form in f64.
        let loaded = &self.targets[job.target];
        let (target, kind) = match section {
            McmcSection::Nuts(_) => (loaded.exact.as_ref(), Kind::Double),
            _ => (loaded.single.as_ref(), Kind::Float),
        };
        let start = |purpose| {
            let shape = [&[file.score.samples as i64], target.shape()].concat();
            let normal = Generator::new(job.seed, Stream::Chains, purpose, 0).normal(&shape);
            let start = normal * recipe.sampler.initial_scale + recipe.sampler.initial_offset;
            start.to_kind(kind).to_device(self.world.device)
        };
        let (chosen, tuning_evaluations) = choose(section, target, &start(TUNING), job.seed, evaluations)?;
        let generator = Generator::new(job.seed, Stream::Chains, STEPS, 0);
        let mut run = McmcRun::new(&chosen, target, &start(STARTS), generator)?;
        let mut rows = Vec::new();
        // One run serves both budgets: it is read at the first that is spent and goes on to the other.
        let mut left = budgets;
        while !left.is_empty() {
            let [most_evaluations, most_seconds] =
                [Budget::Evaluations, Budget::Seconds].map(|budget| left.contains(&budget));
            let most_seconds = most_seconds.then_some(seconds);
            run.run_until(most_evaluations.then_some(evaluations), most_seconds, &mut |_, _| {})?;
            let is_out_of_time = most_seconds.is_some_and(|most| run.seconds() >= most);
            let spent = if is_out_of_time { Budget::Seconds } else { Budget::Evaluations };
            left.retain(|budget| *budget != spent);
            let mut row = job.row(self.plan, spent.setting());
            row.target_evaluations = run.evaluations();
            row.seconds = run.seconds();
            row.step_size = Some(run.step_size()).filter(|step| step.is_finite());
            row.acceptance = run.acceptance();
            row.tuning_evaluations = (tuning_evaluations > 0).then_some(tuning_evaluations);
            row.diverged_chains = Some(run.diverged_chains());
            let x = run.draws(file.score.sets as u64);
            if x.size()[0] < file.score.samples as i64 {
                let draws = x.size()[0];
                row.failure = Some(format!("{draws} draws in this budget, fewer than one set of samples"));
            } else {
                self.keep_samples(job, home, spent.setting(), &x)?;
                let found = self.scores(job, &x, "");
                record_scores(&mut row, found)?;
            }
            rows.push(row);
        }
        Rows::keep(home, key, rows)
    }
}

/// Name of the file that holds the samples of a figure.
pub fn samples_file(setting: &str) -> String {
    format!("{}.npy", setting.replace(' ', "-"))
}

/// Samples that are not finite are a result; anything else that goes wrong is not.
fn record_scores(row: &mut ResultRow, found: Result<BTreeMap<String, Score>>) -> Result<()> {
    match found {
        Ok(metrics) => row.metrics = metrics,
        Err(error) if error.is::<NotFinite>() => row.failure = Some(error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Opens the run directory of a training job: continues a run of the same configuration from its checkpoint, and
/// starts anew in place of one of another.
fn continue_or_start(home: &Path, plan: &Plan, state: &mut State) -> Result<RunDirectory> {
    if let Ok(text) = fs::read_to_string(home.join("config.toml")) {
        if text == plan.to_toml() {
            let (directory, checkpoint) = RunDirectory::resume(home)?;
            if let Some(checkpoint) = checkpoint {
                state.restore(&checkpoint, plan)?;
            }
            return Ok(directory);
        }
        warn!("{} was trained with another configuration and is trained again", home.display());
        fs::remove_dir_all(home).with_context(|| format!("cannot clear {}", home.display()))?;
    }
    RunDirectory::create(home)
}

/// The step size, of several, whose states after a part of the budget have the least kernel Stein discrepancy: a
/// choice that needs no exact samples. Also the evaluations that this took.
fn choose(
    section: &McmcSection,
    target: &dyn Target,
    start: &Tensor,
    seed: u64,
    evaluations: u64,
) -> Result<(McmcSection, u64)> {
    let mut candidates = section.candidates();
    if candidates.len() == 1 {
        return Ok((candidates.remove(0), 0));
    }
    let (mut best, mut spent) = (None, 0);
    for (number, candidate) in candidates.into_iter().enumerate() {
        let generator = Generator::new(seed, Stream::Chains, TUNING, 1 + number as u64);
        let mut run = McmcRun::new(&candidate, target, start, generator)?;
        run.run_until(Some(evaluations / TRIAL), None, &mut |_, _| {})?;
        spent += run.evaluations();
        let x = run.positions();
        let discrepancy = ksd(&Cloud::new(&x), &Cloud::new(&target.score(&x))).v;
        let is_better = best.as_ref().is_none_or(|(least, _)| discrepancy < *least);
        if discrepancy.is_finite() && is_better {
            best = Some((discrepancy, candidate));
        }
    }
    let (_, chosen) = best.context("no step size of the list gives finite states; try smaller ones")?;
    Ok((chosen, spent))
}
