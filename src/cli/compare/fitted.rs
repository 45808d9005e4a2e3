//! Gaussians fitted to a posterior, of a comparison.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::bench::{Bench, Posterior};
use super::job::Job;
use super::results::{ResultRow, Rows, key_of};
use crate::config::FittedSection;
use crate::rng::{Generator, Stream};
use crate::train::{MeanField, MeanFieldError};

/// The setting of their rows.
const SETTING: &str = "fitted";

impl Bench<'_> {
    /// Fits a Gaussian, or finds that it is fitted.
    pub(super) fn fit(&self, job: &Job, section: &FittedSection, home: &Path) -> Result<Rows> {
        let recipe = &self.plan.recipes[job.target].file;
        let key = key_of(&[
            &serde_json::to_string(&(section, &recipe.target))?,
            &job.seed.to_string(),
            &self.common_key(job)?,
        ]);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(rows);
        }
        let posterior = self.posterior(job)?.context("the plan has checked that it is a posterior")?;
        let mut row = job.row(self.plan, SETTING, self.world);
        match self.draws(job, section, &posterior, &mut row) {
            Ok(x) => {
                self.keep_samples(home, SETTING, &x)?;
                self.score(&mut row, job, &x, "")?;
            }
            // A fit that fails on its target is a result; anything else that goes wrong is not.
            Err(error) if error.is::<MeanFieldError>() => row.failure = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        std::fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        Rows::keep(home, key, vec![row])
    }

    /// Draws of the Gaussian in the coordinates of the model, `[rows, D]`.
    fn draws(
        &self,
        job: &Job,
        section: &FittedSection,
        posterior: &Posterior,
        row: &mut ResultRow,
    ) -> Result<Tensor> {
        let rows = (self.plan.file.score.samples * self.plan.file.score.sets) as i64;
        let problem = &posterior.problem;
        let laplace = problem.laplace();
        let mut generator = Generator::new(job.seed, Stream::Evaluation, 0, 0);
        match section {
            FittedSection::Laplace {} => {
                // A step of Newton's method goes over all rows once or, where it is halved, more often.
                row.target_evaluations = laplace.steps as u64;
                row.seconds = problem.laplace_seconds();
                let z = generator.normal(&[rows, laplace.mode.size()[0]]).to_kind(Kind::Double);
                Ok(problem.to_original(&z.to_device(laplace.mode.device())))
            }
            FittedSection::MeanField(settings) => {
                let began = Instant::now();
                // The best diagonal Gaussian has the deviations given all others, up to 58 times below the marginal ones.
                let deviations = Tensor::linalg_inv(&laplace.covariance()).diagonal(0, 0, 1).rsqrt();
                // In the coordinates of the model: there its covariance is diagonal.
                let target = problem.unwhitened()?;
                let start = (&laplace.mode, &deviations);
                let fitted = MeanField::fit(target.as_ref(), start, settings, job.seed, &mut |_| {})?;
                row.seconds = began.elapsed().as_secs_f64();
                row.target_evaluations = (fitted.evaluations as f64 * problem.cost()).round() as u64;
                Ok(fitted.draws(&mut generator, rows))
            }
        }
    }
}
