//! `summary.json`: the result of a run in one small file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::metric::Measured;
use crate::model::write_atomically;

/// One metric of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The sampler's value.
    pub value: f64,
    /// Standard deviation over the sets that the value is the mean of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
    /// What as many perfect samples score; nothing where the target has none.
    pub floor: Option<f64>,
    /// Standard deviation of perfect samples over the sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_deviation: Option<f64>,
    /// Number of samples, of one set if there are several.
    pub samples: u64,
}

impl Score {
    /// The value beside its floor, for people.
    pub fn beside_floor(&self) -> String {
        match self.floor {
            Some(floor) => format!("{:.4} (floor {floor:.4})", self.value),
            None => format!("{:.4}", self.value),
        }
    }
}

impl From<Measured> for Score {
    fn from(measured: Measured) -> Self {
        let Measured { value, deviation, floor, floor_deviation, samples } = measured;
        Score { value, deviation, floor, floor_deviation, samples: samples as u64 }
    }
}

/// One row of the comparison that `dft evaluate` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonRow {
    /// Which sampler, e.g. `annealed Langevin, 10 steps`.
    pub sampler: String,
    /// Evaluations of the target's gradient for one sample.
    pub target_evaluations_per_sample: u64,
    /// Network evaluations for one sample.
    pub network_evaluations_per_sample: u64,
    /// Seconds for all samples on all ranks.
    pub seconds: f64,
    /// Mean acceptance probability of its Markov steps, where they are accepted or rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<f64>,
    /// The metrics.
    pub metrics: BTreeMap<String, Score>,
}

/// Which features a Fréchet distance was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractorId {
    /// Its name.
    pub name: String,
    /// SHA-256 of its weights.
    pub sha256: String,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The command that made it.
    pub command: String,
    /// Kind of the target.
    pub target: String,
    /// Kind of the method.
    pub method: String,
    /// Number of ranks of the last part of the run.
    pub world_size: usize,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Iterations done.
    pub iterations: u64,
    /// Seconds of training, evaluations during it left out.
    pub seconds: f64,
    /// Rate in the steady state, without evaluations.
    pub iterations_per_second: f64,
    /// Evaluations of the target's gradient in training, over all ranks.
    pub target_evaluations: u64,
    /// SHA-256 of sampler then score network, registration order, little-endian f32.
    pub parameters_sha256: String,
    /// Scores of the sampler.
    pub metrics: BTreeMap<String, Score>,
    /// What the Fréchet distances among them were measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<ExtractorId>,
    /// The sampler beside others, once `dft evaluate` has run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparison: Vec<ComparisonRow>,
}

impl Summary {
    /// Reads a summary.
    ///
    /// # Errors
    /// If the file is missing or holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read {}: the run has not finished; finish it first", path.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a summary", path.display()))
    }

    /// Writes the summary.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("a summary is plain data")?;
        write_atomically(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The command line of this process, as the user would write it.
pub fn command_line() -> String {
    let arguments = std::env::args_os().skip(1);
    let words = arguments.map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once("dft".to_string()).chain(words).collect::<Vec<_>>().join(" ")
}
