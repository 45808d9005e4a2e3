//! `[target]` of kind `logistic`: Bayesian logistic regression on a table.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::run::require;

/// What is done to each feature before the regression, with the statistics of the training split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Mean 0 and standard deviation 1.
    #[default]
    Standard,
    /// The smallest value becomes 0 and the largest 1.
    MinMax,
    /// The feature as it is.
    None,
}

/// The posterior of (w, log alpha) given a table: labels are Bernoulli with logit x·w, w | alpha ~ N(0, I/alpha) and
/// alpha ~ Gamma(prior_shape, prior_rate). With F features D = F + 2: a constant column and log alpha come besides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogisticSection {
    /// The directory that `dft data covertype` fills, or a CSV file with a header, whose name ends in `.csv`.
    pub data: PathBuf,
    /// Column of a CSV file that holds the label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Value of that column that counts as 1; not needed for 0/1, −1/1 and false/true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// Scaling of the features.
    pub scaling: Scaling,
    /// Part of the rows that is held out to test on.
    pub test_fraction: f64,
    /// Seed of the split; that of the run if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<u64>,
    /// Shape of the prior of alpha.
    pub prior_shape: f64,
    /// Rate of the prior of alpha.
    pub prior_rate: f64,
    /// Rows of a mini-batch, over all ranks; all rows in every evaluation if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Mini-batches correct an expansion of the log-likelihood to second order around the mode, which is made once.
    pub control_variate: bool,
    /// With it, the rows that this expansion serves worst are part of every evaluation: this many, over all ranks.
    pub heavy_rows: usize,
    /// Samples are y with (w, log alpha) = mode + L y, L Lᵀ the covariance of the Laplace approximation: sigma then is
    /// in posterior standard deviations.
    pub whiten: bool,
}

impl Default for LogisticSection {
    fn default() -> Self {
        LogisticSection {
            data: PathBuf::from("data/covertype"),
            label: None,
            positive: None,
            scaling: Scaling::Standard,
            test_fraction: 0.2,
            split: None,
            prior_shape: 1.0,
            prior_rate: 0.01,
            batch: None,
            control_variate: true,
            heavy_rows: 8192,
            whiten: true,
        }
    }
}

impl LogisticSection {
    /// The CSV file, if it is one.
    pub fn csv(&self) -> Option<&Path> {
        self.data.extension().is_some_and(|extension| extension == "csv").then_some(&self.data)
    }

    /// The same posterior, with the defaults of how it is computed.
    pub fn posterior(&self) -> Self {
        let LogisticSection { batch, control_variate, heavy_rows, whiten, .. } = Self::default();
        LogisticSection { batch, control_variate, heavy_rows, whiten, ..self.clone() }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let is_csv = self.csv().is_some();
        let label = self.label.clone().unwrap_or("nothing".into());
        require(&[
            (
                is_csv == self.label.is_some(),
                "target.label",
                &label,
                "the name of the label's column where target.data is a .csv file, and nothing for Covertype",
            ),
            (
                is_csv || self.positive.is_none(),
                "target.positive",
                &self.positive.clone().unwrap_or_default(),
                "nothing for Covertype, whose class 2 counts as 1",
            ),
            (
                self.test_fraction > 0.0 && self.test_fraction < 1.0,
                "target.test_fraction",
                &self.test_fraction,
                "a fraction between 0 and 1",
            ),
            (self.prior_shape > 0.0, "target.prior_shape", &self.prior_shape, "a number above 0"),
            (self.prior_rate > 0.0, "target.prior_rate", &self.prior_rate, "a number above 0"),
            (
                self.batch.is_none_or(|rows| rows > 0),
                "target.batch",
                &self.batch.unwrap_or(0),
                "1 row or more, or nothing for all rows",
            ),
        ])
    }
}
