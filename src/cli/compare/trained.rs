//! Training runs of a comparison.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tch::Kind;
use tracing::warn;

use super::bench::Bench;
use super::job::Job;
use super::results::{ResultRow, Rows, key_of};
use crate::cli::evaluate::timed;
use crate::cli::metrics::{FRESH_CHUNKS, draw_points, draw_samples, output_sigma};
use crate::cli::run_directory::{BEST_SAMPLER, RunDirectory};
use crate::cli::run_observer::{RunObserver, Shown, Yardsticks};
use crate::cli::run_record::start_record;
use crate::cli::summary::Score;
use crate::config::{CheckpointSection, ComputeSection, EvaluateSection, Plan, TrainFile, load};
use crate::metric::chunks;
use crate::model::{Parameters, WeightsFile, write_atomically};
use crate::record::RunReader;
use crate::train::{Networks, Outcome, State, Stop, TrainError, run as train};

/// The setting of their rows.
pub const SETTING: &str = "trained";

/// Images that are drawn to time a sampler.
pub const TIMED: i64 = 10_000;

impl Bench<'_> {
    /// Trains, or finds that it is done; `None` if it was stopped.
    pub(super) fn train(&self, job: &Job, home: &Path, stop: &Stop) -> Result<Option<Rows>> {
        let file = &self.plan.file;
        let mut plan = self.plan.train_plan(job.target, job.method, job.seed);
        let best_of = file.targets[job.target].best_of;
        // Of a posterior, and of images: a target is one or the other.
        let best_image_of = file.methods[job.method].best_of;
        if let Some(times) = best_of.or(best_image_of) {
            plan.file.evaluate.every = plan.file.train.iterations.div_ceil(times);
        }
        let looks = best_image_of.map(|times| format!("best of {times} looks"));
        let (identity, common) = (identity(&plan.file), self.common_key(job)?);
        let parts: Vec<&str> = [&identity, &common].into_iter().chain(&looks).map(String::as_str).collect();
        let key = key_of(&parts);
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(Some(rows));
        }
        let world = self.world;
        let networks = Networks::build(&plan, world)?;
        let mut state = State::initial(&plan, &networks, world.device);
        let besides = format!("{} {best_of:?}", self.content(job.target)?);
        let directory = continue_or_start(home, &plan, &besides, &mut state)?;
        let record = start_record(home, world, &plan.to_toml(), state.iteration)?;
        let along = match (best_of, self.posterior(job)?) {
            (Some(_), Some(posterior)) => Some(posterior.measure_along()?),
            _ => None,
        };
        let images = looks.as_ref().map(|_| self.images(job)?.measure(world)).transpose()?;
        let yardsticks = Yardsticks { posterior: along.as_deref(), images, ..Yardsticks::default() };
        let shown = Shown::Job(job.slug(self.plan));
        let mut observer = RunObserver::new(&plan, world, &networks, yardsticks, Some(record), shown);
        if looks.is_some() {
            observer.keep_best(home);
        }
        let checkpoints = home.join("checkpoints");
        let mut row = job.row(self.plan, SETTING, world);
        match train(&plan, world, &networks, &mut state, &mut observer, &checkpoints, stop) {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Stopped) => {
                observer.flush()?;
                return Ok(None);
            }
            Err(error @ (TrainError::Diverged { .. } | TrainError::WarmStart { .. })) => {
                row.failure = Some(error.to_string())
            }
            Err(error) => return Err(error.into()),
        }
        row.target_evaluations = (state.target_evaluations as f64 * networks.target.cost()).round() as u64;
        row.seconds = state.wall_seconds;
        row.parameters_sha256 = Some(state.parameters_sha256());
        observer.finish(&state, Some(&directory))?;
        if row.failure.is_none() {
            if best_of.is_some() {
                let along = RunReader::open(home.join("run.h5"))?.series("evaluation", "accuracy")?;
                row.metrics.insert("accuracy_best".into(), best_along(&along));
            }
            let sigma = output_sigma(&plan.file.method, networks.target.tempered_from().is_some());
            if self.makes_images(job) {
                let weights = &state.average.parameters;
                self.score_trained_images(&mut row, (job, home), (&networks, weights), 0, sigma)?;
                let mut rows = vec![row];
                if let (Some(looks), None) = (looks, &rows[0].failure) {
                    let layout = networks.sampler.layout();
                    let best = WeightsFile::load(&home.join(BEST_SAMPLER))?;
                    let weights = Parameters::from_file(layout, &best, world.device)?;
                    let mut row = job.row(self.plan, &looks, world);
                    row.target_evaluations = rows[0].target_evaluations;
                    row.seconds = rows[0].seconds;
                    self.score_trained_images(
                        &mut row,
                        (job, home),
                        (&networks, &weights),
                        FRESH_CHUNKS,
                        sigma,
                    )?;
                    rows.push(row);
                }
                return Rows::keep(home, key, rows).map(Some);
            }
            let target = networks.target.target();
            let draw = |sigma| {
                let rows = (file.score.samples * file.score.sets) as i64;
                let x = draw_points(
                    &networks.sampler,
                    &state.average.parameters,
                    job.seed,
                    rows,
                    sigma,
                    world.device,
                );
                target.to_original(&x.to_kind(Kind::Double))
            };
            let began = Instant::now();
            let x = draw(sigma);
            row.sampling_seconds = Some(began.elapsed().as_secs_f64() / file.score.sets as f64);
            self.keep_samples(home, SETTING, &x)?;
            self.score(&mut row, job, &x, "")?;
            if sigma > 0.0 && row.failure.is_none() {
                self.score(&mut row, job, &draw(0.0), "_clean")?;
            }
        }
        Rows::keep(home, key, vec![row]).map(Some)
    }

    /// Scores images of a trained sampler, chunks of draws from `first_chunk` on, and times as many as people ask for at once.
    fn score_trained_images(
        &self,
        row: &mut ResultRow,
        (job, home): (&Job, &Path),
        (networks, weights): (&Networks, &Parameters),
        first_chunk: u64,
        sigma: f64,
    ) -> Result<()> {
        let draw = |(chunk, rows): (u64, i64), sigma| {
            let at = (first_chunk + chunk, rows);
            draw_samples(&networks.sampler, weights, job.seed, at, sigma, self.world.device)
        };
        self.keep_real(job, home)?;
        self.score_images(row, (job, home), |chunk, rows| draw((chunk, rows), sigma))?;
        if row.failure.is_some() {
            return Ok(());
        }
        if sigma > 0.0 {
            let measure = self.images(job)?.measure(self.world)?;
            let scores = measure.score("_clean", self.world, |chunk, rows| draw((chunk, rows), 0.0))?;
            row.metrics.extend(scores.metrics);
        }
        let ((), seconds) = timed(self.world, || chunks(TIMED).for_each(|at| drop(draw(at, sigma))));
        row.seconds_per_sample = Some(seconds / TIMED as f64);
        row.sampling_seconds = Some(seconds * self.plan.file.score.samples as f64 / TIMED as f64);
        row.evaluations_per_sample = Some(0);
        Ok(())
    }
}

/// The best of the accuracies `along` training.
pub fn best_along(along: &[f64]) -> Score {
    let value = along.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Score { value, deviation: None, floor: None, floor_deviation: None, samples: along.len() as u64 }
}

/// What a trained sampler depends on, as text: not how it is watched, saved or spread over threads.
fn identity(file: &TrainFile) -> String {
    let mut file = file.clone();
    file.evaluate = EvaluateSection::default();
    file.checkpoint = CheckpointSection::default();
    file.compute.threads = None;
    file.compute.stall_seconds = ComputeSection::default().stall_seconds;
    toml::to_string(&file).expect("a configuration is a table of plain values")
}

/// File that says what a run depends on besides its configuration.
const TRAINED_ON: &str = "trained-on.txt";

/// Opens the run directory of a training job: continues a run of the same configuration, and of the same content of
/// its files, from its checkpoint, and starts anew in place of another.
fn continue_or_start(home: &Path, plan: &Plan, besides: &str, state: &mut State) -> Result<RunDirectory> {
    let (config, trained_on) = (home.join("config.toml"), home.join(TRAINED_ON));
    if config.exists() {
        let found = load::<TrainFile>(&config, &[]);
        let is_same = found.is_ok_and(|found| identity(&found) == identity(&plan.file));
        if is_same && fs::read_to_string(&trained_on).is_ok_and(|found| found == besides) {
            let (directory, checkpoint) = RunDirectory::resume(home)?;
            if let Some(checkpoint) = checkpoint {
                state.restore(&checkpoint, plan)?;
            }
            return Ok(directory);
        }
        warn!("{} was trained with another configuration and is trained again", home.display());
        // Out of the way in one step first: half a directory would be neither run.
        let old = home.with_extension("old");
        let _ = fs::remove_dir_all(&old);
        fs::rename(home, &old)
            .and_then(|()| fs::remove_dir_all(&old))
            .with_context(|| format!("cannot clear {}", home.display()))?;
    }
    let directory = RunDirectory::create(home)?;
    write_atomically(&trained_on, besides.as_bytes())
        .with_context(|| format!("cannot write {}", trained_on.display()))?;
    Ok(directory)
}
