//! A rank's place in the job: how it joins, what it can ask of the others, and how it leaves.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use mpi::environment::{Threading, Universe};
use mpi::traits::Communicator;
use tch::{Device, Tensor};

use super::control::Control;
use super::mpi::Mpi;
use super::stall::Rules;
use super::watchdog::{self, Watchdog};
use super::{
    Collective, CommError, DeviceRequest, Failure, check_first_collective, device, launch, nccl, solo,
};
use crate::config::ComputeSection;

/// How a world starts, beyond device and threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartOptions {
    /// Lets several ranks compute on one GPU: for tests of correctness, where NCCL allows it.
    pub share_gpus: bool,
    /// Exit code of the job after a panic, when ranks do not connect, or when one does not come to a collective.
    pub abort_code: i32,
    /// How long NCCL may take to connect all ranks.
    pub nccl_limit: Duration,
    /// How long a rank may wait for the others in a collective before the watchdogs end the job and name who is
    /// missing. Three times that in the first 40 collectives, when ranks load data and fill caches; zero is for
    /// ever. To be equal on all ranks.
    pub stall_limit: Duration,
    /// Whether ranks have long work of their own between collectives: then one whose watchdog answers is not missing.
    pub work_apart: bool,
    /// Why this rank cannot go on, if it cannot: the ranks learn of it together, before they choose devices.
    pub refusal: Option<String>,
}

impl Default for StartOptions {
    fn default() -> Self {
        StartOptions {
            share_gpus: false,
            abort_code: 1,
            nccl_limit: Duration::from_secs(120),
            stall_limit: Duration::from_secs(ComputeSection::default().stall_seconds),
            work_apart: false,
            refusal: None,
        }
    }
}

/// This process among all: who it is, where it computes, and its collectives.
///
/// Dropping it leaves the job in order: the watchdogs of all ranks, NCCL's communicator, then MPI, which waits for
/// all ranks to do the same. A process must drop it before `std::process::exit`.
pub struct World {
    /// Index of this process, `0..size`.
    pub rank: usize,
    /// Number of processes (the world size).
    pub size: usize,
    /// Index of this process among those on its host.
    pub local_rank: usize,
    /// Number of processes on this host.
    pub local_size: usize,
    /// Host name.
    pub host: String,
    /// Where this rank's tensors live.
    pub device: Device,
    /// The GPU's name, or why it is the CPU.
    pub device_reason: String,
    /// Threads libtorch may use for one operation on this rank.
    pub threads: usize,
    /// `solo`, `mpi` or `nccl`.
    pub backend: &'static str,
    // Fields are dropped in this order: all need MPI, so the universe is last. The watchdog waits for all ranks,
    // so NCCL's communicator ends everywhere at the same time.
    _watchdog: Option<Watchdog>,
    collective: Rc<dyn Collective>,
    control: Control,
    _universe: Option<Universe>,
}

/// What ends when a start fails, in this order: the watchdog needs MPI.
struct Joined {
    watchdog: Option<Watchdog>,
    universe: Option<Universe>,
}

impl World {
    /// Joins the job this process belongs to; alone if no launcher started it.
    ///
    /// In order: MPI, the panic hook, rank and local rank, the watchdog, thread counts, the device, the backend,
    /// and a first collective that is checked. To be called once, before the first tensor
    /// operation: thread counts and CUDA can not be changed after it. `threads` defaults to
    /// `OMP_NUM_THREADS`, and without it to this host's cores divided over its ranks.
    ///
    /// A process without a launcher never touches MPI and keeps Rust's ordinary panics.
    ///
    /// # Errors
    /// The device cannot be had, or the launcher does not fit. All ranks fail together, and
    /// [`CommError::is_reported_here`] is true on one of them. Failures that the others cannot
    /// learn of, such as NCCL not connecting, end the job here instead, naming the rank.
    pub fn start(
        request: DeviceRequest,
        threads: Option<usize>,
        options: StartOptions,
    ) -> Result<World, CommError> {
        let Some(launcher) = launch::launcher(|name| std::env::var(name).ok())? else {
            check_refusal(&options)?;
            let control = Control::new(0, 1, launch::host_name());
            let joined = Joined { watchdog: None, universe: None };
            return Self::on_host(control, (0, 1), joined, request, threads, &options);
        };
        // The rank calls MPI from one thread, its watchdog from another.
        let Some((mut universe, provided)) = mpi::initialize_with_threading(Threading::Multiple) else {
            return Err(CommError::Launch(
                "MPI is already initialised: a process starts one world".to_string(),
            ));
        };
        let everyone = universe.world();
        let (rank, size) = (everyone.rank() as usize, everyone.size() as usize);
        let host = mpi::environment::processor_name().unwrap_or_else(|_| launch::host_name());
        launch::abort_on_panic(rank, size, &host, options.abort_code);
        let control = Control::new(rank, size, host);
        control.agree(check_size(&launcher, size))?;
        control.agree(check_refusal(&options))?;
        let local = {
            // Freed here: a communicator must not outlive MPI, and an error below ends that.
            let neighbours = everyone.split_shared(rank as i32);
            (neighbours.rank() as usize, neighbours.size() as usize)
        };
        let watchdog = (size > 1).then(|| {
            universe.set_buffer_size(size * watchdog::BUFFER_BYTES);
            let rules = Rules { limit: options.stall_limit, work_apart: options.work_apart };
            Watchdog::start(&control, provided, rules, options.abort_code)
        });
        Self::on_host(
            control,
            local,
            Joined { watchdog, universe: Some(universe) },
            request,
            threads,
            &options,
        )
    }

    /// What follows once ranks can talk: threads, device, backend, first collective.
    fn on_host(
        control: Control,
        (local_rank, local_size): (usize, usize),
        joined: Joined,
        request: DeviceRequest,
        threads: Option<usize>,
        options: &StartOptions,
    ) -> Result<World, CommError> {
        let Control { rank, size, host, .. } = &control;
        let (rank, size, host) = (*rank, *size, host.clone());
        let openmp = std::env::var("OMP_NUM_THREADS").ok();
        let threads = launch::threads(threads, openmp.as_deref(), local_size);
        launch::set_threads(threads);
        let (device, device_reason, is_shared) =
            choose_device(&control, request, local_rank, options.share_gpus)?;
        let (backend, collective): (_, Rc<dyn Collective>) = match (size, device) {
            (1, _) => ("solo", Rc::new(solo::Solo { device })),
            (_, Device::Cuda(ordinal)) => {
                let (control, limit) = (control.clone(), options.nccl_limit);
                ("nccl", Rc::new(nccl::Nccl::start(control, ordinal, is_shared, limit, options.abort_code)?))
            }
            _ => ("mpi", Rc::new(Mpi::new(control.watch.clone()))),
        };
        // NCCL has made its own while its watchdog was awake.
        if backend != "nccl" {
            control.agree(check_first_collective(collective.as_ref(), device, rank, size))?;
        }
        Ok(World {
            rank,
            size,
            local_rank,
            local_size,
            host,
            device,
            device_reason,
            threads,
            backend,
            _watchdog: joined.watchdog,
            collective,
            control,
            _universe: joined.universe,
        })
    }

    /// A world of one rank on `device`, for tests and for use as a library. Changes nothing in the
    /// process: no MPI, no panic hook, libtorch's thread count as it is.
    pub fn solo(device: Device) -> World {
        let host = launch::host_name();
        World {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            host: host.clone(),
            device,
            device_reason: "as asked".to_string(),
            threads: tch::get_num_threads().max(1) as usize,
            backend: "solo",
            _watchdog: None,
            collective: Rc::new(solo::Solo { device }),
            control: Control::new(0, 1, host),
            _universe: None,
        }
    }

    /// The collectives over all ranks, on this rank's device.
    pub fn collective(&self) -> &dyn Collective {
        self.collective.as_ref()
    }

    /// The same collectives for something that is kept, such as a target whose data are spread over the ranks.
    pub fn shared_collective(&self) -> SharedCollective {
        SharedCollective { rank: self.rank, size: self.size, collective: Rc::downgrade(&self.collective) }
    }

    /// Seconds of an all-reduce of `buffer` that all ranks begin together, until its result is there.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn time_all_reduce(&self, buffer: &mut Tensor) -> Result<f64, CommError> {
        // The second begins when all have left the first, so nobody sleeps in it.
        self.collective().barrier()?;
        self.collective().barrier()?;
        let started = Instant::now();
        self.collective().all_reduce_sum(buffer)?;
        if let Device::Cuda(ordinal) = self.device {
            tch::Cuda::synchronize(ordinal as i64);
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// Whether this is rank 0, which alone writes files and prints.
    pub fn is_root(&self) -> bool {
        self.rank == 0
    }

    /// Whether `flag` is true on at least one rank. All ranks must call it.
    pub fn any(&self, flag: bool) -> bool {
        self.control.any(flag)
    }

    /// Rank 0's text, on every rank; what others give is ignored, and nothing from rank 0 is the
    /// empty text. All ranks must call it.
    pub fn broadcast_string(&self, own: Option<String>) -> String {
        let bytes = self.control.broadcast(own.unwrap_or_default().into_bytes());
        String::from_utf8(bytes).expect("rank 0 sent a String")
    }

    /// The texts of all ranks, in rank order, on every rank. All ranks must call it.
    pub fn gather_strings(&self, own: &str) -> Vec<String> {
        self.control.gather(own)
    }

    /// Makes an error on any rank an error on every rank. All ranks must call it.
    ///
    /// For steps that may go wrong on some ranks only, before others rely on them: reading a file,
    /// checking a config, opening the log. If all results are `Ok`, each rank gets its own back.
    /// Otherwise every rank gets the same [`Failure`], and the lowest rank that failed holds its
    /// error and [reports](Failure::is_reported_here) it:
    ///
    /// ```
    /// # use dft::comm::World;
    /// # let world = World::solo(tch::Device::Cpu);
    /// # let config = Err::<(), _>(std::io::Error::other("no such file"));
    /// // Every rank exits with code 2; one of them says why.
    /// let code = match world.agree(config) {
    ///     Ok(_) => 0,
    ///     Err(failure) => {
    ///         if failure.is_reported_here() {
    ///             eprintln!("error: {failure}");
    ///         }
    ///         2
    ///     }
    /// };
    /// drop(world); // leaves MPI in order, together with the others
    /// # assert_eq!(code, 2);
    /// ```
    ///
    /// A config that cannot be read names no device, so start on [`DeviceRequest::Cpu`] to agree on
    /// that error. Leaving before `start` is no alternative: the first rank to exit makes the
    /// launcher kill the others, with or without their message.
    ///
    /// # Errors
    /// If any rank gave an error.
    pub fn agree<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Result<T, Failure<E>> {
        self.control.agree(result)
    }

    /// Ends the whole job with exit code `code`, from this rank, whatever the others are doing.
    ///
    /// Nothing is flushed or dropped: print the reason, with the rank, before.
    pub fn abort(&self, code: i32) -> ! {
        launch::abort_job(code)
    }
}

/// The collectives of a [`World`], without a borrow of it. It keeps nothing alive: NCCL and MPI end with the world.
#[derive(Clone)]
pub struct SharedCollective {
    /// Index of this process, `0..size`.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    collective: Weak<dyn Collective>,
}

impl SharedCollective {
    /// Runs `act` with the collectives.
    ///
    /// # Panics
    /// If the world is gone: there is nobody left to talk to.
    pub fn with<T>(&self, act: impl FnOnce(&dyn Collective) -> T) -> T {
        let collective = self.collective.upgrade();
        act(collective
            .expect("a collective was called after its world had ended; drop the world last")
            .as_ref())
    }
}

/// The launcher's number of processes must be MPI's, or each of them takes itself for the whole job.
fn check_size(launcher: &launch::Launcher, size: usize) -> Result<(), CommError> {
    match launcher.size {
        Some(launched) if launched != size => {
            let library = mpi::environment::library_version().unwrap_or_default();
            let library = library.split(',').next().unwrap_or_default().trim().to_string();
            Err(CommError::Launch(format!(
                "the launcher started {launched} processes ({}) but MPI sees {size}: it is not the launcher of the MPI \
                 this program was built with ({library}); use that one's mpirun",
                launcher.evidence
            )))
        }
        _ => Ok(()),
    }
}

fn check_refusal(options: &StartOptions) -> Result<(), CommError> {
    options.refusal.clone().map_or(Ok(()), |reason| Err(CommError::Launch(reason)))
}

/// This rank's device, its description, and whether several ranks share a GPU.
fn choose_device(
    control: &Control,
    request: DeviceRequest,
    local_rank: usize,
    share_gpus: bool,
) -> Result<(Device, String, bool), CommError> {
    if request == DeviceRequest::Cpu {
        return Ok((Device::Cpu, "as asked".to_string(), false));
    }
    let own = device::Found { host: control.host.clone(), gpu: device::find(request, local_rank) };
    let text = serde_json::to_string(&own).expect("a plain struct");
    let found: Vec<device::Found> = control
        .gather(&text)
        .iter()
        .map(|text| serde_json::from_str(text).expect("every rank sends the same struct"))
        .collect();
    // All ranks come to the same answer; agreeing on it is what lets one of them report it.
    let is_cuda = control.agree(device::choose(request, share_gpus, &found))?;
    match own.gpu {
        Ok(gpu) if is_cuda => {
            control.agree(device::make_current(gpu.ordinal))?;
            let is_shared = device::shared(&found).is_some();
            Ok((Device::Cuda(gpu.ordinal), gpu.name, is_shared))
        }
        Ok(_) => unreachable!("a GPU on this rank, and no CUDA: `choose` allows that on request only"),
        Err(reason) => Ok((Device::Cpu, reason, false)),
    }
}
