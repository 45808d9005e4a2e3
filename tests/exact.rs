//! The promise: with exact reduction the same configuration gives the same bits on any number of ranks.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dft::comm::World;
use dft::config::{TrainFile, load};
use dft::train::{Event, Networks, Observer, Outcome, State, rehearse, run};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::{Finished, mpirun, run_within};
use tch::Device;

const LIMIT: Duration = Duration::from_secs(120);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn dft(ranks: usize, arguments: &[&str], run: &Path, settings: &[&str]) -> Finished {
    let mut command = if ranks == 1 { Command::new(env!("CARGO_BIN_EXE_dft")) } else { mpirun(ranks) };
    if ranks > 1 {
        command.arg(env!("CARGO_BIN_EXE_dft"));
    }
    command.current_dir(root()).args(arguments).arg("--run").arg(run);
    for setting in settings {
        command.args(["--set", setting]);
    }
    run_within(command, LIMIT)
}

/// `dft train configs/quick.toml`, small and exact.
fn train(ranks: usize, run: &Path, resume: bool, settings: &[&str]) {
    let exact = [
        "compute.reduction=exact",
        "train.iterations=12",
        "train.warmup_updates=2",
        "train.batch=48",
        "evaluate.every=4",
        "evaluate.samples=250",
        "evaluate.point_sets=2",
        "checkpoint.every=4",
    ];
    let arguments: &[&str] =
        if resume { &["train", "configs/quick.toml", "--resume"] } else { &["train", "configs/quick.toml"] };
    let finished = dft(ranks, arguments, run, &[&exact, settings].concat());
    assert_eq!(finished.code, 0, "{}", finished.output);
}

fn summary(run: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

/// What must be equal: parameters and every metric, digit by digit.
fn result(run: &Path) -> (Value, Value) {
    let summary = summary(run);
    assert!(summary["metrics"].as_object().unwrap().len() > 4, "{summary}");
    (summary["parameters_sha256"].clone(), summary["metrics"].clone())
}

/// Hash of the tensors of a weights file, without its description.
fn tensors(file: &Path) -> String {
    let bytes = fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    format!("{:x}", Sha256::digest(&bytes[8 + header..]))
}

#[test]
fn parameters_samples_and_metrics_have_the_same_bits_on_one_to_eight_ranks() {
    let directory = tempfile::tempdir().unwrap();
    let run = |ranks: usize| directory.path().join(ranks.to_string());
    for ranks in [1, 2, 3, 4, 6, 8] {
        train(ranks, &run(ranks), false, &[]);
        assert_eq!(result(&run(1)), result(&run(ranks)), "{ranks} ranks");
        let sampler = |ranks| tensors(&run(ranks).join("sampler.safetensors"));
        assert_eq!(sampler(1), sampler(ranks), "{ranks} ranks");
    }
    // A fast reduction differs in the last digits; if it did not, this test would show nothing.
    let fast = directory.path().join("fast");
    train(2, &fast, false, &["compute.reduction=fast", "compute.threads=1"]);
    assert_ne!(result(&run(1)), result(&fast));
}

#[test]
fn a_run_stopped_on_two_ranks_and_resumed_on_four_and_on_one_has_the_bits_of_an_uninterrupted_one() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, parts) = (directory.path().join("whole"), directory.path().join("parts"));
    // The fraction of training done must not matter, since the parts count it to other ends.
    let constant = "train.cosine_from=1.0";
    train(3, &whole, false, &[constant]);
    train(2, &parts, false, &["train.iterations=4", constant]);
    train(4, &parts, true, &["train.iterations=8", constant]);
    train(1, &parts, true, &[constant]);
    assert_eq!(result(&whole), result(&parts));
}

#[test]
fn a_resumed_run_must_keep_the_reduction_and_its_threads() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    train(1, &run, false, &["train.iterations=4"]);
    for (setting, words) in [
        ("compute.threads=2", "compute.threads = 1"),
        ("compute.reduction=fast", "compute.reduction = \"exact\""),
    ] {
        let settings = [
            "compute.reduction=exact",
            "train.iterations=8",
            "train.batch=48",
            "train.warmup_updates=2",
            setting,
        ];
        let refused = dft(1, &["train", "configs/quick.toml", "--resume"], &run, &settings);
        assert_eq!(refused.code, 2, "{}", refused.output);
        assert!(refused.output.contains(words), "{words}: {}", refused.output);
    }
}

/// `dft train configs/mnist.toml`, tiny and exact, without pictures.
const TINY_IMAGES: [&str; 12] = [
    "compute.reduction=exact",
    "compute.shards=4",
    "train.batch=4",
    "train.iterations=2",
    "train.warmup_updates=1",
    "evaluate.features=none",
    "warm_start.updates=3",
    "warm_start.steps=2",
    "regression.pairs=8",
    "regression.batch=4",
    "regression.steps=1",
    "regression.langevin_steps=2",
];

#[test]
fn a_warm_start_and_a_regression_on_one_two_and_four_ranks_have_the_same_bits() {
    let directory = tempfile::tempdir().unwrap();
    let hash = |ranks: usize, settings: &[&str]| {
        let run = directory.path().join(format!("{ranks}-{}", settings.len()));
        let finished = dft(ranks, &["train", "configs/mnist.toml"], &run, &[&TINY_IMAGES, settings].concat());
        assert_eq!(finished.code, 0, "{}", finished.output);
        summary(&run)["parameters_sha256"].clone()
    };
    let alone = hash(1, &[]);
    assert_eq!(alone, hash(2, &[]));
    assert_eq!(alone, hash(4, &[]));
    assert_ne!(alone, hash(1, &["warm_start.updates=2"]));
    assert_ne!(alone, hash(1, &["warm_start.updates=3", "regression.weight=1.0"]));
}

#[test]
fn a_run_stopped_before_its_first_iteration_goes_on_to_the_bits_of_an_uninterrupted_one() {
    let settings = TINY_IMAGES.map(String::from);
    let world = World::solo(Device::Cpu);
    tch::set_num_threads(1);
    let plan = load::<TrainFile>(&root().join("configs/mnist.toml"), &settings).unwrap();
    let plan = plan.check(1).unwrap();
    let networks = Networks::build(&plan, &world).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let go = |state: &mut State, stops_at: fn(&Event) -> bool, checkpoints: &Path| {
        fs::create_dir_all(checkpoints).unwrap();
        let stop = AtomicBool::new(false);
        let mut observer = Stopper { stop: &stop, stops_at };
        run(&plan, &world, &networks, state, &mut observer, checkpoints, &stop).unwrap()
    };
    let mut whole = State::initial(&plan, &networks, Device::Cpu);
    assert_eq!(go(&mut whole, |_| false, &directory.path().join("whole")), Outcome::Done);

    // Every part stops after one update, of the warm start and at last of the score network's warm-up; one before that stops
    // among the pairs of the regression, which are made again.
    let parts = directory.path().join("parts");
    for part_number in 1..=5u64 {
        let mut part = State::initial(&plan, &networks, Device::Cpu);
        if part_number > 1 {
            part.restore(&parts.join("iteration-000000000.safetensors"), &plan).unwrap();
        }
        let stops_at: fn(&Event) -> bool = match part_number {
            4 => |event| matches!(event, Event::Pairs(2, 4)),
            _ => |event| matches!(event, Event::WarmStart(..) | Event::Warmup(..)),
        };
        assert_eq!(go(&mut part, stops_at, &parts), Outcome::Stopped);
        let updates = part_number.min(3);
        assert_eq!((part.warm_start_updates, part.score_updates), (updates, part_number.saturating_sub(4)));
        // After its last update the optimiser and the averaged weights start anew.
        let is_anew = part.sampler_adam.updates == 0
            && part.sampler_adam.square.abs().max().double_value(&[]) == 0.0
            && part.average.parameters.flat() == part.sampler.flat();
        assert_eq!(is_anew, updates == 3, "{updates} updates");
    }
    let mut last = State::initial(&plan, &networks, Device::Cpu);
    last.restore(&parts.join("iteration-000000000.safetensors"), &plan).unwrap();
    assert_eq!(go(&mut last, |_| false, &parts), Outcome::Done);
    assert_eq!(whole.parameters_sha256(), last.parameters_sha256());
    assert_eq!(whole.target_evaluations, last.target_evaluations);
    assert_eq!(whole.average.parameters.flat(), last.average.parameters.flat());
}

#[test]
fn an_energy_fitted_on_one_two_and_three_ranks_has_the_same_bits() {
    let directory = tempfile::tempdir().unwrap();
    let weights = |ranks: usize| directory.path().join(format!("{ranks}.safetensors"));
    for ranks in [1, 2, 3] {
        let output = weights(ranks);
        let arguments = [
            "fit-energy",
            "configs/mnist-energy.toml",
            "--output",
            output.to_str().expect("a path of UTF-8"),
        ];
        let settings = [
            "compute.reduction=exact",
            "compute.shards=6",
            "train.iterations=2",
            "train.batch=12",
            "energy.width=8",
        ];
        let run = directory.path().join(format!("run-{ranks}"));
        let finished = dft(ranks, &arguments, &run, &settings);
        assert_eq!(finished.code, 0, "{}", finished.output);
        assert_eq!(tensors(&weights(1)), tensors(&output), "{ranks} ranks");
    }
}

struct Silent;

/// Asks for a stop at an event.
struct Stopper<'a> {
    stop: &'a AtomicBool,
    stops_at: fn(&Event) -> bool,
}

impl Observer for Stopper<'_> {
    fn observe(&mut self, event: &Event) -> anyhow::Result<()> {
        self.stop.fetch_or((self.stops_at)(event), Ordering::Relaxed);
        Ok(())
    }
}

impl Observer for Silent {
    fn observe(&mut self, _event: &Event) -> anyhow::Result<()> {
        Ok(())
    }
}

#[test]
fn a_rehearsal_does_the_iterations_of_a_job_of_that_many_ranks() {
    // Sigma and learning rate are constant here, so that the fraction of training done does not matter.
    let settings =
        ["compute.reduction=exact", "train.iterations=4", "train.warmup_updates=0", "train.cosine_from=1.0"]
            .map(String::from);
    let world = World::solo(Device::Cpu);
    tch::set_num_threads(1);
    let file = || load::<TrainFile>(&root().join("configs/quick.toml"), &settings).unwrap();
    let rehearsed = {
        let plan = file().check(8).unwrap();
        let networks = Networks::build(&plan, &world).unwrap();
        let mut state = State::initial(&plan, &networks, Device::Cpu);
        let took = rehearse(&plan, &world, &networks, &mut state, 8).unwrap();
        assert_eq!((took.ranks, took.reductions.len()), (8, 4)); // three score updates and one of the sampler
        assert_eq!(took.reductions[3], (state.sampler.count() as usize + 2) * 8);
        assert!(took.computing > Duration::ZERO && took.updating > Duration::ZERO);
        state.parameters_sha256()
    };
    let plan = file().check(1).unwrap();
    let networks = Networks::build(&plan, &world).unwrap();
    let mut state = State::initial(&plan, &networks, Device::Cpu);
    let directory = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let ended = run(&plan, &world, &networks, &mut state, &mut Silent, directory.path(), &stop).unwrap();
    assert_eq!(ended, Outcome::Done);
    assert_eq!(rehearsed, state.parameters_sha256());
}

#[test]
fn a_rehearsal_prints_a_prediction_and_leaves_no_run() {
    let rehearse = |ranks: &str, of: usize| {
        let mut command = if of == 1 { Command::new(env!("CARGO_BIN_EXE_dft")) } else { mpirun(of) };
        if of > 1 {
            command.arg(env!("CARGO_BIN_EXE_dft"));
        }
        command.current_dir(root()).args(["train", "configs/quick.toml", "--rehearse", ranks]);
        command.args(["--set", "run.directory=runs/never-made"]);
        run_within(command, LIMIT)
    };
    let found = rehearse("24", 1);
    assert_eq!(found.code, 0, "{}", found.output);
    for words in ["24 ranks, batch 240 in 24 shards: 1 of 10 rows a rank", "4 an iteration", "assumed"] {
        assert!(found.output.contains(words), "{words}: {}", found.output);
    }
    let found = rehearse("24", 2);
    assert!(found.code == 0 && found.output.contains("the link of these 2 ranks"), "{}", found.output);
    let found = rehearse("64", 1);
    assert_eq!(found.code, 2, "{}", found.output);
    assert!(found.output.contains("choose a multiple of 64"), "{}", found.output);
    assert!(!root().join("runs/never-made").exists());
}
