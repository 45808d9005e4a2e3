//! Collectives, failures and endings of real jobs: each test runs one of the bodies below under
//! mpirun, on as many ranks as it names.

mod support;

use std::process::exit;
use std::time::{Duration, Instant};

use dft::comm::{CommError, DeviceRequest, StartOptions, World};
use support::{Finished, append_body, assert_all_passed, mpirun, run_body, run_within};
use tch::{Device, Kind, Tensor};

const KINDS: [Kind; 3] = [Kind::Float, Kind::Double, Kind::Int64];

fn count(job: &Finished, text: &str) -> usize {
    job.output.matches(text).count()
}

fn world() -> World {
    World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()).expect("the CPU is always there")
}

#[test]
fn ranks_know_who_they_are() {
    for ranks in [1, 2, 3] {
        assert_all_passed(ranks, "body_identity");
    }
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_identity() {
    let world = world();
    let launched: usize =
        std::env::var("OMPI_COMM_WORLD_SIZE").or(std::env::var("PMI_SIZE")).unwrap().parse().unwrap();
    assert_eq!(world.size, launched);
    assert_eq!((world.local_rank, world.local_size), (world.rank, world.size)); // all on this host
    assert_eq!(world.backend, if world.size == 1 { "solo" } else { "mpi" });
    assert_eq!((world.is_root(), world.device, world.threads), (world.rank == 0, Device::Cpu, 1));
    assert_eq!((tch::get_num_threads(), tch::get_num_interop_threads()), (1, 1));
    assert_eq!(rayon::current_num_threads(), 1);
}

#[test]
fn collectives_equal_their_closed_forms() {
    for ranks in [1, 2, 3] {
        assert_all_passed(ranks, "body_collectives");
    }
}

/// Rank r holds r + 1, 2 (r + 1), 3 (r + 1), ...; sums of such small integers are exact in all kinds.
#[test]
#[ignore = "a body: runs under mpirun"]
fn body_collectives() {
    let world = world();
    let (rank, size) = (world.rank as i64, world.size as i64);
    let all = world.collective();
    for kind in KINDS {
        // No element, one, an odd shape, and one longer than the piece that MPI sums at a time.
        for shape in [vec![0], vec![1], vec![3, 5, 7], vec![300_001]] {
            let count: i64 = shape.iter().product();
            let of_rank =
                |rank: i64| ((Tensor::arange(count, (kind, Device::Cpu)) + 1) * (rank + 1)).view(&shape[..]);

            let mut sum = of_rank(rank);
            all.all_reduce_sum(&mut sum).unwrap();
            assert_eq!(sum, of_rank(size * (size + 1) / 2 - 1), "sum of {kind:?} {shape:?}");

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
    assert!(all.broadcast(&mut Tensor::zeros([1], (Kind::Float, Device::Cpu)), world.size).is_err());
    all.barrier().unwrap();
}

#[test]
fn decisions_reach_every_rank() {
    for ranks in [1, 2, 3] {
        assert_all_passed(ranks, "body_control");
    }
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_late() {
    let world = world();
    let all = world.collective();
    all.barrier().unwrap();
    if world.rank == 1 {
        // What the other does for so long is what is tested.
        std::thread::sleep(Duration::from_secs(2));
    }
    let (started, before) = (Instant::now(), seconds_on_a_core());
    all.barrier().unwrap();
    let (waited, busy) = (started.elapsed().as_secs_f64(), seconds_on_a_core() - before);
    if world.rank == 0 {
        assert!(waited > 1.0, "it waited {waited} s");
        assert!(before > 0.0, "this kernel does not count");
        // Spinning is busy all of the time.
        assert!(busy < 0.25 * waited, "busy for {busy} s of the {waited} s that it waited");
    }
}

/// Of this thread, as the kernel counts them.
fn seconds_on_a_core() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1e-9
}

#[test]
fn a_rank_that_waits_at_a_barrier_leaves_its_core_to_others() {
    assert_all_passed(2, "body_late");
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_control() {
    let world = world();
    let last = world.size - 1;
    assert!(world.any(world.rank == last) && !world.any(false));
    let name = world.broadcast_string(world.is_root().then(|| "r\u{e9}sum\u{e9}".to_string()));
    assert_eq!(name, "r\u{e9}sum\u{e9}");
    assert_eq!(world.broadcast_string((!world.is_root()).then(|| "not rank 0's".to_string())), "");
    // Texts of different lengths, rank 0's empty.
    let texts: Vec<_> = (0..world.size).map(|rank| "x".repeat(rank)).collect();
    assert_eq!(world.gather_strings(&texts[world.rank]), texts);
    assert_eq!(world.agree(Ok::<_, String>(world.rank)).unwrap(), world.rank);
}

#[test]
fn panic_of_one_rank_ends_the_job_and_is_named() {
    let job = run_body(3, "body_panic", &[]);
    assert_eq!(job.code, 9, "{}", job.output);
    assert!(job.elapsed < Duration::from_secs(10), "{:?}", job.elapsed);
    assert!(job.output.contains("rank 1 of 3 on "), "{}", job.output);
    assert!(job.output.contains("panicked: the sampler has left us"), "{}", job.output);
    assert_eq!(count(&job, "unreachable"), 0, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_panic() {
    let options = StartOptions { abort_code: 9, ..StartOptions::default() };
    let world = World::start(DeviceRequest::Cpu, Some(1), options).unwrap();
    if world.rank == 1 {
        panic!("the sampler has left us");
    }
    world.collective().barrier().unwrap();
    println!("unreachable: the barrier has let rank {} pass", world.rank);
}

#[test]
fn panic_on_another_thread_ends_the_job_too() {
    let job = run_body(2, "body_panic_on_thread", &[]);
    assert_eq!(job.code, 1, "{}", job.output);
    assert!(job.elapsed < Duration::from_secs(10), "{:?}", job.elapsed);
    assert!(job.output.contains("rank 1 of 2 on "), "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_panic_on_thread() {
    let world = world();
    let thread = (world.rank == 1).then(|| std::thread::spawn(|| panic!("in a worker")));
    world.collective().barrier().unwrap();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
    world.collective().barrier().unwrap();
    println!("unreachable");
}

#[test]
fn abort_of_one_rank_ends_the_job_with_its_code() {
    let job = run_body(3, "body_abort", &[]);
    assert_eq!(job.code, 3, "{}", job.output);
    assert!(job.elapsed < Duration::from_secs(10), "{:?}", job.elapsed);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_abort() {
    let world = world();
    if world.rank == 2 {
        world.abort(3);
    }
    world.collective().barrier().unwrap();
}

#[test]
fn failure_of_some_ranks_is_reported_once_and_ends_all() {
    let job = run_body(3, "body_agree", &[]);
    assert_eq!(job.code, 2, "{}", job.output);
    assert_eq!(count(&job, "error:"), 1, "{}", job.output);
    assert!(job.output.contains("error: rank 1 on "), "{}", job.output);
    assert!(job.output.contains("(1 other ranks fail too): rank 1 has no data"), "{}", job.output);
    assert_eq!(count(&job, "leaves with rank 1's message"), 3, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_agree() {
    let world = world();
    let result = if world.rank == 0 { Ok(()) } else { Err(format!("rank {} has no data", world.rank)) };
    let failure = world.agree(result).unwrap_err();
    if failure.is_reported_here() {
        eprintln!("error: {failure}");
    }
    if failure.message == "rank 1 has no data" {
        println!("rank {} leaves with rank 1's message", world.rank);
    }
    drop(world);
    exit(2);
}

#[test]
fn failure_of_all_ranks_is_one_plain_message() {
    let job = run_body(2, "body_agree_on_all", &[]);
    assert_eq!(job.code, 2, "{}", job.output);
    assert_eq!(count(&job, "error: no such target: monument\n"), 1, "{}", job.output);
    assert_eq!(count(&job, "monument"), 1, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_agree_on_all() {
    let world = world();
    let failure = world.agree(Err::<(), _>("no such target: monument")).unwrap_err();
    if failure.is_reported_here() {
        eprintln!("error: {failure}");
    }
    drop(world);
    exit(2);
}

/// No GPU is visible to these jobs, so the test means the same on every machine.
#[test]
fn absent_cuda_is_reported_once_by_a_job_that_asks_for_it() {
    let job = run_body(2, "body_start_on_cuda", &[("CUDA_VISIBLE_DEVICES", "")]);
    assert_eq!(job.code, 2, "{}", job.output);
    assert_eq!(count(&job, "error: compute.device = \"cuda\" but rank 0 on "), 1, "{}", job.output);
    assert_eq!(count(&job, "set compute.device = \"cpu\""), 1, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_start_on_cuda() {
    match World::start(DeviceRequest::Cuda, Some(1), StartOptions::default()) {
        Err(CommError::Elsewhere { .. }) => exit(2),
        Err(error) => {
            eprintln!("error: {error}");
            exit(2)
        }
        Ok(world) => panic!("{:?} without a visible GPU", world.device),
    }
}

#[test]
fn auto_without_a_gpu_is_the_cpu_on_every_rank() {
    let job = run_body(2, "body_start_on_auto", &[("CUDA_VISIBLE_DEVICES", "")]);
    assert_eq!(job.code, 0, "{}", job.output);
    assert_eq!(count(&job, "mpi on Cpu because "), 2, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_start_on_auto() {
    let world = World::start(DeviceRequest::Auto, Some(1), StartOptions::default()).unwrap();
    println!("{} on {:?} because {}", world.backend, world.device, world.device_reason);
    assert!(!world.device_reason.is_empty());
}

#[test]
fn threads_default_to_a_share_of_the_cores() {
    let mut command = mpirun(2);
    command.args(["env", "-u", "OMP_NUM_THREADS"]);
    append_body(&mut command, "body_threads");
    let job = run_within(command, Duration::from_secs(60));
    let cores = std::thread::available_parallelism().unwrap().get();
    let share = format!("{} threads", (cores / 2).max(1));
    assert_eq!(count(&job, &share), 2, "{}", job.output);
}

#[test]
fn threads_are_as_many_as_openmp_is_told_where_none_are_requested() {
    let job = run_body(2, "body_threads", &[("OMP_NUM_THREADS", "3")]);
    assert_eq!(count(&job, "3 threads"), 2, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_threads() {
    let world = World::start(DeviceRequest::Cpu, None, StartOptions::default()).unwrap();
    assert_eq!(tch::get_num_threads() as usize, world.threads);
    println!("{} threads", world.threads);
}

/// The launcher of another MPI starts processes that do not see each other. Imitated by its
/// variable, in place of the informative one of the launcher that is really there.
#[test]
fn launcher_of_another_mpi_is_rejected() {
    let mut command = mpirun(1);
    command.args(["env", "-u", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE=4"]);
    append_body(&mut command, "body_foreign_launcher");
    let job = run_within(command, Duration::from_secs(60));
    assert_eq!(job.code, 0, "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_foreign_launcher() {
    let Err(error) = World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()) else {
        panic!("a world of one started as four");
    };
    let message = error.to_string();
    assert!(message.contains("started 4 processes") && message.contains("MPI sees 1"), "{message}");
}

#[test]
fn bare_process_is_alone_and_never_touches_mpi() {
    let world = World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()).unwrap();
    assert_eq!((world.rank, world.size, world.backend), (0, 1, "solo"));
}

#[test]
fn doctor_checks_an_all_reduce_over_all_ranks() {
    for ranks in [1, 2] {
        let job = run_body(ranks, "body_doctor", &[("CUDA_VISIBLE_DEVICES", "")]);
        assert_eq!(job.code, 0, "{}", job.output);
        let sizes = [("1 rank, backend solo", 1), ("2 ranks, backend mpi", 2)];
        let (words, _) = sizes.iter().find(|(_, size)| *size == ranks).unwrap();
        assert_eq!(count(&job, &format!("16 MiB over {words}: sum is right")), 1, "{}", job.output);
        for library in ["dft ", "libtorch ", "MPI ", "NCCL ", "HDF5 "] {
            assert!(job.output.lines().any(|line| line.starts_with(library)), "{library}: {}", job.output);
        }
    }
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_doctor() {
    dft::cli::doctor::run(DeviceRequest::Auto, Some(1), false).unwrap();
}
