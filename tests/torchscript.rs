//! Densities from TorchScript files: an honest one is taken, and each kind of wrong one refused by name.

use std::path::{Path, PathBuf};

use dft::rng::{Generator, Stream};
use dft::target::{Target, TorchScriptTarget};
use tch::{CModule, Device, Kind, Tensor};
use tempfile::TempDir;

/// Traces `forward` on `[2, 3]` into a file.
fn write(directory: &TempDir, forward: impl Fn(&Tensor) -> Tensor) -> PathBuf {
    let path = directory.path().join("density.pt");
    let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    let mut traced = |inputs: &[Tensor]| vec![forward(&inputs[0])];
    CModule::create_by_tracing("density", "forward", &[x], &mut traced).unwrap().save(&path).unwrap();
    path
}

fn try_density(forward: impl Fn(&Tensor) -> Tensor) -> Result<TorchScriptTarget, String> {
    let directory = tempfile::tempdir().unwrap();
    TorchScriptTarget::load(&write(&directory, forward), &[3], Device::Cpu).map_err(|error| error.to_string())
}

#[track_caller]
fn assert_refused(words: &[&str], forward: impl Fn(&Tensor) -> Tensor) {
    let message = try_density(forward).expect_err("this module should be refused");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

fn sum(x: &Tensor) -> Tensor {
    x.sum_dim_intlist(1i64, false, None)
}

fn normal(shape: &[i64], number: u64) -> Tensor {
    Generator::new(9, Stream::Exact, number, 0).normal(shape)
}

fn beacons() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/weights/beacons.pt")
}

#[test]
fn density_has_the_score_of_the_same_density_in_closed_form() {
    // −|x|²/2 as a traced module: its score is −x and its Hessian −I. Several times, because TorchScript recompiles
    // a module after its first calls.
    let target = try_density(|x| sum(&x.square()) * -0.5).unwrap();
    for number in 0..4 {
        let x = normal(&[4, 3], number);
        let (score, product) = target.score_and_product(&x, &mut |score| score.shallow_clone());
        assert!(score.allclose(&-&x, 1e-6, 1e-6, false));
        assert!(product.allclose(&x, 1e-6, 1e-6, false));
    }
}

#[test]
fn honest_densities_pass_whatever_their_scale_and_smoothness() {
    // Narrow, flat, far from 0 by a constant, kinked on the axes but curved elsewhere, and with a heavy tail.
    try_density(|x| sum(&x.square()) * -5e3).unwrap();
    try_density(|x| sum(&x.square()) * -5e-5).unwrap();
    try_density(|x| sum(&x.square()) * -0.5 - 2e4).unwrap();
    try_density(|x| sum(&(x.abs() + x.square())) * -0.5).unwrap();
    try_density(|x| sum(&x.square().log1p()) * -1.0).unwrap();
    let two = |x: &Tensor| [sum(&x.square()) * -0.5, sum(&(x - 2.0).square()) * -8.0];
    try_density(|x| Tensor::stack(&two(x), 0).logsumexp(0i64, false)).unwrap();
    // The same mixture by logaddexp has a NaN for its second derivative where the two are far apart.
    assert_refused(&["check `second derivative`", "logsumexp"], |x| {
        let [first, second] = two(x);
        first.logaddexp(&second)
    });
}

#[test]
fn parameters_of_a_module_are_constants() {
    // The committed example keeps its measurements as a parameter.
    let stored = CModule::load(beacons()).unwrap().named_parameters().unwrap();
    assert!(stored.len() == 1 && stored[0].1.requires_grad());
    let target = TorchScriptTarget::load(&beacons(), &[2], Device::Cpu).unwrap();
    let x = normal(&[5, 2], 0);
    assert!(!target.log_density(&x).requires_grad());
}

#[test]
fn committed_example_is_the_density_of_its_script() {
    // benchmarks/torchscript_density.py in scalars: three ranges and a prior of 3 km.
    let target = TorchScriptTarget::load(&beacons(), &[2], Device::Cpu).unwrap();
    let beacons = [([-2.0, 0.0], 1.4, 0.25), ([2.0, 0.0], 3.2, 0.5), ([0.0, 2.0], 2.1, 1.5)];
    let x = [0.4f32, -1.3];
    let [x1, x2] = x.map(f64::from);
    let misfit: f64 = beacons
        .iter()
        .map(|([b1, b2], range, error)| {
            let distance = ((x1 - b1).powi(2) + (x2 - b2).powi(2) + 1e-6).sqrt();
            ((distance - range) / error).powi(2)
        })
        .sum();
    let expected = -0.5 * (misfit + (x1 * x1 + x2 * x2) / 9.0);
    let found = target.log_density(&Tensor::from_slice(&x).reshape([1, 2])).double_value(&[0]);
    assert!((found - expected).abs() < 1e-4 * expected.abs(), "{found} for {expected}");
}

#[test]
fn missing_file_and_a_file_of_something_else_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let load =
        |path: &Path| TorchScriptTarget::load(path, &[3], Device::Cpu).map(|_| ()).unwrap_err().to_string();
    let message = load(&directory.path().join("absent.pt"));
    assert!(message.contains("absent.pt") && message.contains("no such file"), "{message}");
    let path = directory.path().join("text.pt");
    std::fs::write(&path, "no module").unwrap();
    let message = load(&path);
    assert!(message.contains("check `file`") && message.contains("torch.jit"), "{message}");
}

#[test]
fn output_of_another_shape_or_type_is_refused() {
    assert_refused(&["check `output`", "[1, 3]", "keep the batch dimension"], |x| x * 1.0);
    assert_refused(&["check `output`", "f32 []", ".sum(-1)"], |x| x.square().sum(None) * -0.5);
    assert_refused(&["check `output`", "f64 [1]"], |x| sum(&x.to_kind(Kind::Double).square()) * -0.5);
    // squeeze() loses the dimension of a batch of one only.
    assert_refused(&["check `output`", "f32 []"], |x| (sum(&x.square()) * -0.5).squeeze());
    // Samples of another dimension: what libtorch says, in a line.
    let weight = normal(&[2, 3], 1);
    let directory = tempfile::tempdir().unwrap();
    let path = write(&directory, |x| sum(&x.matmul(&weight.transpose(0, 1)).square()) * -0.5);
    let message = TorchScriptTarget::load(&path, &[5], Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("check `output`") && message.contains("an error"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    assert_refused(&["check `finite`", "NaN", "transform bounded variables"], |x| sum(&x.log()));
    assert_refused(&["check `finite`", "inf"], |x| sum(&(x.square() * 40.0).exp()) * -1.0);
}

#[test]
fn rows_that_depend_on_each_other_are_refused() {
    assert_refused(&["check `rows`", "never over dimension 0"], |x| {
        sum(&(x - x.mean_dim(0i64, true, None)).square()) * -0.5
    });
    assert_refused(&["check `rows`"], |x| (sum(&x.square()) * -0.5).log_softmax(0, None));
    // Random numbers are another value in each call.
    assert_refused(&["check `rows`", "random numbers"], |x| sum(&(x + x.randn_like() * 0.1).square()) * -0.5);
}

#[test]
fn gradients_that_are_not_the_value_s_are_refused() {
    // One term of two, a fifth of a term, a term in half of space, everything.
    let energy = |x: &Tensor| sum(&x.square()) * -0.5;
    assert_refused(&["check `gradient`", "detach()"], |x| energy(x) + energy(&x.detach()));
    assert_refused(&["check `gradient`", "differences"], |x| energy(x) + energy(&x.detach()) * 0.2);
    assert_refused(&["check `gradient`"], |x| energy(x) + energy(&x.relu().detach()));
    assert_refused(&["check `gradient`", "autograd"], |x| energy(&x.detach()));
}

#[test]
fn densities_without_a_second_derivative_are_refused() {
    let weight = normal(&[3, 16], 1);
    assert_refused(&["check `second derivative`", "SiLU or softplus"], |x| {
        sum(&x.matmul(&weight).relu()) * -1.0
    });
    assert_refused(&["check `second derivative`", "does not depend on x"], |x| sum(&(x * 2.0)));
    // The same network with a smooth activation is fine.
    try_density(|x| sum(&x.matmul(&weight).silu()) * -1.0).unwrap();
}
