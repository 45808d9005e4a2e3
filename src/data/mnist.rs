//! MNIST, and data sets in its format, as tensors.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};

use super::dataset::{DataFile, Dataset};
use super::{idx, verify};

/// Bytes below which a file is hashed a second time to see what it is: labels, not images.
const SMALL: u64 = 1 << 20;

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The 60,000 examples to fit on.
    Train,
    /// The 10,000 examples to test on.
    Test,
}

/// The images and labels of both splits, in memory as bytes.
pub struct Mnist {
    train: Examples,
    test: Examples,
}

struct Examples {
    /// u8 `[N, 1, 28, 28]`.
    pixels: Tensor,
    /// i64 `[N]`.
    labels: Tensor,
}

impl Mnist {
    /// Loads MNIST or Fashion-MNIST, whichever lies there, from the directory of its four files and verifies them.
    ///
    /// # Errors
    /// When a file is absent, truncated or altered; the message says what was wanted and found.
    pub fn load(directory: &Path) -> Result<Self> {
        Self::load_as(kind_of(directory), directory)
    }

    /// Loads a data set in the format of MNIST, see [`Mnist::load`].
    pub fn load_as(dataset: Dataset, directory: &Path) -> Result<Self> {
        let [train_images, train_labels, test_images, test_labels] = dataset.files() else {
            bail!("{} is not a data set of images in the format of MNIST", dataset.name());
        };
        let remedy = format!("run `dft data {}`", dataset.name());
        let examples = |images: &DataFile, labels: &DataFile| -> Result<Examples> {
            let examples = Examples {
                pixels: load_pixels(directory, images, &remedy)?,
                labels: load_labels(directory, labels, &remedy)?,
            };
            ensure!(
                examples.pixels.size()[0] == examples.labels.size()[0],
                "{} images and {} labels",
                examples.pixels.size()[0],
                examples.labels.size()[0]
            );
            Ok(examples)
        };
        Ok(Self { train: examples(train_images, train_labels)?, test: examples(test_images, test_labels)? })
    }

    /// Images f32 `[N, 1, 28, 28]`, scaled from bytes to `[0, 1]`; a new tensor at every call.
    pub fn images(&self, split: Split) -> Tensor {
        self.pixels(split).to_kind(Kind::Float) / 255.0
    }

    /// Images as they are stored, u8 `[N, 1, 28, 28]`.
    pub fn pixels(&self, split: Split) -> Tensor {
        self.examples(split).pixels.shallow_clone()
    }

    /// Labels i64 `[N]`, 0 to 9.
    pub fn labels(&self, split: Split) -> Tensor {
        self.examples(split).labels.shallow_clone()
    }

    fn examples(&self, split: Split) -> &Examples {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }
}

/// The data set in a directory, by one of its small files; by the directory's name where they are of neither.
fn kind_of(directory: &Path) -> Dataset {
    let known = [Dataset::Mnist, Dataset::FashionMnist];
    let is_there = |dataset: &Dataset| {
        let mut small = dataset.files().iter().filter(|file| file.bytes < SMALL);
        small.any(|file| verify::is_complete(directory, file).unwrap_or(false))
    };
    let is_named = |dataset: &Dataset| directory.file_name().is_some_and(|name| name == dataset.name());
    known.into_iter().find(is_there).or(known.into_iter().find(is_named)).unwrap_or(Dataset::Mnist)
}

fn load_pixels(directory: &Path, file: &DataFile, remedy: &str) -> Result<Tensor> {
    let content = verify::read_verified(directory, file, remedy)?;
    let (sizes, elements) = idx::parse(&content).context(file.name)?;
    let [count, height, width] = sizes[..] else {
        bail!("{}: wanted [images, height, width], found the sizes {sizes:?}", file.name);
    };
    Ok(Tensor::f_from_slice(elements)?.f_reshape([count, 1, height, width])?)
}

fn load_labels(directory: &Path, file: &DataFile, remedy: &str) -> Result<Tensor> {
    let content = verify::read_verified(directory, file, remedy)?;
    let (sizes, elements) = idx::parse(&content).context(file.name)?;
    ensure!(sizes.len() == 1, "{}: wanted [labels], found the sizes {sizes:?}", file.name);
    Ok(Tensor::f_from_slice(elements)?.f_to_kind(Kind::Int64)?)
}
