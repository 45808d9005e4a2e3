//! Feature extractors for the Fréchet distance.

use std::path::Path;

use sha2::{Digest, Sha256};
use tch::{CModule, Device, Tensor, no_grad};

use crate::model::{LeNet, Parameters, WeightsError, WeightsFile};

/// Why an extractor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// Its weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its file is no module that returns features.
    #[error("evaluate.features_file {path} should be a TorchScript module from f32 {wanted}; {found}")]
    Module {
        /// The file.
        path: String,
        /// What it should map.
        wanted: String,
        /// What it does.
        found: String,
    },
}

/// Maps samples to the features that a Fréchet distance is measured on.
#[derive(Debug)]
pub enum Extractor {
    /// The sample itself.
    Identity,
    /// A LeNet-5 trained by `dft fit-features`.
    LeNet {
        /// The network.
        network: LeNet,
        /// Its weights.
        parameters: Box<Parameters>,
        /// SHA-256 of its weights.
        sha256: String,
    },
    /// A TorchScript module `[B, C, H, W] -> [B, F]`.
    TorchScript {
        /// The module.
        module: Box<CModule>,
        /// SHA-256 of its file.
        sha256: String,
    },
}

impl Extractor {
    /// Reads a LeNet-5 written by `dft fit-features`.
    ///
    /// # Errors
    /// If its weights are missing, damaged, or of another network.
    pub fn lenet(path: &Path, device: Device) -> Result<Self, FeaturesError> {
        let file = WeightsFile::load(path)?;
        let network = LeNet::default();
        let parameters = Box::new(Parameters::from_file(network.layout(), &file, device)?);
        Ok(Extractor::LeNet { network, parameters, sha256: file.sha256().to_string() })
    }

    /// Loads a TorchScript extractor and tries it on two images of this shape.
    ///
    /// # Errors
    /// If the file is missing or does not map images to one row of features each.
    pub fn torchscript(path: &Path, shape: &[i64], device: Device) -> Result<Self, FeaturesError> {
        let wrong = |found: String| FeaturesError::Module {
            path: path.display().to_string(),
            wanted: format!("images [B, {shape:?}] to features [B, F]"),
            found,
        };
        let contents = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let sha256 = format!("{:x}", Sha256::digest(&contents));
        let first_line =
            |error: tch::TchError| error.to_string().lines().next().unwrap_or_default().to_string();
        let mut module = CModule::load_on_device(path, device).map_err(|error| wrong(first_line(error)))?;
        module.set_eval();
        let probe = Tensor::zeros([&[2], shape].concat(), (tch::Kind::Float, device));
        let found = no_grad(|| module.forward_ts(&[probe])).map_err(|error| wrong(first_line(error)))?;
        if found.dim() != 2 || found.size()[0] != 2 {
            return Err(wrong(format!("for 2 images it returns {:?}", found.size())));
        }
        Ok(Extractor::TorchScript { module: Box::new(module), sha256 })
    }

    /// Features `[B, F]` of samples `[B, …]`; images are clamped to [0, 1] first.
    pub fn features(&self, samples: &Tensor) -> Tensor {
        no_grad(|| match self {
            Extractor::Identity => samples.flatten(1, -1),
            Extractor::LeNet { network, parameters, .. } => {
                network.features(parameters.frozen(), &samples.clamp(0.0, 1.0))
            }
            Extractor::TorchScript { module, .. } => module
                .forward_ts(&[samples.clamp(0.0, 1.0)])
                .expect("the module was tried when it was loaded"),
        })
    }

    /// Name of the Fréchet distance on these features: `fd_lenet`, or `fd` for any other.
    pub fn metric(&self) -> &'static str {
        match self {
            Extractor::LeNet { .. } => "fd_lenet",
            Extractor::Identity | Extractor::TorchScript { .. } => "fd",
        }
    }

    /// Name and SHA-256 of the extractor: they stand beside every value measured on it.
    pub fn identity(&self) -> (&'static str, &str) {
        match self {
            Extractor::Identity => ("identity", "none"),
            Extractor::LeNet { sha256, .. } => ("LeNet-5, 84 features", sha256),
            Extractor::TorchScript { sha256, .. } => ("TorchScript", sha256),
        }
    }
}
