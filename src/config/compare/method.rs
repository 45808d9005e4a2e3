//! `[[method]]` of a comparison: what is trained, or what else makes samples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TargetEntry;
use super::annealed::{AnnealedSection, CorrectedSection};
use crate::config::fitted::FittedSection;
use crate::config::mcmc::McmcSection;

/// `[[method]]`: a training method (`set`), a Markov chain (`mcmc`), a Gaussian (`fitted`), annealed chains (`annealed`) or
/// a trained method's draws moved on (`corrected`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodEntry {
    /// Its name in tables and figures.
    pub name: String,
    /// What to set in each target's configuration, as with `--set`: `["method.kind=kl"]`. An empty list is the
    /// target's own recipe.
    #[serde(default)]
    pub set: Vec<String>,
    /// What to set besides on single targets, by name: `{ funnel = ["score.base=target"] }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set_on: BTreeMap<String, Vec<String>>,
    /// For a sampler of images that is trained: its Fréchet distance is looked at this many times along training, and the
    /// best one is a row besides the last, scored on other draws. It is chosen by the reference that it is scored on, as the
    /// step sizes of annealed chains are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u64>,
    /// A sampler that is not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcmc: Option<McmcSection>,
    /// Chains that move at once; as many as `score.samples` if not given. Fewer go further for the same cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chains: Option<usize>,
    /// A Gaussian fitted to the posterior of a regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fitted: Option<FittedSection>,
    /// Annealed chains on a tempered energy, for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annealed: Option<AnnealedSection>,
    /// Draws of a trained method after Markov steps, for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<CorrectedSection>,
    /// What chains are given of the trained method's cost; both if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Vec<Budget>>,
    /// The targets it runs on; all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
}

/// A cost that Markov chains share with a trained method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// As many evaluations of the target's gradient.
    Evaluations,
    /// As many seconds.
    Seconds,
}

impl Budget {
    /// The setting of a row in tables.
    pub fn setting(self) -> &'static str {
        match self {
            Budget::Evaluations => "same evaluations",
            Budget::Seconds => "same seconds",
        }
    }
}

impl MethodEntry {
    /// What chains are given.
    pub fn budgets(&self) -> Vec<Budget> {
        self.budgets.clone().unwrap_or(vec![Budget::Evaluations, Budget::Seconds])
    }

    /// What it does.
    pub fn work(&self) -> Work<'_> {
        match self {
            MethodEntry { mcmc: Some(section), .. } => Work::Chains(section),
            MethodEntry { fitted: Some(section), .. } => Work::Fitted(section),
            MethodEntry { annealed: Some(section), .. } => Work::Annealed(section),
            MethodEntry { corrected: Some(section), .. } => Work::Corrected(section),
            _ => Work::Trained,
        }
    }

    /// Whether a sampler is trained.
    pub fn is_trained(&self) -> bool {
        matches!(self.work(), Work::Trained)
    }

    /// Whether it has the settings of one kind of work, and no others.
    pub(super) fn is_one_thing(&self) -> bool {
        let is_set = !self.set.is_empty() || !self.set_on.is_empty();
        let has_budgets = self.budgets.is_some() || self.chains.is_some();
        let sections =
            [self.mcmc.is_some(), self.fitted.is_some(), self.annealed.is_some(), self.corrected.is_some()];
        let others = sections.into_iter().filter(|&is_there| is_there).count();
        match self.work() {
            Work::Trained => !has_budgets,
            _ if is_set || self.best_of.is_some() || others != 1 => false,
            Work::Chains(_) => !self.budgets().is_empty(),
            Work::Fitted(_) | Work::Annealed(_) | Work::Corrected(_) => !has_budgets,
        }
    }

    /// What it sets on this target.
    pub fn settings(&self, target: &TargetEntry) -> Vec<String> {
        let own = self.set_on.get(&target.name);
        self.set.iter().chain(own.into_iter().flatten()).cloned().collect()
    }

    /// Whether it runs on this target.
    pub fn runs_on(&self, target: &TargetEntry) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.contains(&target.name))
    }
}

/// What a method does.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// Trains a sampler.
    Trained,
    /// Runs Markov chains with the budget of a trained method.
    Chains(&'a McmcSection),
    /// Fits a Gaussian.
    Fitted(&'a FittedSection),
    /// Runs annealed chains of several lengths.
    Annealed(&'a AnnealedSection),
    /// Moves draws of a trained sampler on.
    Corrected(&'a CorrectedSection),
}
