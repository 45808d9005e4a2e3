//! Settings of the MCMC and particle baselines.

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::run::require;

/// One baseline: a `kind` and the settings it has, each with a default, e.g. `{kind = "hmc", leapfrog = 5}`.
///
/// Step sizes of all Langevin kinds are h in x ← x + h·s(x) + sqrt(2h)·n; Welling and Teh's epsilon is 2h.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum McmcSection {
    /// Unadjusted Langevin.
    Ula(UlaSettings),
    /// Langevin with falling steps, and gradient noise in the place of mini-batches.
    Sgld(SgldSettings),
    /// Metropolis-adjusted Langevin.
    Mala(MalaSettings),
    /// Hamiltonian Monte Carlo with a fixed number of leapfrog steps.
    Hmc(HmcSettings),
    /// Stein variational gradient descent: particles that repel one another, no chains.
    Svgd(SvgdSettings),
    /// The No-U-Turn Sampler of the crate `nuts-rs`, one chain after the other on the host.
    Nuts(NutsSettings),
}

/// A step size, or several for the caller to choose from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StepSizes {
    /// This one.
    One(f64),
    /// Candidates.
    Several(Vec<f64>),
}

impl StepSizes {
    /// All of them, in the order written.
    pub fn values(&self) -> &[f64] {
        match self {
            StepSizes::One(value) => std::slice::from_ref(value),
            StepSizes::Several(values) => values,
        }
    }
}

/// Settings of `ula`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UlaSettings {
    /// h, or candidates.
    pub step_size: StepSizes,
}

impl Default for UlaSettings {
    fn default() -> Self {
        UlaSettings { step_size: StepSizes::One(0.05) }
    }
}

/// Settings of `sgld`: h_t = step_size·(1 + t/delay)^(−decay), which is a(b + t)^(−gamma) of Welling and Teh
/// (2011) with b = delay, gamma = decay and a = 2·step_size·b^gamma.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SgldSettings {
    /// h of the first step, or candidates.
    pub step_size: StepSizes,
    /// Steps after which the fall sets in.
    pub delay: f64,
    /// Power of the fall; the theory wants (0.5, 1].
    pub decay: f64,
    /// Standard deviation of Gaussian noise added to each component of the score. The targets here have exact
    /// gradients: 0 is Langevin with falling steps, and more stands in for mini-batches that nobody drew.
    pub gradient_noise: f64,
}

impl Default for SgldSettings {
    fn default() -> Self {
        // 0.55 is the power of the experiments of Welling and Teh (2011).
        SgldSettings { step_size: StepSizes::One(0.05), delay: 1000.0, decay: 0.55, gradient_noise: 0.0 }
    }
}

/// Settings of `mala`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MalaSettings {
    /// h that the adaptation starts from.
    pub step_size: f64,
    /// Steps over which h is adapted; then it stays. 0 means that `step_size` is used throughout.
    pub adaptation_steps: u64,
    /// Mean acceptance that the adaptation aims at.
    pub target_acceptance: f64,
}

impl Default for MalaSettings {
    fn default() -> Self {
        // 0.574: Roberts and Rosenthal (1998), optimal in high dimension.
        MalaSettings { step_size: 0.1, adaptation_steps: 200, target_acceptance: 0.574 }
    }
}

/// Settings of `hmc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HmcSettings {
    /// Leapfrog step that the adaptation starts from.
    pub step_size: f64,
    /// Leapfrog steps of a transition.
    pub leapfrog: u64,
    /// Each transition of each chain scales the step by a factor uniform in [1 − jitter, 1 + jitter), against
    /// trajectories that close on themselves (Neal 2011).
    pub jitter: f64,
    /// Transitions over which the step is adapted; then it stays. 0 means that `step_size` is used throughout.
    pub adaptation_steps: u64,
    /// Mean acceptance that the adaptation aims at.
    pub target_acceptance: f64,
}

impl Default for HmcSettings {
    fn default() -> Self {
        // 0.8: the default of Stan; 0.651 is optimal in high dimension (Beskos et al. 2013).
        HmcSettings {
            step_size: 0.1,
            leapfrog: 10,
            jitter: 0.2,
            adaptation_steps: 100,
            target_acceptance: 0.8,
        }
    }
}

/// Settings of `svgd`. The particles are as many as the starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SvgdSettings {
    /// Step of AdaGrad, or candidates.
    pub step_size: StepSizes,
    /// Share of the old in AdaGrad's running mean of squares.
    pub memory: f64,
    /// What AdaGrad adds to the root of that mean.
    pub fudge: f64,
}

impl Default for SvgdSettings {
    fn default() -> Self {
        // memory and fudge: the implementation published by Liu and Wang (2016).
        SvgdSettings { step_size: StepSizes::One(0.1), memory: 0.9, fudge: 1e-6 }
    }
}

/// Settings of `nuts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NutsSettings {
    /// Chains; each needs a start of its own.
    pub chains: usize,
    /// Draws of each chain over which step size and diagonal mass matrix are tuned; none of them is a result.
    pub tuning_draws: u64,
    /// A trajectory has fewer than 2^max_depth leapfrog steps.
    pub max_depth: u64,
    /// Mean acceptance that the tuning aims at.
    pub target_acceptance: f64,
}

impl Default for NutsSettings {
    fn default() -> Self {
        // 400 draws and depth 10 are the defaults of nuts-rs; 0.8 is that of nuts-rs and of Stan.
        NutsSettings { chains: 4, tuning_draws: 400, max_depth: 10, target_acceptance: 0.8 }
    }
}

impl McmcSection {
    /// The kind as configurations write it.
    pub fn name(&self) -> &'static str {
        match self {
            McmcSection::Ula(_) => "ula",
            McmcSection::Sgld(_) => "sgld",
            McmcSection::Mala(_) => "mala",
            McmcSection::Hmc(_) => "hmc",
            McmcSection::Svgd(_) => "svgd",
            McmcSection::Nuts(_) => "nuts",
        }
    }

    /// Whether estimates of the score serve it: a chain that accepts by the density needs the exact one.
    pub fn takes_estimates(&self) -> bool {
        matches!(self, McmcSection::Ula(_) | McmcSection::Sgld(_) | McmcSection::Svgd(_))
    }

    /// The same baseline once for each of its step sizes, in the order written.
    pub fn candidates(&self) -> Vec<McmcSection> {
        let with_each = |sizes: &StepSizes, make: &dyn Fn(StepSizes) -> McmcSection| {
            sizes.values().iter().map(|&size| make(StepSizes::One(size))).collect()
        };
        match self {
            McmcSection::Ula(s) => {
                with_each(&s.step_size, &|step_size| McmcSection::Ula(UlaSettings { step_size }))
            }
            McmcSection::Sgld(s) => with_each(&s.step_size, &|step_size| {
                McmcSection::Sgld(SgldSettings { step_size, ..s.clone() })
            }),
            McmcSection::Svgd(s) => with_each(&s.step_size, &|step_size| {
                McmcSection::Svgd(SvgdSettings { step_size, ..s.clone() })
            }),
            McmcSection::Mala(_) | McmcSection::Hmc(_) | McmcSection::Nuts(_) => vec![self.clone()],
        }
    }

    /// Checks every setting; `key` is where the section stands, for the message.
    ///
    /// # Errors
    /// The first value that does not fit, and what it should be.
    pub fn check(&self, key: &str) -> Result<(), ConfigError> {
        let is_positive = |value: f64| value > 0.0 && value.is_finite();
        let is_rate = |value: f64| value > 0.0 && value < 1.0;
        let step_size = format!("{key}.step_size");
        let acceptance = format!("{key}.target_acceptance");
        let between = "a number between 0 and 1";
        let require_sizes = |sizes: &StepSizes| {
            let values = sizes.values();
            let hold = !values.is_empty() && values.iter().all(|&value| is_positive(value));
            require(&[(hold, &step_size, &format!("{values:?}"), "a number above 0, or a list of them")])
        };
        let require_size = |size: f64| require(&[(is_positive(size), &step_size, &size, "a number above 0")]);
        match self {
            McmcSection::Ula(s) => require_sizes(&s.step_size),
            McmcSection::Sgld(s) => {
                require_sizes(&s.step_size)?;
                let noise = s.gradient_noise;
                require(&[
                    (is_positive(s.delay), &format!("{key}.delay"), &s.delay, "a number above 0"),
                    ((0.0..=1.0).contains(&s.decay), &format!("{key}.decay"), &s.decay, "a power 0 to 1"),
                    (
                        noise >= 0.0 && noise.is_finite(),
                        &format!("{key}.gradient_noise"),
                        &noise,
                        "0 or more",
                    ),
                ])
            }
            McmcSection::Mala(s) => {
                require_size(s.step_size)?;
                require(&[(is_rate(s.target_acceptance), &acceptance, &s.target_acceptance, between)])
            }
            McmcSection::Hmc(s) => {
                require_size(s.step_size)?;
                require(&[
                    (s.leapfrog > 0, &format!("{key}.leapfrog"), &s.leapfrog, "1 or more"),
                    (
                        (0.0..1.0).contains(&s.jitter),
                        &format!("{key}.jitter"),
                        &s.jitter,
                        "0 or more and below 1",
                    ),
                    (is_rate(s.target_acceptance), &acceptance, &s.target_acceptance, between),
                ])
            }
            McmcSection::Svgd(s) => {
                require_sizes(&s.step_size)?;
                require(&[
                    (
                        (0.0..1.0).contains(&s.memory),
                        &format!("{key}.memory"),
                        &s.memory,
                        "0 or more and below 1",
                    ),
                    (is_positive(s.fudge), &format!("{key}.fudge"), &s.fudge, "a number above 0"),
                ])
            }
            McmcSection::Nuts(s) => require(&[
                (s.chains > 0, &format!("{key}.chains"), &s.chains, "1 or more"),
                (s.tuning_draws > 0, &format!("{key}.tuning_draws"), &s.tuning_draws, "1 or more"),
                ((1..=20).contains(&s.max_depth), &format!("{key}.max_depth"), &s.max_depth, "1 to 20"),
                (is_rate(s.target_acceptance), &acceptance, &s.target_acceptance, between),
            ]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct File {
        mcmc: Vec<McmcSection>,
    }

    fn read(text: &str) -> Result<McmcSection, toml::de::Error> {
        toml::from_str::<File>(&format!("mcmc = [{text}]")).map(|mut file| file.mcmc.remove(0))
    }

    #[test]
    fn a_kind_alone_has_a_default_for_every_setting() {
        for kind in ["ula", "sgld", "mala", "hmc", "svgd", "nuts"] {
            let section = read(&format!("{{kind = \"{kind}\"}}")).unwrap();
            assert_eq!(section.name(), kind);
            section.check("mcmc").unwrap();
            let text = toml::to_string(&File { mcmc: vec![section.clone()] }).unwrap();
            assert_eq!(toml::from_str::<File>(&text).unwrap().mcmc, [section]);
        }
    }

    #[test]
    fn a_list_of_step_sizes_makes_one_candidate_each_that_keeps_the_rest() {
        let section = read("{kind = \"sgld\", step_size = [0.1, 0.3], decay = 0.6}").unwrap();
        let expected = |size| {
            McmcSection::Sgld(SgldSettings {
                step_size: StepSizes::One(size),
                decay: 0.6,
                ..SgldSettings::default()
            })
        };
        assert_eq!(section.candidates(), [expected(0.1), expected(0.3)]);
        let one = read("{kind = \"mala\"}").unwrap();
        assert_eq!(one.candidates(), [one]);
    }

    #[test]
    fn settings_of_another_kind_are_refused() {
        let message = read("{kind = \"ula\", leapfrog = 3}").unwrap_err().to_string();
        assert!(message.contains("leapfrog") && message.contains("step_size"), "{message}");
        assert!(read("{kind = \"gibbs\"}").unwrap_err().to_string().contains("gibbs"));
    }

    #[test]
    fn values_out_of_range_are_named_with_what_to_choose() {
        for (text, words) in [
            ("{kind = \"ula\", step_size = []}", ["mcmc.step_size = []", "above 0"]),
            ("{kind = \"ula\", step_size = [0.1, -1.0]}", ["mcmc.step_size = [0.1, -1.0]", "above 0"]),
            ("{kind = \"sgld\", decay = 2.0}", ["mcmc.decay = 2", "0 to 1"]),
            ("{kind = \"sgld\", gradient_noise = -1.0}", ["mcmc.gradient_noise = -1", "0 or more"]),
            ("{kind = \"mala\", target_acceptance = 1.0}", ["mcmc.target_acceptance = 1", "between 0 and 1"]),
            ("{kind = \"hmc\", leapfrog = 0}", ["mcmc.leapfrog = 0", "1 or more"]),
            ("{kind = \"hmc\", jitter = 1.0}", ["mcmc.jitter = 1", "below 1"]),
            ("{kind = \"svgd\", fudge = 0.0}", ["mcmc.fudge = 0", "above 0"]),
            ("{kind = \"nuts\", chains = 0}", ["mcmc.chains = 0", "1 or more"]),
        ] {
            let message = read(text).unwrap().check("mcmc").unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
        }
    }
}
