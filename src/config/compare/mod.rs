//! The configuration of `dft compare`: methods on targets, and what they are given.

mod annealed;
mod method;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::load::{ConfigError, load};
use super::network::TargetSection;
use super::run::{ComputeSection, Reduction, require};
use super::train::{EvaluateSection, Features, Plan, TrainFile};

pub use annealed::{AnnealedKernel, AnnealedSchedule, AnnealedSection, CorrectedSection, CorrectionKind};
pub use method::{Budget, MethodEntry, Work};

/// What a user writes for `dft compare`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareFile {
    /// `[run]`.
    pub run: CompareRunSection,
    /// `[compute]`: of each rank; a rank trains alone, so `shards` stays with the configurations of the targets.
    #[serde(default)]
    pub compute: ComputeSection,
    /// `[score]`.
    #[serde(default)]
    pub score: PointScoreSection,
    /// `[[target]]`.
    #[serde(rename = "target")]
    pub targets: Vec<TargetEntry>,
    /// `[[method]]`, in the order of the figure's columns.
    #[serde(rename = "method")]
    pub methods: Vec<MethodEntry>,
}

/// `[run]` of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareRunSection {
    /// Name of the comparison.
    pub name: String,
    /// Every method runs once for each.
    pub seeds: Vec<u64>,
    /// Its directory; `runs/<name>` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The trained method whose evaluations and seconds are the budgets of MCMC, for the same target and seed.
    pub budget_of: String,
    /// What tables say of the seeds.
    #[serde(default)]
    pub statistic: Statistic,
    /// Directory of the reference draws of posteriors; see `dft reference`.
    #[serde(default = "default_references")]
    pub references: PathBuf,
}

fn default_references() -> PathBuf {
    EvaluateSection::default().references
}

/// What a table says of the values of several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistic {
    /// The median, and in brackets the least and the greatest.
    #[default]
    Median,
    /// The mean and its standard error: for seeds that stand for splits of data.
    Mean,
}

/// `[score]`: how samples are scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PointScoreSection {
    /// Samples in a set; most metrics and all floors depend on it.
    pub samples: usize,
    /// Independent sets; a score is the mean over them.
    pub sets: usize,
}

impl Default for PointScoreSection {
    fn default() -> Self {
        PointScoreSection { samples: 2000, sets: 10 }
    }
}

/// `[[target]]`: a configuration of `dft train`, whose target and recipe all methods start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetEntry {
    /// Its name in tables and figures.
    pub name: String,
    /// The configuration, e.g. `configs/planar/donut.toml`.
    pub config: PathBuf,
    /// For the posterior of a regression: the test accuracy is looked at this many times along training, or along the
    /// chains, and the best one is reported, as in much of the literature. It flatters every method, by choosing on
    /// the test rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u64>,
}

/// A checked comparison.
#[derive(Debug, Clone)]
pub struct ComparePlan {
    /// The configuration.
    pub file: CompareFile,
    /// The target's own recipe, for each target.
    pub recipes: Vec<Plan>,
    /// The plan of each trained method on each target that it runs on, by their numbers; the seed is that of a
    /// job.
    plans: BTreeMap<(usize, usize), Plan>,
}

impl ComparePlan {
    /// The plan of a trained method on a target with a seed, for one rank.
    ///
    /// # Panics
    /// If the method is not trained on that target.
    pub fn train_plan(&self, target: usize, method: usize, seed: u64) -> Plan {
        let mut plan = self.plans[&(target, method)].clone();
        plan.file.run.seed = seed;
        plan
    }

    /// All plans of trained methods.
    pub fn train_plans(&self) -> impl Iterator<Item = &Plan> {
        self.plans.values()
    }
}

/// Names that the comparison's own files have.
const RESERVED: [&str; 7] =
    ["claims", "config.toml", "figures", "lock", "results.json", "results.md", "rows.json"];

/// Sets of draws that a run of chains always has; see `mcmc`.
const MOST_SETS_OF_CHAINS: usize = 16;

/// Names become directories.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fits) && !RESERVED.contains(&name)
}

fn find_repeated<'n>(names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

fn check_chains(method: &MethodEntry, score: &PointScoreSection) -> Result<(), ConfigError> {
    let chains = method.chains.unwrap_or(score.samples);
    require(&[(
        (1..=score.samples).contains(&chains),
        &format!("method {:?}: chains", method.name),
        &chains,
        &format!("1 to score.samples = {}", score.samples),
    )])
}

impl CompareFile {
    /// Directory of the comparison.
    pub fn directory(&self) -> PathBuf {
        self.run.directory.clone().unwrap_or_else(|| Path::new("runs").join(&self.run.name))
    }

    /// The plan of a target's configuration with a method's settings, for one rank.
    fn train_plan(&self, target: &TargetEntry, set: &[String]) -> Result<Plan, ConfigError> {
        let mut file: TrainFile = load(&target.config, set)?;
        file.run.name.clone_from(&target.name);
        file.compute.device = self.compute.device;
        if file.compute.reduction == Reduction::Exact && self.compute.threads().is_none() {
            return Err(ConfigError::Invalid(format!(
                "{} has compute.reduction = \"exact\", whose bits depend on the threads of a rank, which are the comparison's; \
                 set compute.threads = 1 in the comparison",
                target.config.display()
            )));
        }
        file.compute.threads = self.compute.threads();
        // Samples are scored by the comparison, all methods alike; images on the features of the target's own recipe.
        file.evaluate = match file.target.is_image() {
            true => self.scoring_of_images(file.evaluate),
            false => EvaluateSection::default(),
        };
        file.check(1)
    }

    /// Checks the comparison and every configuration it names.
    ///
    /// # Errors
    /// The first thing that does not fit, what it should be, and what to do.
    pub fn check(self) -> Result<ComparePlan, ConfigError> {
        let targets = || self.targets.iter().map(|target| target.name.as_str());
        let methods = || self.methods.iter().map(|method| method.name.as_str());
        let wrong_name = targets().chain(methods()).find(|name| !is_name(name)).unwrap_or_default();
        let repeated = find_repeated(targets()).or(find_repeated(methods())).unwrap_or_default();
        let unknown = self
            .methods
            .iter()
            .flat_map(|method| method.targets.iter().flatten().chain(method.set_on.keys()));
        let unknown = unknown.map(String::as_str).find(|name| !targets().any(|target| target == *name));
        let budget = self.methods.iter().find(|method| method.name == self.run.budget_of);
        let both = self.methods.iter().find(|method| !method.is_one_thing());
        let seeds = format!("{:?}", self.run.seeds);
        let repeated_seed =
            (1..self.run.seeds.len()).any(|i| self.run.seeds[..i].contains(&self.run.seeds[i]));
        require(&[
            (!self.targets.is_empty(), "[[target]]", &"nothing", "one target or more"),
            (!self.methods.is_empty(), "[[method]]", &"nothing", "one method or more"),
            (
                wrong_name.is_empty() && targets().chain(methods()).all(is_name),
                "name",
                &format!("{wrong_name:?}"),
                "letters, digits, `-`, `_` and `.`, and none of the comparison's own files: names become directories",
            ),
            (repeated.is_empty(), "name", &format!("{repeated:?} twice"), "another name for one of them"),
            (
                unknown.is_none(),
                "method.targets or method.set_on",
                &format!("{:?}", unknown.unwrap_or_default()),
                "names of [[target]]s",
            ),
            (
                budget.is_some_and(|method| method.is_trained() && method.targets.is_none()),
                "run.budget_of",
                &format!("{:?}", self.run.budget_of),
                "the name of a trained [[method]] that runs on all targets",
            ),
            (
                both.is_none(),
                "method",
                &both.map_or("", |method| &method.name),
                "one of `set` for a trained method, which alone has `best_of`, `mcmc` for Markov chains, which alone have `chains` and one or both `budgets`, \
                 `fitted`, `annealed` and `corrected`",
            ),
            (!self.run.seeds.is_empty() && !repeated_seed, "run.seeds", &seeds, "a list of seeds, each once"),
            (self.score.samples >= 2, "score.samples", &self.score.samples, "2 or more"),
            (
                (1..=MOST_SETS_OF_CHAINS).contains(&self.score.sets),
                "score.sets",
                &self.score.sets,
                "1 to 16, as many as chains have",
            ),
        ])?;
        let recipes = self.targets.iter().map(|target| self.train_plan(target, &[]));
        let recipes = recipes.collect::<Result<Vec<Plan>, _>>()?;
        for (target, recipe) in self.targets.iter().zip(&recipes) {
            let is_posterior = matches!(recipe.file.target, TargetSection::Logistic(_));
            if target.best_of.is_some_and(|times| times == 0 || !is_posterior) {
                return Err(ConfigError::Invalid(format!(
                    "target {:?}: best_of is for posteriors of regressions, 1 or more; leave it out",
                    target.name
                )));
            }
        }
        self.check_images(&recipes)?;
        let mut plans = BTreeMap::new();
        for (number, method) in self.methods.iter().enumerate() {
            let key = |section: &str| format!("method {:?}: {section}", method.name);
            match method.work() {
                Work::Chains(mcmc) => {
                    mcmc.check(&key("mcmc"))?;
                    check_chains(method, &self.score)?;
                }
                Work::Fitted(fitted) => fitted.check(&key("fitted"))?,
                Work::Annealed(annealed) => annealed.check(&key("annealed"))?,
                Work::Corrected(corrected) => {
                    corrected.check(&key("corrected"))?;
                    self.check_corrected(method, corrected)?;
                }
                Work::Trained => {}
            }
            for (at, target) in self.targets.iter().enumerate().filter(|(_, target)| method.runs_on(target)) {
                check_target(method, target, &recipes[at].file.target)?;
                if !method.is_trained() {
                    continue;
                }
                if method.best_of.is_some_and(|times| times == 0 || !recipes[at].file.target.is_image()) {
                    return Err(ConfigError::Invalid(format!(
                        "method {:?}: best_of looks at the Fréchet distance of images, 1 or more times, and {:?} has none; leave it out",
                        method.name, target.name
                    )));
                }
                let plan = self.train_plan(target, &method.settings(target))?;
                if plan.file.target != recipes[at].file.target {
                    return Err(ConfigError::Invalid(format!(
                        "method {:?} changes the target {:?} that it is compared on; make a [[target]] of its own for that",
                        method.name, target.name
                    )));
                }
                plans.insert((at, number), plan);
            }
        }
        Ok(ComparePlan { file: self, recipes, plans })
    }

    /// What a recipe says of scores, with the comparison's number of samples and none of its own comparisons.
    fn scoring_of_images(&self, evaluate: EvaluateSection) -> EvaluateSection {
        let EvaluateSection { langevin_steps, langevin_sigma, langevin_step_size, corrections, .. } =
            EvaluateSection::default();
        EvaluateSection {
            every: 0,
            samples: self.score.samples,
            point_sets: 0,
            langevin_steps,
            langevin_sigma,
            langevin_step_size,
            corrections,
            ..evaluate
        }
    }

    /// What scoring images wants of the comparison and of the recipes.
    fn check_images(&self, recipes: &[Plan]) -> Result<(), ConfigError> {
        for (target, recipe) in self.targets.iter().zip(recipes).filter(|(_, it)| it.file.target.is_image()) {
            if self.score.sets != 1 {
                return Err(ConfigError::Invalid(format!(
                    "score.sets = {}, and target {:?} makes images, which are scored in one set of score.samples; set it to 1",
                    self.score.sets, target.name
                )));
            }
            if recipe.file.evaluate.features == Features::None {
                return Err(ConfigError::Invalid(format!(
                    "{} has evaluate.features = \"none\", and the images of target {:?} are scored by their Fréchet distance; \
                     choose \"lenet\" or a TorchScript file there",
                    target.config.display(),
                    target.name
                )));
            }
        }
        Ok(())
    }

    /// A method whose draws are moved on has draws wherever they are.
    fn check_corrected(&self, method: &MethodEntry, corrected: &CorrectedSection) -> Result<(), ConfigError> {
        let of = self.methods.iter().find(|other| other.name == corrected.of && other.is_trained());
        let is_there =
            |target: &TargetEntry| !method.runs_on(target) || of.is_some_and(|of| of.runs_on(target));
        require(&[(
            of.is_some() && self.targets.iter().all(is_there),
            &format!("method {:?}: corrected.of", method.name),
            &format!("{:?}", corrected.of),
            "the name of a trained [[method]] that runs on the same targets",
        )])
    }
}

/// Refuses a method on a target that it is not for.
fn check_target(
    method: &MethodEntry,
    target: &TargetEntry,
    section: &TargetSection,
) -> Result<(), ConfigError> {
    let is_posterior = matches!(section, TargetSection::Logistic(_));
    let (what, is_for) = match method.work() {
        Work::Trained => return Ok(()),
        Work::Chains(_) => ("`mcmc`, for targets on vectors", !section.is_image()),
        Work::Fitted(_) => ("`fitted`, a Gaussian for the posterior of a regression", is_posterior),
        Work::Annealed(_) => {
            ("`annealed`, for images of a tempered energy", section.is_image() && section.is_tempered())
        }
        Work::Corrected(_) => {
            ("`corrected`, for images of a tempered energy", section.is_image() && section.is_tempered())
        }
    };
    if is_for {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "method {:?} has {what}, and target {:?} is none; list the others in its `targets`{}",
        method.name,
        target.name,
        match method.work() {
            Work::Chains(_) => ", or choose `annealed` for images",
            _ if section.is_image() && !section.is_tempered() =>
                ", or set target.tempered = true in its configuration",
            _ => "",
        }
    )))
}
