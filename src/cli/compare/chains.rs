//! Markov chains and particles of a comparison, with the budgets that training has spent.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::{Kind, Tensor};

use super::bench::Bench;
use super::job::Job;
use super::results::{ResultRow, Rows, key_of};
use super::trained::best_along;
use crate::config::{Budget, McmcSection};
use crate::mcmc::{McmcError, McmcRun};
use crate::metric::{Cloud, ksd};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// Purpose of a chain's random numbers, as the iteration of their stream.
const STARTS: u64 = 0;
const STEPS: u64 = 1;
const TUNING: u64 = 2;

/// Part of the budget of evaluations that each of several step sizes is tried with.
const TRIAL: u64 = 20;

/// Evaluations of each chain that such a trial has at least.
const LEAST_TRIAL: u64 = 10;

impl Bench<'_> {
    /// Runs chains, or finds that they have run.
    pub(super) fn chains(
        &self,
        job: &Job,
        section: &McmcSection,
        home: &Path,
        directory: &Path,
    ) -> Result<Rows> {
        let spent = Rows::any(&directory.join(job.budget(self.plan).slug(self.plan)))?.remove(0);
        let recipe = &self.plan.recipes[job.target].file;
        let method = &self.plan.file.methods[job.method];
        let budgets = method.budgets();
        let key = key_of(&[
            &serde_json::to_string(&(section, &recipe.target, &recipe.sampler, &budgets, method.chains))?,
            &format!("{} {:e} {}", spent.target_evaluations, spent.seconds, job.seed),
            &self.common_key(job)?,
        ]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(rows);
        }
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let failed = |failure: String| -> Vec<ResultRow> {
            let row = |budget: &Budget| ResultRow {
                failure: Some(failure.clone()),
                ..job.row(self.plan, budget.setting(), self.world)
            };
            budgets.iter().map(row).collect()
        };
        let rows = match &spent.failure {
            Some(failure) => failed(format!("no budget: {} failed: {failure}", spent.method)),
            None => match self.run_chains(job, section, home, &spent) {
                // Chains that cannot run on their target are a result too.
                Err(error) if error.is::<McmcError>() => failed(error.to_string()),
                rows => rows?,
            },
        };
        Rows::keep(home, key, rows)
    }

    fn run_chains(
        &self,
        job: &Job,
        section: &McmcSection,
        home: &Path,
        spent: &ResultRow,
    ) -> Result<Vec<ResultRow>> {
        let file = &self.plan.file;
        let sampler = &self.plan.recipes[job.target].file.sampler;
        let posterior = self.posterior(job)?;
        let takes_estimates = section.takes_estimates();
        // NUTS runs single chains on the host and adapts a mass matrix: it gets the closed form in f64.
        let kind = if matches!(section, McmcSection::Nuts(_)) { Kind::Double } else { Kind::Float };
        let (target, cost): (&dyn Target, f64) = match (&posterior, self.target(job)) {
            (Some(posterior), _) if takes_estimates => {
                (posterior.configured.as_ref(), posterior.problem.cost())
            }
            (Some(posterior), _) => (&posterior.exact, 1.0),
            (None, Some(loaded)) if kind == Kind::Double => (loaded.exact.as_ref(), 1.0),
            (None, Some(loaded)) => (loaded.single.as_ref(), 1.0),
            (None, None) => bail!("a target without data has a closed form"),
        };
        // Evaluations of this form of the target, and in units of the full one.
        let affordable = (spent.target_evaluations as f64 / cost) as u64;
        let in_full = |evaluations: u64| (evaluations as f64 * cost).round() as u64;
        let start = |purpose| {
            let shape = [&[file.score.samples as i64], target.shape()].concat();
            let normal = Generator::new(job.seed, Stream::Chains, purpose, 0).normal(&shape);
            let start = normal * sampler.initial_scale + sampler.initial_offset;
            start.to_kind(kind).to_device(self.world.device)
        };
        let method = &file.methods[job.method];
        let chains = method.chains.unwrap_or(file.score.samples);
        // Of a posterior by the exact score, in whitened coordinates: the noise of one mini-batch would decide.
        let discrepancy = |x: &Tensor| match &posterior {
            Some(posterior) => {
                let original = target.to_original(&x.to_kind(Kind::Double));
                let y = posterior.problem.to_whitened(&original);
                ksd(&Cloud::new(&y), &Cloud::new(&posterior.exact.score(&y))).v
            }
            None => ksd(&Cloud::new(x), &Cloud::new(&target.score(x))).v,
        };
        let trial = Trial {
            start: &start(TUNING),
            chains,
            seed: job.seed,
            evaluations: affordable,
            discrepancy: &discrepancy,
        };
        let (chosen, tuning) = choose(section, target, &trial)?;
        let generator = Generator::new(job.seed, Stream::Chains, STEPS, 0);
        let mut run = McmcRun::with_chains(&chosen, target, &start(STARTS), chains, generator)?;
        let best_of = file.targets[job.target].best_of;
        let (mut along, mut looked_at) = (Vec::new(), 0);
        let mut rows = Vec::new();
        // One run serves both budgets: it is read at the first that is spent and goes on to the other.
        let mut left = method.budgets();
        while !left.is_empty() {
            let evaluations = left.contains(&Budget::Evaluations).then_some(affordable);
            let seconds = left.contains(&Budget::Seconds).then_some(spent.seconds);
            if let (Some(times), Some(posterior)) = (best_of, &posterior) {
                let measure = posterior.measure_along()?;
                for part in 1..=times {
                    let fraction = part as f64 / times as f64;
                    let evaluations = evaluations.map(|most| (most as f64 * fraction) as u64);
                    run.run_until(evaluations, seconds.map(|most| most * fraction), &mut |_, _| {})?;
                    if run.steps() == looked_at {
                        continue;
                    }
                    looked_at = run.steps();
                    let x = target.to_original(&run.positions().to_kind(Kind::Double));
                    let rows = measure.rows().min(x.size()[0]);
                    let (scores, _) = measure.scores(&x.narrow(0, 0, rows), "")?;
                    along.extend(scores.get("accuracy").map(|score| score.value));
                }
            }
            run.run_until(evaluations, seconds, &mut |_, _| {})?;
            let is_out_of_time = seconds.is_some_and(|most| run.seconds() >= most);
            let budget = if is_out_of_time { Budget::Seconds } else { Budget::Evaluations };
            left.retain(|other| *other != budget);
            let mut row = job.row(self.plan, budget.setting(), self.world);
            row.target_evaluations = in_full(run.evaluations());
            if best_of.is_some() {
                row.metrics.insert("accuracy_best".into(), best_along(&along));
            }
            row.seconds = run.seconds();
            row.step_size = Some(run.step_size()).filter(|step| step.is_finite());
            row.acceptance = run.acceptance();
            row.tuning_evaluations = (tuning > 0).then_some(in_full(tuning));
            row.diverged_chains = Some(run.diverged_chains());
            let x = target.to_original(&run.draws(file.score.sets as u64).to_kind(Kind::Double));
            if run.steps() == 0 || x.size()[0] < file.score.samples as i64 {
                let draws = if run.steps() == 0 { 0 } else { x.size()[0] };
                row.failure = Some(format!("{draws} draws in this budget, fewer than one set of samples"));
            } else if run.is_adapting() {
                row.failure = Some("the budget was spent before the step size was adapted".into());
            } else {
                self.keep_samples(home, budget.setting(), &x)?;
                self.score(&mut row, job, &x, "")?;
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// How step sizes are tried: from these starts, with this many chains and evaluations, and how states are judged.
struct Trial<'t> {
    start: &'t Tensor,
    chains: usize,
    seed: u64,
    evaluations: u64,
    discrepancy: &'t dyn Fn(&Tensor) -> f64,
}

/// The step size, of several, whose states after a part of the budget have the least kernel Stein discrepancy: a
/// choice that needs no exact samples. Also the evaluations that this took, those for the discrepancies left out.
fn choose(
    section: &McmcSection,
    target: &dyn Target,
    trial: &Trial,
) -> Result<(McmcSection, u64), McmcError> {
    let mut candidates = section.candidates();
    if candidates.len() == 1 {
        return Ok((candidates.remove(0), 0));
    }
    let (mut best, mut spent) = (None, 0);
    for (number, candidate) in candidates.into_iter().enumerate() {
        let generator = Generator::new(trial.seed, Stream::Chains, TUNING, 1 + number as u64);
        let mut run = McmcRun::with_chains(&candidate, target, trial.start, trial.chains, generator)?;
        let most = (trial.evaluations / TRIAL).max(LEAST_TRIAL * trial.chains as u64);
        run.run_until(Some(most), None, &mut |_, _| {})?;
        spent += run.evaluations();
        let discrepancy = (trial.discrepancy)(&run.positions());
        let is_better = best.as_ref().is_none_or(|(least, _)| discrepancy < *least);
        if discrepancy.is_finite() && is_better {
            best = Some((discrepancy, candidate));
        }
    }
    match best {
        Some((_, chosen)) => Ok((chosen, spent)),
        None => {
            Err(McmcError::Start("no step size of the list gives finite states; try smaller ones".into()))
        }
    }
}
