//! What `dft train` does besides training: shows progress, records, scores, and writes the results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tracing::info;

use super::metrics::{Measure, SHOWN, Scores, draw_points, draw_samples, output_sigma, point_scores};
use super::posterior::PosteriorMeasure;
use super::progress::Progress;
use super::run_directory::{BEST_SAMPLER, RunDirectory};
use super::run_record::{
    device_name, features_attribute, record_evaluation, record_iteration, record_moments, target_name,
};
use super::summary::{ExtractorId, Score, Summary, command_line};
use crate::comm::World;
use crate::config::Plan;
use crate::metric::{PointReference, chunks};
use crate::model::{COORDINATES, WeightsFile};
use crate::record::RunFile;
use crate::train::{Event, Networks, Observer, Row, State};

/// Iterations between flushes of the record.
const FLUSH_EVERY: u64 = 100;

/// Final draws in `/posterior`.
const POSTERIOR_DRAWS: i64 = 1000;

/// Points of an evaluation that are kept for pictures and records.
const SHOWN_POINTS: i64 = 1000;

/// What a scored run keeps besides its metrics.
pub struct Scored {
    images: Option<Scores>,
    shown: Tensor,
}

/// What a run is scored against.
#[derive(Clone, Copy, Default)]
pub struct Yardsticks<'a> {
    /// For Fréchet distances.
    pub images: Option<&'a Measure>,
    /// For points.
    pub points: Option<&'a PointReference<'a>>,
    /// For the posterior of a regression.
    pub posterior: Option<&'a PosteriorMeasure>,
}

/// How much of a run is shown.
pub enum Shown {
    /// Everything, by the rank that this is true on.
    Run(bool),
    /// Of a job of a comparison: how far it is.
    Job(String),
}

impl Shown {
    /// Starts to show a part of the run.
    fn progress(&self, what: &'static str, done: u64, total: u64) -> Progress {
        match self {
            Shown::Run(is_here) => Progress::new(what, done, total, *is_here),
            Shown::Job(job) => Progress::of_job(format!("{job} · {what}"), done, total),
        }
    }

    /// Whether there are lines besides.
    fn is_whole(&self) -> bool {
        matches!(self, Shown::Run(true))
    }
}

/// Shows, records and scores a run.
pub struct RunObserver<'a> {
    plan: &'a Plan,
    world: &'a World,
    networks: &'a Networks,
    measure: Option<&'a Measure>,
    points: Option<&'a PointReference<'a>>,
    posterior: Option<&'a PosteriorMeasure>,
    record: Option<RunFile>,
    shown: Shown,
    /// From the end of the first iteration on: neither that nor a warm start is part of its rate.
    progress: Option<Progress>,
    /// Of what comes before the first iteration: the warm start, then the pairs.
    before: Option<Progress>,
    /// Noise that is added to the samples.
    sigma: f64,
    /// The latest scores.
    metrics: BTreeMap<String, Score>,
    /// On rank 0 of a run with a Fréchet distance.
    best: Option<Best>,
    steady: Steady,
    /// Running means of the two losses, for the display alone.
    recent: [f64; 2],
}

impl Observer for RunObserver<'_> {
    fn observe(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::WarmStart(done, total, loss) => {
                self.warm_start(*done, *total, *loss);
                Ok(())
            }
            Event::Pairs(done, total) => {
                self.pairs(*done, *total);
                Ok(())
            }
            Event::Warmup(done, total, loss) => {
                if *done == *total && self.shown.is_whole() {
                    info!("score network warmed up: {total} updates, loss {loss:.3}");
                }
                Ok(())
            }
            Event::Iteration(row) => self.iteration(row),
            Event::Evaluation(state) => {
                let result = self.evaluate(state);
                self.steady.pause();
                result
            }
            Event::Checkpoint(_) => {
                self.steady.pause();
                self.record.as_mut().map_or(Ok(()), RunFile::back_up)
            }
        }
    }
}

impl<'a> RunObserver<'a> {
    /// Watches a run; `record` on rank 0 only.
    pub fn new(
        plan: &'a Plan,
        world: &'a World,
        networks: &'a Networks,
        yardsticks: Yardsticks<'a>,
        record: Option<RunFile>,
        shown: Shown,
    ) -> Self {
        let is_tempered = networks.target.tempered_from().is_some();
        RunObserver {
            plan,
            world,
            networks,
            measure: yardsticks.images,
            points: yardsticks.points,
            posterior: yardsticks.posterior,
            record,
            shown,
            progress: None,
            before: None,
            sigma: output_sigma(&plan.file.method, is_tempered),
            metrics: BTreeMap::new(),
            best: None,
            steady: Steady::default(),
            recent: [f64::NAN; 2],
        }
    }

    /// Keeps the averaged sampler with the least Fréchet distance of all evaluations in `directory`, beside the last; of a
    /// resumed run, the best of all its parts.
    pub fn keep_best(&mut self, directory: &Path) {
        if let (Some(on), Some(_)) = (self.measured_on(), &self.record) {
            let path = directory.join(BEST_SAMPLER);
            // A file that cannot be read, or whose distance was measured otherwise, is none: the next evaluation writes
            // another.
            let found =
                WeightsFile::load(&path).ok().and_then(|file| file.described::<Measured>(MEASURED).ok());
            let found = found.filter(|found| found.on == on);
            self.best = Some(Best { path, distance: found.map_or(f64::INFINITY, |found| found.distance) });
        }
    }

    /// What Fréchet distances of this run are measured on.
    fn measured_on(&self) -> Option<(ExtractorId, u64)> {
        self.measure.map(|measure| (measure.extractor(), self.plan.file.evaluate.samples as u64))
    }

    /// Brings what was recorded to disk.
    pub fn flush(&mut self) -> Result<()> {
        self.record.as_mut().map_or(Ok(()), RunFile::flush)
    }

    /// Shows what comes before the first iteration and may take minutes.
    fn show_before(&mut self, what: &'static str, (done, total): (u64, u64), state: impl FnOnce() -> String) {
        let shown = self.before.get_or_insert_with(|| self.shown.progress(what, done, total));
        shown.set(done, state);
        if done == total
            && let Some(shown) = self.before.take()
        {
            shown.finish();
        }
    }

    /// Shows the warm start.
    fn warm_start(&mut self, done: u64, total: u64, loss: f64) {
        self.show_before("warm start", (done, total), || format!("squared distance {loss:.3}"));
        if done == total && self.shown.is_whole() {
            info!("the sampler starts at a squared distance of {loss:.3} from the ends of the chains");
        }
    }

    /// Shows the making of pairs.
    fn pairs(&mut self, done: u64, total: u64) {
        self.show_before("pairs", (done, total), || "shards of pairs for the regression".into());
    }

    fn iteration(&mut self, row: &Row) -> Result<()> {
        self.steady.iteration();
        for (recent, value) in self.recent.iter_mut().zip([row.score_loss, row.sampler_loss]) {
            *recent = if recent.is_nan() { value } else { 0.95 * *recent + 0.05 * value };
        }
        let [score_loss, sampler_loss] = self.recent;
        let total = self.plan.file.train.iterations;
        self.progress
            .get_or_insert_with(|| self.shown.progress("train", row.iteration, total))
            .set(row.iteration, || format!("score loss {score_loss:.4} · sampler loss {sampler_loss:.4}"));
        let Some(record) = &mut self.record else { return Ok(()) };
        record_iteration(record, row)?;
        if row.iteration.is_multiple_of(FLUSH_EVERY) {
            record.flush()?;
        }
        Ok(())
    }

    /// Scores the averaged sampler on all ranks.
    pub fn score(&mut self, state: &State) -> Result<Scored> {
        let (world, network) = (self.world, &self.networks.sampler);
        let parameters = &state.average.parameters;
        let seed = self.plan.file.run.seed;
        // With and without the noise that makes samples exact.
        let kinds: &[(&str, f64)] =
            if self.sigma > 0.0 { &[("", self.sigma), ("_clean", 0.0)] } else { &[("", 0.0)] };
        let mut metrics = BTreeMap::new();
        let (mut images, mut shown) = (None, None);
        for &(suffix, sigma) in kinds {
            if let Some(measure) = self.measure {
                let draw =
                    |chunk, rows| draw_samples(network, parameters, seed, (chunk, rows), sigma, world.device);
                let scores = measure.score(suffix, world, draw)?;
                metrics.extend(scores.metrics.clone());
                images.get_or_insert(scores);
            }
            if let Some(points) = self.points {
                let x = draw_points(network, parameters, seed, points.plan().rows(), sigma, world.device);
                metrics.extend(point_scores(points, &x, suffix)?);
                shown.get_or_insert(x.narrow(0, 0, x.size()[0].min(SHOWN_POINTS)));
            }
            if let Some(posterior) = self.posterior {
                let x = draw_points(network, parameters, seed, posterior.rows(), sigma, world.device);
                let x = self.networks.target.target().to_original(&x.to_kind(Kind::Double));
                metrics.extend(posterior.scores(&x, suffix)?.0);
                shown.get_or_insert(x.narrow(0, 0, x.size()[0].min(SHOWN_POINTS)));
            }
        }
        self.metrics = metrics;
        let shown = match (shown, &images) {
            (Some(points), _) => points,
            (None, Some(images)) => images.shown.shallow_clone(),
            (None, None) => draw_samples(network, parameters, seed, (0, SHOWN), self.sigma, world.device),
        };
        Ok(Scored { images, shown: shown.to_device(tch::Device::Cpu) })
    }

    /// Scores the averaged sampler on all ranks and records the result.
    fn evaluate(&mut self, state: &State) -> Result<()> {
        let Scored { images, shown } = self.score(state)?;
        if self.shown.is_whole() && !self.metrics.is_empty() {
            let values = self.metrics.iter().filter(|(name, _)| is_headline(name));
            let values: Vec<String> =
                values.map(|(name, score)| format!("{name} {}", score.beside_floor())).collect();
            info!("iteration {}: {}", state.iteration, values.join(" · "));
        }
        self.save_if_best(state)?;
        let Some(record) = &mut self.record else { return Ok(()) };
        if !self.metrics.is_empty() {
            record_evaluation(record, state.iteration, &self.metrics)?;
        }
        if let (Some(scores), Some(measure)) = (images, self.measure) {
            record_moments(record, state.iteration, measure, &self.metrics, &scores.moments)?;
        }
        record.write_samples(state.iteration, &shown)?;
        record.flush()
    }

    /// Writes the sampler that was just scored, if none before was nearer to the reference.
    fn save_if_best(&mut self, state: &State) -> Result<()> {
        let (Some(best), Some(measure)) = (&mut self.best, self.measure) else { return Ok(()) };
        let score = self.metrics.get(measure.reference().extractor().metric());
        if let Some(score) = score.filter(|score| score.value < best.distance) {
            best.distance = score.value;
            let measured = Measured { distance: score.value, on: (measure.extractor(), score.samples) };
            save_sampler(&best.path, self.networks, state, self.sigma, Some(&measured))?;
        }
        Ok(())
    }

    /// Writes the sampler, the posterior draws and the summary.
    pub fn finish(mut self, state: &State, directory: Option<&RunDirectory>) -> Result<()> {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
        let (Some(record), Some(directory)) = (&mut self.record, directory) else { return Ok(()) };
        let file = &self.plan.file;
        let network = &self.networks.sampler;
        let parameters = &state.average.parameters;
        let problem = self.networks.target.problem();
        let sampler = directory.file("sampler.safetensors");
        save_sampler(&sampler, self.networks, state, self.sigma, None)?;
        let draws: Vec<Tensor> = chunks(POSTERIOR_DRAWS)
            .map(|at| draw_samples(network, parameters, file.run.seed, at, self.sigma, self.world.device))
            .collect();
        let draws = self.networks.target.target().to_original(&Tensor::cat(&draws, 0));
        if let Some(problem) = problem {
            record.set_attribute("/", "features", features_attribute(problem)?)?;
        }
        record.write_posterior(&draws.to_device(tch::Device::Cpu).unsqueeze(0))?;
        record.flush()?;
        let summary = Summary {
            command: command_line(),
            target: target_name(&file.target).to_string(),
            method: file.method.name(),
            world_size: self.world.size,
            device: device_name(self.world).to_string(),
            iterations: state.iteration,
            seconds: state.wall_seconds,
            iterations_per_second: self.steady.rate(),
            target_evaluations: state.target_evaluations,
            parameters_sha256: state.parameters_sha256(),
            metrics: self.metrics,
            extractor: self.measure.map(Measure::extractor),
            comparison: vec![],
        };
        summary.write(&directory.file("summary.json"))?;
        record.remove_backup()?;
        if !self.shown.is_whole() {
            return Ok(());
        }
        info!(
            "{} iterations in {:.0} s ({:.2} a second); sampler and summary in {}",
            summary.iterations,
            summary.seconds,
            summary.iterations_per_second,
            directory.file("").display()
        );
        Ok(())
    }
}

/// Why a sampler is the best: its metadata have it as JSON.
#[derive(Serialize, Deserialize)]
struct Measured {
    distance: f64,
    /// The extractor, and the number of samples, on which the distance depends.
    on: (ExtractorId, u64),
}

/// Its key there.
const MEASURED: &str = "frechet_distance";

/// The best sampler so far.
struct Best {
    path: PathBuf,
    distance: f64,
}

/// Writes the averaged sampler, with its Fréchet distance if that is why it is written.
fn save_sampler(
    path: &Path,
    networks: &Networks,
    state: &State,
    sigma: f64,
    measured: Option<&Measured>,
) -> Result<()> {
    let mut metadata = vec![
        ("sampler", serde_json::to_string(networks.sampler.spec())?),
        ("output_sigma", format!("{sigma:e}")),
        ("iteration", state.iteration.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("commit", env!("DFT_COMMIT").to_string()),
    ];
    if let Some(measured) = measured {
        metadata.push((MEASURED, serde_json::to_string(measured)?));
    }
    let mut tensors = state.average.parameters.named();
    let problem = networks.target.problem();
    if let Some((mean, factor)) = problem.and_then(|problem| problem.coordinates()) {
        // Samples leave the program in the coordinates that a user knows.
        tensors.push((COORDINATES[0].to_string(), mean.shallow_clone()));
        tensors.push((COORDINATES[1].to_string(), factor.shallow_clone()));
    }
    WeightsFile::save(path, &tensors, &metadata)
}

/// Whether a metric is worth a place in the log: not of single coordinates or modes, nor of samples without their
/// noise, which the record has.
fn is_headline(name: &str) -> bool {
    let is_numbered = name.rsplit('_').next().is_some_and(|last| last.parse::<u64>().is_ok());
    !is_numbered && !name.ends_with("_clean")
}

/// Rate of iterations without the first ones and without evaluations.
#[derive(Default)]
struct Steady {
    last: Option<Instant>,
    iterations: u64,
    seconds: f64,
    skipped: u64,
}

impl Steady {
    const WARM_UP: u64 = 5;

    fn iteration(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.skipped += 1;
            if self.skipped > Self::WARM_UP {
                self.iterations += 1;
                self.seconds += (now - last).as_secs_f64();
            }
        }
    }

    fn pause(&mut self) {
        self.last = None;
    }

    fn rate(&self) -> f64 {
        if self.iterations == 0 { 0.0 } else { self.iterations as f64 / self.seconds }
    }
}
