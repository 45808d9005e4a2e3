//! The same claims on CUDA, for machines with an NVIDIA GPU: `ci/gpu-check.sh` runs them.
//!
//! They are ignored elsewhere, and fail rather than pass where there is no GPU. Two ranks may share
//! one GPU, each posing to NCCL as a host of its own, so any machine with a GPU can run them.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dft::comm::{DeviceRequest, StartOptions, World};
use support::{Finished, append_body, mpirun, run_within};
use tch::{Device, Kind, Tensor};

/// `mpirun` for `ranks` processes that NCCL takes for hosts of their own; append the program.
fn mpirun_as_hosts(ranks: usize) -> Command {
    let mut command = mpirun(ranks);
    // From NCCL 2.30 on the second variable does it; the other version ignores what it does not know.
    let script = "export NCCL_HOSTID=test-${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}; exec \"$0\" \"$@\"";
    command.env("NCCL_MULTI_RANK_GPU_ENABLE", "1");
    command.args(["sh", "-c", script]);
    command
}

fn run_body_on_cuda(ranks: usize, body: &str) -> Finished {
    let mut command = mpirun_as_hosts(ranks);
    append_body(&mut command, body);
    run_within(command, Duration::from_secs(300))
}

fn world() -> World {
    let options = StartOptions { share_gpus: true, ..StartOptions::default() };
    World::start(DeviceRequest::Cuda, Some(1), options).unwrap()
}

#[test]
#[ignore = "needs an NVIDIA GPU: ci/gpu-check.sh"]
fn on_cuda_collectives_equal_their_closed_forms() {
    let job = run_body_on_cuda(2, "body_collectives");
    assert_eq!(job.code, 0, "{}", job.output);
    assert_eq!(job.output.matches("test result: ok. 1 passed").count(), 2, "{}", job.output);
}

/// As on the CPU (`tests/comm.rs`): rank r holds multiples of r + 1, exact in all kinds.
#[test]
#[ignore = "a body: runs under mpirun"]
fn body_collectives() {
    let world = world();
    assert_eq!(world.backend, "nccl");
    let Device::Cuda(_) = world.device else { panic!("{:?}", world.device) };
    let (rank, size) = (world.rank as i64, world.size as i64);
    let all = world.collective();
    for kind in [Kind::Float, Kind::Double, Kind::Int64] {
        for shape in [vec![1], vec![3, 5, 7], vec![4_000_001]] {
            let count: i64 = shape.iter().product();
            let of_rank =
                |rank: i64| ((Tensor::arange(count, (kind, world.device)) + 1) * (rank + 1)).view(&shape[..]);

            // The sum is queued behind the operations that make its input, and read without a wait
            // in between: wrong if NCCL were on another stream than libtorch.
            let mut sum = of_rank(rank);
            all.all_reduce_sum(&mut sum).unwrap();
            assert_eq!(sum * 2, of_rank(size * (size + 1) - 1), "sum of {kind:?} {shape:?}");

            let mut most = of_rank(rank);
            all.all_reduce_max(&mut most).unwrap();
            assert_eq!(most, of_rank(size - 1), "maximum of {kind:?} {shape:?}");

            let gathered = all.all_gather(&of_rank(rank)).unwrap();
            assert_eq!(gathered, (0..size).map(of_rank).collect::<Vec<_>>(), "gather of {kind:?} {shape:?}");

            for root in 0..size {
                let mut buffer = of_rank(rank);
                all.broadcast(&mut buffer, root as usize).unwrap();
                assert_eq!(buffer, of_rank(root), "broadcast of {kind:?} {shape:?} from {root}");
            }
        }
    }
    let on_host = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    assert!(all.all_reduce_sum(&mut on_host.shallow_clone()).is_err());
    all.barrier().unwrap();
    assert_eq!(world.gather_strings("here").len(), world.size);
}

#[test]
#[ignore = "needs an NVIDIA GPU: ci/gpu-check.sh"]
fn on_cuda_panic_of_one_rank_ends_the_job_and_is_named() {
    let job = run_body_on_cuda(2, "body_panic");
    assert_ne!(job.code, 0, "{}", job.output);
    assert!(job.output.contains("rank 1 of 2 on "), "{}", job.output);
    assert!(!job.output.contains("unreachable"), "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_panic() {
    let world = world();
    if world.rank == 1 {
        panic!("the sampler has left us");
    }
    let mut sum = Tensor::ones([1 << 20], (Kind::Float, world.device));
    world.collective().all_reduce_sum(&mut sum).unwrap();
    println!("unreachable: {}", sum.sum(Kind::Double).double_value(&[]));
}

/// Noise is made on the host and is the same on every device, so a CUDA run differs from a CPU run
/// by the rounding of its kernels only. That grows as training goes on; the first iterations agree.
#[test]
#[ignore = "needs an NVIDIA GPU: ci/gpu-check.sh"]
fn on_cuda_two_ranks_train_like_two_cpu_ranks() {
    const COMPARED: usize = 10;
    const TOLERANCE: f64 = 1e-3; // f32 rounding of another order of sums, through ten updates
    let folder = tempfile::tempdir().unwrap();
    let losses = ["cpu", "cuda"].map(|device| {
        let run = folder.path().join(device);
        let mut command = if device == "cuda" { mpirun_as_hosts(2) } else { mpirun(2) };
        command.arg(env!("CARGO_BIN_EXE_dft")).args(["train", "configs/quick.toml", "--run"]).arg(&run);
        command.args(["--set", &format!("compute.device={device}")]);
        // Compared from the very first update on; a few iterations are enough.
        command.args(["--set", "train.warmup_updates=0", "--set", "train.iterations=20"]);
        if device == "cuda" {
            command.args(["--set", "compute.share_gpus=true"]);
        }
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        let job = run_within(command, Duration::from_secs(300));
        assert_eq!(job.code, 0, "{}", job.output);
        ["score_loss", "sampler_loss"].map(|name| first(&run, name, COMPARED))
    });
    let [cpu, cuda] = &losses;
    let mut worst = 0.0_f64;
    for (name, (cpu, cuda)) in ["score_loss", "sampler_loss"].iter().zip(cpu.iter().zip(cuda)) {
        assert!(
            !cpu.is_empty() && cpu.len() == cuda.len(),
            "{name}: {} and {} values",
            cpu.len(),
            cuda.len()
        );
        for (at, (cpu, cuda)) in cpu.iter().zip(cuda).enumerate() {
            let difference = (cpu - cuda).abs() / cpu.abs().max(1e-6);
            println!(
                "{name:12} {at:3}  cpu {cpu:+.9e}  cuda {cuda:+.9e}  relative difference {difference:.1e}"
            );
            worst = worst.max(difference);
        }
    }
    assert!(worst < TOLERANCE, "losses differ by {worst:.1e}, wanted less than {TOLERANCE:.0e}");
}

fn first(run: &Path, name: &str, count: usize) -> Vec<f64> {
    let file = hdf5::File::open(run.join("run.h5")).unwrap();
    let mut values = file.dataset(&format!("train/{name}")).unwrap().read_raw::<f64>().unwrap();
    values.truncate(count);
    values
}
