//! Ranks hold equal networks, and a rank that does not is found out.

mod support;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use dft::comm::{DeviceRequest, StartOptions, World};
use dft::config::{TrainFile, load};
use dft::train::{Event, Networks, Observer, State, TrainError, run};
use support::assert_all_passed;

struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _event: &Event) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Trains 20 iterations of the quick configuration after `disturb` has had its way with the initial state.
fn train(world: &World, disturb: impl Fn(&State)) -> (Result<(), TrainError>, String) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/quick.toml");
    let settings = ["train.iterations=20", "train.warmup_updates=5", "checkpoint.every=10"].map(String::from);
    let plan = load::<TrainFile>(&config, &settings).unwrap().check(world.size).unwrap();
    let networks = Networks::build(&plan, world).unwrap();
    let mut state = State::initial(&plan, &networks, world.device);
    disturb(&state);
    let directory = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let ended = run(&plan, world, &networks, &mut state, &mut Silent, directory.path(), &stop);
    (ended.map(|_| ()), state.parameters_sha256())
}

fn world() -> World {
    World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()).unwrap()
}

#[test]
fn replicas_stay_equal_on_two_and_three_ranks() {
    for ranks in [2, 3] {
        assert_all_passed(ranks, "body_equal");
    }
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_equal() {
    let world = world();
    let (ended, hash) = train(&world, |_| {});
    ended.unwrap();
    let hashes = world.gather_strings(&hash);
    assert!(hashes.iter().all(|other| *other == hash), "{hashes:?}");
}

#[test]
fn a_rank_with_other_parameters_is_named_at_the_next_checkpoint() {
    assert_all_passed(3, "body_disturbed");
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_disturbed() {
    let world = world();
    // One number in the last bits on rank 2, as from a flipped bit in memory.
    let (ended, _) = train(&world, |state| {
        if world.rank == 2 {
            let _ = tch::no_grad(|| state.sampler.flat().get(7).g_add_scalar_(1e-3));
        }
    });
    let Err(TrainError::Replicas { iteration: 10, ranks }) = ended else { panic!("{ended:?}") };
    assert_eq!(ranks, [2]);
}
