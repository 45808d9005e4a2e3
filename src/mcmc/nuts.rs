//! The No-U-Turn Sampler of the crate `nuts-rs`, one chain after the other.

use std::collections::HashMap;
use std::rc::Rc;

use nuts_rs::rand::rngs::ChaCha8Rng;
use nuts_rs::rand::{Rng, SeedableRng};
use nuts_rs::{Chain, CpuLogpFunc, CpuMath, CpuMathError, DiagNutsSettings, HasDims, LogpError, Settings};
use tch::{Device, Kind, Tensor};

use super::McmcError;
use super::evaluator::Evaluator;
use super::kernel::{Kernel, finite_rows, require_finite_starts};
use super::noise::Noise;
use crate::config::NutsSettings;

/// Multinomial NUTS (Hoffman and Gelman 2014; Betancourt 2017) with a diagonal mass matrix, as `nuts-rs` has it.
/// A step of the run is one draw of every chain. Divergences are counted after the tuning.
pub(super) struct Nuts<'a> {
    chains: Vec<<DiagNutsSettings as Settings>::Chain<CpuMath<Density<'a>>>>,
    /// Current states of the chains, one after the other.
    positions: Vec<f64>,
    like: (Kind, Device),
    step_sizes: Vec<f64>,
    divergences: Vec<i64>,
    draws: u64,
    tuning_draws: u64,
}

/// The target at one point, in the host's f64.
struct Density<'a> {
    target: Rc<Evaluator<'a>>,
    dimension: usize,
    like: (Kind, Device),
}

/// The log-density or its gradient is not finite; `nuts-rs` ends the trajectory and calls it divergent.
#[derive(Debug, thiserror::Error)]
#[error("log-density or score is not finite")]
struct NotFinite;

impl LogpError for NotFinite {
    fn is_recoverable(&self) -> bool {
        true
    }
}

impl HasDims for Density<'_> {
    fn dim_sizes(&self) -> HashMap<String, u64> {
        HashMap::from([("unconstrained_parameter".to_string(), self.dimension as u64)])
    }
}

impl CpuLogpFunc for Density<'_> {
    type LogpError = NotFinite;
    type FlowParameters = ();
    type ExpandedVector = Vec<f64>;

    fn dim(&self) -> usize {
        self.dimension
    }

    fn logp(&mut self, position: &[f64], gradient: &mut [f64]) -> Result<f64, NotFinite> {
        let (kind, device) = self.like;
        let x = Tensor::from_slice(position).unsqueeze(0).to_kind(kind).to_device(device);
        let (log_density, score) = self.target.log_density_and_score(&x);
        let score = score.to_device(Device::Cpu).to_kind(Kind::Double).contiguous();
        score.copy_data(gradient, self.dimension);
        let value = log_density.double_value(&[0]);
        let is_finite = value.is_finite() && gradient.iter().all(|slope| slope.is_finite());
        is_finite.then_some(value).ok_or(NotFinite)
    }

    fn expand_vector<R: Rng + ?Sized>(
        &mut self,
        _rng: &mut R,
        position: &[f64],
    ) -> Result<Vec<f64>, CpuMathError> {
        Ok(position.to_vec())
    }
}

impl<'a> Nuts<'a> {
    /// Chains from the first rows of `start` `[N, D]`.
    ///
    /// # Errors
    /// If there are fewer starts than chains, or the target is not finite at one.
    pub(super) fn new(
        start: &Tensor,
        target: &Rc<Evaluator<'a>>,
        settings: &NutsSettings,
        noise: &mut Noise,
    ) -> Result<Self, McmcError> {
        let (rows, dimension) = start.size2().expect("states are rows of numbers");
        let (dimension, like) = (dimension as usize, (start.kind(), start.device()));
        if (rows as usize) < settings.chains {
            return Err(McmcError::Start(format!(
                "nuts with {} chains needs as many starts and has {rows}",
                settings.chains
            )));
        }
        let first = start.narrow(0, 0, settings.chains as i64);
        let (log_density, score) = target.log_density_and_score(&first);
        require_finite_starts(&log_density.isfinite().logical_and(&finite_rows(&score)))?;
        let flat = first.flatten(0, -1).to_device(Device::Cpu).to_kind(Kind::Double);
        let positions = Vec::<f64>::try_from(flat).expect("a flat f64 tensor is a vector");

        let mut options = DiagNutsSettings {
            num_tune: settings.tuning_draws,
            maxdepth: settings.max_depth,
            ..DiagNutsSettings::default()
        };
        options.adapt_options.step_size_settings.target_accept = settings.target_acceptance;
        let mut random = ChaCha8Rng::seed_from_u64(noise.seed());
        let mut chains = Vec::with_capacity(settings.chains);
        for (number, position) in positions.chunks_exact(dimension).enumerate() {
            let failed = |error: anyhow::Error| failure(number, &error);
            let density = Density { target: Rc::clone(target), dimension, like };
            let mut chain =
                options.new_chain(number as u64, CpuMath::new(density), &mut random).map_err(failed)?;
            chain.set_position(position).map_err(failed)?;
            chains.push(chain);
        }
        Ok(Nuts {
            step_sizes: vec![f64::NAN; chains.len()],
            divergences: vec![0; chains.len()],
            chains,
            positions,
            like,
            draws: 0,
            tuning_draws: settings.tuning_draws,
        })
    }
}

fn failure(chain: usize, error: &anyhow::Error) -> McmcError {
    McmcError::Nuts { chain, message: format!("{error:#}") }
}

impl Kernel for Nuts<'_> {
    fn step(&mut self, _target: &Evaluator, _noise: &mut Noise) -> Result<(), McmcError> {
        let is_tuned = !self.is_adapting();
        let dimension = self.positions.len() / self.chains.len();
        let rows = self.positions.chunks_exact_mut(dimension);
        for (number, (chain, row)) in self.chains.iter_mut().zip(rows).enumerate() {
            let (position, progress) = chain.draw().map_err(|error| failure(number, &error))?;
            row.copy_from_slice(&position);
            self.step_sizes[number] = progress.step_size;
            self.divergences[number] += i64::from(progress.diverging && is_tuned);
        }
        self.draws += 1;
        Ok(())
    }

    fn cost(&self) -> u64 {
        self.chains.len() as u64
    }

    fn positions(&self) -> Tensor {
        let (kind, device) = self.like;
        let rows = self.chains.len() as i64;
        Tensor::from_slice(&self.positions).reshape([rows, -1]).to_kind(kind).to_device(device)
    }

    /// The mean over the chains, each of which tunes its own; not a number before the first draw.
    fn step_size(&self) -> f64 {
        self.step_sizes.iter().sum::<f64>() / self.step_sizes.len() as f64
    }

    fn divergences(&self) -> Tensor {
        Tensor::from_slice(&self.divergences)
    }

    fn is_adapting(&self) -> bool {
        self.draws < self.tuning_draws
    }
}
