//! Weights on disk: safetensors with a description and a checksum in the metadata.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

/// Names of the mean `[D]` and the factor L `[D, D]` in a sampler's file, where its samples are y with x = mean + L y.
pub const COORDINATES: [&str; 2] = ["coordinates.mean", "coordinates.factor"];

/// Why a weights file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is not there or cannot be read.
    #[error("cannot read weights {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's; not a `source`, which would be printed a second time.
        reason: std::io::Error,
    },
    /// The file is cut short or altered.
    #[error("weights {path} are damaged: {reason}; fetch or train them again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The file is whole, but of something else.
    #[error("weights {path} belong to another network: {reason}")]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// The contents of a weights file.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
    sha256: String,
}

/// Metadata key of the SHA-256 over all tensors' names and bytes, in order of name.
const CHECKSUM: &str = "sha256";
/// Metadata key of the SHA-256 over all other metadata, in order of key.
const METADATA_CHECKSUM: &str = "metadata_sha256";

impl WeightsFile {
    /// Writes named CPU tensors (f32, f64 or i64) and string metadata, to a temporary name first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(
        path: &Path,
        tensors: &[(String, Tensor)],
        metadata: &[(&str, String)],
    ) -> Result<(), anyhow::Error> {
        let mut blobs: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, tensor)| {
                let shape = tensor.size().iter().map(|&length| length as usize).collect();
                let (dtype, bytes) = bytes_of(tensor);
                (name.clone(), dtype, shape, bytes)
            })
            .collect();
        blobs.sort_by(|a, b| a.0.cmp(&b.0));
        let mut all = BTreeMap::from([("format".to_string(), "dft-1".to_string())]);
        all.extend(metadata.iter().map(|(key, value)| (key.to_string(), value.clone())));
        all.insert(
            CHECKSUM.into(),
            checksum(blobs.iter().map(|(name, _, _, bytes)| (name, bytes.as_slice()))),
        );
        let of_metadata = checksum(all.iter().map(|(key, value)| (key, value.as_bytes())));
        all.insert(METADATA_CHECKSUM.into(), of_metadata);
        let views = blobs
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        let contents = safetensors::serialize(views, Some(all.into_iter().collect()))?;
        write_atomically(path, &contents).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a weights file and verifies its checksum.
    ///
    /// # Errors
    /// If it is missing, cut short, or its contents do not match the checksum.
    pub fn load(path: &Path) -> Result<Self, WeightsError> {
        let contents =
            fs::read(path).map_err(|reason| WeightsError::Unreadable { path: path.to_path_buf(), reason })?;
        Self::parse(path, &contents)
    }

    fn parse(path: &Path, contents: &[u8]) -> Result<Self, WeightsError> {
        let damaged = |reason: String| WeightsError::Damaged { path: path.to_path_buf(), reason };
        let file = SafeTensors::deserialize(contents).map_err(|error| damaged(error.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(contents).map_err(|error| damaged(error.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let mut views = file.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        let found = checksum(views.iter().map(|(name, view)| (name, view.data())));
        let sorted: BTreeMap<_, _> = metadata.iter().filter(|(key, _)| *key != METADATA_CHECKSUM).collect();
        let found_metadata = checksum(sorted.iter().map(|(key, value)| (*key, value.as_bytes())));
        for (key, what, found) in
            [(CHECKSUM, "tensors", &found), (METADATA_CHECKSUM, "metadata", &found_metadata)]
        {
            match metadata.get(key) {
                Some(wanted) if wanted == found => {}
                Some(wanted) => {
                    return Err(damaged(format!(
                        "the SHA-256 of its {what} should be {wanted} and is {found}"
                    )));
                }
                None => {
                    return Err(damaged(format!("its metadata have no {key}, which this program writes")));
                }
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in &views {
            let tensor =
                tensor_of(view).ok_or_else(|| damaged(format!("`{name}` has kind {:?}", view.dtype())))?;
            tensors.insert(name.clone(), tensor);
        }
        Ok(WeightsFile { path: path.to_path_buf(), tensors, metadata, sha256: found })
    }

    /// SHA-256 over the tensors' names and bytes: names these weights wherever they are used.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// The tensor of this name, on the CPU.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<&Tensor, WeightsError> {
        match self.tensors.get(name) {
            Some(tensor) if tensor.size() == shape => Ok(tensor),
            Some(tensor) => {
                Err(self.other_network(format!("`{name}` should be {shape:?} and is {:?}", tensor.size())))
            }
            None => Err(self.other_network(format!("`{name}` {shape:?} is missing"))),
        }
    }

    /// A metadata entry.
    ///
    /// # Errors
    /// If the file does not have it: it was not written by this program, or is of something else.
    pub fn metadata(&self, key: &str) -> Result<&str, WeightsError> {
        let missing = || self.other_network(format!("its metadata have no `{key}`"));
        self.metadata.get(key).map(String::as_str).ok_or_else(missing)
    }

    /// A metadata entry that holds JSON.
    ///
    /// # Errors
    /// If the file does not have it, or it holds something else.
    pub fn described<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, WeightsError> {
        serde_json::from_str(self.metadata(key)?)
            .map_err(|error| self.other_network(format!("its `{key}` does not fit: {error}")))
    }

    /// The error that says these weights are whole but of something else.
    pub fn other_network(&self, reason: String) -> WeightsError {
        WeightsError::OtherNetwork { path: self.path.clone(), reason }
    }
}

/// Writes a file to a temporary name, syncs it to disk and renames it, so that a reader sees the old
/// contents or the new, never half of either.
///
/// # Errors
/// If the directory cannot be written or the disk is full; the temporary file is removed.
pub fn write_atomically(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    replace_atomically(path, |temporary| fs::write(temporary, contents))
}

/// As [`write_atomically`] for a file that `make` brings to the temporary name it is given.
///
/// # Errors
/// If `make` fails, or the file cannot be synced or renamed; the temporary one is then removed.
pub fn replace_atomically(
    path: &Path,
    make: impl FnOnce(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = Path::new(&temporary);
    let write = || {
        make(temporary)?;
        File::open(temporary)?.sync_all()?;
        fs::rename(temporary, path)?;
        // The rename itself lasts only once the directory is on disk.
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(temporary);
    })
}

fn checksum<'a>(tensors: impl Iterator<Item = (&'a String, &'a [u8])>) -> String {
    let mut digest = Sha256::new();
    for (name, bytes) in tensors {
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(bytes);
    }
    format!("{:x}", digest.finalize())
}

fn bytes_of(tensor: &Tensor) -> (Dtype, Vec<u8>) {
    let flat = tensor.reshape([-1]);
    match tensor.kind() {
        Kind::Double => (
            Dtype::F64,
            bytemuck::cast_slice(&Vec::<f64>::try_from(&flat).expect("kind was checked")).to_vec(),
        ),
        Kind::Int64 => (
            Dtype::I64,
            bytemuck::cast_slice(&Vec::<i64>::try_from(&flat).expect("kind was checked")).to_vec(),
        ),
        _ => {
            let values = Vec::<f32>::try_from(&flat.to_kind(Kind::Float)).expect("kind was converted");
            (Dtype::F32, bytemuck::cast_slice(&values).to_vec())
        }
    }
}

fn tensor_of(view: &TensorView) -> Option<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        _ => return None,
    };
    let shape: Vec<i64> = view.shape().iter().map(|&length| length as i64).collect();
    Some(Tensor::from_data_size(view.data(), &shape, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// A resumed run goes on with the very numbers it stopped with.
    #[test]
    fn numbers_described_in_a_file_come_back_with_every_bit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights.safetensors");
        let numbers: Vec<f64> =
            (1..1000).map(|i| (f64::from(i) * 0.731).sin() * 10_f64.powi(i % 40 - 20)).collect();
        let metadata: Vec<(String, String)> =
            numbers.iter().enumerate().map(|(i, number)| (i.to_string(), format!("{number:e}"))).collect();
        let metadata: Vec<(&str, String)> =
            metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        WeightsFile::save(&path, &[], &metadata).unwrap();
        let file = WeightsFile::load(&path).unwrap();
        for (i, number) in numbers.iter().enumerate() {
            let found: f64 = file.described(&i.to_string()).unwrap();
            assert_eq!(found.to_bits(), number.to_bits(), "{number:e}");
        }
    }

    /// Safetensors has no checksum of its own; ours cover names, values and metadata, and its header's rules the rest.
    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights.safetensors");
        let tensors = [("weight".to_string(), Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]))];
        WeightsFile::save(&path, &tensors, &[("iteration", "7".to_string())]).unwrap();
        let whole = fs::read(&path).unwrap();
        assert!(WeightsFile::load(&path).is_ok());
        for bit in 0..whole.len() * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let Ok(found) = WeightsFile::parse(&path, &altered) else { continue };
            // Such as a space for another blank between two words of the header.
            assert_eq!(found.tensor("weight", &[2, 3]).unwrap(), &tensors[0].1, "bit {bit}");
            assert_eq!(found.metadata("iteration").unwrap(), "7", "bit {bit}");
        }
        for length in 0..whole.len() {
            let cut = WeightsFile::parse(&path, &whole[..length]);
            assert!(matches!(cut, Err(WeightsError::Damaged { .. })), "{length} bytes");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_with_the_cause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("absent/weights.safetensors");
        let error = WeightsFile::save(&path, &[], &[]).unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.contains("absent/weights.safetensors") && message.contains("No such file"),
            "{message}"
        );
    }
}
