//! The configuration of `dft train`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::method::{FieldKind, MethodSection, Schedule, Variance};
use super::network::{
    SamplerKind, SamplerOutput, SamplerSection, ScoreBase, ScoreKind, ScoreSection, Start, TargetSection,
};
use super::regression::RegressionSection;
use super::run::{ComputeSection, Reduction, RunSection, require, require_falling};
use super::warm_start::WarmStartSection;

/// What a user writes for `dft train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainFile {
    /// `[run]`.
    pub run: RunSection,
    /// `[compute]`.
    #[serde(default)]
    pub compute: ComputeSection,
    /// `[target]`.
    pub target: TargetSection,
    /// `[sampler]`.
    pub sampler: SamplerSection,
    /// `[score]`.
    pub score: ScoreSection,
    /// `[method]`.
    pub method: MethodSection,
    /// `[warm_start]`; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStartSection>,
    /// `[regression]`; none if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regression: Option<RegressionSection>,
    /// `[train]`.
    pub train: TrainSection,
    /// `[evaluate]`.
    #[serde(default)]
    pub evaluate: EvaluateSection,
    /// `[checkpoint]`.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
}

/// `[train]`: the loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// How the two networks take turns.
    pub schedule: Schedule,
    /// Alternating rounds.
    pub iterations: u64,
    /// Rows of the global batch, over all ranks.
    pub batch: usize,
    /// Score updates in an iteration (K): 5 if not given when alternating; 1 when simultaneous, where all but the
    /// last come before the update of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_updates: Option<u64>,
    /// Score updates before the first iteration.
    pub warmup_updates: u64,
    /// Adam's step size for the sampler.
    pub sampler_lr: f64,
    /// Adam's step size for the score network.
    pub score_lr: f64,
    /// Adam's decay rates for the sampler.
    pub sampler_betas: [f64; 2],
    /// Adam's decay rates for the score network.
    pub score_betas: [f64; 2],
    /// Fraction of the iterations after which both step sizes fall along a cosine.
    pub cosine_from: f64,
    /// What the cosine falls to, as a fraction of the step size.
    pub final_lr_fraction: f64,
    /// What the score network's step size falls to, if to another; 1 keeps it level, so that the network stays as quick as it
    /// was while the sampler comes to rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_final_lr_fraction: Option<f64>,
    /// Largest norm of the sampler's gradient; longer ones are scaled down. 0 means no limit.
    pub sampler_clip_norm: f64,
    /// Largest norm of the score network's gradient; longer ones are scaled down. 0 means no limit.
    pub score_clip_norm: f64,
    /// A gradient longer than this many times its running norm is scaled down to that; 0 means no limit. For
    /// targets with heavy tails, where no fixed limit fits all of training.
    pub clip_factor: f64,
    /// Half-life of the sampler's averaged weights, in samples (batch × iterations). 0 means no averaging.
    pub ema_half_life_samples: f64,
}

impl TrainSection {
    /// Score updates in an iteration.
    pub fn score_updates(&self) -> u64 {
        self.score_updates.unwrap_or(match self.schedule {
            Schedule::Alternating => 5,
            Schedule::Simultaneous => 1,
        })
    }
}

impl Default for TrainSection {
    fn default() -> Self {
        TrainSection {
            schedule: Schedule::Alternating,
            iterations: 2000,
            batch: 480,
            score_updates: None,
            warmup_updates: 300,
            sampler_lr: 2e-4,
            score_lr: 2e-3,
            sampler_betas: [0.0, 0.99],
            score_betas: [0.0, 0.99],
            cosine_from: 0.6,
            final_lr_fraction: 0.01,
            score_final_lr_fraction: None,
            sampler_clip_norm: 0.0,
            score_clip_norm: 0.0,
            clip_factor: 0.0,
            ema_half_life_samples: 0.0,
        }
    }
}

/// Which features a Fréchet distance is measured on: `"none"`, `"identity"`, `"lenet"`, or the path of a
/// TorchScript file that ends in `.pt`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Features {
    /// No Fréchet distance.
    #[default]
    None,
    /// The sample itself, against exact samples of the target: metric `fd`.
    Identity,
    /// The 84 features of a LeNet-5 trained by `dft fit-features`, against `evaluate.data`: metric `fd_lenet`.
    Lenet,
    /// Any TorchScript extractor `[B, C, H, W] -> [B, F]`, against `evaluate.data`: metric `fd`.
    TorchScript(PathBuf),
}

impl TryFrom<String> for Features {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "none" => Ok(Features::None),
            "identity" => Ok(Features::Identity),
            "lenet" => Ok(Features::Lenet),
            path if path.ends_with(".pt") => Ok(Features::TorchScript(path.into())),
            _ => Err(format!(
                "evaluate.features = {text:?}; choose \"none\", \"identity\", \"lenet\" or a TorchScript file that ends in .pt"
            )),
        }
    }
}

impl From<Features> for String {
    fn from(features: Features) -> String {
        match features {
            Features::None => "none".into(),
            Features::Identity => "identity".into(),
            Features::Lenet => "lenet".into(),
            Features::TorchScript(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// `[evaluate]`: scores during and after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSection {
    /// Iterations between evaluations; 0 means at the end only.
    pub every: u64,
    /// Samples in an evaluation, over all ranks.
    pub samples: usize,
    /// Independent sets of `samples` points that KSD, MMD, Wasserstein distances, mode fractions and moments are
    /// measured on, each the mean over the sets; 0 means none of these. For targets on vectors.
    pub point_sets: usize,
    /// Directory of the reference draws that samples of a posterior are measured against; see `dft reference`.
    pub references: PathBuf,
    /// Features of the Fréchet distance.
    pub features: Features,
    /// Weights of the LeNet-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features_file: Option<PathBuf>,
    /// Directory of the data set whose training split is the reference.
    pub data: PathBuf,
    /// Annealed Langevin chains of these many steps stand beside the sampler in `dft evaluate`.
    pub langevin_steps: Vec<u64>,
    /// Noise levels that annealed Langevin starts from and ends at.
    pub langevin_sigma: [f64; 2],
    /// Step size of annealed Langevin, as a fraction of the variance sigma² of each level.
    pub langevin_step_size: f64,
    /// The sampler's draws moved on by these many MALA steps on its target stand beside it in `dft evaluate`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<u64>,
}

impl Default for EvaluateSection {
    fn default() -> Self {
        EvaluateSection {
            every: 0,
            samples: 1000,
            point_sets: 0,
            references: PathBuf::from("data/references"),
            features: Features::None,
            features_file: None,
            data: PathBuf::from("data/mnist"),
            langevin_steps: vec![],
            langevin_sigma: [3.0, 0.1],
            langevin_step_size: 0.5,
            corrections: vec![],
        }
    }
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Iterations between checkpoints; the last iteration always has one.
    pub every: u64,
    /// How many checkpoints are kept.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        CheckpointSection { every: 500, keep: 2 }
    }
}

impl CheckpointSection {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        require(&[
            (self.every > 0, "checkpoint.every", &self.every, "1 or more"),
            (self.keep > 0, "checkpoint.keep", &self.keep, "1 or more"),
        ])
    }
}

/// A checked configuration of `dft train` for a world size.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The configuration with every default filled in.
    pub file: TrainFile,
}

impl TrainFile {
    /// Checks the configuration for this world size.
    ///
    /// # Errors
    /// The first value that does not fit, what it should be, and what to do.
    pub fn check(mut self, world_size: usize) -> Result<Plan, ConfigError> {
        let score_updates = self.train.score_updates();
        self.train.score_updates = Some(score_updates);
        let (train, evaluate) = (&self.train, &self.evaluate);
        self.compute.check("train.batch", train.batch, world_size)?;
        self.method.check()?;
        self.checkpoint.check()?;
        self.warm_start.iter().try_for_each(WarmStartSection::check)?;
        self.regression.iter().try_for_each(|section| section.check(self.compute.shards))?;
        let betas_hold = |betas: &[f64; 2]| betas.iter().all(|beta| (0.0..1.0).contains(beta));
        let betas = |betas: &[f64; 2]| format!("[{}, {}]", betas[0], betas[1]);
        require(&[
            (train.iterations > 0, "train.iterations", &train.iterations, "1 or more"),
            (score_updates > 0, "train.score_updates", &score_updates, "1 or more"),
            (train.sampler_lr > 0.0, "train.sampler_lr", &train.sampler_lr, "a number above 0"),
            (train.score_lr > 0.0, "train.score_lr", &train.score_lr, "a number above 0"),
            (
                betas_hold(&train.sampler_betas),
                "train.sampler_betas",
                &betas(&train.sampler_betas),
                "two in [0, 1)",
            ),
            (
                betas_hold(&train.score_betas),
                "train.score_betas",
                &betas(&train.score_betas),
                "two in [0, 1)",
            ),
            (
                (0.0..=1.0).contains(&train.cosine_from),
                "train.cosine_from",
                &train.cosine_from,
                "a fraction 0 to 1",
            ),
            (
                (0.0..=1.0).contains(&train.final_lr_fraction),
                "train.final_lr_fraction",
                &train.final_lr_fraction,
                "a fraction 0 to 1",
            ),
            (
                train.score_final_lr_fraction.is_none_or(|fraction| (0.0..=1.0).contains(&fraction)),
                "train.score_final_lr_fraction",
                &train.score_final_lr_fraction.unwrap_or(0.0),
                "a fraction 0 to 1",
            ),
            (
                train.sampler_clip_norm >= 0.0,
                "train.sampler_clip_norm",
                &train.sampler_clip_norm,
                "0 or more",
            ),
            (train.score_clip_norm >= 0.0, "train.score_clip_norm", &train.score_clip_norm, "0 or more"),
            (
                train.clip_factor == 0.0 || train.clip_factor > 1.0,
                "train.clip_factor",
                &train.clip_factor,
                "0 for no limit, or a number above 1",
            ),
            (
                train.ema_half_life_samples >= 0.0,
                "train.ema_half_life_samples",
                &train.ema_half_life_samples,
                "0 or more",
            ),
            (self.sampler.width > 0, "sampler.width", &self.sampler.width, "1 or more"),
            (self.sampler.latent > 0, "sampler.latent", &self.sampler.latent, "1 or more"),
            (
                self.sampler.stages == 1
                    || (self.sampler.stages > 1 && self.sampler.kind == SamplerKind::Unet),
                "sampler.stages",
                &self.sampler.stages,
                "1 or more, and 1 if sampler.kind is not \"unet\"",
            ),
            (
                self.sampler.output == SamplerOutput::Linear || self.sampler.kind == SamplerKind::Unet,
                "sampler.output",
                &"sigmoid",
                "\"linear\" if sampler.kind is not \"unet\"",
            ),
            (
                self.sampler.initial_scale > 0.0,
                "sampler.initial_scale",
                &self.sampler.initial_scale,
                "above 0",
            ),
            (self.sampler.initial_gain > 0.0, "sampler.initial_gain", &self.sampler.initial_gain, "above 0"),
            (
                (0..=16).contains(&self.score.frequencies),
                "score.frequencies",
                &self.score.frequencies,
                "0 to 16",
            ),
            (
                self.method.smoothing == 0 || self.score.base != ScoreBase::Target,
                "method.smoothing",
                &self.method.smoothing,
                "0 with score.base = \"target\": the target's score is not that of the target with noise",
            ),
            (self.score.width > 0, "score.width", &self.score.width, "1 or more"),
            (evaluate.samples >= 2, "evaluate.samples", &evaluate.samples, "2 or more"),
            (
                evaluate.langevin_steps.iter().all(|&steps| steps > 0),
                "evaluate.langevin_steps",
                &format!("{:?}", evaluate.langevin_steps),
                "numbers of steps above 0",
            ),
            (
                evaluate.langevin_step_size > 0.0 && evaluate.langevin_step_size < 2.0,
                "evaluate.langevin_step_size",
                &evaluate.langevin_step_size,
                "a number between 0 and 2 (at 2 the chain is unstable)",
            ),
            (
                evaluate.corrections.iter().all(|&steps| steps > 0),
                "evaluate.corrections",
                &format!("{:?}", evaluate.corrections),
                "numbers of steps above 0; draws without corrections always have a row",
            ),
        ])?;
        require_falling("evaluate.langevin_sigma", evaluate.langevin_sigma)?;
        self.check_features()?;
        self.target.check()?;
        self.check_regression(world_size)?;
        if train.schedule == Schedule::Simultaneous && self.method.variance == Variance::ControlVariate {
            return Err(ConfigError::Invalid(
                "method.variance = \"control_variate\" needs the score network at x0 as well, which one forward and \
                 backward pass does not give; with train.schedule = \"simultaneous\" choose \"antithetic\" or \"plain\""
                    .into(),
            ));
        }
        let ScoreSection { base, tail_scaling, frequencies, linear_skip, noise_scaling, .. } = self.score;
        let is_for_vectors =
            base != ScoreBase::Gaussian || tail_scaling || frequencies != 0 || linear_skip || noise_scaling;
        if is_for_vectors && self.score.kind != ScoreKind::Mlp {
            return Err(ConfigError::Invalid(
                "score.base, score.tail_scaling, score.frequencies, score.linear_skip and score.noise_scaling are for score.kind = \"mlp\"; leave \
                 them out for another"
                    .into(),
            ));
        }
        if self.score.conservative && (self.score.kind, self.score.start) != (ScoreKind::Unet, Start::Energy)
        {
            return Err(ConfigError::Invalid(
                "score.conservative is the form of an energy of ours, for score.kind = \"unet\" and score.start = \"energy\"; set \
                 both, or leave it out"
                    .into(),
            ));
        }
        if self.method.kinds().any(|kind| kind == FieldKind::Fisher) && self.score.kind != ScoreKind::Mlp {
            return Err(ConfigError::Invalid(
                "method.kind = \"fisher\" differentiates once for each dimension, so it is for score.kind = \"mlp\"; choose \
                 \"dft\", which needs no such thing"
                    .into(),
            ));
        }
        Ok(Plan { file: self })
    }

    /// What fields do not fit the posterior of a regression.
    fn check_regression(&self, world_size: usize) -> Result<(), ConfigError> {
        let TargetSection::Logistic(section) = &self.target else { return Ok(()) };
        let is_fisher = self.method.kinds().any(|kind| kind == FieldKind::Fisher);
        let is_exact = self.compute.reduction == Reduction::Exact;
        require(&[
            (
                !is_fisher || (world_size == 1 && section.batch.is_none() && !is_exact),
                "method.kind",
                &"fisher",
                "\"dft\" for this target: the divergence wants all rows on one rank in one sum, and no mini-batches",
            ),
            (
                self.method.smoothing == 0 || section.batch.is_none(),
                "target.batch",
                &section.batch.unwrap_or(0),
                "nothing with method.smoothing, which weighs points by their exact log-densities",
            ),
        ])
    }

    fn check_features(&self) -> Result<(), ConfigError> {
        if self.evaluate.features == Features::Lenet && self.evaluate.features_file.is_none() {
            return Err(ConfigError::Invalid(
                "evaluate.features = \"lenet\" needs evaluate.features_file, weights made by dft fit-features".into(),
            ));
        }
        Ok(())
    }
}

impl Plan {
    /// The configuration as TOML, defaults written out, but for those of settings that came later than others.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.file).expect("a configuration is a table of plain values")
    }
}
