//! Figures are made from a run file alone, and only those that it has data for.

use std::path::Path;

use dft::plot::{figures, labelled_grids};
use dft::record::{Cell, Column, RunFile};
use tch::{Device, Kind, Tensor};

fn column(name: &'static str) -> Column {
    Column { name, units: "1", description: "made up" }
}

/// Width and height from a PNG's first chunk: big-endian, at bytes 16 and 20 (PNG specification, IHDR).
fn size(path: &Path) -> (u32, u32) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[1..4], b"PNG");
    let at = |start: usize| u32::from_be_bytes(bytes[start..start + 4].try_into().unwrap());
    (at(16), at(20))
}

/// Values that curves of a failing run have: a constant, an infinity, a NaN and a single point.
#[test]
fn figures_survive_curves_that_are_flat_single_or_not_finite() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = RunFile::create(directory.path().join("run.h5"), &[]).unwrap();
    for (iteration, loss) in [(1u64, 1.0), (2, f64::NAN), (3, f64::INFINITY), (4, 1.0)] {
        let row: [(Column, Cell); 4] = [
            (column("iteration"), iteration.into()),
            (column("score_loss"), loss.into()),
            (column("sampler_loss"), f64::NAN.into()),
            (column("score_gradient_norm"), 0.0.into()),
        ];
        run.append("train", &row).unwrap();
    }
    let row = [
        (column("iteration"), Cell::from(4u64)),
        (column("ksd"), Cell::from(0.1)),
        (column("ksd_floor"), Cell::from(0.01)),
        (column("without"), Cell::from(3.0)),
    ];
    run.append("evaluation", &row).unwrap();
    run.write_samples(4, &Tensor::zeros([20, 2], (Kind::Float, Device::Cpu))).unwrap();
    run.flush().unwrap();
    let drawn = figures(directory.path()).unwrap();
    let names: Vec<_> = drawn.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["losses.png", "evaluation.png", "samples.png"]);
    assert!(drawn.iter().all(|path| size(path).0 > 400));
}

#[test]
fn run_without_rows_has_no_figures() {
    let directory = tempfile::tempdir().unwrap();
    drop(RunFile::create(directory.path().join("run.h5"), &[]).unwrap());
    assert!(figures(directory.path()).unwrap().is_empty());
}

/// 25 images of 28 × 28 in 10 columns: 3 rows, zoom 3, gaps of 4.
#[test]
fn image_samples_become_a_grid_of_ten_columns() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = RunFile::create(directory.path().join("run.h5"), &[]).unwrap();
    run.write_samples(1, &Tensor::rand([25, 1, 28, 28], (Kind::Float, Device::Cpu))).unwrap();
    let drawn = figures(directory.path()).unwrap();
    assert_eq!(drawn.len(), 1);
    assert_eq!(size(&drawn[0]), (10 * 88 + 4, 3 * 88 + 4));
}

#[test]
fn labelled_strips_may_have_different_lengths() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("strips.png");
    let images = |count: i64| Tensor::rand([count, 3, 28, 28], (Kind::Float, Device::Cpu));
    labelled_grids(&[("one-step sampler".into(), images(16)), ("data".into(), images(5))], &path).unwrap();
    assert!(size(&path).0 > 16 * 88);
    let error = labelled_grids(&[("empty".into(), images(0))], &path).unwrap_err();
    assert!(error.to_string().contains("no images"), "{error:#}");
}
