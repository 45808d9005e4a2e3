//! A table of numbers with two classes: what a logistic regression is fitted to.

use tch::Tensor;

/// Features and labels of `N` rows, on the CPU and as they were read: nothing is scaled.
#[derive(Debug)]
pub struct Table {
    /// Names of the `F` features, in the order of the columns.
    pub names: Vec<String>,
    /// f32 `[N, F]`.
    pub features: Tensor,
    /// f32 `[N]`, 0 or 1.
    pub labels: Tensor,
}
