//! MNIST as it is loaded, against what is published about it.

use std::path::Path;

use dft::data::{Dataset, Mnist, Split};
use tch::Kind;

/// 0.1307 and 0.3081 are the mean and deviation of the training pixels by which the usual examples normalise
/// (PyTorch's `examples/mnist`); the class counts are those commonly listed for it.
#[test]
fn mnist_has_its_published_moments_and_classes() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(Dataset::Mnist.default_directory());
    let mnist = Mnist::load(&directory).unwrap();
    let images = mnist.images(Split::Train);
    assert_eq!(images.size(), [60_000, 1, 28, 28]);
    let mean = images.mean(Kind::Double).double_value(&[]);
    let deviation = images.to_kind(Kind::Double).std(false).double_value(&[]);
    // Half a unit of the last published digit.
    assert!((mean - 0.1307).abs() < 5e-5, "{mean}");
    assert!((deviation - 0.3081).abs() < 5e-5, "{deviation}");
    let labels = mnist.labels(Split::Train);
    let zeros = i64::try_from(labels.eq(0).sum(Kind::Int64)).unwrap();
    let ones = i64::try_from(labels.eq(1).sum(Kind::Int64)).unwrap();
    assert_eq!((zeros, ones), (5923, 6742));
    assert_eq!(mnist.images(Split::Test).size(), [10_000, 1, 28, 28]);
    assert_eq!(mnist.labels(Split::Test).size(), [10_000]);
}

#[test]
fn absent_data_set_says_how_to_bring_it() {
    let directory = tempfile::tempdir().unwrap();
    let error = Mnist::load_as(Dataset::FashionMnist, directory.path()).err().unwrap();
    assert!(error.to_string().contains("run `dft data fashion-mnist`"), "{error:#}");
    let error = Mnist::load_as(Dataset::Covertype, directory.path()).err().unwrap();
    assert!(error.to_string().contains("covertype is not a data set of images"), "{error:#}");
}
