//! One network, one loss: the loop that fits an energy or a classifier.

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use super::TrainError;
use super::adam::Adam;
use super::average::Average;
use super::checkpoint;
use super::clip::RunningNorm;
use super::contrast::Contrast;
use super::observer::{FitObserver, FitRow};
use super::reduce::{Part, reduce};
use super::run::{Outcome, Stop, same_on_all_ranks};
use super::schedule::{learning_rate_factor, rise};
use super::state::{StateError, check_same_run};
use super::updates::stop_flag;
use crate::comm::World;
use crate::config::{CheckpointSection, ComputeSection, FitSection, Identity};
use crate::model::{Layout, Parameters, Weights, WeightsFile};
use crate::rng::{Shards, Stream};

/// Everything that changes during a fit. Nothing in it belongs to a rank.
#[derive(Debug)]
pub struct FitState {
    /// The latest weights.
    pub parameters: Parameters,
    /// Their optimiser.
    pub adam: Adam,
    /// The averaged weights: what a fit hands out.
    pub average: Average,
    /// Updates done.
    pub iteration: u64,
    /// Seconds so far.
    pub wall_seconds: f64,
    /// Chains that an energy is contrasted with, of all ranks, as the checkpoint had them that this state comes from.
    pub(super) chains: Option<Tensor>,
}

impl FitState {
    /// The state before the first update.
    pub fn initial(layout: &Rc<Layout>, settings: &FitSection, seed: u64, device: Device) -> Self {
        let parameters = Parameters::initialise(layout, seed, Stream::Parameters, device);
        FitState {
            adam: Adam::new(parameters.flat(), settings.betas),
            average: Average::new(&parameters, settings.ema_half_life_samples),
            parameters,
            iteration: 0,
            wall_seconds: 0.0,
            chains: None,
        }
    }

    fn buffers(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("parameters", self.parameters.flat()),
            ("adam.mean", &self.adam.mean),
            ("adam.square", &self.adam.square),
            ("average", self.average.parameters.flat()),
        ]
    }

    fn save(&self, path: &Path, identity: Identity, chains: Option<Tensor>) -> anyhow::Result<()> {
        let buffers =
            self.buffers().into_iter().map(|(name, t)| (name.to_string(), t.to_device(Device::Cpu)));
        let mut tensors: Vec<(String, Tensor)> = buffers.collect();
        let shape = chains.as_ref().map(Tensor::size);
        tensors.extend(chains.map(|chains| ("chains".to_string(), chains.to_device(Device::Cpu))));
        let mut metadata: Vec<(&str, String)> = identity;
        metadata.extend([
            ("iteration", self.iteration.to_string()),
            ("adam_updates", self.adam.updates.to_string()),
            ("wall_seconds", format!("{:e}", self.wall_seconds)),
            ("chains_shape", serde_json::to_string(&shape)?),
        ]);
        WeightsFile::save(path, &tensors, &metadata)
    }

    /// Overwrites this state with the one at `path`.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another network, or of a fit with another identity.
    pub fn restore(&mut self, path: &Path, identity: Identity) -> Result<(), StateError> {
        let file = WeightsFile::load(path)?;
        check_same_run(&file, path, identity)?;
        let device = self.parameters.flat().device();
        let read = |name: &str, shape: &[i64]| {
            file.tensor(name, shape).map(|tensor| tensor.to_kind(Kind::Float).to_device(device))
        };
        // All of the file is read before the first number is written, so that a wrong one changes nothing.
        let shape: Option<Vec<i64>> = file.described("chains_shape")?;
        let chains = shape.map(|shape| read("chains", &shape)).transpose()?;
        let restored = self.buffers().into_iter().map(|(name, buffer)| read(name, &buffer.size()));
        let restored = restored.collect::<Result<Vec<_>, _>>()?;
        let (iteration, updates) = (file.described("iteration")?, file.described("adam_updates")?);
        let wall_seconds = file.described("wall_seconds")?;
        for ((_, buffer), restored) in self.buffers().into_iter().zip(restored) {
            no_grad(|| buffer.shallow_clone().copy_(&restored));
        }
        (self.iteration, self.adam.updates, self.wall_seconds) = (iteration, updates, wall_seconds);
        self.chains = chains;
        Ok(())
    }
}

/// What a fit consists of besides its loss.
pub(super) struct Job<'a> {
    pub(super) settings: &'a FitSection,
    pub(super) compute: &'a ComputeSection,
    pub(super) checkpoint: &'a CheckpointSection,
    pub(super) identity: Identity,
    pub(super) world: &'a World,
    /// Chains that the loss keeps from update to update.
    pub(super) contrast: Option<&'a Contrast<'a>>,
}

impl Job<'_> {
    /// Minimises `loss`, a function of tracked weights, the update's number and a piece of the batch that returns the
    /// piece's part of the global mean, with Adam, from `state` to the last update or a request to stop.
    /// `state.average` then holds the averaged weights. Checkpoints go to `checkpoints` (rank 0 writes).
    pub(super) fn run(
        &self,
        state: &mut FitState,
        loss: &dyn Fn(&Weights, u64, &Shards) -> Tensor,
        observer: &mut dyn FitObserver,
        checkpoints: &Path,
        stop: &Stop,
    ) -> Result<Outcome, TrainError> {
        let (settings, compute, world) = (self.settings, self.compute, self.world);
        let shards = Shards::of_rank(settings.batch, compute.shards, world.rank, world.size);
        let pieces = shards.pieces(compute.reduction);
        if let (Some(contrast), Some(chains)) = (self.contrast, state.chains.take()) {
            contrast.restore(&chains, &pieces);
        }
        let (started, seconds_before) = (Instant::now(), state.wall_seconds);
        while state.iteration < settings.iterations {
            let iteration = state.iteration;
            let weights = state.parameters.tracked();
            let part = |piece| {
                let value = loss(weights, iteration, piece);
                let (gradient, _) = weights.gradient(&value, &[]);
                let stop = stop_flag(stop, value.device());
                Part { gradients: vec![gradient], statistics: vec![value.detach(), stop] }
            };
            let reduced = reduce(world, compute.reduction, pieces.iter().map(part).collect())?;
            let gradient_norm = RunningNorm::default().clip(&reduced.gradients[0], settings.clip_norm, 0.0);
            if !gradient_norm.is_finite() || !reduced.statistics[0].is_finite() {
                return Err(TrainError::Diverged { iteration: iteration + 1, what: "loss or gradient" });
            }
            let fraction = iteration as f64 / settings.iterations as f64;
            let rise = rise(iteration, settings.warmup_updates);
            let learning_rate =
                settings.lr * rise * learning_rate_factor(fraction, settings.cosine_from, 0.0);
            state.adam.update(state.parameters.flat(), &reduced.gradients[0], learning_rate);
            state.iteration += 1;
            let batch = settings.batch as f64;
            state.average.update(&state.parameters, batch, state.iteration as f64 * batch);
            state.wall_seconds = seconds_before + started.elapsed().as_secs_f64();
            observer.row(&FitRow {
                iteration: state.iteration,
                wall_seconds: state.wall_seconds,
                loss: reduced.statistics[0],
                gradient_norm,
                learning_rate,
            })?;

            let is_last = state.iteration == settings.iterations;
            let is_stop_asked = reduced.statistics[1] > 0.0;
            if is_last || is_stop_asked || state.iteration.is_multiple_of(self.checkpoint.every) {
                self.save(state, observer, checkpoints)?;
            }
            if is_stop_asked && !is_last {
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Done)
    }

    /// Writes a checkpoint once all ranks are known to hold the same, and returns on all ranks when it is on disk.
    fn save(
        &self,
        state: &FitState,
        observer: &mut dyn FitObserver,
        checkpoints: &Path,
    ) -> Result<(), TrainError> {
        let mut digest = Sha256::new();
        state.parameters.digest(&mut digest);
        same_on_all_ranks(self.world, state.iteration, &format!("{:x}", digest.finalize()))?;
        observer.checkpoint()?;
        let chains = self.contrast.map(|contrast| contrast.collect(self.world)).transpose()?.flatten();
        if self.world.is_root() {
            let path = checkpoints.join(checkpoint::file_name(state.iteration));
            state.save(&path, self.identity.clone(), chains)?;
            checkpoint::prune(checkpoints, self.checkpoint.keep).map_err(anyhow::Error::from)?;
        }
        Ok(self.world.collective().barrier()?)
    }
}
