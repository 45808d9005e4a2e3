//! A sampler's draws moved on by Markov steps, for `dft sample` and `dft evaluate`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::arguments::CorrectionKernel;
use super::metrics::draw_samples;
use super::sample::Sampler;
use crate::comm::World;
use crate::config::{
    MalaSettings, McmcSection, MethodSection, StepSizes, TargetSection, TrainFile, UlaSettings, load,
};
use crate::mcmc::{Corrected, Correction, McmcError};
use crate::rng::{Generator, Stream};
use crate::target::TargetAtLevel;

/// Chains and steps over which the step size of MALA is adapted: 10,100 gradients, once for all samples. After 100 steps
/// dual averaging is within a few hundredths of the acceptance it aims at.
const TUNING_CHAINS: i64 = 100;
const TUNING_STEPS: u64 = 100;

/// Latents of the chains that it is adapted on: a chunk that no sample belongs to.
const TUNING_CHUNK: u64 = u64::MAX;

/// Purpose of a chain's random numbers, as the iteration of their stream. Small numbers are taken: annealed Langevin has its
/// number of steps there.
const STEPS: u64 = u64::MAX;
const TUNING: u64 = u64::MAX - 1;

/// Distance between two modes of one posterior, in posterior standard deviations, that rounding may make.
const SAME_MODE: f64 = 1e-3;

/// The target of a finished run, as its draws are corrected towards it.
pub struct CorrectionTarget {
    target: TargetAtLevel,
    level: f64,
}

impl CorrectionTarget {
    /// The target of a configuration that is loaded already.
    pub fn new(target: TargetAtLevel, method: &MethodSection) -> Self {
        let level = target.tempered_from().unwrap_or(method.sigma.band(1.0).0);
        CorrectionTarget { target, level }
    }

    /// Rebuilds the target of the run in `directory` from its config.toml, for the draws of `sampler`; the posterior of a
    /// regression over all its rows.
    ///
    /// # Errors
    /// If the configuration, the target's weights or its data are missing or damaged, or are not those that the sampler was
    /// trained with.
    pub fn load(directory: &Path, sampler: &Sampler, world: &World) -> Result<Self> {
        let file = load::<TrainFile>(&directory.join("config.toml"), &[])
            .context("--correct needs the configuration of the run, beside sampler.safetensors")?;
        let mut section = file.target;
        if let TargetSection::Logistic(section) = &mut section {
            // A chain that accepts by the density needs the density, and an estimate would bias the other.
            section.batch = None;
        }
        let target = TargetAtLevel::load(&section, file.run.seed, &file.compute, world)
            .context("--correct needs the target of the run (paths in its config.toml are relative to the current directory)")?;
        let (made, wanted) = (&sampler.network.spec().shape, target.target().shape());
        if made != wanted {
            bail!(
                "the sampler makes samples {made:?} and the target of config.toml wants {wanted:?}: the one is not of the other's run"
            );
        }
        if let (Some(problem), Some([mean, _])) = (target.problem(), sampler.coordinates()) {
            let apart = problem.to_whitened(&mean.unsqueeze(0)).abs().max().double_value(&[]);
            if apart.is_nan() || apart > SAME_MODE {
                bail!(
                    "the mode of the posterior is {apart:.3} standard deviations from that of the run: its data have changed since"
                );
            }
        }
        Ok(Self::new(target, &file.method))
    }

    /// The target.
    pub fn at_level(&self) -> &TargetAtLevel {
        &self.target
    }
}

/// Corrections with their step size.
pub struct Corrections<'a> {
    target: &'a CorrectionTarget,
    kernel: CorrectionKernel,
    seed: u64,
    /// h of x + h·s(x) + sqrt(2h)·n.
    pub step_size: f64,
    /// Gradients that finding it took.
    pub tuning_evaluations: u64,
    /// Seconds that finding it took.
    pub tuning_seconds: f64,
}

impl<'a> Corrections<'a> {
    /// Steps of size `step_size`; without one, of the default that `dft sample --help` states.
    ///
    /// # Errors
    /// If the target is not finite where the step size is adapted.
    pub fn new(
        target: &'a CorrectionTarget,
        kernel: CorrectionKernel,
        step_size: Option<f64>,
        sampler: &Sampler,
        (seed, world): (u64, &World),
    ) -> Result<Self, McmcError> {
        // The noise of such a step is as wide as the level: sqrt(2h) = sigma.
        let level = target.level.powi(2) / 2.0;
        let mut corrections = Corrections {
            target,
            kernel,
            seed,
            step_size: step_size.unwrap_or(level),
            tuning_evaluations: 0,
            tuning_seconds: 0.0,
        };
        if kernel == CorrectionKernel::Mala && step_size.is_none() {
            let began = Instant::now();
            let Sampler { network, parameters, output_sigma, .. } = sampler;
            let chunk = (TUNING_CHUNK, TUNING_CHAINS);
            let x = draw_samples(network, parameters, seed, chunk, *output_sigma, world.device);
            let generator = Generator::new(seed, Stream::Chains, TUNING, 0);
            let tuned = corrections.run(&x, TUNING_STEPS, TUNING_STEPS, generator)?;
            corrections.step_size = tuned.step_size;
            corrections.tuning_evaluations = tuned.evaluations;
            corrections.tuning_seconds = began.elapsed().as_secs_f64();
        }
        Ok(corrections)
    }

    /// Draws `x` `[rows, …]` of chunk `chunk` after `steps` steps.
    ///
    /// # Errors
    /// If the target is not finite at one of them.
    pub fn apply(&self, x: &Tensor, steps: u64, chunk: u64) -> Result<Corrected, McmcError> {
        self.run(x, steps, 0, Generator::new(self.seed, Stream::Chains, STEPS, chunk))
    }

    fn run(
        &self,
        x: &Tensor,
        steps: u64,
        adaptation_steps: u64,
        generator: Generator,
    ) -> Result<Corrected, McmcError> {
        let step_size = self.step_size;
        let kernel = match self.kernel {
            CorrectionKernel::Mala => {
                McmcSection::Mala(MalaSettings { step_size, adaptation_steps, ..MalaSettings::default() })
            }
            CorrectionKernel::Ula => McmcSection::Ula(UlaSettings { step_size: StepSizes::One(step_size) }),
        };
        let target = &self.target.target;
        // The log-density of a posterior over many rows loses its differences in f32.
        let kind = if target.problem().is_some() { Kind::Double } else { x.kind() };
        let correction =
            Correction { target: target.target(), tempered_from: target.tempered_from(), kernel };
        correction.run(&x.to_kind(kind), steps, generator)
    }
}

/// Draws of a sampler, chunk by chunk, each moved on by the same number of steps.
pub struct CorrectedDraws<'a> {
    corrections: &'a Corrections<'a>,
    sampler: &'a Sampler,
    device: Device,
    steps: u64,
    spent: Spent,
    failure: Option<McmcError>,
}

impl<'a> CorrectedDraws<'a> {
    /// Draws of `sampler` on `device`, moved on by `steps` steps; with the seed of the corrections.
    pub fn new(corrections: &'a Corrections, sampler: &'a Sampler, steps: u64, device: Device) -> Self {
        CorrectedDraws { corrections, sampler, device, steps, spent: Spent::default(), failure: None }
    }

    /// Samples of chunk `chunk`, `[rows, …]`, before any step: the very draws that the sampler itself is scored on.
    pub fn before(&self, chunk: u64, rows: i64) -> Tensor {
        let Sampler { network, parameters, output_sigma, .. } = self.sampler;
        draw_samples(network, parameters, self.corrections.seed, (chunk, rows), *output_sigma, self.device)
    }

    /// The same after the steps. Where they fail nothing is moved any more, and [`finish`](Self::finish) says why: other ranks
    /// wait for this one's samples meanwhile.
    pub fn after(&mut self, chunk: u64, rows: i64) -> Tensor {
        let x = self.before(chunk, rows);
        if self.failure.is_some() {
            return x;
        }
        match self.corrections.apply(&x, self.steps, chunk) {
            Ok(corrected) => {
                self.spent.add(&corrected);
                corrected.samples
            }
            Err(error) => {
                self.failure = Some(error);
                x
            }
        }
    }

    /// What the steps of this rank took.
    ///
    /// # Errors
    /// If the target was not finite at one of them.
    pub fn finish(self) -> Result<Spent, McmcError> {
        self.failure.map_or(Ok(self.spent), Err)
    }
}

/// What corrections took, over several chunks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Spent {
    chains: u64,
    /// Sum over chains of their mean acceptance probability.
    accepted: Option<f64>,
    evaluations: u64,
    moved: u64,
    divergences: u64,
}

impl Spent {
    /// Adds a chunk.
    pub fn add(&mut self, corrected: &Corrected) {
        let rows = corrected.samples.size()[0] as u64;
        self.chains += rows;
        self.evaluations += corrected.evaluations;
        self.moved += corrected.moved;
        self.divergences += corrected.divergences;
        if let Some(acceptance) = corrected.acceptance {
            *self.accepted.get_or_insert(0.0) += acceptance * rows as f64;
        }
    }

    /// The same over all ranks of `world`, on every rank. All ranks must call it.
    pub fn over(&self, world: &World) -> Self {
        let own = serde_json::to_string(self).expect("numbers are plain data");
        let all = world.gather_strings(&own);
        let each = all.iter().filter_map(|text| serde_json::from_str::<Spent>(text).ok());
        each.fold(Spent::default(), |total, rank| Spent {
            chains: total.chains + rank.chains,
            accepted: rank.accepted.map(|sum| total.accepted.unwrap_or(0.0) + sum).or(total.accepted),
            evaluations: total.evaluations + rank.evaluations,
            moved: total.moved + rank.moved,
            divergences: total.divergences + rank.divergences,
        })
    }

    /// Mean acceptance probability over chains and their steps.
    pub fn acceptance(&self) -> Option<f64> {
        self.accepted.map(|accepted| accepted / self.chains as f64)
    }

    /// Gradients for one sample.
    pub fn evaluations_per_sample(&self) -> u64 {
        self.evaluations / self.chains.max(1)
    }

    /// Part of the chains that took at least one step.
    pub fn moved(&self) -> f64 {
        self.moved as f64 / self.chains.max(1) as f64
    }

    /// Divergences of all chains.
    pub fn divergences(&self) -> u64 {
        self.divergences
    }
}
