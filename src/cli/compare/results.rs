//! What a job found: rows of the comparison, kept beside a key of all they depend on.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::summary::Score;
use crate::metric::CalibrationBin;
use crate::model::write_atomically;

/// File of a job's rows in its directory.
pub const FILE: &str = "rows.json";

/// What a method was given on a target with a seed, and how it scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Name of the target.
    pub target: String,
    /// Name of the method.
    pub method: String,
    /// `trained`, `same evaluations`, `same seconds`, `fitted`, or the number of steps: `200 steps`.
    pub setting: String,
    /// Seed.
    pub seed: u64,
    /// Sets of samples that the scores are means over; 0 where there are none.
    pub sets: usize,
    /// Commit of the program.
    pub commit: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Threads of the rank that did it.
    pub threads: usize,
    /// Evaluations of the target's gradient in all, a product with its Jacobian counted as one more.
    pub target_evaluations: u64,
    /// Seconds of training or of the chains, scoring left out.
    pub seconds: f64,
    /// Seconds to draw one set of samples; nothing for chains, which have drawn theirs in `seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_seconds: Option<f64>,
    /// Evaluations of the target's gradient for one sample; 0 for a sampler in one step. Of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluations_per_sample: Option<u64>,
    /// Seconds to draw a sample, one of many drawn together. Of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_per_sample: Option<f64>,
    /// Step size of a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_size: Option<f64>,
    /// Mean acceptance of a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<f64>,
    /// Evaluations spent before, on choosing among several step sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning_evaluations: Option<u64>,
    /// Chains that left the finite numbers at least once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged_chains: Option<u64>,
    /// SHA-256 of the trained parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters_sha256: Option<String>,
    /// What the draws predict on the test rows, of a regression, in bins of equal width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Vec<Bin>>,
    /// Why there are no scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Scores by name.
    pub metrics: BTreeMap<String, Score>,
}

/// A bin of predicted probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Test rows in it.
    pub count: u64,
    /// Their mean prediction; nothing for an empty bin.
    pub predicted: Option<f64>,
    /// The part of them with label 1.
    pub observed: Option<f64>,
}

impl From<&CalibrationBin> for Bin {
    fn from(bin: &CalibrationBin) -> Self {
        let there = |value: f64| Some(value).filter(|value| value.is_finite());
        Bin { count: bin.count, predicted: there(bin.predicted), observed: there(bin.observed) }
    }
}

impl From<&Bin> for CalibrationBin {
    fn from(bin: &Bin) -> Self {
        let or_none = |value: Option<f64>| value.unwrap_or(f64::NAN);
        CalibrationBin {
            count: bin.count,
            predicted: or_none(bin.predicted),
            observed: or_none(bin.observed),
        }
    }
}

impl ResultRow {
    /// Fills in the cost of all `samples` draws of annealed or corrected chains from that of one.
    pub fn finish_draws(&mut self, samples: usize) {
        self.target_evaluations = self.evaluations_per_sample.unwrap_or(0) * samples as u64;
        self.seconds = self.seconds_per_sample.unwrap_or(0.0) * samples as f64;
    }

    /// A sentence for the log.
    pub fn line(&self) -> String {
        let ResultRow { target, method, setting, seed, seconds, .. } = self;
        let outcome = match &self.failure {
            Some(failure) => failure.clone(),
            None => ["ksd", "sliced_w2", "mean_error_rms", "accuracy", "accuracy_best", "fd", "fd_lenet"]
                .iter()
                .filter_map(|name| Some(format!("{name} {}", self.metrics.get(*name)?.beside_floor())))
                .collect::<Vec<_>>()
                .join(" · "),
        };
        format!("{target} · {method}, {setting} · seed {seed} · {seconds:.1} s · {outcome}")
    }
}

/// Rows of a job.
pub struct Rows {
    rows: Vec<ResultRow>,
    is_fresh: bool,
}

impl Deref for Rows {
    type Target = [ResultRow];

    fn deref(&self) -> &[ResultRow] {
        &self.rows
    }
}

impl Rows {
    /// Whether they were found just now, and not by a command before.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Those that stand in `home`, if they were found under the same key.
    pub fn read(home: &Path, key: &str) -> Option<Self> {
        let text = std::fs::read_to_string(home.join(FILE)).ok()?;
        let kept: Kept = serde_json::from_str(&text).ok()?;
        (kept.key == key).then_some(Rows { rows: kept.rows, is_fresh: false })
    }

    /// Keeps new rows in `home`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keep(home: &Path, key: String, rows: Vec<ResultRow>) -> Result<Self> {
        let kept = Kept { key, rows };
        let text = serde_json::to_string_pretty(&kept).context("rows are plain data")?;
        let path = home.join(FILE);
        write_atomically(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Rows { rows: kept.rows, is_fresh: true })
    }

    /// Whatever stands in `home`, for the report.
    ///
    /// # Errors
    /// If there is nothing, or something else.
    pub fn any(home: &Path) -> Result<Vec<ResultRow>> {
        let path = home.join(FILE);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let kept: Kept =
            serde_json::from_str(&text).with_context(|| format!("{} holds no rows", path.display()))?;
        Ok(kept.rows)
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    rows: Vec<ResultRow>,
}

/// SHA-256 of the parts, in hexadecimal.
pub fn key_of(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    format!("{:x}", digest.finalize())
}
