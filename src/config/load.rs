//! Reading a configuration file and applying `--set section.key=value`.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A configuration that cannot be used. The program ends with exit code 2 before any work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML, or a key is unknown or has the wrong type.
    #[error("configuration {origin}: {message}")]
    Malformed {
        /// The file, or the `--set` that is at fault.
        origin: String,
        /// What was wanted and what was found.
        message: String,
    },
    /// The keys are right and their values do not fit each other or the world.
    #[error("{0}")]
    Invalid(String),
}

/// Reads the file at `path` and applies the overrides, each `section.key=value`.
///
/// # Errors
/// If the file cannot be read, or anything in it or in the overrides is not understood.
pub fn load<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
    parse(&text, &path.display().to_string(), overrides)
}

/// As [`load`], from text; `origin` names it in errors.
///
/// # Errors
/// If anything in the text or in the overrides is not understood.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str, overrides: &[String]) -> Result<T, ConfigError> {
    let malformed = |origin: &str, error: &toml::de::Error| ConfigError::Malformed {
        origin: origin.to_string(),
        message: error.to_string().trim_end().to_string(),
    };
    // The text alone first: only then do errors show the line at fault.
    if overrides.is_empty() {
        return toml::from_str(text).map_err(|error| malformed(origin, &error));
    }
    let mut table: Table = toml::from_str(text).map_err(|error| malformed(origin, &error))?;
    for assignment in overrides {
        assign(&mut table, assignment)?;
    }
    let origin = format!("{origin} with --set {}", overrides.join(" --set "));
    T::deserialize(Value::Table(table)).map_err(|error| malformed(&origin, &error))
}

fn assign(table: &mut Table, assignment: &str) -> Result<(), ConfigError> {
    let malformed = |message: &str| ConfigError::Malformed {
        origin: format!("--set {assignment}"),
        message: format!("{message}; write section.key=value, e.g. train.iterations=200"),
    };
    let (key, value) = assignment.split_once('=').ok_or_else(|| malformed("there is no `=`"))?;
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().filter(|part| !part.is_empty()).ok_or_else(|| malformed("the key is empty"))?;
    if parts.is_empty() {
        return Err(malformed("the key has no section"));
    }
    let mut section = table;
    for part in parts {
        section = section
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| malformed(&format!("`{part}` is a value, not a section")))?;
    }
    // A value is TOML where it parses as TOML and a string where it does not: quotes are optional in a shell.
    let parsed =
        toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
    section.insert(last.to_string(), parsed.unwrap_or_else(|| Value::String(value.trim().to_string())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        train: Section,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        iterations: u64,
        #[serde(default)]
        name: String,
        #[serde(default)]
        betas: Vec<f64>,
    }

    fn with(overrides: &[&str]) -> Result<File, ConfigError> {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        parse("[train]\niterations = 5\n", "a.toml", &overrides)
    }

    #[test]
    fn overrides_take_numbers_lists_and_unquoted_strings() {
        let file = with(&["train.iterations=7", "train.betas=[0.0, 0.99]", "train.name=my-run"]).unwrap();
        assert_eq!(
            (file.train.iterations, file.train.name.as_str(), file.train.betas),
            (7, "my-run", vec![0.0, 0.99])
        );
    }

    #[test]
    fn misspelt_keys_are_named_with_the_keys_there_are() {
        let message = with(&["train.iteratons=7"]).unwrap_err().to_string();
        assert!(message.contains("iteratons") && message.contains("iterations"), "{message}");
        let message = parse::<File>("[train]\niteratons = 5\n", "a.toml", &[]).unwrap_err().to_string();
        assert!(message.contains("a.toml") && message.contains("line 2"), "{message}");
    }

    #[test]
    fn overrides_without_section_or_value_say_how_to_write_them() {
        for wrong in ["iterations=3", "train.iterations", "train.=3"] {
            assert!(with(&[wrong]).unwrap_err().to_string().contains("write section.key=value"), "{wrong}");
        }
    }
}
