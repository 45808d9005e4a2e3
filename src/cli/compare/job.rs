//! One method on one target with one seed: a training run, or chains with the budget of one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};
use tracing::warn;

use super::results::{ResultRow, Rows, key_of};
use crate::cli::metrics::{NotFinite, draw_points, is_ring, output_sigma, point_scores};
use crate::cli::run_directory::RunDirectory;
use crate::cli::run_observer::{RunObserver, Yardsticks};
use crate::cli::run_record::device_name;
use crate::cli::train::start_record;
use crate::comm::World;
use crate::config::{
    Budget, CheckpointSection, ComparePlan, EvaluateSection, McmcSection, MethodEntry, Plan, TargetEntry,
    TargetSection, TrainFile, load,
};
use crate::mcmc::{McmcError, McmcRun};
use crate::metric::{Cloud, PointPlan, PointReference, ksd};
use crate::record::write_samples_file;
use crate::rng::{Generator, Stream};
use crate::target::{Target, TargetError, load_exact};
use crate::train::{Networks, Outcome, SetupError, State, Stop, TrainError, run as train};

/// Purpose of a chain's random numbers, as the iteration of their stream.
const STARTS: u64 = 0;
const STEPS: u64 = 1;
const TUNING: u64 = 2;

/// Part of the budget of evaluations that each of several step sizes is tried with.
const TRIAL: u64 = 20;

/// Evaluations of each chain that such a trial has at least.
const LEAST_TRIAL: u64 = 10;

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
    let load = |(recipe, entry): (&Plan, &TargetEntry)| {
        let [single, exact] =
            [Kind::Float, Kind::Double].map(|kind| load_exact(&recipe.file.target, kind, device));
        let (single, exact) = (single?, exact?);
        if exact.shape().len() != 1 {
            return Err(TargetError::Invalid(format!(
                "dft compare scores vectors, and target {:?} makes samples {:?}; leave it out",
                entry.name,
                exact.shape()
            )));
        }
        Ok(LoadedTarget { single, exact })
    };
    plan.recipes.iter().zip(&plan.file.targets).map(load).collect()
}

/// Builds the networks of every training run once, so that what does not fit is found before any work.
///
/// # Errors
/// If a network does not fit its target.
pub fn try_networks(plan: &ComparePlan, world: &World) -> Result<(), SetupError> {
    plan.train_plans().try_for_each(|plan| Networks::build(plan, world).map(|_| ()))
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
            let runs = |&(_, method): &(usize, &MethodEntry)| method.runs_on(entry);
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
        let is_budget = |method: &MethodEntry| method.name == plan.file.run.budget_of;
        let method = plan.file.methods.iter().position(is_budget);
        Job { method: method.expect("the plan has checked that there is one"), ..*self }
    }

    fn row(&self, plan: &ComparePlan, setting: &str, world: &World) -> ResultRow {
        ResultRow {
            target: plan.file.targets[self.target].name.clone(),
            method: plan.file.methods[self.method].name.clone(),
            setting: setting.to_string(),
            seed: self.seed,
            sets: 0,
            commit: env!("DFT_COMMIT").to_string(),
            device: device_name(world).to_string(),
            threads: world.threads,
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
    /// By target and number of sets.
    yardsticks: RefCell<BTreeMap<(usize, usize), Rc<PointReference<'a>>>>,
    world: &'a World,
}

impl<'a> Bench<'a> {
    /// A bench of the one rank that `world` holds.
    pub fn new(plan: &'a ComparePlan, targets: &'a [LoadedTarget], world: &'a World) -> Self {
        Bench { plan, targets, yardsticks: RefCell::default(), world }
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

    /// Scores `x` `[rows, D]` into the row: all whole sets of it.
    fn score(&self, row: &mut ResultRow, job: &Job, x: &Tensor, suffix: &str) -> Result<()> {
        let samples = self.plan.file.score.samples;
        row.sets = (x.size()[0] as usize / samples).min(self.plan.file.score.sets);
        let yardstick = self.yardstick(job.target, row.sets)?;
        let whole = x.narrow(0, 0, (row.sets * samples) as i64);
        match point_scores(&yardstick, &whole, suffix) {
            Ok(metrics) => row.metrics.extend(metrics),
            // Samples that cannot be scored are a result; anything else that goes wrong is not.
            Err(error) if error.is::<NotFinite>() => row.failure = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn yardstick(&self, target: usize, sets: usize) -> Result<Rc<PointReference<'a>>> {
        if let Some(made) = self.yardsticks.borrow().get(&(target, sets)) {
            return Ok(Rc::clone(made));
        }
        let points = PointPlan {
            samples: self.plan.file.score.samples,
            repeats: sets,
            is_ring: is_ring(&self.plan.recipes[target].file.target),
            ..PointPlan::default()
        };
        let made = Rc::new(PointReference::new(self.targets[target].exact.as_ref(), points, self.world)?);
        self.yardsticks.borrow_mut().insert((target, sets), Rc::clone(&made));
        Ok(made)
    }

    /// Keeps the first set for the figure.
    fn keep_samples(&self, home: &Path, setting: &str, x: &Tensor) -> Result<()> {
        let rows = (self.plan.file.score.samples as i64).min(x.size()[0]);
        let x = x.narrow(0, 0, rows).to_kind(Kind::Float).to_device(Device::Cpu);
        write_samples_file(home.join(samples_file(setting)).as_path(), &x, true)
    }

    /// What all results depend on besides their own settings: how they are scored, the device, and the content of
    /// the target's file.
    fn common_key(&self, target: usize) -> Result<String> {
        let content = match &self.plan.recipes[target].file.target {
            TargetSection::Energy { file, .. } | TargetSection::Torchscript { file, .. } => {
                key_of(&[&format!("{:?}", fs::read(file)?)])
            }
            _ => String::new(),
        };
        Ok(format!("{:?} {} {content}", self.plan.file.score, device_name(self.world)))
    }

    fn train(&self, job: &Job, home: &Path, stop: &Stop) -> Result<Option<Rows>> {
        let file = &self.plan.file;
        let plan = self.plan.train_plan(job.target, job.method, job.seed);
        let key = key_of(&[&identity(&plan.file), &self.common_key(job.target)?]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(Some(rows));
        }
        let world = self.world;
        let networks = Networks::build(&plan, world)?;
        let mut state = State::initial(&plan, &networks, world.device);
        let directory = continue_or_start(home, &plan, &mut state)?;
        let record = start_record(home, world, &plan, &state)?;
        let first = state.iteration;
        let mut observer =
            RunObserver::new(&plan, world, &networks, Yardsticks::default(), Some(record), first, false);
        let checkpoints = home.join("checkpoints");
        let mut row = job.row(self.plan, "trained", world);
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
            let sigma = output_sigma(&plan.file.method, networks.target.tempered_from().is_some());
            let draw = |sigma| {
                let rows = (file.score.samples * file.score.sets) as i64;
                draw_points(&networks.sampler, &state.average.parameters, job.seed, rows, sigma, world.device)
            };
            let began = Instant::now();
            let x = draw(sigma);
            row.sampling_seconds = Some(began.elapsed().as_secs_f64() / file.score.sets as f64);
            self.keep_samples(home, "trained", &x)?;
            self.score(&mut row, job, &x, "")?;
            if sigma > 0.0 && row.failure.is_none() {
                self.score(&mut row, job, &draw(0.0), "_clean")?;
            }
        }
        Rows::keep(home, key, vec![row]).map(Some)
    }

    fn chains(&self, job: &Job, section: &McmcSection, home: &Path, directory: &Path) -> Result<Rows> {
        let spent = Rows::any(&directory.join(job.budget(self.plan).slug(self.plan)))?.remove(0);
        let recipe = &self.plan.recipes[job.target].file;
        let budgets = self.plan.file.methods[job.method].budgets();
        let key = key_of(&[
            &serde_json::to_string(&(section, &recipe.target, &recipe.sampler, &budgets))?,
            &format!("{} {:e} {}", spent.target_evaluations, spent.seconds, job.seed),
            &self.common_key(job.target)?,
        ]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(rows);
        }
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let failed = |failure: String| -> Vec<ResultRow> {
            let row = |budget: &Budget| ResultRow {
                failure: Some(failure.clone()),
                ..job.row(self.plan, budget.setting(), self.world)
            };
            budgets.iter().map(row).collect()
        };
        let rows = match &spent.failure {
            Some(failure) => failed(format!("no budget: {} failed: {failure}", spent.method)),
            None => match self.run_chains(job, section, home, &spent) {
                // Chains that cannot run on their target are a result too.
                Err(error) if error.is::<McmcError>() => failed(error.to_string()),
                rows => rows?,
            },
        };
        Rows::keep(home, key, rows)
    }

    fn run_chains(
        &self,
        job: &Job,
        section: &McmcSection,
        home: &Path,
        spent: &ResultRow,
    ) -> Result<Vec<ResultRow>> {
        let file = &self.plan.file;
        let sampler = &self.plan.recipes[job.target].file.sampler;
        // NUTS runs single chains on the host and adapts a mass matrix: it gets the closed form in f64.
        let loaded = &self.targets[job.target];
        let (target, kind) = match section {
            McmcSection::Nuts(_) => (loaded.exact.as_ref(), Kind::Double),
            _ => (loaded.single.as_ref(), Kind::Float),
        };
        let start = |purpose| {
            let shape = [&[file.score.samples as i64], target.shape()].concat();
            let normal = Generator::new(job.seed, Stream::Chains, purpose, 0).normal(&shape);
            let start = normal * sampler.initial_scale + sampler.initial_offset;
            start.to_kind(kind).to_device(self.world.device)
        };
        let (chosen, tuning) = choose(section, target, &start(TUNING), job.seed, spent.target_evaluations)?;
        let generator = Generator::new(job.seed, Stream::Chains, STEPS, 0);
        let mut run = McmcRun::new(&chosen, target, &start(STARTS), generator)?;
        let mut rows = Vec::new();
        // One run serves both budgets: it is read at the first that is spent and goes on to the other.
        let mut left = file.methods[job.method].budgets();
        while !left.is_empty() {
            let evaluations = left.contains(&Budget::Evaluations).then_some(spent.target_evaluations);
            let seconds = left.contains(&Budget::Seconds).then_some(spent.seconds);
            run.run_until(evaluations, seconds, &mut |_, _| {})?;
            let is_out_of_time = seconds.is_some_and(|most| run.seconds() >= most);
            let budget = if is_out_of_time { Budget::Seconds } else { Budget::Evaluations };
            left.retain(|other| *other != budget);
            let mut row = job.row(self.plan, budget.setting(), self.world);
            row.target_evaluations = run.evaluations();
            row.seconds = run.seconds();
            row.step_size = Some(run.step_size()).filter(|step| step.is_finite());
            row.acceptance = run.acceptance();
            row.tuning_evaluations = (tuning > 0).then_some(tuning);
            row.diverged_chains = Some(run.diverged_chains());
            let x = run.draws(file.score.sets as u64);
            if run.steps() == 0 || x.size()[0] < file.score.samples as i64 {
                let draws = if run.steps() == 0 { 0 } else { x.size()[0] };
                row.failure = Some(format!("{draws} draws in this budget, fewer than one set of samples"));
            } else if run.is_adapting() {
                row.failure = Some("the budget was spent before the step size was adapted".into());
            } else {
                self.keep_samples(home, budget.setting(), &x)?;
                self.score(&mut row, job, &x, "")?;
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// What a trained sampler depends on, as text: not how it is watched, saved or spread over threads.
fn identity(file: &TrainFile) -> String {
    let mut file = file.clone();
    file.evaluate = EvaluateSection::default();
    file.checkpoint = CheckpointSection::default();
    file.compute.threads = None;
    toml::to_string(&file).expect("a configuration is a table of plain values")
}

/// Name of the file that holds the samples of a figure.
pub fn samples_file(setting: &str) -> String {
    format!("{}.npy", setting.replace(' ', "-"))
}

/// Opens the run directory of a training job: continues a run of the same configuration from its checkpoint, and
/// starts anew in place of one of another.
fn continue_or_start(home: &Path, plan: &Plan, state: &mut State) -> Result<RunDirectory> {
    let config = home.join("config.toml");
    if config.exists() {
        let found = load::<TrainFile>(&config, &[]);
        if found.is_ok_and(|found| identity(&found) == identity(&plan.file)) {
            let (directory, checkpoint) = RunDirectory::resume(home)?;
            if let Some(checkpoint) = checkpoint {
                state.restore(&checkpoint, plan)?;
            }
            return Ok(directory);
        }
        warn!("{} was trained with another configuration and is trained again", home.display());
        // Out of the way in one step first: half a directory would be neither run.
        let old = home.with_extension("old");
        let _ = fs::remove_dir_all(&old);
        fs::rename(home, &old)
            .and_then(|()| fs::remove_dir_all(&old))
            .with_context(|| format!("cannot clear {}", home.display()))?;
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
) -> Result<(McmcSection, u64), McmcError> {
    let mut candidates = section.candidates();
    if candidates.len() == 1 {
        return Ok((candidates.remove(0), 0));
    }
    let (mut best, mut spent) = (None, 0);
    for (number, candidate) in candidates.into_iter().enumerate() {
        let generator = Generator::new(seed, Stream::Chains, TUNING, 1 + number as u64);
        let mut run = McmcRun::new(&candidate, target, start, generator)?;
        let steps = (evaluations / TRIAL).max(LEAST_TRIAL * start.size()[0] as u64);
        run.run_until(Some(steps), None, &mut |_, _| {})?;
        spent += run.evaluations();
        let x = run.positions();
        let discrepancy = ksd(&Cloud::new(&x), &Cloud::new(&target.score(&x))).v;
        let is_better = best.as_ref().is_none_or(|(least, _)| discrepancy < *least);
        if discrepancy.is_finite() && is_better {
            best = Some((discrepancy, candidate));
        }
    }
    match best {
        Some((_, chosen)) => Ok((chosen, spent)),
        None => {
            Err(McmcError::Start("no step size of the list gives finite states; try smaller ones".into()))
        }
    }
}
