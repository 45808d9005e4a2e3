//! Where jobs are done: targets with their yardsticks, on this rank.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

use super::images::ImageTarget;
use super::job::Job;
use super::results::{ResultRow, Rows};
use crate::cli::metrics::{NotFinite, is_ring, point_scores};
use crate::cli::posterior::PosteriorMeasure;
use crate::cli::reference::{ReferenceDraws, place, reference};
use crate::cli::run_record::device_name;
use crate::comm::World;
use crate::config::{ComparePlan, LogisticSection, Reduction, TargetSection, Work};
use crate::data::file_sha256;
use crate::metric::{PointPlan, PointReference};
use crate::record::write_samples_file;
use crate::target::{Logistic, LogisticProblem, Target, Whitened, load_exact};
use crate::train::{Networks, SetupError, Stop};

/// Draws of a predictive probability in the protocol that takes the best along training, as in Liu and Wang (2016).
const LITERATURE_DRAWS: usize = 100;

/// One target, as chains run on it and as samples are measured against it.
pub struct LoadedTarget {
    /// In f32.
    pub single: Box<dyn Target>,
    /// In f64, where it has a closed form.
    pub exact: Box<dyn Target>,
}

/// One target, by what its samples are.
pub enum Loaded {
    /// Vectors with a density in closed form, or in a file.
    Points(LoadedTarget),
    /// Images.
    Images(Box<ImageTarget>),
    /// A posterior, whose data are split anew for every seed: loaded with its job.
    Posterior,
}

/// Loads the targets of a comparison, but for posteriors; `world` is this rank alone.
///
/// # Errors
/// If one cannot be used, or its samples cannot be scored.
pub fn load_targets(plan: &ComparePlan, world: &World) -> Result<Vec<Loaded>> {
    let load = |number: usize| {
        let section = &plan.recipes[number].file.target;
        if let TargetSection::Logistic(_) = section {
            return Ok(Loaded::Posterior);
        }
        if section.is_image() {
            return Ok(Loaded::Images(Box::new(ImageTarget::load(plan, number, world)?)));
        }
        let [single, exact] = [Kind::Float, Kind::Double].map(|kind| load_exact(section, kind, world.device));
        Ok(Loaded::Points(LoadedTarget { single: single?, exact: exact? }))
    };
    (0..plan.recipes.len()).map(load).collect()
}

/// Builds the networks of every training run once, so that what does not fit is found before any work. Of posteriors,
/// which take seconds to load, once for each target.
///
/// # Errors
/// If a network does not fit its target.
pub fn try_networks(plan: &ComparePlan, world: &World) -> Result<(), SetupError> {
    let alone = World::solo(world.device);
    let mut tried: Vec<LogisticSection> = Vec::new();
    for plan in plan.train_plans() {
        if let TargetSection::Logistic(section) = &plan.file.target {
            if tried.contains(section) {
                continue;
            }
            tried.push(section.clone());
        }
        // With exact sums a posterior is cut into blocks that need not divide over these ranks: jobs are of one.
        let is_exact = plan.file.compute.reduction == Reduction::Exact;
        Networks::build(plan, if is_exact { &alone } else { world })?;
    }
    Ok(())
}

/// A posterior with one split of its data.
pub struct Posterior {
    /// Its data.
    pub problem: Rc<LogisticProblem>,
    /// Over all rows, whitened: for chains that accept by the density.
    pub exact: Whitened<Logistic>,
    /// As the target's configuration has it.
    pub configured: Box<dyn Target>,
    /// What samples are measured against.
    pub reference: ReferenceDraws,
    measures: RefCell<BTreeMap<(usize, usize), Rc<PosteriorMeasure>>>,
}

impl Posterior {
    /// A measure of `sets` sets of `samples` draws; with no set, of predictions alone.
    ///
    /// # Errors
    /// If the reference has too few draws.
    pub fn measure(&self, samples: usize, sets: usize) -> Result<Rc<PosteriorMeasure>> {
        if let Some(made) = self.measures.borrow().get(&(samples, sets)) {
            return Ok(Rc::clone(made));
        }
        let reference = (sets > 0).then_some(&self.reference);
        let made = PosteriorMeasure::new(Rc::clone(&self.problem), (samples, sets.max(1)), reference)?;
        let made = Rc::new(made);
        self.measures.borrow_mut().insert((samples, sets), Rc::clone(&made));
        Ok(made)
    }

    /// A measure of the accuracy along training, as the literature has it.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub fn measure_along(&self) -> Result<Rc<PosteriorMeasure>> {
        self.measure(LITERATURE_DRAWS, 0)
    }
}

/// A posterior, of a target and a seed.
type Split = ((usize, u64), Rc<Posterior>);

/// Targets with their yardsticks, on this rank.
pub struct Bench<'a> {
    /// The comparison.
    pub plan: &'a ComparePlan,
    /// This rank alone.
    pub world: &'a World,
    targets: &'a [Loaded],
    /// By target and number of sets.
    yardsticks: RefCell<BTreeMap<(usize, usize), Rc<PointReference<'a>>>>,
    /// The latest: one holds the data.
    posterior: RefCell<Option<Split>>,
    /// Content of the targets' files.
    contents: RefCell<BTreeMap<usize, String>>,
}

impl<'a> Bench<'a> {
    /// A bench of the one rank that `world` holds.
    pub fn new(plan: &'a ComparePlan, targets: &'a [Loaded], world: &'a World) -> Self {
        Bench {
            plan,
            world,
            targets,
            yardsticks: RefCell::default(),
            posterior: RefCell::default(),
            contents: RefCell::default(),
        }
    }

    /// Does a job, or finds that it is done; `None` if it was stopped.
    ///
    /// # Errors
    /// If files cannot be written or read. A method that fails on its target is a result.
    pub fn run(&self, job: &Job, home: &Path, directory: &Path, stop: &Stop) -> Result<Option<Rows>> {
        let method = &self.plan.file.methods[job.method];
        match method.work() {
            Work::Trained => self.train(job, home, stop),
            Work::Chains(section) => self.chains(job, section, home, directory).map(Some),
            Work::Fitted(section) => self.fit(job, section, home).map(Some),
            Work::Annealed(section) => self.anneal(job, section, home, stop),
            Work::Corrected(section) => self.correct(job, section, (home, directory), stop),
        }
    }

    /// A target that has a closed form.
    pub fn target(&self, job: &Job) -> Option<&'a LoadedTarget> {
        self.points(job.target)
    }

    fn points(&self, target: usize) -> Option<&'a LoadedTarget> {
        match &self.targets[target] {
            Loaded::Points(loaded) => Some(loaded),
            Loaded::Images(_) | Loaded::Posterior => None,
        }
    }

    /// Whether a job makes images.
    pub fn makes_images(&self, job: &Job) -> bool {
        matches!(self.targets[job.target], Loaded::Images(_))
    }

    /// A target that makes images.
    ///
    /// # Errors
    /// If it makes others, which the plan has checked.
    pub fn images(&self, job: &Job) -> Result<&'a ImageTarget> {
        match &self.targets[job.target] {
            Loaded::Images(images) => Ok(images),
            Loaded::Points(_) | Loaded::Posterior => bail!("a method for images runs on images"),
        }
    }

    /// Where the reference draws of a job's target are kept, if it is the posterior of a regression.
    ///
    /// # Errors
    /// If its data cannot be read.
    pub fn reference_path(&self, job: &Job) -> Result<Option<PathBuf>> {
        let TargetSection::Logistic(section) = &self.plan.recipes[job.target].file.target else {
            return Ok(None);
        };
        Ok(Some(place(section, job.seed, &self.plan.file.run.references)?.1))
    }

    /// The posterior of a job, with its split and its reference; `None` for targets of another kind.
    ///
    /// # Errors
    /// If the data cannot be used.
    pub fn posterior(&self, job: &Job) -> Result<Option<Rc<Posterior>>> {
        let recipe = &self.plan.recipes[job.target].file;
        let TargetSection::Logistic(section) = &recipe.target else { return Ok(None) };
        let at = (job.target, job.seed);
        if let Some((found, posterior)) = self.posterior.borrow().as_ref()
            && *found == at
        {
            return Ok(Some(Rc::clone(posterior)));
        }
        self.posterior.replace(None); // its data go first: two splits need not fit beside each other
        let problem = Rc::new(LogisticProblem::load(section, job.seed, &recipe.compute, self.world)?);
        let references = &self.plan.file.run.references;
        let posterior = Rc::new(Posterior {
            exact: problem.exact()?,
            configured: problem.target()?,
            reference: reference(section, job.seed, &problem, references, false)?,
            problem,
            measures: RefCell::default(),
        });
        self.posterior.replace(Some((at, Rc::clone(&posterior))));
        Ok(Some(posterior))
    }

    /// Scores samples of the target's own coordinates `x` `[rows, D]` into the row: all whole sets of them.
    ///
    /// # Errors
    /// If they cannot be scored for another reason than that they are not finite, which is a result.
    pub fn score(&self, row: &mut ResultRow, job: &Job, x: &Tensor, suffix: &str) -> Result<()> {
        let samples = self.plan.file.score.samples;
        row.sets = (x.size()[0] as usize / samples).min(self.plan.file.score.sets);
        let whole = x.narrow(0, 0, (row.sets * samples) as i64);
        let scores = match self.posterior(job)? {
            Some(posterior) => {
                let scored = posterior.measure(samples, row.sets)?.scores(&whole, suffix);
                scored.map(|(scores, prediction)| {
                    if suffix.is_empty() {
                        row.calibration = Some(prediction.calibration.iter().map(Into::into).collect());
                    }
                    scores
                })
            }
            None => point_scores(self.yardstick(job.target, row.sets)?.as_ref(), &whole, suffix),
        };
        match scores {
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
        let loaded = self.points(target).context("a target without data has a closed form")?;
        let made = Rc::new(PointReference::new(loaded.exact.as_ref(), points, self.world)?);
        self.yardsticks.borrow_mut().insert((target, sets), Rc::clone(&made));
        Ok(made)
    }

    /// Keeps the first set for the figure.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_samples(&self, home: &Path, setting: &str, x: &Tensor) -> Result<()> {
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let rows = (self.plan.file.score.samples as i64).min(x.size()[0]);
        let x = x.narrow(0, 0, rows).to_kind(Kind::Float).to_device(Device::Cpu);
        write_samples_file(home.join(samples_file(setting)).as_path(), &x, true)
    }

    /// What all results depend on besides their own settings: how they are scored, the device, and the content of
    /// the target's file.
    ///
    /// # Errors
    /// If that file cannot be read.
    pub fn common_key(&self, job: &Job) -> Result<String> {
        let (device, file) = (device_name(self.world), &self.plan.file);
        let reference = match self.reference_path(job)? {
            Some(path) => path.display().to_string(),
            None => String::new(),
        };
        let best_of = file.targets[job.target].best_of;
        let scoring = match &self.targets[job.target] {
            Loaded::Images(images) => format!(" {}", images.scoring),
            Loaded::Points(_) | Loaded::Posterior => String::new(),
        };
        let content = self.content(job.target)?;
        Ok(format!("{:?} {best_of:?} {device} {reference} {content}{scoring}", file.score))
    }

    /// SHA-256 of the target's file, if it has one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn content(&self, target: usize) -> Result<String> {
        if let Some(found) = self.contents.borrow().get(&target) {
            return Ok(found.clone());
        }
        let file = match &self.plan.recipes[target].file.target {
            TargetSection::Energy { file, .. } | TargetSection::Torchscript { file, .. } => {
                Some(file.as_path())
            }
            TargetSection::Logistic(section) => section.csv(),
            _ => None,
        };
        let content = match file {
            Some(file) => file_sha256(file).with_context(|| format!("cannot read {}", file.display()))?,
            None => String::new(),
        };
        self.contents.borrow_mut().insert(target, content.clone());
        Ok(content)
    }
}

/// Name of the file that holds the samples of a figure.
pub fn samples_file(setting: &str) -> String {
    format!("{}.npy", setting.replace(' ', "-"))
}
