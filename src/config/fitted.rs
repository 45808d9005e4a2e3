//! Settings of the Gaussians that are fitted to a target as baselines.

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::run::require;

/// A Gaussian fitted to the target: a `kind` and the settings it has, each with a default, e.g.
/// `{kind = "mean_field", iterations = 2000}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FittedSection {
    // Braces, because serde would let unknown keys of a unit variant pass.
    /// The Gaussian at the mode, with the curvature that the log-density has there; nothing to set.
    Laplace {},
    /// The Gaussian with a diagonal covariance that is nearest in KL(q | target), by stochastic variational inference.
    MeanField(MeanFieldSettings),
}

/// Settings of `mean_field`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeanFieldSettings {
    /// Updates.
    pub iterations: u64,
    /// Points at which an update evaluates the target's score; even, since they come in antithetic pairs.
    pub samples: i64,
    /// Adam's step size, in units of the deviations that the fit starts with.
    pub learning_rate: f64,
    /// Fraction of the iterations after which the step size falls along a cosine to zero, and iterates are averaged.
    pub cosine_from: f64,
}

impl Default for MeanFieldSettings {
    fn default() -> Self {
        MeanFieldSettings { iterations: 4000, samples: 16, learning_rate: 0.05, cosine_from: 0.5 }
    }
}

impl FittedSection {
    /// The kind as configurations write it.
    pub fn name(&self) -> &'static str {
        match self {
            FittedSection::Laplace {} => "laplace",
            FittedSection::MeanField(_) => "mean_field",
        }
    }

    /// Checks every setting; `key` is where the section stands, for the message.
    ///
    /// # Errors
    /// The first value that does not fit, and what it should be.
    pub fn check(&self, key: &str) -> Result<(), ConfigError> {
        match self {
            FittedSection::Laplace {} => Ok(()),
            FittedSection::MeanField(settings) => settings.check(key),
        }
    }
}

impl MeanFieldSettings {
    /// Checks every setting; `key` is where they stand, for the message.
    ///
    /// # Errors
    /// The first value that does not fit, and what it should be.
    pub fn check(&self, key: &str) -> Result<(), ConfigError> {
        let is_even = self.samples > 0 && self.samples % 2 == 0;
        let is_step = self.learning_rate > 0.0 && self.learning_rate.is_finite();
        require(&[
            (self.iterations > 0, &format!("{key}.iterations"), &self.iterations, "1 or more"),
            (is_even, &format!("{key}.samples"), &self.samples, "an even number, 2 or more"),
            (is_step, &format!("{key}.learning_rate"), &self.learning_rate, "a number above 0"),
            (
                (0.0..=1.0).contains(&self.cosine_from),
                &format!("{key}.cosine_from"),
                &self.cosine_from,
                "a fraction 0 to 1",
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct File {
        fitted: FittedSection,
    }

    fn read(text: &str) -> Result<FittedSection, toml::de::Error> {
        toml::from_str::<File>(&format!("fitted = {text}")).map(|file| file.fitted)
    }

    #[test]
    fn a_kind_alone_has_a_default_for_every_setting() {
        for kind in ["laplace", "mean_field"] {
            let section = read(&format!("{{kind = \"{kind}\"}}")).unwrap();
            assert_eq!(section.name(), kind);
            section.check("fitted").unwrap();
            let text = toml::to_string(&File { fitted: section.clone() }).unwrap();
            assert_eq!(toml::from_str::<File>(&text).unwrap().fitted, section);
        }
    }

    #[test]
    fn keys_that_a_kind_does_not_have_are_refused() {
        for kind in ["laplace", "mean_field"] {
            let message = read(&format!("{{kind = \"{kind}\", iteration = 3}}")).unwrap_err().to_string();
            assert!(message.contains("iteration"), "{message}");
        }
        // A setting of the other kind, too.
        assert!(read("{kind = \"laplace\", iterations = 3}").is_err());
    }

    #[test]
    fn values_out_of_range_are_named_with_what_to_choose() {
        for (setting, words) in [
            ("iterations = 0", ["fitted.iterations = 0", "1 or more"]),
            ("samples = 5", ["fitted.samples = 5", "even"]),
            ("samples = 0", ["fitted.samples = 0", "even"]),
            ("samples = -2", ["fitted.samples = -2", "even"]),
            ("learning_rate = 0.0", ["fitted.learning_rate = 0", "above 0"]),
            ("learning_rate = inf", ["fitted.learning_rate = inf", "above 0"]),
            ("cosine_from = 1.5", ["fitted.cosine_from = 1.5", "0 to 1"]),
        ] {
            let section = read(&format!("{{kind = \"mean_field\", {setting}}}")).unwrap();
            let message = section.check("fitted").unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{setting}: {message}");
        }
    }
}
