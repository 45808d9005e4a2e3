//! Fits of an energy and of a classifier through signals, crashes and resumes. Needs data/mnist (`dft data mnist`), which
//! ci/test.sh brings.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dft::model::WeightsFile;
use dft::record::RunReader;
use support::{Finished, Running, mpirun, run_within};

const LIMIT: Duration = Duration::from_secs(120);

/// `dft` from the project's root, one rank without a launcher, or several.
fn dft(ranks: usize, arguments: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_dft");
    let mut command = if ranks == 1 {
        Command::new(program)
    } else {
        let mut command = mpirun(ranks);
        command.arg(program);
        command
    };
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command
}

/// Eight updates of a tiny energy, the last six contrasted with chains, exactly summed, into `run`.
fn energy(ranks: usize, run: &Path, more: &[&str]) -> Finished {
    let run = run.display().to_string();
    let mut arguments = vec!["fit-energy", "configs/mnist-energy.toml", "--run", &run];
    for setting in [
        "compute.reduction=exact",
        "compute.shards=4",
        "energy.width=4",
        "contrast.from=0.25",
        "contrast.chains=16",
        "contrast.steps=2",
        "train.iterations=8",
        "train.batch=8",
        "checkpoint.every=4",
        "checkpoint.keep=9",
    ] {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(more);
    run_within(dft(ranks, &arguments), LIMIT)
}

fn checkpoint(run: &Path, iteration: u64) -> PathBuf {
    run.join(format!("checkpoints/iteration-{iteration:09}.safetensors"))
}

#[test]
fn a_fit_that_lost_its_end_gets_the_same_bits_from_its_checkpoint_on_any_number_of_ranks() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let weights = run.join("weights.safetensors");
    let sha256 = |path: &Path| WeightsFile::load(path).unwrap().sha256().to_string();
    let whole = energy(2, &run, &[]);
    assert_eq!(whole.code, 0, "{}", whole.output);
    let (expected, at_end) = (sha256(&weights), sha256(&checkpoint(&run, 8)));
    let series = |name| RunReader::open(run.join("run.h5")).unwrap().series("train", name).unwrap();
    let seconds = series("wall_seconds");
    // Chains move from the third update on, so the checkpoint after the fourth has some.
    for ranks in [1, 4] {
        fs::remove_file(&weights).unwrap();
        fs::remove_file(checkpoint(&run, 8)).unwrap();
        let resumed = energy(ranks, &run, &["--resume"]);
        assert_eq!(resumed.code, 0, "{}", resumed.output);
        assert!(resumed.output.contains("resumed at update 4 of 8"), "{}", resumed.output);
        assert_eq!(sha256(&weights), expected, "weights with {ranks} ranks");
        assert_eq!(sha256(&checkpoint(&run, 8)), at_end, "state with {ranks} ranks, chains included");
        assert_eq!(series("iteration"), (1..=8).map(f64::from).collect::<Vec<_>>());
        // The rows before the checkpoint are those of the first part.
        assert_eq!(series("wall_seconds")[..4], seconds[..4]);
    }
    // A fit that is done is done again at no cost, and overwrites nothing unasked.
    let done = energy(1, &run, &["--resume"]);
    assert!(done.code == 2 && done.output.contains("add --force"), "{}", done.output);
    let seconds = series("wall_seconds");
    let done = energy(1, &run, &["--resume", "--force"]);
    assert_eq!((done.code, sha256(&weights)), (0, expected), "{}", done.output);
    assert_eq!(series("wall_seconds"), seconds);

    for (setting, key) in
        [("energy.sigma0=0.2", "[energy]"), ("contrast.steps=3", "[contrast]"), ("train.lr=1e-4", "[train]")]
    {
        let refused = energy(2, &run, &["--resume", "--force", "--set", setting]);
        assert_eq!(refused.code, 2, "{}", refused.output);
        assert!(refused.output.contains(&format!("was made with {key} =")), "{}", refused.output);
    }
}

#[test]
fn a_signal_stops_a_fit_with_a_checkpoint_from_which_it_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let path = run.display().to_string();
    let fit = |more: &[&str]| {
        let mut arguments = vec!["fit-features", "configs/mnist-features.toml", "--run", &path];
        arguments.extend(["--set", "train.iterations=60", "--set", "train.batch=24"]);
        arguments.extend(["--set", "checkpoint.every=1"]);
        arguments.extend(more);
        dft(1, &arguments)
    };
    let running = Running::start(fit(&[]));
    let began = Instant::now();
    while !checkpoint(&run, 1).exists() {
        assert!(began.elapsed() < LIMIT, "no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    let process = running.id().to_string();
    assert!(Command::new("kill").args(["-USR1", &process]).status().unwrap().success());
    let stopped = running.end_within(LIMIT);
    assert_eq!(stopped.code, 75, "{}", stopped.output);
    assert!(stopped.output.contains("--resume goes on from there"), "{}", stopped.output);
    assert!(!run.join("weights.safetensors").exists());
    let resumed = run_within(fit(&["--resume"]), LIMIT);
    assert_eq!(resumed.code, 0, "{}", resumed.output);
    assert!(resumed.output.contains("resumed at update "), "{}", resumed.output);
    assert!(checkpoint(&run, 60).exists() && run.join("weights.safetensors").exists());
}
