//! The runs of a comparison: every method on every target with every seed.

use std::collections::BTreeMap;

use super::results::ResultRow;
use crate::cli::run_record::device_name;
use crate::comm::World;
use crate::config::{ComparePlan, MethodEntry};

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
        plan.file.methods[self.method].is_trained()
    }

    /// Its directory below that of the comparison: `target/method/seed-n`.
    pub fn slug(&self, plan: &ComparePlan) -> String {
        let (target, method) = (&plan.file.targets[self.target], &plan.file.methods[self.method]);
        format!("{}/{}/seed-{}", target.name, method.name, self.seed)
    }

    /// The training run whose budget it gets.
    pub fn budget(&self, plan: &ComparePlan) -> Job {
        self.of(plan, &plan.file.run.budget_of)
    }

    /// The run of another method on the same target with the same seed.
    ///
    /// # Panics
    /// If there is no method of that name.
    pub fn of(&self, plan: &ComparePlan, name: &str) -> Job {
        let method = plan.file.methods.iter().position(|method| method.name == name);
        Job { method: method.expect("the plan has checked that there is one"), ..*self }
    }

    /// Its row before anything is known.
    pub fn row(&self, plan: &ComparePlan, setting: &str, world: &World) -> ResultRow {
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
            evaluations_per_sample: None,
            seconds_per_sample: None,
            step_size: None,
            acceptance: None,
            tuning_evaluations: None,
            diverged_chains: None,
            parameters_sha256: None,
            calibration: None,
            failure: None,
            metrics: BTreeMap::new(),
        }
    }
}
