//! How the features of a logistic regression are scaled.

use serde::{Deserialize, Serialize};

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
