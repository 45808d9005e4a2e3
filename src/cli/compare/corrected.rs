//! Draws of a trained sampler of a comparison, moved on by Markov steps: a row for each number of steps.

use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use super::annealed::steps_setting;
use super::bench::Bench;
use super::job::Job;
use super::results::{ResultRow, Rows, key_of};
use crate::cli::arguments::CorrectionKernel;
use crate::cli::corrections::{CorrectedDraws, Corrections};
use crate::cli::sample::load_sampler;
use crate::config::{CorrectedSection, CorrectionKind};
use crate::data::file_sha256;
use crate::mcmc::McmcError;
use crate::train::Stop;

impl Bench<'_> {
    /// Moves draws on, or finds that it is done; `None` if it was stopped.
    pub(super) fn correct(
        &self,
        job: &Job,
        section: &CorrectedSection,
        (home, directory): (&Path, &Path),
        stop: &Stop,
    ) -> Result<Option<Rows>> {
        let trained_home = directory.join(job.of(self.plan, &section.of).slug(self.plan));
        let trained = Rows::any(&trained_home)?.remove(0);
        let weights = match &trained.failure {
            Some(_) => String::new(),
            None => {
                let path = trained_home.join("sampler.safetensors");
                file_sha256(&path).with_context(|| format!("cannot read {}", path.display()))?
            }
        };
        let key = key_of(&[
            &serde_json::to_string(&(section, &self.plan.recipes[job.target].file.target))?,
            // The averaged weights, which parameters_sha256 does not cover, are what draws.
            &format!("{} {:?} {}", weights, trained.failure, job.seed),
            &self.common_key(job)?,
        ]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(Some(rows));
        }
        std::fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        let rows = match &trained.failure {
            Some(failure) => Ok(self.failed(job, section, &format!("{} failed: {failure}", section.of))),
            None => self.corrected_rows(job, section, (home, &trained_home), stop),
        };
        let rows = match rows {
            // Steps that cannot be taken on this target are a result too.
            Err(error) if error.is::<McmcError>() => self.failed(job, section, &error.to_string()),
            rows => rows?,
        };
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Rows::keep(home, key, rows).map(Some)
    }

    fn failed(&self, job: &Job, section: &CorrectedSection, failure: &str) -> Vec<ResultRow> {
        let row = |&steps: &u64| ResultRow {
            failure: Some(failure.to_string()),
            ..job.row(self.plan, &steps_setting(steps), self.world)
        };
        section.steps.iter().map(row).collect()
    }

    /// Rows that nobody may keep if it was stopped meanwhile.
    fn corrected_rows(
        &self,
        job: &Job,
        section: &CorrectedSection,
        (home, trained_home): (&Path, &Path),
        stop: &Stop,
    ) -> Result<Vec<ResultRow>> {
        let target = &self.images(job)?.target;
        let sampler = load_sampler(&trained_home.join("sampler.safetensors"), self.world.device)?;
        let kernel = match section.kernel {
            CorrectionKind::Mala => CorrectionKernel::Mala,
            CorrectionKind::Ula => CorrectionKernel::Ula,
        };
        let corrections = Corrections::new(target, kernel, None, &sampler, (job.seed, self.world))?;
        let mut rows = Vec::new();
        for &steps in &section.steps {
            let mut row = job.row(self.plan, &steps_setting(steps), self.world);
            let mut draws = CorrectedDraws::new(&corrections, &sampler, steps, self.world.device);
            self.score_images(&mut row, (job, home), |chunk, count| match stop.load(Ordering::Relaxed) {
                true => draws.before(chunk, count),
                false => draws.after(chunk, count),
            })?;
            let spent = draws.finish()?;
            row.evaluations_per_sample = Some(spent.evaluations_per_sample());
            row.acceptance = spent.acceptance();
            row.step_size = Some(corrections.step_size);
            row.tuning_evaluations =
                Some(corrections.tuning_evaluations).filter(|&evaluations| evaluations > 0);
            row.diverged_chains = Some(spent.divergences());
            row.finish_draws(self.plan.file.score.samples);
            rows.push(row);
        }
        Ok(rows)
    }
}
