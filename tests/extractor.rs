//! Feature extractors from TorchScript files: a wrong one is refused before any work, and a right one gives the Fréchet
//! distances that NumPy and SciPy give on its features. Needs data/mnist and `launch/setup.sh --tests`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dft::comm::World;
use dft::data::{Mnist, Split};
use dft::metric::{Extractor, Reference};
use dft::rng::{Generator, Stream};
use serde_json::Value;
use support::{Finished, run_within};
use tch::{CModule, Device, Kind, Tensor};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

/// Rows that dft gives an extractor at once.
const CHUNK: i64 = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Twelve features that `benchmarks/inception_features.py tiny` wrote.
fn committed() -> PathBuf {
    root().join("tests/support/features.pt")
}

fn digits() -> Tensor {
    Mnist::load(&root().join("data/mnist")).unwrap().images(Split::Train)
}

fn dft(arguments: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dft"));
    command.current_dir(root()).args(arguments);
    run_within(command, LIMIT)
}

/// A short run on MNIST whose distance is on the features in `file`.
fn train(directory: &TempDir, file: &Path, more: &[&str]) -> Finished {
    let run = directory.path().join("run").display().to_string();
    let features = format!("evaluate.features={}", file.display());
    let mut arguments = vec!["train", "configs/mnist.toml", "--run", &run, "--set", &features];
    for setting in ["train.iterations=2", "train.warmup_updates=1", "train.batch=24", "warm_start.updates=1"]
    {
        arguments.extend(["--set", setting]);
    }
    for setting in
        ["evaluate.samples=150", "regression.pairs=24", "regression.langevin_steps=1"].iter().chain(more)
    {
        arguments.extend(["--set", setting]);
    }
    dft(&arguments)
}

/// Traces `forward` on images `[2, 1, height, width]` into a file.
fn write(directory: &TempDir, [height, width]: [i64; 2], forward: impl Fn(&Tensor) -> Tensor) -> PathBuf {
    let path = directory.path().join("features.pt");
    let x = Tensor::rand([2, 1, height, width], (Kind::Float, Device::Cpu));
    let mut traced = |inputs: &[Tensor]| vec![forward(&inputs[0])];
    CModule::create_by_tracing("features", "forward", &[x], &mut traced).unwrap().save(&path).unwrap();
    path
}

/// Exit code 2, one error line with all of `words`, and no run begun.
#[track_caller]
fn refused(directory: &TempDir, finished: &Finished, words: &[&str]) {
    assert_eq!(finished.code, 2, "{}", finished.output);
    assert_eq!(finished.output.matches("ERROR").count(), 1, "{}", finished.output);
    for word in words {
        assert!(finished.output.contains(word), "`{word}` is not in: {}", finished.output);
    }
    assert!(!directory.path().join("run").exists());
}

#[track_caller]
fn assert_refused(words: &[&str], forward: impl Fn(&Tensor) -> Tensor) {
    let directory = tempfile::tempdir().unwrap();
    let file = write(&directory, [28, 28], forward);
    refused(&directory, &train(&directory, &file, &[]), words);
}

/// Twelve pixels of the middle, in f32 `[B, 12]`.
fn middle(x: &Tensor) -> Tensor {
    x.flatten(1, -1).narrow(1, 400, 12)
}

#[test]
fn absent_file_and_a_file_of_weights_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent.pt");
    refused(
        &directory,
        &train(&directory, &absent, &[]),
        &["evaluate.features", "absent.pt", "no such file"],
    );
    let weights = directory.path().join("weights.pt");
    fs::copy(root().join("configs/weights/mnist-lenet.safetensors"), &weights).unwrap();
    refused(&directory, &train(&directory, &weights, &[]), &["weights.pt", "holds none", "torch.jit.script"]);
}

#[test]
fn output_that_is_no_row_of_features_for_each_image_is_refused() {
    assert_refused(&["features.pt", "[B, F]", "[1, 1, 28, 28]", "flatten(1)"], |x| x * 2.0);
    assert_refused(&["it returns Float [12]"], |x| middle(x).sum_dim_intlist(0i64, false, None));
    // squeeze() loses the dimension of a batch of one only.
    assert_refused(&["for [1, 1, 28, 28] it returns Float [12]"], |x| middle(x).squeeze());
    assert_refused(&["Int64"], |x| middle(x).to_kind(Kind::Int64));
}

#[test]
fn extractor_for_images_of_another_size_is_refused_with_what_libtorch_says() {
    let directory = tempfile::tempdir().unwrap();
    let weight = Generator::new(9, Stream::Exact, 0, 0).normal(&[1024, 5]);
    let file = write(&directory, [32, 32], |x| x.flatten(1, -1).matmul(&weight));
    let words = ["[1, 28, 28]", "it fails", "784", "1024", "docs/inception.md"];
    refused(&directory, &train(&directory, &file, &[]), &words);
}

#[test]
fn features_that_are_not_finite_on_real_images_are_refused() {
    // An image of zeros, which the output's shape is tried on, has finite features here.
    assert_refused(&["not finite for 16 of the first 16 real images"], |x| {
        (middle(x) - x.max()).log() + x.max().log()
    });
}

#[test]
fn features_that_are_not_finite_on_a_few_real_images_end_the_run_before_training() {
    // The logarithm of the mean grey above a level that the first sixteen images are above.
    let directory = tempfile::tempdir().unwrap();
    let grey = |x: &Tensor| x.mean_dim([1, 2, 3].as_slice(), false, None);
    let level = grey(&digits().narrow(0, 0, 16)).min().double_value(&[]) - 1e-3;
    let file = write(&directory, [28, 28], |x| (grey(x) - level).log().unsqueeze(1));
    let finished = train(&directory, &file, &[]);
    assert_ne!(finished.code, 0, "{}", finished.output);
    assert!(finished.output.contains("not finite for some of the real samples"), "{}", finished.output);
    assert!(!directory.path().join("run/sampler.safetensors").exists());
}

#[test]
fn features_that_depend_on_the_rest_of_the_batch_are_refused() {
    assert_refused(&["for an image alone", "batch of 16", "eval()"], |x| {
        middle(x) - middle(x).mean_dim(0i64, true, None)
    });
}

#[test]
fn as_many_samples_as_features_are_refused_with_how_many_are_needed() {
    let directory = tempfile::tempdir().unwrap();
    let finished = train(&directory, &committed(), &["evaluate.samples=12"]);
    refused(&directory, &finished, &["evaluate.samples = 12", "12 features", "to 13 or more"]);
    let finished = train(&directory, Path::new("lenet"), &["evaluate.samples=84"]);
    refused(&directory, &finished, &["evaluate.samples = 84", "84 features", "to 85 or more"]);
    // 39 copies of every pixel: 30,576 features, and half of MNIST has 30,000 images.
    assert_refused(&["30576 features", "30000 real ones", "fewer features"], |x| {
        x.flatten(1, -1).repeat([1, 39])
    });
}

#[test]
fn weights_of_another_network_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let other = "evaluate.features_file=configs/weights/mnist-energy.safetensors";
    let finished = train(&directory, Path::new("lenet"), &[other]);
    refused(&directory, &finished, &["mnist-energy.safetensors", "first.weight"]);
}

#[test]
fn committed_extractor_computes_what_its_script_says() {
    // The script's docstrings in scalars: 256 levels, (level − 128)/128, TensorFlow 1's grid (pixel i of 16 looks at
    // 28 i/16, weights by distance), the same plane in three channels; then the trunk with the file's own weights.
    let module = CModule::load(committed()).unwrap();
    let x = digits().narrow(0, 7, 3) * 0.9 + 0.03;
    let found = module.forward_ts(&[&x]).unwrap();
    let level = |image: i64, row: usize, column: usize| {
        let grey = x.double_value(&[image, 0, row as i64, column as i64]);
        ((grey * 255.0).round() - 128.0) / 128.0
    };
    let between = |at: usize| {
        let at = at as f64 * 28.0 / 16.0;
        (at.floor() as usize, (at.floor() as usize + 1).min(27), at.fract())
    };
    let mut planes = Vec::new();
    for image in 0..3 {
        for row in 0..16 {
            for column in 0..16 {
                let ((top, bottom, down), (left, right, along)) = (between(row), between(column));
                let upper = level(image, top, left) * (1.0 - along) + level(image, top, right) * along;
                let lower = level(image, bottom, left) * (1.0 - along) + level(image, bottom, right) * along;
                planes.push((upper * (1.0 - down) + lower * down) as f32);
            }
        }
    }
    let planes = Tensor::from_slice(&planes).reshape([3, 1, 16, 16]).repeat([1, 3, 1, 1]);
    let parameters = module.named_parameters().unwrap();
    let named = |end: &str| &parameters.iter().find(|(name, _)| name.ends_with(end)).unwrap().1;
    let maps = planes.conv2d(named("weight"), Some(named("bias")), 3, 0, 1, 1).tanh();
    let expected = maps.mean_dim([2, 3].as_slice(), false, None);
    assert_eq!(expected.size(), [3, 12]);
    // f32 rounding over 75 terms.
    assert!(found.allclose(&expected, 1e-5, 1e-6, false), "{found} for {expected}");
    assert!(found.std(true).double_value(&[]) > 0.01);
}

/// Fréchet distance of features `[N, F]` by the formulas of pytorch-fid (SciPy's matrix root) and of torch-fidelity and
/// torchmetrics (eigenvalues of the product), from NumPy's mean and covariance in f64.
fn distances_of_scipy(directory: &TempDir, features: [&Tensor; 2]) -> [f64; 2] {
    const SCRIPT: &str = r#"
import sys, numpy as np, scipy.linalg
a, b = (np.load(f).astype(np.float64) for f in sys.argv[1:])
m = a.mean(0) - b.mean(0)
c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
rest = m @ m + np.trace(c1) + np.trace(c2)
print(rest - 2 * np.trace(scipy.linalg.sqrtm(c1 @ c2)).real)
print(rest - 2 * np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum())
"#;
    let files = ["first.npy", "second.npy"].map(|name| directory.path().join(name));
    for (file, features) in files.iter().zip(features) {
        features.write_npy(file).unwrap();
    }
    let python = std::env::var_os("DFT_PYTHON").map_or(root().join(".venv/bin/python"), PathBuf::from);
    let output = Command::new(&python).arg("-c").arg(SCRIPT).args(&files).output().unwrap_or_else(|error| {
        panic!("{} does not start ({error}); launch/setup.sh --tests, or set DFT_PYTHON", python.display())
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// `[N, F]` by the module itself, in the chunks that dft measures in: other batches round in another order.
fn features_of(module: &CModule, x: &Tensor) -> Tensor {
    let chunks = x.split(CHUNK, 0);
    let features: Vec<Tensor> =
        chunks.iter().map(|x| module.forward_ts(&[x.clamp(0.0, 1.0)]).unwrap()).collect();
    Tensor::cat(&features, 0)
}

/// (reference half, other half) of real images, by the fixed permutation of the metric.
fn halves(real: &Tensor) -> [Tensor; 2] {
    let order = Generator::new(0, Stream::Split, 0, 0).permutation(real.size()[0]);
    let half = real.size()[0] / 2;
    let order = Tensor::from_slice(&order);
    [half, 0].map(|start| real.index_select(0, &order.narrow(0, start, half)))
}

#[track_caller]
fn assert_equal(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} for {expected}");
}

#[test]
fn distances_equal_the_formulas_of_scipy_and_of_eigenvalues() {
    let directory = tempfile::tempdir().unwrap();
    let world = World::solo(Device::Cpu);
    let real = digits().narrow(0, 0, 2000);
    let noise = Generator::new(9, Stream::Exact, 0, 0).normal(&[450, 1, 28, 28]);
    let fake = digits().narrow(0, 3000, 450) * 0.8 + noise * 0.1;
    // The second has a feature that is the sum of the others: both covariances are singular, and only the formula by
    // eigenvalues is meant for that.
    let module = CModule::load(committed()).unwrap();
    let file = write(&directory, [28, 28], |x| {
        let x = middle(x) + x.mean(None) * 0.0;
        Tensor::cat(&[&x, &x.sum_dim_intlist(1i64, true, None)], 1)
    });
    let singular = CModule::load(&file).unwrap();
    for (path, module, formulas) in [(committed(), module, 0..2), (file, singular, 1..2)] {
        let extractor = Extractor::torchscript(&path, &[1, 28, 28], Device::Cpu).unwrap();
        let reference = Reference::new(extractor, &real, &world).unwrap();
        let seen =
            reference.measure(450, &world, |chunk, rows| fake.narrow(0, chunk as i64 * CHUNK, rows)).unwrap();
        let found = reference.distance(&seen);
        let [of_reference, _] = halves(&real);
        let features = [&features_of(&module, &of_reference), &features_of(&module, &fake)];
        for expected in &distances_of_scipy(&directory, features)[formulas] {
            assert_equal(found, *expected);
        }
    }
}

#[test]
fn evaluation_of_a_run_reports_the_distance_and_floor_that_scipy_finds_on_its_samples() {
    // The whole chain: `dft sample` with the seed of `dft evaluate` draws the samples that were scored.
    let directory = tempfile::tempdir().unwrap();
    let finished = train(&directory, &committed(), &[]);
    assert_eq!(finished.code, 0, "{}", finished.output);
    let [run, samples] = ["run", "samples.npy"].map(|name| directory.path().join(name).display().to_string());
    for arguments in [
        &["evaluate", &run, "--seed", "3", "--set", "evaluate.langevin_steps=[]"][..],
        &["sample", &run, "--seed", "3", "-n", "150", "-o", &samples],
    ] {
        let finished = dft(arguments);
        assert_eq!(finished.code, 0, "{}", finished.output);
    }
    let text = fs::read_to_string(Path::new(&run).join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["extractor"]["name"], "TorchScript");
    let score = &summary["comparison"][1]["metrics"]["fd"];
    let [found, floor] = ["value", "floor"].map(|name| score[name].as_f64().unwrap());

    let module = CModule::load(committed()).unwrap();
    let [reference, other] = halves(&digits()).map(|half| features_of(&module, &half));
    let drawn = features_of(&module, &Tensor::read_npy(&samples).unwrap());
    for expected in distances_of_scipy(&directory, [&reference, &drawn]) {
        assert_equal(found, expected);
    }
    for expected in distances_of_scipy(&directory, [&reference, &other.narrow(0, 0, 150)]) {
        assert_equal(floor, expected);
    }
    assert!(found > 3.0 * floor, "{found} beside {floor}"); // a sampler of two iterations
}
