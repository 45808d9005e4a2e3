//! The run file: what h5py reads, what survives a kill, what a resume drops, and how failures are told.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dft::record::{Attribute, Cell, Column, RunFile, RunReader, write_samples_file};
use tch::{Kind, Tensor};

const ITERATION: Column = Column { name: "iteration", units: "1", description: "completed iterations" };
const LOSS: Column = Column { name: "score_loss", units: "1", description: "denoising loss" };
const MU: Column = Column { name: "mu", units: "1", description: "mean of the features" };

fn row(iteration: u64, loss: f64) -> [(Column, Cell); 2] {
    [(ITERATION, iteration.into()), (LOSS, loss.into())]
}

/// A small file with everything that a run writes.
fn whole_run(path: &Path) {
    let mut run = RunFile::create(path, &[("version", "0.1.0".into()), ("world_size", 2i64.into())]).unwrap();
    for iteration in [10, 20, 30] {
        run.append("train", &row(iteration, iteration as f64 / 10.0)).unwrap();
        run.append("fid", &[(ITERATION, iteration.into()), (Column { name: "value", ..LOSS }, 0.5.into())])
            .unwrap();
        run.append_array("fid", MU, &[1.0, 2.0, iteration as f64], &[3]).unwrap();
        run.write_samples(
            iteration,
            &(Tensor::ones([4, 1, 2, 2], (Kind::Float, tch::Device::Cpu)) * iteration as f64),
        )
        .unwrap();
    }
    run.set_attribute("fid", "extractor", "lenet".into()).unwrap();
    run.write_posterior(&Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).reshape([2, 3, 4])).unwrap();
    run.flush().unwrap();
}

fn python() -> PathBuf {
    match std::env::var_os("DFT_PYTHON") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"),
    }
}

/// The expected values are those that `whole_run` writes; the reader is h5py, so nothing of ours checks
/// itself.
#[test]
fn h5py_finds_every_dataset_with_shape_units_description_and_scales() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    whole_run(&path);
    let script = r#"
import sys, h5py, numpy as np
f = h5py.File(sys.argv[1], "r")
assert f.attrs["version"] == "0.1.0" and f.attrs["world_size"] == 2, dict(f.attrs)
assert f["fid"].attrs["extractor"] == "lenet"
shapes = {
    "train/iteration": (3,), "train/score_loss": (3,),
    "fid/iteration": (3,), "fid/value": (3,), "fid/mu": (3, 3), "fid/mu_dim_0": (3,),
    "samples/iteration-000000010": (4, 1, 2, 2), "samples/iteration-000000020": (4, 1, 2, 2),
    "samples/iteration-000000030": (4, 1, 2, 2),
    "samples/sample": (4,), "samples/x_dim_0": (1,), "samples/x_dim_1": (2,), "samples/x_dim_2": (2,),
    "posterior/x": (2, 3, 4), "posterior/chain": (2,), "posterior/draw": (3,), "posterior/x_dim_0": (4,),
}
found = {}
f.visititems(lambda n, o: found.update({n: o.shape}) if isinstance(o, h5py.Dataset) else None)
assert found == shapes, found
for name in shapes:
    d = f[name]
    assert isinstance(d.attrs["units"], str) and d.attrs["units"], name
    assert isinstance(d.attrs["description"], str) and d.attrs["description"], name
    for axis in range(d.ndim):
        if not d.is_scale:
            assert len(d.dims[axis]) == 1, (name, axis)
dims = lambda name: [f[name].dims[a][0].name for a in range(f[name].ndim)]
assert dims("train/score_loss") == ["/train/iteration"]
assert dims("fid/mu") == ["/fid/iteration", "/fid/mu_dim_0"]
assert dims("posterior/x") == ["/posterior/chain", "/posterior/draw", "/posterior/x_dim_0"]
assert dims("samples/iteration-000000030") == [
    "/samples/sample", "/samples/x_dim_0", "/samples/x_dim_1", "/samples/x_dim_2"]
assert f["train/iteration"].dtype == np.int64 and f["train/iteration"][:].tolist() == [10, 20, 30]
assert f["train/score_loss"].dtype == np.float64 and f["train/score_loss"][:].tolist() == [1.0, 2.0, 3.0]
assert f["fid/mu"][:].tolist() == [[1, 2, 10], [1, 2, 20], [1, 2, 30]]
assert f["posterior/x"].dtype == np.float32
assert np.array_equal(f["posterior/x"][:].ravel(), np.arange(24))
assert (f["samples/iteration-000000020"][:] == 20).all()
"#;
    let python = python();
    let output = Command::new(&python).arg("-c").arg(script).arg(&path).output().unwrap_or_else(|error| {
        panic!("{} does not start ({error}); make .venv with h5py, or set DFT_PYTHON", python.display())
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs one of the `child_…` tests of this binary as a process of its own.
fn child(name: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("DFT_RECORD_PATH", path);
    command
}

fn child_path() -> Option<PathBuf> {
    std::env::var_os("DFT_RECORD_PATH").map(PathBuf::from)
}

#[test]
#[ignore = "run as a child process by killed_process_leaves_everything_up_to_the_last_flush"]
fn child_flushes_five_rows_and_buffers_two() {
    let Some(path) = child_path() else { return };
    let mut run = RunFile::create(path, &[]).unwrap();
    for iteration in 1..=5 {
        run.append("train", &row(iteration, 1.0)).unwrap();
    }
    run.append_array("train", MU, &[7.0; 3], &[3]).unwrap();
    run.flush().unwrap();
    for iteration in 6..=7 {
        run.append("train", &row(iteration, 1.0)).unwrap();
    }
    println!("\nready");
    // Waits to be killed: reading stops at the end of the pipe, which the parent never closes before.
    let _ = std::io::stdin().read_line(&mut String::new());
    std::process::abort();
}

/// SIGKILL lets nothing clean up; two rows were still in memory, so five is the right number.
#[test]
fn killed_process_leaves_everything_up_to_the_last_flush() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    let mut process = child("child_flushes_five_rows_and_buffers_two", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    process.kill().unwrap();
    process.wait().unwrap();
    drop(lines);

    let reader = RunReader::open(&path).unwrap();
    assert_eq!(reader.series("train", "iteration").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    drop(reader);

    let mut run = RunFile::resume(&path, 3).unwrap();
    for iteration in 4..=6 {
        run.append("train", &row(iteration, 2.0)).unwrap();
    }
    drop(run);
    let reader = RunReader::open(&path).unwrap();
    assert_eq!(reader.series("train", "iteration").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(reader.series("train", "score_loss").unwrap(), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    let mu = reader.array("train/mu").unwrap();
    assert_eq!(mu.size(), [6, 3]);
    // The array belonged to row 5, which was dropped; rows without one read as NaN.
    assert!(bool::try_from(mu.isnan().all()).unwrap());
}

/// Every append after a resume continues the same datasets, so no iteration stands twice.
#[test]
fn resume_drops_later_rows_arrays_and_samples() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    whole_run(&path);
    drop(RunFile::resume(&path, 20).unwrap());
    let reader = RunReader::open(&path).unwrap();
    assert_eq!(reader.series("train", "iteration").unwrap(), [10.0, 20.0]);
    assert_eq!(reader.series("fid", "iteration").unwrap(), [10.0, 20.0]);
    assert_eq!(reader.array("fid/mu").unwrap().size(), [2, 3]);
    let (iteration, samples) = reader.samples().unwrap().unwrap();
    assert_eq!(iteration, 20);
    assert_eq!(samples.size(), [4, 1, 2, 2]);
    assert_eq!(samples.double_value(&[3, 0, 1, 1]), 20.0);
}

/// The flush may fall between a row and its array, as the caller's cadence has it.
#[test]
fn array_after_a_flush_still_belongs_to_the_latest_row() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    let mut run = RunFile::create(&path, &[]).unwrap();
    run.append("fid", &row(1, 0.5)).unwrap();
    run.append("fid", &row(2, 0.5)).unwrap();
    run.flush().unwrap();
    run.append_array("fid", MU, &[1.0, 2.0, 3.0], &[3]).unwrap();
    run.flush().unwrap();
    let mu = RunReader::open(&path).unwrap().array("fid/mu").unwrap();
    assert_eq!(Vec::<f64>::try_from(mu.get(1)).unwrap(), [1.0, 2.0, 3.0]);
    assert!(bool::try_from(mu.get(0).isnan().all()).unwrap());
}

#[test]
fn second_write_of_samples_replaces_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    let mut run = RunFile::create(&path, &[]).unwrap();
    let cpu = (Kind::Float, tch::Device::Cpu);
    run.write_samples(5, &Tensor::zeros([4, 2], cpu)).unwrap();
    run.write_samples(5, &Tensor::ones([4, 2], cpu)).unwrap();
    run.write_samples(5, &Tensor::ones([6, 2], cpu)).unwrap();
    drop(run);
    let (_, samples) = RunReader::open(&path).unwrap().samples().unwrap().unwrap();
    assert_eq!(samples.size(), [6, 2]);
    assert_eq!(f64::try_from(samples.sum(Kind::Double)).unwrap(), 12.0);
}

#[test]
fn existing_run_file_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    drop(RunFile::create(&path, &[("seed", 7i64.into())]).unwrap());
    let message = RunFile::create(&path, &[]).err().unwrap().to_string();
    assert!(message.contains("never overwrites"), "{message}");
    let attributes = RunReader::open(&path).unwrap().attributes().unwrap();
    assert_eq!(attributes["seed"], Attribute::Integer(7));
}

#[test]
fn row_with_other_columns_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = RunFile::create(directory.path().join("run.h5"), &[]).unwrap();
    run.append("train", &row(1, 0.5)).unwrap();
    let message = run.append("train", &[(ITERATION, 2u64.into())]).unwrap_err().to_string();
    assert!(message.contains("iteration, score_loss"), "{message}");
    let message = run.append("notes", &[(LOSS, 2.0.into())]).unwrap_err();
    assert!(format!("{message:#}").contains("iteration"), "{message:#}");
}

/// xarray turns `seconds` into durations (its `decode_timedelta`), which would hide the numbers.
#[test]
fn unit_that_xarray_would_decode_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = RunFile::create(directory.path().join("run.h5"), &[]).unwrap();
    let wall = Column { name: "wall_seconds", units: "seconds", description: "time since the start" };
    let message = run.append("train", &[(ITERATION, 1u64.into()), (wall, 0.1.into())]).unwrap_err();
    assert!(format!("{message:#}").contains("write s"), "{message:#}");
}

#[test]
#[ignore = "run as a child process by full_disk_is_an_error_and_not_a_panic"]
fn child_writes_until_the_disk_is_full() {
    let Some(path) = child_path() else { return };
    let mut run = RunFile::create(path, &[]).unwrap();
    for iteration in 1..=64 {
        let written = run.append("train", &row(iteration, 1.0)).and_then(|()| {
            let samples = Tensor::zeros([64, 64, 64], (Kind::Float, tch::Device::Cpu));
            run.write_samples(iteration, &samples)
        });
        if let Err(error) = written {
            println!("\nrefused: {error:#}");
            return;
        }
    }
}

/// A limit of 4 MiB on the size of a file stands for the full disk: the write fails in the same way (EFBIG
/// for ENOSPC), with the signal ignored as a shell can arrange for its children.
#[test]
fn full_disk_is_an_error_and_not_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.h5");
    let output = Command::new("bash")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 4096; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_until_the_disk_is_full", "--ignored", "--nocapture"])
        .env("DFT_RECORD_PATH", &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("refused:") && text.contains("run.h5"), "{text}");
}

#[test]
fn samples_file_is_written_once_and_in_two_formats() {
    let directory = tempfile::tempdir().unwrap();
    let samples = Tensor::arange(16, (Kind::Float, tch::Device::Cpu)).reshape([8, 2]);
    let hdf5 = directory.path().join("samples.h5");
    write_samples_file(&hdf5, &samples, false).unwrap();
    let message = write_samples_file(&hdf5, &samples, false).unwrap_err().to_string();
    assert!(message.contains("exists"), "{message}");
    write_samples_file(&hdf5, &samples, true).unwrap();
    let draws = RunReader::open(&hdf5).unwrap().array("posterior/x").unwrap();
    assert_eq!(draws.size(), [4, 2, 2]);
    assert_eq!(draws.reshape([8, 2]), samples);

    let npy = directory.path().join("samples.npy");
    write_samples_file(&npy, &samples, false).unwrap();
    assert_eq!(Tensor::read_npy(&npy).unwrap(), samples);

    let message = write_samples_file(directory.path().join("samples.csv"), &samples, false).unwrap_err();
    assert!(message.to_string().contains(".h5 or .npy"), "{message}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}
