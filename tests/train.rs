//! `dft train` through the real program: what it leaves behind, resuming, stopping, and several ranks.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dft::model::WeightsFile;
use dft::record::{Attribute, RunReader};
use serde_json::Value;
use support::{Finished, mpirun, run_within};

const LIMIT: Duration = Duration::from_secs(120);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_dft")
}

/// `dft train configs/quick.toml`, small, into `run`.
fn quick(mut command: Command, run: &Path, settings: &[&str]) -> Command {
    command.current_dir(root()).args(["train", "configs/quick.toml", "--run"]).arg(run);
    for setting in ["train.iterations=20", "train.warmup_updates=5", "evaluate.every=10", "compute.threads=1"]
    {
        command.args(["--set", setting]);
    }
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn solo() -> Command {
    Command::new(program())
}

fn ranks(count: usize) -> Command {
    let mut command = mpirun(count);
    command.arg(program());
    command
}

#[track_caller]
fn succeed(command: Command) -> Finished {
    let finished = run_within(command, LIMIT);
    assert_eq!(finished.code, 0, "{}", finished.output);
    finished
}

fn summary(run: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

fn sha256(run: &Path) -> String {
    summary(run)["parameters_sha256"].as_str().unwrap().to_string()
}

fn series(run: &Path, name: &str) -> Vec<f64> {
    RunReader::open(run.join("run.h5")).unwrap().series("train", name).unwrap()
}

#[test]
fn a_run_leaves_what_the_contract_names() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    succeed(quick(solo(), &run, &["checkpoint.every=5", "checkpoint.keep=3"]));
    for file in ["config.toml", "run.h5", "summary.json", "sampler.safetensors"] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let mut checkpoints: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    checkpoints.sort();
    let expected = [10, 15, 20].map(|iteration| format!("iteration-{iteration:09}.safetensors"));
    assert_eq!(checkpoints, expected.map(std::ffi::OsString::from));

    let summary = summary(&run);
    assert_eq!((&summary["target"], &summary["method"]), (&"gaussian".into(), &"dft".into()));
    assert_eq!((&summary["iterations"], &summary["world_size"]), (&20.into(), &1.into()));
    // 20 iterations × 240 samples × 2 antithetic rows × (score and product).
    assert_eq!(summary["target_evaluations"], 20 * 240 * 2 * 2);
    for metric in ["fd", "fd_clean"] {
        let score = &summary["metrics"][metric];
        assert!(score["value"].as_f64().unwrap() > 0.0 && score["floor"].as_f64().unwrap() > 0.0);
        assert_eq!(score["samples"], 1000);
    }

    let record = RunReader::open(run.join("run.h5")).unwrap();
    assert_eq!(record.series("train", "iteration").unwrap(), (1..=20).map(f64::from).collect::<Vec<_>>());
    assert_eq!(record.series("evaluation", "iteration").unwrap(), [10.0, 20.0]);
    assert_eq!(record.array("fid/sigma").unwrap().size(), [2, 2, 2]);
    assert_eq!(record.array("posterior/x").unwrap().size(), [1, 1000, 2]);
    // The resolved plan is in the file too, with defaults that the configuration does not mention.
    let attributes = record.attributes().unwrap();
    let Some(Attribute::Text(config)) = attributes.get("config") else {
        panic!("no config in {attributes:?}")
    };
    assert_eq!(*config, fs::read_to_string(run.join("config.toml")).unwrap());
    assert!(config.contains("final_lr_fraction"), "{config}");
}

#[test]
fn h5py_reads_the_run_with_its_units() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    succeed(quick(solo(), &run, &[]));
    let script = r#"
import sys, h5py
f = h5py.File(sys.argv[1], "r")
train = ["iteration", "wall_seconds", "score_loss", "sampler_loss", "score_gradient_norm",
         "sampler_gradient_norm", "sigma", "target_evaluations"]
evaluation = ["iteration", "fd", "fd_floor", "fd_clean", "fd_clean_floor"]
paths = ["train/" + n for n in train] + ["evaluation/" + n for n in evaluation]
paths += ["fid/" + n for n in ["iteration", "value", "floor", "mu", "sigma"]]
paths += ["samples/iteration-000000020", "posterior/x"]
for path in paths:
    d = f[path]
    assert d.attrs["units"] and d.attrs["description"], path
assert f["train/wall_seconds"].attrs["units"] == "s"
assert f["train/score_loss"].shape == (20,)
assert f["fid"].attrs["extractor"] == "identity" and f["fid"].attrs["samples"] == 1000
assert [f["posterior/x"].dims[i][0].name for i in range(2)] == ["/posterior/chain", "/posterior/draw"]
for name in ["format_version", "config", "version", "commit", "world_size", "device", "libtorch_version"]:
    assert name in f.attrs, name
print("h5py agrees")
"#;
    let python = std::env::var_os("DFT_PYTHON").map_or(root().join(".venv/bin/python"), PathBuf::from);
    let mut command = Command::new(python);
    command.args(["-c", script]).arg(run.join("run.h5"));
    let finished = succeed(command);
    assert!(finished.output.contains("h5py agrees"));
}

#[test]
fn ten_and_ten_iterations_equal_twenty_in_every_bit() {
    let directory = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| directory.path().join(name));
    let every = ["checkpoint.every=10"];
    succeed(quick(solo(), &whole, &every));
    succeed(quick(solo(), &parts, &every));
    // As after a crash between iterations 10 and 20: the later checkpoint and the results are not there.
    fs::remove_file(parts.join("checkpoints/iteration-000000020.safetensors")).unwrap();
    fs::remove_file(parts.join("summary.json")).unwrap();
    let mut resumed = quick(solo(), &parts, &every);
    resumed.arg("--resume");
    let finished = succeed(resumed);
    assert!(
        finished.output.contains("resumed at") && finished.output.contains("iteration 10"),
        "{}",
        finished.output
    );
    assert_eq!(sha256(&whole), sha256(&parts));
    // The averaged weights too, which that hash leaves out.
    let sampler =
        |run: &Path| WeightsFile::load(&run.join("sampler.safetensors")).unwrap().sha256().to_string();
    assert_eq!(sampler(&whole), sampler(&parts));
    for name in ["iteration", "score_loss", "sampler_loss", "sampler_gradient_norm", "target_evaluations"] {
        assert_eq!(series(&whole, name), series(&parts, name), "{name}");
    }
}

#[test]
fn resuming_a_finished_run_writes_its_results_again_and_records_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    succeed(quick(solo(), &run, &[]));
    let before = summary(&run);
    // As after a crash between the last checkpoint and the results.
    fs::remove_file(run.join("summary.json")).unwrap();
    let mut again = quick(solo(), &run, &[]);
    again.arg("--resume");
    succeed(again);
    let after = summary(&run);
    assert_eq!(
        (&before["metrics"], &before["parameters_sha256"]),
        (&after["metrics"], &after["parameters_sha256"])
    );
    let record = RunReader::open(run.join("run.h5")).unwrap();
    assert_eq!(record.series("evaluation", "iteration").unwrap(), [10.0, 20.0]);
    assert_eq!(series(&run, "iteration").len(), 20);
}

#[test]
fn sigusr1_through_mpirun_stops_both_ranks_with_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let mut command =
        quick(ranks(2), &run, &["train.iterations=100000", "checkpoint.every=50", "evaluate.every=0"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while fs::read_dir(run.join("checkpoints")).map_or(0, Iterator::count) == 0 {
        assert!(started.elapsed() < LIMIT, "no checkpoint within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-USR1", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    let iterations = series(&run, "iteration");
    let last = format!("iteration-{:09}.safetensors", iterations.len());
    assert!(
        run.join("checkpoints").join(&last).is_file(),
        "{last} should be the checkpoint of the last iteration"
    );
}

#[test]
fn every_schedule_and_remedy_trains() {
    // Each of these is a path of its own through the loop. 20 iterations do not converge, so the claim is
    // that all losses are finite, the networks move, and no two paths are the same.
    let directory = tempfile::tempdir().unwrap();
    let paths: [&[&str]; 7] = [
        &["method.variance=plain"],
        &["method.variance=control_variate"],
        &["train.schedule=simultaneous"],
        &["method.kind=kl"],
        &["method.kind=hybrid", "method.sigma=[0.1, 0.4]", "method.field_power=1", "method.score_weight=edm"],
        &["method.kind=kl", "method.smoothing=8"],
        &["score.frequencies=3", "score.noise_scaling=true", "score.linear_skip=true"],
    ];
    let mut hashes = Vec::new();
    for (number, settings) in paths.iter().enumerate() {
        let run = directory.path().join(number.to_string());
        succeed(quick(solo(), &run, settings));
        assert!(series(&run, "score_loss").iter().all(|loss| loss.is_finite()));
        assert!(series(&run, "sampler_gradient_norm").iter().all(|norm| *norm > 0.0));
        hashes.push(sha256(&run));
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), paths.len());
}

#[test]
fn quick_configuration_reaches_the_closed_form_optimum() {
    // x0 + sigma·eps must have the target's mean and covariance: its Fréchet distance to exact samples falls
    // from 6 at the start to near the floor of 0.004; x0 itself stays narrower by sigma².
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    succeed(quick(solo(), &run, &["train.iterations=600", "train.warmup_updates=100"]));
    let metrics = &summary(&run)["metrics"];
    let value = |name: &str| metrics[name]["value"].as_f64().unwrap();
    assert!(value("fd") < 0.03, "{metrics}");
    assert!(value("fd") < value("fd_clean"), "{metrics}");
}

#[test]
fn with_smoothing_the_samples_are_the_target_without_noise_at_its_price() {
    // Both sides have the noise, so x0 itself must have the target's covariance. Without smoothing x0 + 0.5·eps would:
    // x0's variances, .32 and 1.13 along the axes of the target, would be .25 less, a Fréchet distance of .11.
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let settings = ["method.kind=kl", "method.smoothing=8", "method.sigma=0.5", "train.iterations=600"];
    succeed(quick(solo(), &run, &[&settings[..], &["train.warmup_updates=100"]].concat()));
    let summary = summary(&run);
    let metrics = &summary["metrics"];
    assert!(metrics["fd_clean"].is_null(), "{metrics}");
    assert!(metrics["fd"]["value"].as_f64().unwrap() < 0.03, "{metrics}");
    // Eight evaluations for each of 240 samples' two antithetic rows.
    assert_eq!(summary["target_evaluations"], 600 * 240 * 2 * 8);
}

#[test]
fn one_two_and_three_ranks_agree_up_to_rounding() {
    let directory = tempfile::tempdir().unwrap();
    let run = |count: usize| directory.path().join(count.to_string());
    for count in [1, 2, 3] {
        succeed(quick(ranks(count), &run(count), &[]));
        assert_eq!(summary(&run(count))["world_size"], count);
    }
    for count in [2, 3] {
        for name in ["score_loss", "sampler_loss", "sampler_gradient_norm"] {
            let pairs = series(&run(1), name).into_iter().zip(series(&run(count), name));
            for (iteration, (one, several)) in pairs.enumerate() {
                // Another order of f32 sums is 1e-6 at first and grows along the path; losses that pass zero
                // are compared on the scale of 1.
                let error = (one - several).abs() / one.abs().max(1.0);
                assert!(error < 1e-3, "{name} at {iteration} on {count} ranks: {several} for {one}");
            }
        }
        let evaluations = |count| series(&run(count), "target_evaluations");
        assert_eq!(evaluations(1), evaluations(count));
    }
}

#[test]
fn sigterm_writes_a_checkpoint_and_the_resumed_run_has_the_same_bits() {
    let directory = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| directory.path().join(name));
    let settings = ["train.iterations=400", "checkpoint.every=100", "evaluate.every=0"];
    succeed(quick(solo(), &whole, &settings));

    let mut command = quick(solo(), &stopped, &settings);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = stopped.join("checkpoints/iteration-000000100.safetensors");
    let started = Instant::now();
    while !first.exists() {
        assert!(started.elapsed() < LIMIT, "no checkpoint within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(!stopped.join("summary.json").exists(), "a stopped run has no result");

    let mut resumed = quick(solo(), &stopped, &settings);
    resumed.arg("--resume");
    succeed(resumed);
    assert_eq!(sha256(&whole), sha256(&stopped));
    assert_eq!(series(&stopped, "iteration"), (1..=400).map(f64::from).collect::<Vec<_>>());
}

#[test]
fn a_stop_during_the_warm_up_is_a_checkpoint_too() {
    let directory = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| directory.path().join(name));
    let settings = ["train.warmup_updates=1500"];
    succeed(quick(solo(), &whole, &settings));
    let mut child =
        quick(solo(), &stopped, &settings).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !stopped.join("run.h5").exists() {
        assert!(started.elapsed() < LIMIT, "no run file within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Signals are watched for before the run file is made, and the warm-up takes seconds from there.
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(stopped.join("checkpoints/iteration-000000000.safetensors").exists());
    let mut resumed = quick(solo(), &stopped, &settings);
    resumed.arg("--resume");
    succeed(resumed);
    assert_eq!(sha256(&whole), sha256(&stopped));
}

#[test]
fn divergence_ends_all_ranks_with_code_three_and_one_message() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let finished = run_within(quick(ranks(2), &run, &["train.score_lr=1e30", "train.iterations=50"]), LIMIT);
    assert_eq!(finished.code, 3, "{}", finished.output);
    assert_eq!(finished.output.matches("training diverged").count(), 1, "{}", finished.output);
}

#[test]
fn samples_go_to_npy_and_h5_and_are_never_overwritten_silently() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    succeed(quick(solo(), &run, &[]));
    let sample = |file: &str, more: &[&str]| {
        let mut command = solo();
        command.arg("sample").arg(&run).args(["-n", "250", "-o"]).arg(directory.path().join(file)).args(more);
        run_within(command, LIMIT)
    };
    for file in ["x.npy", "x.h5"] {
        assert_eq!(sample(file, &[]).code, 0);
        let again = sample(file, &[]);
        assert_eq!(again.code, 2);
        assert!(again.output.contains("--force"), "{}", again.output);
        assert_eq!(sample(file, &["--force"]).code, 0);
    }
    let npy = tch::Tensor::read_npy(directory.path().join("x.npy")).unwrap();
    assert_eq!(npy.size(), [250, 2]);
    // The same seed gives the same samples, and without its noise another set.
    assert_eq!(sample("same.npy", &[]).code, 0);
    assert_eq!(sample("clean.npy", &["--clean"]).code, 0);
    assert_eq!(npy, tch::Tensor::read_npy(directory.path().join("same.npy")).unwrap());
    assert_ne!(npy, tch::Tensor::read_npy(directory.path().join("clean.npy")).unwrap());
}
