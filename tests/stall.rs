//! A rank that does not come to a collective ends the job, named; one that is only slow does not.
//!
//! Each test runs one of the bodies below, or `dft`, under mpirun. These sleep: time is what they are about.

mod support;

use std::fs;
use std::process::Command;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use dft::comm::{DeviceRequest, StartOptions, World};
use support::{Finished, assert_all_passed, mpirun, run_body, run_within};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

/// The limit of these jobs.
const STALL: Duration = Duration::from_secs(2);

/// Start of a job, the limit, three seconds for answers, and the end of the job, on a busy machine.
const ENOUGH: Duration = Duration::from_secs(60);

fn world_with(stall_limit: Duration, work_apart: bool) -> World {
    let options = StartOptions { stall_limit, work_apart, ..StartOptions::default() };
    let world = World::start(DeviceRequest::Cpu, Some(1), options).unwrap();
    for _ in 0..40 {
        world.any(false); // the first forty collectives have a longer limit
    }
    world
}

fn reduce(world: &World) {
    let mut buffer = Tensor::zeros([12, 5], (Kind::Float, Device::Cpu));
    world.collective().all_reduce_sum(&mut buffer).unwrap();
}

/// Exit code 1 and one message, with all of `words`.
#[track_caller]
fn stalled(job: &Finished, words: &[&str]) {
    assert_eq!(job.code, 1, "{}", job.output);
    assert!(job.elapsed > STALL && job.elapsed < ENOUGH, "{:?}", job.elapsed);
    assert_eq!(job.output.matches("error:").count(), 1, "{}", job.output);
    for word in words {
        assert!(job.output.contains(word), "{word}: {}", job.output);
    }
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_string()
}

#[test]
fn a_rank_that_stays_away_is_named_with_its_host_and_the_collective() {
    let job = run_body(3, "body_away", &[]);
    let late = format!("rank 1 on {} has not reached collective ", host());
    let waiting = format!("(all-reduce of 60 f32), which rank 0 on {} entered ", host());
    let outside = " s; if its work takes that long, raise compute.stall_seconds = 2";
    stalled(&job, &[&late, &waiting, " s ago: it has been outside of collectives for ", outside]);
    assert!(!job.output.contains("unreachable"), "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_away() {
    let world = world_with(STALL, false);
    if world.rank == 1 {
        sleep(Duration::from_secs(40));
    }
    reduce(&world);
    println!("unreachable");
}

#[test]
fn a_rank_that_stays_away_from_the_end_of_the_job_is_named_too() {
    stalled(&run_body(2, "body_away_from_the_end", &[]), &["rank 1 on ", "(end of the job)"]);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_away_from_the_end() {
    let world = world_with(STALL, false);
    if world.rank == 1 {
        sleep(Duration::from_secs(40));
    }
}

#[test]
fn ranks_out_of_step_are_told_apart() {
    stalled(
        &run_body(2, "body_out_of_step", &[]),
        &[
            "rank 1 on ",
            "(barrier), which rank 0 on ",
            "it waits in collective ",
            "(all-reduce of 60 f32)",
            "out of step",
        ],
    );
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_out_of_step() {
    let world = world_with(STALL, false);
    match world.rank {
        0 => world.collective().barrier().unwrap(),
        _ => reduce(&world),
    }
}

#[test]
fn ranks_that_are_slow_within_the_limit_are_waited_for() {
    assert_all_passed(2, "body_slow");
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_slow() {
    // In the first collectives the limit is 6 s, after them 2 s.
    let options = StartOptions { stall_limit: STALL, ..StartOptions::default() };
    let world = World::start(DeviceRequest::Cpu, Some(1), options).unwrap();
    let away = |seconds: f64| {
        if world.rank == 1 {
            sleep(Duration::from_secs_f64(seconds));
        }
        reduce(&world);
    };
    away(3.5);
    (0..40).for_each(|_| away(0.0));
    away(0.8);
    away(0.8);
}

#[test]
fn a_limit_of_zero_waits_for_ever_and_work_apart_for_whoever_answers() {
    for (seconds, is_apart) in [("0", ""), ("2", "yes")] {
        let job = run_body(2, "body_patient", &[("TEST_LIMIT", seconds), ("TEST_APART", is_apart)]);
        assert_eq!(job.code, 0, "{}", job.output);
        assert_eq!(job.output.matches("waited to the end").count(), 2, "{}", job.output);
    }
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_patient() {
    let set = |name| std::env::var(name).unwrap();
    let world =
        world_with(Duration::from_secs(set("TEST_LIMIT").parse().unwrap()), !set("TEST_APART").is_empty());
    if world.rank == 1 {
        sleep(STALL * 2);
    }
    reduce(&world);
    println!("waited to the end");
}

/// `dft train` on three ranks that would run for hours.
struct Training {
    directory: TempDir,
    job: JoinHandle<Finished>,
}

impl Training {
    /// Starts it, and waits for its first checkpoint.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        let mut command = mpirun(3);
        command.arg(env!("CARGO_BIN_EXE_dft"));
        command
            .args(["train", concat!(env!("CARGO_MANIFEST_DIR"), "/configs/quick.toml"), "--run"])
            .arg(&run);
        let settings = [
            "train.iterations=10000000",
            "train.warmup_updates=1",
            "checkpoint.every=20",
            "evaluate.every=1000000",
        ];
        let limit = format!("compute.stall_seconds={}", STALL.as_secs());
        for setting in settings.iter().copied().chain(["compute.threads=1", &limit]) {
            command.args(["--set", setting]);
        }
        let job = spawn(move || run_within(command, Duration::from_secs(100)));
        let checkpoints = run.join("checkpoints");
        while !fs::read_dir(&checkpoints).is_ok_and(|mut entries| entries.next().is_some()) {
            assert!(!job.is_finished(), "{}", job.join().unwrap().output);
            sleep(Duration::from_millis(20));
        }
        Training { directory, job }
    }

    /// The process of each rank.
    fn processes(&self) -> Vec<u32> {
        let run = self.directory.path().display().to_string();
        let rank_of = |process: u32| {
            let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            let (words, variables) = (read("cmdline"), read("environ"));
            let is_ours = String::from_utf8_lossy(&words).contains(&run);
            let variables = String::from_utf8_lossy(&variables).into_owned();
            let rank = variables.split('\0').find_map(|set| set.strip_prefix("OMPI_COMM_WORLD_RANK="));
            rank.filter(|_| is_ours).map(|rank| rank.parse::<u32>().unwrap())
        };
        let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let numbers = names.filter_map(|name| name.to_str().and_then(|name| name.parse().ok()));
        let mut found: Vec<(u32, u32)> =
            numbers.filter_map(|process| rank_of(process).map(|rank| (rank, process))).collect();
        found.sort_unstable();
        assert_eq!(found.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [0, 1, 2]);
        found.into_iter().map(|(_, process)| process).collect()
    }

    fn signal(&self, name: &str, processes: &[u32]) {
        let processes = processes.iter().map(u32::to_string);
        assert!(Command::new("kill").args(["-s", name]).args(processes).status().unwrap().success());
    }
}

#[test]
fn a_stopped_process_ends_training_and_is_named() {
    let training = Training::start();
    training.signal("STOP", &training.processes()[2..]);
    let job = training.job.join().unwrap();
    assert_eq!(job.code, 1, "{}", job.output);
    assert!(job.elapsed > STALL && job.elapsed < ENOUGH, "{:?}", job.elapsed);
    // The other two may wait for it in one collective, where one of them speaks for both, or in a barrier and the collective after
    // it, since a barrier lets go of one rank after the other.
    let reports: Vec<&str> = job.output.lines().filter(|line| line.contains("error:")).collect();
    assert!((1..=2).contains(&reports.len()), "{}", job.output);
    for report in reports {
        for words in [
            &format!("rank 2 on {} holds up collective ", host()),
            "it does not answer: its process is stopped",
        ] {
            assert!(report.contains(words), "{words}: {}", job.output);
        }
    }
}

/// What a scheduler does that suspends a job for another.
#[test]
fn a_job_stopped_as_a_whole_goes_on_afterwards() {
    let training = Training::start();
    let processes = training.processes();
    training.signal("STOP", &processes);
    sleep(STALL * 2 + STALL / 2);
    training.signal("CONT", &processes);
    sleep(STALL + STALL / 2);
    assert!(!training.job.is_finished(), "{}", training.job.join().unwrap().output);
    training.signal("TERM", &processes[1..2]);
    let job = training.job.join().unwrap();
    assert_eq!(job.code, 75, "{}", job.output);
}

/// mpirun sees a death before any watchdog does.
#[test]
fn a_killed_process_ends_the_job_through_mpirun() {
    let training = Training::start();
    training.signal("KILL", &training.processes()[1..2]);
    let job = training.job.join().unwrap();
    assert_eq!(job.code, 137, "{}", job.output); // 128 + SIGKILL, mpirun's
    assert!(!job.output.contains("collective"), "{}", job.output);
}
