//! Feature extractors for the Fréchet distance.

use std::path::Path;

use sha2::{Digest, Sha256};
use tch::{CModule, Device, Kind, TchError, Tensor, no_grad};

use crate::model::{LeNet, Parameters, WeightsError, WeightsFile};
use crate::target::last_line;

/// Real images that an extractor is tried on: few, as a large network takes a second for each on a CPU.
const TRIED: i64 = 16;

/// Largest difference between features of an image alone and in a batch, relative to the largest feature: rounding,
/// also in TF32, is below, and batch statistics are above.
const ROWS_TOLERANCE: f64 = 0.02;

/// Why an extractor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// Its weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its file is no module that returns features.
    #[error(
        "evaluate.features = \"{path}\" should be a TorchScript module from f32 {wanted}; {found}; {remedy}"
    )]
    Module {
        /// The file.
        path: String,
        /// What it should map.
        wanted: String,
        /// What it does.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It takes images of another size.
    #[error(
        "the extractor {name} takes images {taken:?} and the real images are {found:?}; choose another evaluate.features"
    )]
    Size {
        /// Name of the extractor.
        name: &'static str,
        /// The shape that it takes.
        taken: Vec<i64>,
        /// The shape of the real images.
        found: Vec<i64>,
    },
    /// Its features of real images cannot be measured on.
    #[error("the extractor {name} gives {found}; {remedy}")]
    Features {
        /// Name of the extractor.
        name: &'static str,
        /// What is wrong with them.
        found: String,
        /// What to do.
        remedy: &'static str,
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

    /// Loads a TorchScript extractor and tries it on one and on two images of this shape.
    ///
    /// # Errors
    /// If the file is missing or does not map images to one row of features each.
    pub fn torchscript(path: &Path, shape: &[i64], device: Device) -> Result<Self, FeaturesError> {
        let wrong = |found: String, remedy: &'static str| FeaturesError::Module {
            path: path.display().to_string(),
            wanted: format!("images {} to features [B, F]", batch_of(shape)),
            found,
            remedy,
        };
        if !path.is_file() {
            return Err(wrong("no such file".into(), "give its path from the directory that dft runs in"));
        }
        const SAVE: &str =
            "write one with torch.jit.script(module).save(file); weights alone, a state_dict, are no module";
        let contents = std::fs::read(path).map_err(|error| wrong(error.to_string(), "see to the file"))?;
        let sha256 = format!("{:x}", Sha256::digest(&contents));
        let no_module = |error: TchError| wrong(format!("it holds none: {}", last_line(&error)), SAVE);
        let mut module = CModule::load_on_device(path, device).map_err(no_module)?;
        module.f_set_eval().map_err(no_module)?;
        for rows in [1, 2] {
            let probe = Tensor::zeros([&[rows], shape].concat(), (Kind::Float, device));
            let found = no_grad(|| module.forward_ts(&[probe])).map_err(|error| {
                wrong(
                    format!("for images {shape:?} it fails: {}", last_line(&error)),
                    "resize images and repeat channels inside the module, as docs/inception.md does, or make it for \
                     images of this shape",
                )
            })?;
            let is_matrix = found.dim() == 2 && found.size()[0] == rows && found.size()[1] > 0;
            if !is_matrix || !matches!(found.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
            {
                return Err(wrong(
                    format!(
                        "for [{rows}, {}] it returns {:?} {:?}",
                        inner(shape),
                        found.kind(),
                        found.size()
                    ),
                    "return one row of real numbers for each image: mean(dim=(2, 3)) or flatten(1) of the last maps",
                ));
            }
        }
        Ok(Extractor::TorchScript { module: Box::new(module), sha256 })
    }

    /// Tries the extractor on the first of the real samples `[N, …]` and returns the number of features, before a long
    /// measurement would find what is wrong.
    ///
    /// # Errors
    /// If it takes other samples, or its features are not finite, or depend on the rest of the batch.
    pub fn check(&self, real: &Tensor, device: Device) -> Result<i64, FeaturesError> {
        let name = self.identity().0;
        let shape = &real.size()[1..];
        if matches!(self, Extractor::LeNet { .. }) && shape != [1, 28, 28] {
            return Err(FeaturesError::Size { name, taken: vec![1, 28, 28], found: shape.to_vec() });
        }
        let wrong = |found: String, remedy| Err(FeaturesError::Features { name, found, remedy });
        let images = real.narrow(0, 0, TRIED.min(real.size()[0])).to_device(device);
        let features = self.features(&images).to_kind(Kind::Double);
        let rows = features.size()[0];
        let finite = features.isfinite().all_dim(1, false).sum(Kind::Int64).int64_value(&[]);
        if finite < rows {
            return wrong(
                format!("features that are not finite for {} of the first {rows} real images", rows - finite),
                "look for a division by 0, a logarithm, or weights that did not load in it",
            );
        }
        let alone = self.features(&images.narrow(0, 0, 1)).to_kind(Kind::Double);
        let difference = (alone - features.narrow(0, 0, 1)).abs().max().double_value(&[]);
        let largest = features.abs().max().double_value(&[]);
        if difference > ROWS_TOLERANCE * largest {
            return wrong(
                format!(
                    "other features for an image alone than in a batch of {rows}: they differ by {difference:.3}, the \
                     largest is {largest:.3}"
                ),
                "use running statistics in place of those of the batch (eval() before saving), and no random numbers",
            );
        }
        Ok(features.size()[1])
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

    /// Class probabilities `[B, C]` of samples with these features `[B, F]`, if the extractor is a classifier's.
    pub fn probabilities(&self, features: &Tensor) -> Option<Tensor> {
        match self {
            Extractor::LeNet { network, parameters, .. } => {
                Some(no_grad(|| network.logits(parameters.frozen(), features).softmax(1, Kind::Float)))
            }
            Extractor::Identity | Extractor::TorchScript { .. } => None,
        }
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

/// `[B, C, H, W]` with the numbers of a sample's shape in it.
fn batch_of(shape: &[i64]) -> String {
    format!("[B, {}]", inner(shape))
}

/// A shape without its brackets.
fn inner(shape: &[i64]) -> String {
    shape.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
