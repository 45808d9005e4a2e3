//! A run file as its readers see it: plots, `dft compare` and tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hdf5::{Dataset, File};
use tch::Tensor;

use super::file::open_for_reading;
use super::layout::sample_set_iteration;
use super::series::leaf;
use super::{Attribute, array};

/// An open run file, read only. It sees what the last flush of the writer left.
pub struct RunReader {
    file: File,
    path: PathBuf,
}

impl RunReader {
    /// Opens a run file, whether its writer is still running, has finished or was killed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        Ok(Self { file: open_for_reading(&path)?, path })
    }

    /// Attributes of `/`, by name.
    pub fn attributes(&self) -> Result<BTreeMap<String, Attribute>> {
        let mut attributes = BTreeMap::new();
        for name in self.file.attr_names().with_context(|| self.context("attributes"))? {
            if let Some(value) = array::attribute(&self.file, &name)? {
                attributes.insert(name, value);
            }
        }
        Ok(attributes)
    }

    /// Names of the growing one-dimensional series of a group; empty when there is no such group.
    pub fn columns(&self, group: &str) -> Result<Vec<String>> {
        if !self.file.link_exists(group) {
            return Ok(Vec::new());
        }
        let datasets = self.file.group(group).and_then(|group| group.datasets());
        let datasets = datasets.with_context(|| self.context(group))?;
        let series = datasets.iter().filter(|dataset| dataset.ndim() == 1 && dataset.is_resizable());
        Ok(series.map(leaf).collect())
    }

    /// Values of one series, integers as floats.
    pub fn series(&self, group: &str, name: &str) -> Result<Vec<f64>> {
        let path = format!("{group}/{name}");
        self.dataset(&path)?.read_raw().with_context(|| self.context(&path))
    }

    /// Units of a dataset, for the axis of a plot.
    pub fn units(&self, path: &str) -> Result<String> {
        let dataset = self.dataset(path)?;
        Ok(match array::attribute(&dataset, "units")? {
            Some(Attribute::Text(units)) => units,
            _ => String::new(),
        })
    }

    /// The last sample set, with its iteration; `None` when none was written.
    pub fn samples(&self) -> Result<Option<(u64, Tensor)>> {
        if !self.file.link_exists("samples") {
            return Ok(None);
        }
        let names = self.file.group("samples").and_then(|group| group.member_names());
        let names = names.with_context(|| self.context("samples"))?;
        let Some(last) = names.iter().filter_map(|name| Some((sample_set_iteration(name)?, name))).max()
        else {
            return Ok(None);
        };
        Ok(Some((last.0, self.array(&format!("samples/{}", last.1))?)))
    }

    /// Any dataset as a tensor: f32 stays f32, other floats become f64, integers i64.
    pub fn array(&self, path: &str) -> Result<Tensor> {
        array::read_tensor(&self.dataset(path)?).with_context(|| self.context(path))
    }

    fn dataset(&self, path: &str) -> Result<Dataset> {
        self.file.dataset(path).with_context(|| self.context(path))
    }

    fn context(&self, path: &str) -> String {
        format!("reading {path} of {}", self.path.display())
    }
}
