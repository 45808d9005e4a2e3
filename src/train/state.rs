//! The state of a run, all of it: two networks, two optimisers, averaged weights and counters. Nothing in
//! it belongs to a rank.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::adam::Adam;
use super::average::Average;
use super::build::Networks;
use super::clip::RunningNorm;
use crate::config::{Identity, Plan, Start};
use crate::model::{Parameters, WeightsError, WeightsFile};
use crate::rng::Stream;

/// Why a checkpoint does not continue a run.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It is from a run with other settings.
    #[error("checkpoint {path} was made with {key} = {found}, this run has {wanted}; set it back to resume")]
    OtherRun {
        /// The file.
        path: String,
        /// The setting.
        key: &'static str,
        /// In the checkpoint.
        found: String,
        /// In this run.
        wanted: String,
    },
}

/// Everything that changes during `dft train`.
#[derive(Debug)]
pub struct State {
    /// The sampler's latest weights.
    pub sampler: Parameters,
    /// The score network's latest weights.
    pub score: Parameters,
    /// The sampler's optimiser.
    pub sampler_adam: Adam,
    /// The score network's optimiser.
    pub score_adam: Adam,
    /// The sampler's averaged weights: what is evaluated and handed out.
    pub average: Average,
    /// Running norm of the sampler's gradient.
    pub sampler_norm: RunningNorm,
    /// Running norm of the score network's gradient.
    pub score_norm: RunningNorm,
    /// Iterations done.
    pub iteration: u64,
    /// Updates of the warm start done.
    pub warm_start_updates: u64,
    /// Score updates done, warm-up included.
    pub score_updates: u64,
    /// Evaluations of the target's gradient so far, over all ranks.
    pub target_evaluations: u64,
    /// Seconds of training so far.
    pub wall_seconds: f64,
}

impl State {
    /// The state before the first update.
    pub fn initial(plan: &Plan, networks: &Networks, device: Device) -> Self {
        let (file, seed) = (&plan.file, plan.file.run.seed);
        let sampler =
            Parameters::initialise(networks.sampler.layout(), seed, Stream::SamplerParameters, device);
        let score = Parameters::initialise(networks.score.layout(), seed, Stream::ScoreParameters, device);
        for (start, parameters) in [(file.sampler.start, &sampler), (file.score.start, &score)] {
            if let (Start::Energy, Some(energy)) = (start, &networks.energy_parameters) {
                parameters.copy_shared_from(energy);
            }
        }
        State {
            sampler_adam: Adam::new(sampler.flat(), file.train.sampler_betas),
            score_adam: Adam::new(score.flat(), file.train.score_betas),
            average: Average::new(&sampler, file.train.ema_half_life_samples),
            sampler,
            score,
            sampler_norm: RunningNorm::default(),
            score_norm: RunningNorm::default(),
            iteration: 0,
            warm_start_updates: 0,
            score_updates: 0,
            target_evaluations: 0,
            wall_seconds: 0.0,
        }
    }

    /// SHA-256 of the parameters: sampler, then score network, in registration order, little-endian f32.
    pub fn parameters_sha256(&self) -> String {
        let mut digest = Sha256::new();
        self.sampler.digest(&mut digest);
        self.score.digest(&mut digest);
        format!("{:x}", digest.finalize())
    }

    fn buffers(&self) -> [(&'static str, &Tensor); 7] {
        [
            ("sampler.parameters", self.sampler.flat()),
            ("sampler.adam.mean", &self.sampler_adam.mean),
            ("sampler.adam.square", &self.sampler_adam.square),
            ("sampler.average", self.average.parameters.flat()),
            ("score.parameters", self.score.flat()),
            ("score.adam.mean", &self.score_adam.mean),
            ("score.adam.square", &self.score_adam.square),
        ]
    }

    /// Writes everything to `path`, to a temporary name first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path, plan: &Plan) -> anyhow::Result<()> {
        let tensors: Vec<(String, Tensor)> =
            self.buffers().iter().map(|(name, t)| (name.to_string(), t.to_device(Device::Cpu))).collect();
        let mut metadata: Vec<(&str, String)> = identity(plan).into_iter().collect();
        metadata.extend([
            ("iteration", self.iteration.to_string()),
            ("warm_start_updates", self.warm_start_updates.to_string()),
            ("score_updates", self.score_updates.to_string()),
            ("sampler_adam_updates", self.sampler_adam.updates.to_string()),
            ("score_adam_updates", self.score_adam.updates.to_string()),
            ("target_evaluations", self.target_evaluations.to_string()),
            ("sampler_norm", format!("{:e}", self.sampler_norm.0)),
            ("score_norm", format!("{:e}", self.score_norm.0)),
            ("wall_seconds", format!("{:e}", self.wall_seconds)),
        ]);
        WeightsFile::save(path, &tensors, &metadata)
    }

    /// Overwrites this state with the one at `path`.
    ///
    /// # Errors
    /// If the file is missing, damaged, of another network, or of a run whose settings would make the
    /// continuation another run.
    pub fn restore(&mut self, path: &Path, plan: &Plan) -> Result<(), StateError> {
        let file = WeightsFile::load(path)?;
        check_same_run(&file, path, identity(plan))?;
        let device = self.sampler.flat().device();
        // All tensors are checked before the first is written, so that a wrong file changes nothing.
        let mut restored = HashMap::new();
        for (name, buffer) in self.buffers() {
            restored.insert(name, file.tensor(name, &buffer.size())?.to_kind(Kind::Float).to_device(device));
        }
        let count = |key: &str| -> Result<u64, StateError> { Ok(file.described(key)?) };
        let (sampler_updates, score_updates) = (count("sampler_adam_updates")?, count("score_adam_updates")?);
        self.iteration = count("iteration")?;
        self.warm_start_updates = count("warm_start_updates")?;
        self.score_updates = count("score_updates")?;
        self.target_evaluations = count("target_evaluations")?;
        self.wall_seconds = file.described("wall_seconds")?;
        self.sampler_norm = RunningNorm(file.described("sampler_norm")?);
        self.score_norm = RunningNorm(file.described("score_norm")?);
        self.sampler_adam.updates = sampler_updates as i64;
        self.score_adam.updates = score_updates as i64;
        for (name, buffer) in self.buffers() {
            tch::no_grad(|| buffer.shallow_clone().copy_(&restored[name]));
        }
        Ok(())
    }
}

/// Whether a checkpoint is of a run with these settings.
pub(super) fn check_same_run(file: &WeightsFile, path: &Path, identity: Identity) -> Result<(), StateError> {
    for (key, wanted) in identity {
        let found = match file.metadata(key) {
            // Files from before the setting say nothing of it.
            Err(_) if key == "compute.precision" => "\"exact\"",
            Err(_) if key == "[regression]" => "null",
            found => found?,
        };
        if found != wanted {
            let path = path.display().to_string();
            return Err(StateError::OtherRun { path, key, found: found.to_string(), wanted });
        }
    }
    Ok(())
}

/// The identity of a run of `dft train`; its iterations and learning rates may change.
fn identity(plan: &Plan) -> Identity {
    let file = &plan.file;
    let json = |section: serde_json::Result<String>| section.expect("a section is plain data");
    let mut identity = vec![
        ("run.seed", file.run.seed.to_string()),
        ("train.batch", file.train.batch.to_string()),
        ("train.schedule", json(serde_json::to_string(&file.train.schedule))),
        ("train.score_updates", file.train.score_updates().to_string()),
        ("[target]", json(serde_json::to_string(&file.target))),
        ("[sampler]", json(serde_json::to_string(&file.sampler))),
        ("[score]", json(serde_json::to_string(&file.score))),
        ("[method]", json(serde_json::to_string(&file.method))),
        ("[warm_start]", json(serde_json::to_string(&file.warm_start))),
        ("[regression]", json(serde_json::to_string(&file.regression))),
        ("evaluate.features", json(serde_json::to_string(&file.evaluate.features))),
    ];
    identity.extend(file.compute.identity());
    identity
}
