//! `[target]`, `[sampler]` and `[score]`: the density and the two networks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::logistic::LogisticSection;
use super::run::require;

/// Which network computes an energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnergyKind {
    /// E(x) = |x − f(x)|² / (2 sigma0²) with a small U-Net f: trains on a CPU in minutes.
    Unet,
    /// The 12-layer residual network with a quadratic head of Li, Chen and Sommer (2019), for GPUs.
    Resnet,
}

/// Which network the sampler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerKind {
    /// A multilayer perceptron in location-scale form, for vectors.
    Mlp,
    /// A U-Net on an image-shaped latent; it can start as a copy of a U-Net energy's own network.
    Unet,
    /// A convolutional generator from a latent vector, for images.
    Generator,
}

/// What comes after the last layer of a sampler of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerOutput {
    /// Nothing.
    #[default]
    Linear,
    /// 1/(1 + exp(−8(h − 1/2))), so that pixels are in (0, 1): 0 and 1 stay about where they are, and what is near them comes
    /// nearer, such as the faint haze that a network leaves where an image is black.
    Sigmoid,
}

impl SamplerOutput {
    pub(crate) fn is_linear(&self) -> bool {
        *self == SamplerOutput::Linear
    }
}

/// Which network the score network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreKind {
    /// A multilayer perceptron around a Gaussian's score, for vectors.
    Mlp,
    /// A noise-conditional U-Net D(x, sigma) that denoises, for images.
    Unet,
}

/// What the network's output is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreBase {
    /// The score of the sampler's first distribution, N(initial_offset, initial_scale² I).
    #[default]
    Gaussian,
    /// That score too, with the weight that the first distribution has on the path to the target
    /// (`method.anneal_until`): nothing once the path is done, but for what `method.anneal_to` leaves of it.
    Fading,
    /// The target's own score: the network learns the difference, which is small at the end and stays bounded
    /// where the target's score does not. It costs an evaluation of the target for each row of a score update.
    Target,
}

/// `[target]`: the unnormalised density.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum TargetSection {
    /// A Gaussian in closed form. Without mean and covariance: the paper's, in two dimensions.
    Gaussian {
        /// Mean, `[D]`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mean: Option<Vec<f64>>,
        /// Covariance, `[D][D]`, symmetric and positive definite.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        covariance: Option<Vec<Vec<f64>>>,
    },
    /// Two Gaussians of covariance I/2 at (−2, 2) and (2, −2).
    Mog2 {
        /// Weights of the two; equal if not given.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        weights: Vec<f64>,
    },
    // Braces, because serde would let unknown keys of a unit variant pass.
    /// A Gaussian bent along a parabola.
    Rosenbrock {},
    /// A ring of radius 2.5.
    Donut {},
    /// Neal's funnel: x2 ~ N(4, 3²), x1 given x2 ~ N(1, exp(x2)).
    Funnel {},
    /// A Gaussian bent along a sine.
    Squiggle {},
    /// Forty Gaussians in [−40, 40]².
    Gmm40 {},
    /// Gaussians on a circle in the plane.
    Ring {
        /// How many.
        #[serde(default = "default_ring_modes")]
        modes: usize,
        /// Radius of the circle.
        #[serde(default = "default_ring_radius")]
        radius: f64,
        /// Standard deviation of each Gaussian.
        #[serde(default = "default_ring_deviation")]
        deviation: f64,
    },
    /// A mixture of isotropic Gaussians in any dimension.
    Mixture {
        /// Means, `[M][D]`.
        means: Vec<Vec<f64>>,
        /// Standard deviations: one for all, or one for each.
        deviations: Deviations,
        /// Weights, `[M]`, with sum 1; equal if not given.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        weights: Vec<f64>,
    },
    /// The posterior of a logistic regression.
    Logistic(LogisticSection),
    /// An energy network of ours: q = exp(−E).
    Energy {
        /// Weights written by `dft fit-energy`.
        file: PathBuf,
        /// Evaluate at noise sigma the density tempered by T = (sigma/sigma0)²: a multi-scale target
        /// from one energy.
        #[serde(default)]
        tempered: bool,
    },
    /// A TorchScript module that maps `[B, …shape]` to log-densities `[B]`.
    Torchscript {
        /// The module, saved by PyTorch.
        file: PathBuf,
        /// Shape of one sample: `[D]` or `[C, H, W]`.
        shape: Vec<i64>,
        /// As for an energy; wants `sigma0`.
        #[serde(default)]
        tempered: bool,
        /// Noise level of the density that the module describes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sigma0: Option<f64>,
    },
}

/// Standard deviations of a mixture's components: `0.5` or `[0.5, 1.0]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "target.deviations should be a number, or a list with one for each component")]
pub enum Deviations {
    /// One for all.
    Common(f64),
    /// One for each.
    Each(Vec<f64>),
}

impl Deviations {
    /// The one, or all of them.
    pub fn values(&self) -> &[f64] {
        match self {
            Deviations::Common(value) => std::slice::from_ref(value),
            Deviations::Each(values) => values,
        }
    }
}

impl TargetSection {
    /// Whether its samples are images `[C, H, W]`: those of an energy of ours always are.
    pub fn is_image(&self) -> bool {
        match self {
            TargetSection::Energy { .. } => true,
            TargetSection::Torchscript { shape, .. } => shape.len() == 3,
            _ => false,
        }
    }

    /// Whether it is tempered by the noise level.
    pub fn is_tempered(&self) -> bool {
        match self {
            TargetSection::Energy { tempered, .. } | TargetSection::Torchscript { tempered, .. } => *tempered,
            _ => false,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self {
            TargetSection::Torchscript { shape, tempered, sigma0, .. } => {
                let is_shape =
                    matches!(shape.len(), 1 | 3) && shape.iter().all(|length| (1..1 << 20).contains(length));
                let level = sigma0.map_or("nothing".to_string(), |level| level.to_string());
                require(&[
                    (is_shape, "target.shape", &format!("{shape:?}"), "[D] or [C, H, W], each 1 or more"),
                    (
                        *tempered == sigma0.is_some_and(|level| level > 0.0),
                        "target.sigma0",
                        &level,
                        "a level above 0 together with target.tempered = true, or neither",
                    ),
                ])
            }
            TargetSection::Logistic(section) => section.check(),
            TargetSection::Ring { modes, radius, deviation } => require(&[
                (*modes >= 1, "target.modes", &modes.to_string(), "1 or more"),
                (is_length(*radius), "target.radius", &radius.to_string(), "a length above 0"),
                (is_length(*deviation), "target.deviation", &deviation.to_string(), "a length above 0"),
            ]),
            // What else can be wrong is found where the target is built, before any work.
            _ => Ok(()),
        }
    }
}

fn is_length(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

/// What a network's parameters start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Random numbers.
    #[default]
    Random,
    /// The U-Net of the target's energy.
    Energy,
}

/// `[sampler]`: the network that turns a latent into a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerSection {
    /// Which network.
    pub kind: SamplerKind,
    /// Latent dimension of `mlp` and `generator`.
    #[serde(default = "default_latent")]
    pub latent: i64,
    /// Units of a hidden layer, or channels at the finest level.
    #[serde(default = "default_width")]
    pub width: i64,
    /// Hidden layers of an `mlp`.
    #[serde(default = "default_depth")]
    pub depth: usize,
    /// U-Nets of a `unet` one behind the other: still one pass, of a deeper network.
    #[serde(default = "default_stages", skip_serializing_if = "is_one")]
    pub stages: usize,
    /// What comes after the last layer of a `unet`.
    #[serde(default, skip_serializing_if = "SamplerOutput::is_linear")]
    pub output: SamplerOutput,
    /// Standard deviation of the first samples (of a U-Net's input): about the spread of the target.
    #[serde(default = "default_scale")]
    pub initial_scale: f64,
    /// Mean of the first samples (of a U-Net's input).
    #[serde(default)]
    pub initial_offset: f64,
    /// Factor on the first weights of an `mlp`'s hidden layers: above 1 the first samples respond to more
    /// directions of the latent.
    #[serde(default = "default_scale")]
    pub initial_gain: f64,
    /// What the parameters start from.
    #[serde(default)]
    pub start: Start,
}

/// `[score]`: the network that learns the score of the sampler's distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSection {
    /// Which network.
    pub kind: ScoreKind,
    /// Units of a hidden layer, or channels at the finest level.
    #[serde(default = "default_width")]
    pub width: i64,
    /// Hidden layers of an `mlp`.
    #[serde(default = "default_depth")]
    pub depth: usize,
    /// What the output of an `mlp` is added to.
    #[serde(default)]
    pub base: ScoreBase,
    /// For an `mlp` on a target with heavy tails: each coordinate of the output falls as 1/sqrt(1 + u²), as the score
    /// of a heavy tail does, and each coordinate of the loss is weighted by 1 + u², with u = (x − initial_offset) /
    /// initial_scale.
    #[serde(default)]
    pub tail_scaling: bool,
    /// For an `mlp`: it also sees sin and cos of 2^k·π·u/2, k below this, so that it can follow many modes.
    #[serde(default)]
    pub frequencies: i64,
    /// For an `mlp`: a linear map of x is added to its output, so that in many dimensions the network need not learn
    /// the score of a Gaussian, only what differs from it.
    #[serde(default)]
    pub linear_skip: bool,
    /// For an `mlp`: its output is divided by sigma in place of `sampler.initial_scale`, and a base `gaussian` has the
    /// noise's variance too. For bands of far apart noise levels.
    #[serde(default)]
    pub noise_scaling: bool,
    /// For a `unet` that starts from an energy: the score is the gradient of an energy of that form at each noise level, so the
    /// target's own score is among those it can be. Two to three times the work of a denoiser.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub conservative: bool,
    /// What the parameters start from.
    #[serde(default)]
    pub start: Start,
}

// The ring of the public code of FFJORD (Grathwohl et al., ICLR 2019), before it divides everything by sqrt(2): the
// distance between neighbours is six standard deviations. GAN papers take radius 2 and deviation 0.02.
fn default_ring_modes() -> usize {
    8
}
fn default_ring_radius() -> f64 {
    4.0
}
fn default_ring_deviation() -> f64 {
    0.5
}
fn default_latent() -> i64 {
    4
}
fn default_width() -> i64 {
    128
}
fn default_depth() -> usize {
    3
}
fn default_stages() -> usize {
    1
}
fn is_one(stages: &usize) -> bool {
    *stages == 1
}
fn default_scale() -> f64 {
    1.0
}
