//! Methods of a comparison on images: annealed chains, and draws of a trained sampler moved on.

use serde::{Deserialize, Serialize};

use crate::config::load::ConfigError;
use crate::config::run::{require, require_falling};

/// How an annealed chain moves at each level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnnealedKernel {
    /// An unadjusted Langevin step.
    #[default]
    Langevin,
    /// The same step, accepted or rejected by the tempered density.
    Mala,
    /// Leapfrog steps from a fresh momentum, accepted or rejected likewise.
    Hmc,
}

/// How the noise level of an annealed chain falls over its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnnealedSchedule {
    /// Geometrically from the first level to the last.
    #[default]
    Geometric,
    /// That of Li, Chen and Sommer (2019): the first level for 5 of 27 steps, geometrically to the last for 20, and then the
    /// temperature linearly to zero. Theirs are 2,700 steps of size 0.02, sigma from 1 to 0.1.
    Li2019,
}

impl AnnealedSchedule {
    fn is_geometric(&self) -> bool {
        *self == AnnealedSchedule::Geometric
    }
}

/// Annealed chains on a tempered energy: a row for each number of steps.
///
/// Of the step sizes, each number of steps takes the one with the least Fréchet distance over `tuning_samples` chains with
/// other random numbers. That distance is from the reference that all rows are scored against, so it favours the chains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnnealedSection {
    /// How a chain moves.
    pub kernel: AnnealedKernel,
    /// Steps, one a noise level; a row for each number.
    pub steps: Vec<u64>,
    /// Step sizes to choose from, each a fraction of sigma² for the Langevin kinds and of sigma for leapfrog steps.
    pub step_sizes: Vec<f64>,
    /// Noise levels of the first and the last step.
    pub sigma: [f64; 2],
    /// How they fall in between. Chains that accept or reject have the geometric one: they have no temperature of zero.
    #[serde(skip_serializing_if = "AnnealedSchedule::is_geometric")]
    pub schedule: AnnealedSchedule,
    /// Leapfrog steps of `hmc` at each level.
    pub leapfrog_steps: u64,
    /// Chains that each step size is tried with.
    pub tuning_samples: usize,
}

impl Default for AnnealedSection {
    fn default() -> Self {
        AnnealedSection {
            kernel: AnnealedKernel::Langevin,
            steps: vec![1, 2, 5, 10, 20, 50, 100, 200],
            step_sizes: vec![0.125, 0.25, 0.5, 0.75, 1.0],
            sigma: [3.0, 0.1],
            schedule: AnnealedSchedule::Geometric,
            leapfrog_steps: 5,
            tuning_samples: 400,
        }
    }
}

impl AnnealedSection {
    /// Leapfrog steps of a level, if it takes such steps.
    pub fn leapfrog(&self) -> Option<u64> {
        (self.kernel == AnnealedKernel::Hmc).then_some(self.leapfrog_steps)
    }

    /// Chains of each length that step sizes are chosen with: none where there is but one.
    pub fn tuning_chains(&self) -> usize {
        if self.step_sizes.len() > 1 { self.step_sizes.len() * self.tuning_samples } else { 0 }
    }

    /// Whether the energies of other samples may be compared with those of such chains: unadjusted Langevin whose last level is the
    /// last `sigma`, and not a temperature of zero.
    pub fn is_energy_reference(&self) -> bool {
        self.kernel == AnnealedKernel::Langevin && self.schedule.is_geometric()
    }

    pub(super) fn check(&self, key: &str) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{key}.{name}");
        let sizes = &self.step_sizes;
        require(&[
            (is_list_of_steps(&self.steps), &key("steps"), &format!("{:?}", self.steps), LIST_OF_STEPS),
            (
                !sizes.is_empty() && sizes.iter().all(|&size| size > 0.0 && size < 2.0),
                &key("step_sizes"),
                &format!("{sizes:?}"),
                "one number or more between 0 and 2 (at 2 a chain is unstable)",
            ),
            (self.leapfrog_steps > 0, &key("leapfrog_steps"), &self.leapfrog_steps, "1 or more"),
            (self.tuning_samples >= 2, &key("tuning_samples"), &self.tuning_samples, "2 or more"),
            (
                self.schedule.is_geometric() || self.kernel == AnnealedKernel::Langevin,
                &key("schedule"),
                &format!("{:?}", self.schedule).to_lowercase(),
                "geometric for chains that accept or reject: this one ends at a temperature of zero",
            ),
        ])?;
        require_falling(&key("sigma"), self.sigma)
    }
}

/// How corrections move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CorrectionKind {
    /// Metropolis-adjusted Langevin: proposals are accepted or rejected, so the target's density is kept.
    #[default]
    Mala,
    /// Unadjusted Langevin: every proposal is taken, at the price of an error that grows with the step size.
    Ula,
}

/// Draws of a trained method on the same target with the same seed, after Markov steps: a row for each number of steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorrectedSection {
    /// The trained method.
    pub of: String,
    /// How they move.
    #[serde(default)]
    pub kernel: CorrectionKind,
    /// Steps; a row for each number.
    #[serde(default = "default_corrections")]
    pub steps: Vec<u64>,
}

fn default_corrections() -> Vec<u64> {
    vec![1, 5, 20]
}

impl CorrectedSection {
    pub(super) fn check(&self, key: &str) -> Result<(), ConfigError> {
        let steps = format!("{:?}", self.steps);
        require(&[(is_list_of_steps(&self.steps), &format!("{key}.steps"), &steps, LIST_OF_STEPS)])
    }
}

const LIST_OF_STEPS: &str = "one number of steps above 0 or more, each once";

fn is_list_of_steps(steps: &[u64]) -> bool {
    let distinct: std::collections::BTreeSet<u64> = steps.iter().copied().collect();
    !steps.is_empty() && distinct.len() == steps.len() && !distinct.contains(&0)
}
