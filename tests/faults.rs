//! What goes wrong on real machines: signals to one rank, killed processes, full disks, damaged files, two jobs in one
//! place. Each drill states the exit code, the message, and how long the end may take, and that nothing is lost but
//! what came after the last checkpoint.
//!
//! Elsewhere: panics of a rank (`comm.rs`), divergence, signals to the whole job and during the warm-up (`train.rs`),
//! ranks that differ (`replicas.rs`), checkpoints of other runs (`wrong_input.rs`), a killed writer of the run file
//! (`record.rs`), and kills at random times (`benchmarks/kill_at_random.py`).

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dft::record::RunReader;
use support::{Finished, Running, mpirun, run_within};

/// For a whole job, on a machine that has other things to do.
const LIMIT: Duration = Duration::from_secs(120);

/// For the end of a job after what ends it; mpirun itself grants processes a second between SIGTERM and SIGKILL.
const SOON: Duration = Duration::from_secs(20);

/// Leaves the process id of a rank in a file, for who wants to signal it.
const WRAPPER: &str = r#"echo $$ > "$0/rank-${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}" && exec "$@""#;

/// A run directory and what is needed to start jobs in it.
struct Drill {
    home: tempfile::TempDir,
}

impl Drill {
    fn new() -> Self {
        Drill { home: tempfile::tempdir().unwrap() }
    }

    fn run(&self) -> PathBuf {
        self.home.path().join("run")
    }

    fn checkpoint(&self, iteration: u64) -> PathBuf {
        self.run().join(format!("checkpoints/iteration-{iteration:09}.safetensors"))
    }

    /// `dft train` with small networks, one rank without a launcher, or several.
    fn job(&self, ranks: usize, run: &Path, arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_dft");
        let mut command = if ranks == 1 {
            Command::new(program)
        } else {
            let mut command = mpirun(ranks);
            command.args(["sh", "-c", WRAPPER]).arg(self.home.path()).arg(program);
            command
        };
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.args(["train", "configs/quick.toml", "--run"]).arg(run);
        for setting in [
            "compute.threads=1",
            "checkpoint.every=20",
            "evaluate.every=0",
            "train.warmup_updates=2",
            "train.score_updates=1",
            "sampler.width=8",
            "score.width=8",
        ] {
            command.args(["--set", setting]);
        }
        command.args(arguments);
        command
    }

    fn start(&self, ranks: usize, arguments: &[&str]) -> Running {
        Running::start(self.job(ranks, &self.run(), arguments))
    }

    fn finish(&self, ranks: usize, arguments: &[&str]) -> Finished {
        run_within(self.job(ranks, &self.run(), arguments), LIMIT)
    }

    /// Waits until a job that is running has a checkpoint of this iteration or a later one: the earlier do not stay.
    fn await_checkpoint(&self, job: &mut Running, iteration: u64) {
        let started = Instant::now();
        while !self.run().join("checkpoints").exists() || newest(&self.run()) < iteration {
            assert!(started.elapsed() < LIMIT, "no checkpoint {iteration} within {LIMIT:?}");
            assert!(job.is_running(), "the job ended without checkpoint {iteration}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn rank(&self, rank: usize) -> String {
        let file = self.home.path().join(format!("rank-{rank}"));
        fs::read_to_string(file).unwrap().trim().to_string()
    }
}

fn kill(signal: &str, process: &str) {
    assert!(Command::new("kill").args([signal, process]).status().unwrap().success());
}

#[track_caller]
fn expect(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, code, "{}", finished.output);
    for word in words {
        assert!(finished.output.contains(word), "`{word}` is not in: {}", finished.output);
    }
}

fn sha256(run: &Path) -> String {
    let summary = fs::read_to_string(run.join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    summary["parameters_sha256"].as_str().unwrap().to_string()
}

/// The iterations in the record, which must be `first..=last`, each once.
#[track_caller]
fn expect_rows(run: &Path, first: u64, last: u64) {
    let rows = RunReader::open(run.join("run.h5")).unwrap().series("train", "iteration").unwrap();
    assert_eq!(rows, (first..=last).map(|iteration| iteration as f64).collect::<Vec<_>>());
}

fn newest(run: &Path) -> u64 {
    let names = fs::read_dir(run.join("checkpoints")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_prefix("iteration-")?.strip_suffix(".safetensors")?.parse().ok())
        .max()
        .unwrap_or(0)
}

fn cut_in_half(file: &Path) {
    let whole = fs::read(file).unwrap();
    fs::write(file, &whole[..whole.len() / 2]).unwrap();
}

fn flip_a_bit(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_signal_to_one_rank_stops_all_at_one_iteration_with_a_checkpoint() {
    let drill = Drill::new();
    let endless = ["--set", "train.iterations=1000000"];
    let mut stopped_at = 0;
    for (signal, rank, resume) in [("-TERM", 1, None), ("-USR1", 2, Some("--resume"))] {
        let arguments: Vec<&str> = endless.into_iter().chain(resume).collect();
        let mut job = drill.start(3, &arguments);
        drill.await_checkpoint(&mut job, stopped_at / 20 * 20 + 20);
        let process = drill.rank(rank);
        kill(signal, &process);
        // Twice, as from a scheduler that signals every process and a launcher that hands on its own signal.
        let _ = Command::new("kill").args([signal, &process]).output();
        let finished = job.end_within(SOON);
        let last = newest(&drill.run());
        assert!(last > stopped_at);
        expect(&finished, 75, &[&format!("stopped by a signal at iteration {last};")]);
        expect_rows(&drill.run(), 1, last);
        stopped_at = last;
    }
}

#[test]
fn a_killed_rank_ends_the_job_and_resuming_gives_the_same_bits() {
    let drill = Drill::new();
    let whole = drill.home.path().join("whole");
    let settings = ["--set", "train.iterations=300"];
    expect(&run_within(drill.job(3, &whole, &settings), LIMIT), 0, &[]);

    let mut job = drill.start(3, &settings);
    drill.await_checkpoint(&mut job, 20);
    kill("-KILL", &drill.rank(2));
    // What a shell gives for SIGKILL, 128 + 9; mpirun names the rank.
    expect(&job.end_within(SOON), 137, &["rank 2", "signal 9"]);
    assert!(!drill.run().join("summary.json").exists());

    // As from a process that was killed while it wrote.
    let partial = ["checkpoints/iteration-000000999.safetensors.partial", "run.h5.backup.partial"];
    let partial = partial.map(|name| drill.run().join(name));
    for file in &partial {
        fs::write(file, "half of it").unwrap();
    }
    // The lock of the dead job is no obstacle.
    expect(&drill.finish(3, &["--set", "train.iterations=300", "--resume"]), 0, &["resumed at"]);
    assert_eq!(sha256(&whole), sha256(&drill.run()));
    expect_rows(&drill.run(), 1, 300);
    assert!(partial.iter().all(|file| !file.exists()));
    assert!(!drill.run().join("run.h5.backup").exists(), "a run that is done needs no copy of its record");
}

/// Forbids a running process to make a file longer than `bytes`: writes then fail as on a full disk, with EFBIG for
/// ENOSPC, and a SIGXFSZ that must not end the process. From the start, with `ulimit -f`, it would hit MPI's own files.
fn limit_files(process: &str, bytes: u64) {
    let limit = Command::new("prlimit").args(["--pid", process, &format!("--fsize={bytes}")]).output();
    let limit = limit.expect("prlimit of util-linux can be run");
    assert!(limit.status.success(), "{limit:?}");
}

#[test]
fn a_checkpoint_that_does_not_fit_ends_the_job_and_the_older_ones_serve() {
    let drill = Drill::new();
    // Checkpoints longer than the record, so that the limit falls between them.
    let wide = ["--set", "score.width=256", "--set", "train.iterations=1000000", "--resume"];
    let mut job = drill.start(2, &wide[..4]);
    drill.await_checkpoint(&mut job, 20);
    // All have one size, and the newest is there for a while.
    let size = fs::metadata(drill.checkpoint(newest(&drill.run()))).unwrap().len();
    limit_files(&drill.rank(0), size - 1);
    expect(
        &job.end_within(SOON),
        1,
        &["rank 0 of 2", "cannot write", "checkpoints/iteration-", "File too large"],
    );
    // No half of one, and the last is whole: the resumed run goes on from it.
    let names =
        fs::read_dir(drill.run().join("checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| name.to_str().unwrap().ends_with(".safetensors")));
    let last = newest(&drill.run());
    let iterations = format!("train.iterations={}", last + 30);
    let resumed = drill.finish(2, &[&wide[..], &["--set", &iterations]].concat());
    expect(&resumed, 0, &[&format!("resumed at     iteration {last}")]);
    expect_rows(&drill.run(), 1, last + 30);
}

#[test]
fn a_record_that_does_not_fit_ends_the_job_and_no_row_is_lost() {
    // Rank 0 alone writes it; the other must not wait for a rank that has left.
    let drill = Drill::new();
    let settings = ["--set", "evaluate.every=10", "--set", "train.iterations=1000000", "--resume"];
    let mut job = drill.start(2, &settings[..4]);
    drill.await_checkpoint(&mut job, 20);
    limit_files(&drill.rank(0), fs::metadata(drill.run().join("run.h5")).unwrap().len());
    expect(&job.end_within(SOON), 1, &["rank 0 of 2", "run.h5", "File too large"]);
    let last = newest(&drill.run());
    let iterations = format!("train.iterations={}", last + 30);
    let resumed = drill.finish(2, &[&settings[..], &["--set", &iterations]].concat());
    expect(&resumed, 0, &[&format!("resumed at     iteration {last}")]);
    // HDF5 may have written some of its tables and not all: then the copy of the record has taken its place.
    expect_rows(&drill.run(), 1, last + 30);
}

#[test]
fn a_full_disk_ends_the_job_and_with_room_it_goes_on() {
    let drill = Drill::new();
    fs::create_dir(drill.run()).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(drill.run()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("not checked: a small file system of its own needs root; the two drills above stand for it");
        return;
    }
    let mount = Mount(drill.run());
    let mut job = drill.start(2, &["--set", "train.iterations=1000000"]);
    drill.await_checkpoint(&mut job, 20);
    let ballast = drill.run().join("ballast");
    assert!(fs::write(&ballast, vec![1; 4 << 20]).is_err(), "2 MiB are full with 4");
    expect(&job.end_within(SOON), 1, &["rank 0 of 2", "run.h5"]);
    let last = newest(&drill.run());
    fs::remove_file(&ballast).unwrap();
    let iterations = format!("train.iterations={}", last + 30);
    expect(&drill.finish(2, &["--set", &iterations, "--resume"]), 0, &["resumed at"]);
    expect_rows(&drill.run(), 1, last + 30);
    drop(mount);
}

/// A mounted file system, until it is dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn damaged_checkpoints_are_skipped_with_their_reasons() {
    let drill = Drill::new();
    let settings = ["--set", "train.iterations=80", "--set", "checkpoint.keep=9", "--resume"];
    expect(&drill.finish(2, &settings[..4]), 0, &[]);
    let whole = sha256(&drill.run());
    fs::remove_file(drill.run().join("summary.json")).unwrap();
    cut_in_half(&drill.checkpoint(80));
    flip_a_bit(&drill.checkpoint(60));

    // Another run's settings are an error, whatever else is there, and no reason to look further.
    let other = drill.finish(2, &[&settings[..], &["--set", "method.sigma=0.3"]].concat());
    expect(&other, 2, &["iteration-000000040", "[method]"]);
    assert!(drill.checkpoint(40).exists() && drill.checkpoint(20).exists());
    // Those that are damaged are told once, and kept under names that are no longer those of checkpoints.
    expect(
        &other,
        2,
        &[
            "iteration-000000080",
            "file not fully covered",
            "iteration-000000060",
            "the SHA-256 of its tensors",
        ],
    );
    assert!(!drill.checkpoint(80).exists() && !drill.checkpoint(60).exists());
    assert!(drill.checkpoint(80).with_extension("safetensors.damaged").exists());

    expect(&drill.finish(2, &settings), 0, &["resumed at", "iteration 40"]);
    assert_eq!(sha256(&drill.run()), whole);
    expect_rows(&drill.run(), 1, 80);

    for iteration in [20, 40, 60, 80] {
        cut_in_half(&drill.checkpoint(iteration));
    }
    let none = drill.finish(2, &settings);
    expect(&none, 2, &["all checkpoints in", "are damaged", "iteration-000000020", "iteration-000000080"]);
    assert!([20, 40, 60, 80].iter().all(|iteration| drill.checkpoint(*iteration).exists()));
}

#[test]
fn a_rank_that_does_not_see_the_checkpoint_says_so() {
    // Two working directories and a relative path stand for two hosts without a shared file system.
    let drill = Drill::new();
    let settings = ["--set", "train.iterations=20"];
    expect(&drill.finish(1, &settings), 0, &[]);
    let elsewhere = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/quick.toml");
    let mut command = mpirun(1);
    for (part, directory) in [drill.home.path(), elsewhere.path()].into_iter().enumerate() {
        if part > 0 {
            command.args([":", "-n", "1"]);
        }
        command.arg("--wdir").arg(directory).arg(env!("CARGO_BIN_EXE_dft")).arg("train").arg(&config);
        command.args(["--run", "run", "--resume", "--set", "sampler.width=8", "--set", "score.width=8"]);
        command.args(["--set", "train.score_updates=1", "--set", "compute.threads=1"]);
    }
    let finished = run_within(command, LIMIT);
    expect(&finished, 2, &["rank 1 on", "a file system that all hosts share", "iteration-000000020"]);
}

#[test]
fn a_damaged_record_is_replaced_by_its_copy_and_without_one_begins_anew() {
    let drill = Drill::new();
    let record = drill.run().join("run.h5");
    let mut job = drill.start(1, &["--set", "train.iterations=1000000"]);
    drill.await_checkpoint(&mut job, 40);
    kill("-KILL", &job.id().to_string());
    while job.is_running() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let last = newest(&drill.run());
    cut_in_half(&record);
    let resume =
        |iterations: u64| drill.finish(1, &["--set", &format!("train.iterations={iterations}"), "--resume"]);
    let resumed = resume(last + 30);
    expect(&resumed, 0, &["run.h5 is damaged", "kept as", "run.h5.damaged", "restored from its copy"]);
    expect_rows(&drill.run(), 1, last + 30);
    assert!(drill.run().join("run.h5.damaged").exists());

    // Without the copy, which a run that is done does not keep: training goes on, and the record says where it begins.
    cut_in_half(&record);
    expect(&resume(last + 40), 0, &["run.h5.damaged-2", &format!("begins after iteration {}", last + 30)]);
    expect_rows(&drill.run(), last + 31, last + 40);
    let again = resume(last + 50);
    assert!(again.code == 0 && !again.output.contains("damaged"), "{}", again.output);
    expect_rows(&drill.run(), last + 31, last + 50);
}

#[test]
fn a_second_job_in_a_run_directory_is_refused_and_the_first_goes_on() {
    let drill = Drill::new();
    let endless = ["--set", "train.iterations=1000000", "--resume"];
    let mut first = drill.start(1, &endless[..2]);
    drill.await_checkpoint(&mut first, 20);
    let second = drill.finish(1, &endless);
    expect(&second, 2, &["another process works in", "run"]);
    assert!(second.elapsed < SOON, "{:?}", second.elapsed);
    let at = newest(&drill.run());
    drill.await_checkpoint(&mut first, at + 60);
    kill("-TERM", &first.id().to_string());
    expect(&first.end_within(SOON), 75, &[]);
    expect_rows(&drill.run(), 1, newest(&drill.run()));
}
