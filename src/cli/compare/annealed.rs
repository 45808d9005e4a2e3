//! Annealed chains of a comparison: a row for each number of steps.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Result;
use tch::{Device, Tensor};

use super::bench::Bench;
use super::job::Job;
use super::results::{ResultRow, Rows, key_of};
use crate::cli::progress::Progress;
use crate::config::{AnnealedKernel, AnnealedSection};
use crate::mcmc::{AnnealedLangevin, AnnealedMetropolis};
use crate::rng::{Generator, Stream};
use crate::target::Target;
use crate::train::Stop;

/// Added to the number of steps, which is the iteration of the stream of a chain's random numbers, where step sizes are
/// tried: they are chosen on other chains than those that are scored.
const TUNING: u64 = 1 << 40;

/// Chains of one length.
enum Chain {
    Langevin(AnnealedLangevin),
    Metropolis(AnnealedMetropolis),
}

impl Chain {
    fn new(section: &AnnealedSection, levels: AnnealedLangevin) -> Self {
        match section.kernel {
            AnnealedKernel::Langevin => Chain::Langevin(levels),
            AnnealedKernel::Mala | AnnealedKernel::Hmc => {
                Chain::Metropolis(AnnealedMetropolis { levels, leapfrog: section.leapfrog() })
            }
        }
    }

    fn evaluations_per_sample(&self) -> u64 {
        match self {
            Chain::Langevin(chain) => chain.evaluations_per_sample(),
            Chain::Metropolis(chain) => chain.evaluations_per_sample(),
        }
    }

    /// Final points of `rows` chains, and their acceptance where they have one.
    fn run(
        &self,
        target: &dyn Target,
        generator: &mut Generator,
        rows: i64,
        device: Device,
    ) -> (Tensor, Option<f64>) {
        match self {
            Chain::Langevin(chain) => (chain.run(target, generator, rows, device, &mut |_| {}), None),
            Chain::Metropolis(chain) => {
                let (samples, acceptance) = chain.run(target, generator, rows, device);
                (samples, Some(acceptance))
            }
        }
    }
}

/// How far the chains of a job are, in steps of one chain.
struct Walked {
    progress: Progress,
    steps: u64,
    found: u64,
}

impl Walked {
    fn new(job: String, total: u64) -> Self {
        Walked { progress: Progress::of_job(job, 0, total), steps: 0, found: 0 }
    }

    fn add(&mut self, steps: u64, message: impl FnOnce() -> String) {
        self.steps += steps;
        self.progress.set(self.steps, message);
    }

    /// An earlier command walked these.
    fn leave_out(&mut self, steps: u64) {
        self.steps += steps;
        self.found += steps;
        self.progress.leave_out(self.found, self.steps);
    }
}

impl Bench<'_> {
    /// Runs chains of every length, or finds that they have run; `None` if it was stopped.
    pub(super) fn anneal(
        &self,
        job: &Job,
        section: &AnnealedSection,
        home: &Path,
        stop: &Stop,
    ) -> Result<Option<Rows>> {
        let key = self.annealed_key(job, section)?;
        if let Some(rows) = Rows::read(home, &key) {
            return Ok(Some(rows));
        }
        let chains = self.plan.file.score.samples + section.tuning_chains();
        let total = section.steps.iter().map(|steps| steps * chains as u64).sum();
        let walked = RefCell::new(Walked::new(job.slug(self.plan), total));
        let mut rows = Vec::new();
        for &steps in &section.steps {
            // Each length is kept by itself: another one in the list leaves those that are done.
            let one = AnnealedSection { steps: vec![steps], ..section.clone() };
            let (key, own_home) = (self.annealed_key(job, &one)?, steps_home(home, &steps_setting(steps)));
            let found = match Rows::read(&own_home, &key) {
                Some(found) => {
                    walked.borrow_mut().leave_out(steps * chains as u64);
                    found
                }
                None => {
                    let Some(row) = self.annealed_row(job, section, steps, &own_home, (&walked, stop))?
                    else {
                        return Ok(None);
                    };
                    std::fs::create_dir_all(&own_home)?;
                    Rows::keep(&own_home, key, vec![row])?
                }
            };
            rows.extend(found.iter().cloned());
        }
        walked.into_inner().progress.finish();
        Rows::keep(home, key, rows).map(Some)
    }

    fn annealed_key(&self, job: &Job, section: &AnnealedSection) -> Result<String> {
        let recipe = &self.plan.recipes[job.target].file;
        Ok(key_of(&[
            &serde_json::to_string(&(section, &recipe.target, recipe.sampler.initial_offset))?,
            &job.seed.to_string(),
            &self.common_key(job)?,
        ]))
    }

    fn annealed_row(
        &self,
        job: &Job,
        section: &AnnealedSection,
        steps: u64,
        home: &Path,
        (walked, stop): (&RefCell<Walked>, &Stop),
    ) -> Result<Option<ResultRow>> {
        let images = self.images(job)?;
        let target = images.target.at_level();
        let sigma0 = target.tempered_from().expect("the plan has checked that the target is tempered");
        let chain = |step_size: f64| {
            let levels = AnnealedLangevin {
                steps,
                schedule: section.schedule,
                sigma_first: section.sigma[0],
                sigma_last: section.sigma[1],
                sigma0,
                step_size,
                start_mean: self.plan.recipes[job.target].file.sampler.initial_offset,
            };
            Chain::new(section, levels)
        };
        let mut row = job.row(self.plan, &steps_setting(steps), self.world);
        let evaluations = chain(section.step_sizes[0]).evaluations_per_sample();
        row.evaluations_per_sample = Some(evaluations);
        let draw = |chain: &Chain, purpose: u64, (chunk, rows): (u64, i64)| {
            if stop.load(Ordering::Relaxed) {
                // Nobody will see them: chunks that are left pass quickly.
                let shape = [&[rows], target.target().shape()].concat();
                return (Tensor::zeros(shape, (tch::Kind::Float, self.world.device)), None);
            }
            let mut generator = Generator::new(job.seed, Stream::Chains, steps + purpose, chunk);
            let drawn = chain.run(target.target(), &mut generator, rows, self.world.device);
            walked.borrow_mut().add(steps * rows as u64, || steps_setting(steps));
            drawn
        };

        let measure = images.measure(self.world)?;
        let mut best: Option<(f64, f64)> = None;
        for &step_size in &section.step_sizes {
            if section.tuning_chains() == 0 {
                best = Some((0.0, step_size));
                break;
            }
            let tried = chain(step_size);
            let tuning = section.tuning_samples as i64;
            let seen = measure
                .reference()
                .measure(tuning, self.world, |chunk, rows| draw(&tried, TUNING, (chunk, rows)).0)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            *row.tuning_evaluations.get_or_insert(0) += evaluations * section.tuning_samples as u64;
            if !seen.moments.is_finite() {
                continue;
            }
            let distance = measure.reference().distance(&seen);
            if distance.is_finite() && best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, step_size));
            }
        }
        let Some((_, step_size)) = best else {
            row.failure = Some("no step size of the list gives finite images; try smaller ones".into());
            return Ok(Some(row));
        };
        row.step_size = Some(step_size);
        let (chosen, mut accepted, mut chains) = (chain(step_size), None, 0.0);
        self.score_images(&mut row, (job, home), |chunk, rows| {
            let (samples, acceptance) = draw(&chosen, 0, (chunk, rows));
            if let Some(acceptance) = acceptance {
                *accepted.get_or_insert(0.0) += acceptance * rows as f64;
            }
            chains += rows as f64;
            samples
        })?;
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        row.acceptance = accepted.map(|accepted| accepted / chains);
        row.finish_draws(self.plan.file.score.samples);
        Ok(Some(row))
    }
}

/// The setting of a row of so many steps.
pub fn steps_setting(steps: u64) -> String {
    format!("{steps} step{}", if steps == 1 { "" } else { "s" })
}

/// Directory of the chains of such a setting below that of their method: each length is kept by itself.
pub fn steps_home(home: &Path, setting: &str) -> PathBuf {
    home.join(format!("steps-{}", setting.trim_end_matches(|c: char| !c.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_length_is_named_by_its_number() {
        for (steps, name) in [(1, "steps-1"), (200, "steps-200")] {
            assert_eq!(steps_home(Path::new("home"), &steps_setting(steps)), Path::new("home").join(name));
        }
    }
}
