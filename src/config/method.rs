//! `[method]`: the field the sampler descends, and the noise.

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::run::require;

/// Which field the sampler descends (`method` module).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldKind {
    /// Denoising Fisher training, the paper's method.
    #[default]
    Dft,
    /// Reverse Kullback–Leibler divergence (Diff-Instruct with one noise level per row).
    Kl,
    /// kl + fisher_weight · sigma · dft: the first moves mass between modes, the second shapes them.
    Hybrid,
    /// Score identity distillation (Zhou et al. 2024) with weight `alpha`; 0.5 is `dft`.
    Sid,
    /// Denoising Fisher training with another distance of scores, pseudo-Huber in place of squared (the family of Luo et al.
    /// 2024, arXiv 2410.16794): where the target is steep its slope counts once and not squared.
    Huber,
    /// Fisher training without denoising (arXiv 2306.04952): the divergence of s_phi − s_q in place of the noise.
    /// Its cost grows with the dimension, so it is for a few dimensions only.
    Fisher,
    /// The path term of the Fisher divergence alone, which is no gradient of it and fails: it shows why the
    /// second term exists.
    Path,
}

/// A remedy for the variance of the denoising term, which grows as 1/sigma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// None: one noise vector per sample.
    #[default]
    Plain,
    /// Each sample is perturbed by eps and by −eps.
    Antithetic,
    /// Adds 2 u(x0)·eps/sigma, u = s_phi − s_q, whose expectation is zero for every sampler.
    ControlVariate,
}

/// How the two networks take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The paper's algorithm: `score_updates` score updates, then one sampler update.
    #[default]
    Alternating,
    /// Both gradients from one forward and backward pass, in one all-reduce.
    Simultaneous,
}

/// How noise levels are weighted in the score network's loss |sigma·s_phi + eps|².
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreWeight {
    /// 1.
    #[default]
    Uniform,
    /// (sigma² + c²)/c² with c = `sigma_data` (Karras et al. 2022).
    Edm,
}

/// Band of noise levels at one point of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigmaKnot {
    /// Fraction of all iterations, 0 to 1.
    pub at: f64,
    /// Lowest level.
    pub low: f64,
    /// Highest level.
    pub high: f64,
}

/// Noise levels over training: `0.1`, a band `[0.25, 2.5]` (log-uniform), or a path of bands
/// `[{at = 0.0, low = 1.0, high = 1.0}, {at = 0.3, low = 0.3, high = 0.3}]` (geometric in between).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SigmaPath {
    /// One level throughout.
    Constant(f64),
    /// One band throughout.
    Band([f64; 2]),
    /// Bands at points of training.
    Path(Vec<SigmaKnot>),
}

impl std::fmt::Display for SigmaPath {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let level = |low: f64, high: f64| {
            if low == high { format!("{low}") } else { format!("[{low}, {high}]") }
        };
        match self {
            SigmaPath::Constant(sigma) => write!(f, "{sigma}"),
            SigmaPath::Band([low, high]) => write!(f, "[{low}, {high}]"),
            SigmaPath::Path(knots) => {
                let levels: Vec<String> = knots.iter().map(|knot| level(knot.low, knot.high)).collect();
                write!(f, "{}", levels.join(" → "))
            }
        }
    }
}

impl SigmaPath {
    /// The band (low, high) after `fraction` of training.
    pub fn band(&self, fraction: f64) -> (f64, f64) {
        match self {
            SigmaPath::Constant(sigma) => (*sigma, *sigma),
            SigmaPath::Band([low, high]) => (*low, *high),
            SigmaPath::Path(knots) => {
                let after = knots.iter().position(|knot| knot.at > fraction).unwrap_or(knots.len());
                let (left, right) = (knots[after.saturating_sub(1)], knots[after.min(knots.len() - 1)]);
                let length = right.at - left.at;
                let t = if length > 0.0 { ((fraction - left.at) / length).clamp(0.0, 1.0) } else { 0.0 };
                let between = |a: f64, b: f64| (a.ln() * (1.0 - t) + b.ln() * t).exp();
                (between(left.low, right.low), between(left.high, right.high))
            }
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |found: String| {
            ConfigError::Invalid(format!(
                "method.sigma: {found}; write a level > 0, a band [low, high], or a path of {{at, low, high}} with \
                 rising `at` from 0 to 1"
            ))
        };
        let band_holds = |low: f64, high: f64| low > 0.0 && low <= high && high.is_finite();
        match self {
            SigmaPath::Constant(sigma) if !band_holds(*sigma, *sigma) => Err(invalid(format!("{sigma}"))),
            SigmaPath::Band([low, high]) if !band_holds(*low, *high) => {
                Err(invalid(format!("[{low}, {high}]")))
            }
            SigmaPath::Path(knots) => {
                let rising = knots.windows(2).all(|pair| pair[0].at < pair[1].at);
                let inside = knots.iter().all(|k| (0.0..=1.0).contains(&k.at) && band_holds(k.low, k.high));
                if knots.is_empty() || !rising || !inside {
                    Err(invalid(format!("{knots:?}")))
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }
}

/// Another field from some point of training on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Fraction of all iterations, above 0 and below 1.
    pub at: f64,
    /// The field from there on.
    pub kind: FieldKind,
}

/// `[method]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodSection {
    /// The field.
    #[serde(default)]
    pub kind: FieldKind,
    /// Other fields later in training: `[{ at = 0.6, kind = "dft" }]`.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Weight of the Fisher part in `hybrid`.
    #[serde(default = "one")]
    pub fisher_weight: f64,
    /// Of `huber`: a coordinate in which the scores differ by less than huber_scale/sigma counts as in `dft`, one in which they
    /// differ by more counts linearly.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub huber_scale: f64,
    /// alpha of `sid`.
    #[serde(default = "one")]
    pub alpha: f64,
    /// Fraction of training over which the target moves from the sampler's first distribution, N(initial_offset,
    /// initial_scale² I), to q along the geometric path; 0 means q throughout.
    #[serde(default)]
    pub anneal_until: f64,
    /// Weight of the target at the end of the path. A little below 1 leaves a trace of the first distribution, which
    /// keeps far tails from drifting where hardly a sample tells the score network about them.
    #[serde(default = "one")]
    pub anneal_to: f64,
    /// The first distribution's part in that path falls as (1 − t)^anneal_power, t from 0 to 1: above 1 it lets go
    /// of a heavy tail gently.
    #[serde(default = "one")]
    pub anneal_power: f64,
    /// Noise levels, in the units of x.
    pub sigma: SigmaPath,
    /// With `kl`: compare with the target that has the same noise, its score estimated from this many evaluations of
    /// the target around each row; x0 then tends to the target itself. Broad levels see how much of the target lies
    /// where, so modes keep their weights. 0: compare with the target as it is.
    #[serde(default)]
    pub smoothing: usize,
    /// Remedy for the variance.
    #[serde(default)]
    pub variance: Variance,
    /// The field of a row is multiplied by sigma to this power. With levels far apart, 3 for `dft` and 2 for
    /// `hybrid` and `kl` make rows count alike.
    #[serde(default)]
    pub field_power: f64,
    /// Weight of the noise levels in the score network's loss.
    #[serde(default)]
    pub score_weight: ScoreWeight,
    /// c of the `edm` weight: the standard deviation of the data.
    #[serde(default = "default_sigma_data")]
    pub sigma_data: f64,
}

fn default_sigma_data() -> f64 {
    0.33
}
fn one() -> f64 {
    1.0
}
/// Settings that came later are written only where they are used, so that runs from before go on.
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

impl MethodSection {
    /// The field after `fraction` of training.
    pub fn kind_at(&self, fraction: f64) -> FieldKind {
        self.phases.iter().rev().find(|phase| phase.at <= fraction).map_or(self.kind, |phase| phase.kind)
    }

    /// The field by name, or several in their order: `kl → dft`.
    pub fn name(&self) -> String {
        let names: Vec<String> = self.kinds().map(|kind| format!("{kind:?}").to_lowercase()).collect();
        names.join(" → ")
    }

    /// Weight of the target against the sampler's first distribution after `fraction` of training, 0 to 1.
    pub fn target_weight(&self, fraction: f64) -> f64 {
        if fraction >= self.anneal_until {
            return self.anneal_to;
        }
        self.anneal_to * (1.0 - (1.0 - fraction / self.anneal_until).powf(self.anneal_power))
    }

    /// Whether that weight is the same from here on, or nothing as long as the score network learns alone.
    pub fn is_target_at_rest(&self, fraction: f64) -> bool {
        fraction >= self.anneal_until || self.target_weight(fraction) == 0.0
    }

    /// All fields of the run.
    pub fn kinds(&self) -> impl Iterator<Item = FieldKind> {
        std::iter::once(self.kind).chain(self.phases.iter().map(|phase| phase.kind))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.sigma.check()?;
        let rising = self.phases.windows(2).all(|pair| pair[0].at < pair[1].at);
        let inside = self.phases.iter().all(|phase| phase.at > 0.0 && phase.at < 1.0);
        let has_denoising_term = self.kinds().all(|kind| matches!(kind, FieldKind::Dft | FieldKind::Hybrid));
        let variate = self.variance == Variance::ControlVariate;
        require(&[
            (
                rising && inside,
                "method.phases",
                &format!("{:?}", self.phases),
                "a list of {at, kind} with rising `at` between 0 and 1",
            ),
            (
                has_denoising_term || !variate,
                "method.variance",
                &"control_variate",
                "\"plain\" or \"antithetic\": it cancels the denoising term of the squared distance, which only the kinds dft and hybrid have",
            ),
            (
                self.smoothing == 0 || self.kinds().all(|kind| kind == FieldKind::Kl),
                "method.smoothing",
                &self.smoothing,
                "0, or method.kind = \"kl\" in all phases",
            ),
            (
                self.smoothing == 0 || (self.anneal_until == 0.0 && self.anneal_to == 1.0),
                "method.smoothing",
                &self.smoothing,
                "0, or method.anneal_until = 0 and anneal_to = 1: noise levels that fall take the place of that path",
            ),
            (self.smoothing != 1, "method.smoothing", &self.smoothing, "0, or 2 and more: about 64"),
            (self.fisher_weight >= 0.0, "method.fisher_weight", &self.fisher_weight, "0 or more"),
            (self.huber_scale > 0.0, "method.huber_scale", &self.huber_scale, "a number above 0"),
            (self.alpha.is_finite(), "method.alpha", &self.alpha, "a finite number"),
            (
                (0.0..=1.0).contains(&self.anneal_until),
                "method.anneal_until",
                &self.anneal_until,
                "a fraction 0 to 1",
            ),
            (self.anneal_power > 0.0, "method.anneal_power", &self.anneal_power, "a number above 0"),
            (
                self.anneal_to > 0.0 && self.anneal_to <= 1.0,
                "method.anneal_to",
                &self.anneal_to,
                "a number above 0, 1 at most",
            ),
            (self.sigma_data > 0.0, "method.sigma_data", &self.sigma_data, "a number above 0"),
            (self.field_power.is_finite(), "method.field_power", &self.field_power, "a finite number"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_take_over_at_their_fraction_and_the_target_weight_rises_to_one() {
        let mut section: MethodSection = toml::from_str("kind = \"kl\"\nsigma = 0.1").unwrap();
        assert_eq!(section.target_weight(0.0), 1.0);
        section.phases =
            vec![Phase { at: 0.5, kind: FieldKind::Hybrid }, Phase { at: 0.8, kind: FieldKind::Dft }];
        section.anneal_until = 0.4;
        let kinds = [0.0, 0.49, 0.5, 0.79, 0.9].map(|fraction| section.kind_at(fraction));
        use FieldKind::{Dft, Hybrid, Kl};
        assert_eq!(kinds, [Kl, Kl, Hybrid, Hybrid, Dft]);
        let weights = [0.0, 0.1, 0.4, 1.0].map(|fraction| section.target_weight(fraction));
        assert_eq!(weights, [0.0, 0.25, 1.0, 1.0]);
        section.anneal_power = 2.0; // half way, a quarter of the first distribution is left
        assert_eq!(section.target_weight(0.2), 0.75);
        section.anneal_to = 0.5;
        assert_eq!([0.2, 0.4, 1.0].map(|fraction| section.target_weight(fraction)), [0.375, 0.5, 0.5]);
    }

    #[test]
    fn sigma_path_is_geometric_between_knots_and_level_outside() {
        let knot = |at, low| SigmaKnot { at, low, high: 2.0 * low };
        let path = SigmaPath::Path(vec![knot(0.2, 1.0), knot(0.6, 0.01)]);
        assert_eq!(path.band(0.0), (1.0, 2.0));
        let (low, high) = path.band(0.4); // half way: the geometric mean of 1 and 0.01
        assert!((low - 0.1).abs() < 1e-12 && (high - 0.2).abs() < 1e-12);
        assert!((path.band(1.0).0 - 0.01).abs() < 1e-12);
    }
}
