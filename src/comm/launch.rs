//! How this process was started: by which launcher, what ends the job, and on how many threads.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use mpi::topology::{Communicator, SimpleCommunicator};

use super::CommError;

/// A launcher's variable, who sets it, and whether its value is the number of processes.
struct Variable {
    name: &'static str,
    set_by: &'static str,
    is_size: bool,
}

const fn variable(name: &'static str, set_by: &'static str, is_size: bool) -> Variable {
    Variable { name, set_by, is_size }
}

/// MPI is initialised if and only if one of these is set. Without a launcher a "singleton" start
/// of Open MPI is slow, and dies when the library was moved after its installation, so a process
/// of its own never touches MPI.
const LAUNCHERS: [Variable; 8] = [
    variable("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun", true),
    variable("PMI_SIZE", "mpiexec of MPICH and Intel MPI, srun --mpi=pmi2", true),
    variable("MV2_COMM_WORLD_SIZE", "mpirun_rsh of MVAPICH2", true),
    variable("PMIX_RANK", "srun --mpi=pmix, prterun", false),
    variable("PMI_RANK", "mpiexec of MPICH and Intel MPI, srun --mpi=pmi2", false),
    variable("PALS_RANKID", "mpiexec of Cray PALS", false),
    variable("ALPS_APP_PE", "aprun of Cray ALPS", false),
    variable("JSM_NAMESPACE_RANK", "jsrun of IBM JSM", false),
];

/// A launcher that was recognised.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Launcher {
    /// The variable it was recognised by, and who sets that.
    pub(super) evidence: String,
    /// The number of processes, where the launcher says it.
    pub(super) size: Option<usize>,
}

/// The launcher that started this process, or none; `lookup` reads an environment variable.
///
/// # Errors
/// If several tasks were started by a launcher that MPI can not use: each would take itself for
/// the whole job and write to the same files.
pub(super) fn launcher(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Launcher>, CommError> {
    let number = |name: &str| lookup(name).and_then(|value| value.trim().parse::<usize>().ok());
    let Some(first) = LAUNCHERS.iter().find(|variable| lookup(variable.name).is_some()) else {
        return match number("SLURM_STEP_NUM_TASKS") {
            Some(tasks) if tasks > 1 => Err(unconnected(tasks, number("SLURM_PROCID"))),
            _ => Ok(None),
        };
    };
    let size = LAUNCHERS.iter().filter(|variable| variable.is_size).find_map(|v| number(v.name));
    Ok(Some(Launcher { evidence: format!("{} ({})", first.name, first.set_by), size }))
}

/// The error of Slurm tasks that cannot reach each other; task 0 reports it.
fn unconnected(tasks: usize, task: Option<usize>) -> CommError {
    let message = format!(
        "srun started {tasks} tasks but gave MPI no way to connect them (no PMIX_RANK, no PMI_RANK); \
         use mpirun inside the allocation, or srun --mpi=pmix"
    );
    match task {
        None | Some(0) => CommError::Launch(message),
        Some(_) => CommError::Elsewhere { rank: 0, message },
    }
}

/// Makes a panic on any thread of this rank end the whole job with exit code `code`.
///
/// Without it the other ranks would wait for ever in their next collective.
pub(super) fn abort_on_panic(rank: usize, size: usize, host: &str, code: i32) {
    let host = host.to_string();
    std::panic::set_hook(Box::new(move |panic| {
        let backtrace = Backtrace::capture();
        let place = panic.location().map(|at| format!(" ({at})")).unwrap_or_default();
        eprintln!("error: rank {rank} of {size} on {host} panicked: {}{place}", words(panic));
        if backtrace.status() == BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
        abort_job(code)
    }));
}

/// The message of a panic.
fn words<'a>(panic: &'a PanicHookInfo) -> &'a str {
    let payload = panic.payload();
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Ends all processes of the job with exit code `code`; without MPI, this one.
///
/// MPI allows this call from any thread only at the highest thread level. It is made from others
/// all the same: the process is past saving, and if `MPI_Abort` misbehaves the launcher still
/// sees it die without having finalised, and ends the rest.
pub(super) fn abort_job(code: i32) -> ! {
    if mpi::environment::is_initialized() && !mpi::environment::is_finalized() {
        SimpleCommunicator::world().abort(code)
    }
    std::process::exit(code)
}

/// `requested`, or what `OMP_NUM_THREADS` says, or this rank's part of the cores it may run on: at least one.
///
/// OpenMP's variable may hold a list for nested regions, of which the first counts; what is no number is taken as not set.
/// `available_parallelism` respects affinity masks and cgroup quotas. A launcher that binds ranks
/// to single cores leaves one, hence `--bind-to none` in everything we ship.
pub(super) fn threads(requested: Option<usize>, openmp: Option<&str>, local_size: usize) -> usize {
    let of_openmp = || openmp?.split(',').next()?.trim().parse().ok();
    requested.or_else(of_openmp).unwrap_or_else(|| cores() / local_size).max(1)
}

/// Cores this process may run on.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Fixes the sizes of all thread pools; to be called before the first tensor operation.
///
/// libtorch's call sets OpenMP and MKL too. Left alone, every rank would start a thread per core:
/// two ranks with two spinning OpenMP threads each ran 15 times slower on two cores than with one.
pub(super) fn set_threads(threads: usize) {
    let count = i32::try_from(threads).unwrap_or(i32::MAX);
    tch::set_num_threads(count);
    // libtorch refuses to set this twice, so a second world in one process leaves it alone.
    if tch::get_num_interop_threads() != 1 {
        tch::set_num_interop_threads(1);
    }
    if rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().is_err()
        && rayon::current_num_threads() != threads
    {
        tracing::warn!(
            "rayon's pool was made with {} threads before the world asked for {threads}",
            rayon::current_num_threads()
        );
    }
}

/// Name of this host, for messages.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_string())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Option<Launcher>, CommError> {
        launcher(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn bare_process_has_no_launcher() {
        assert_eq!(with(&[("PATH", "/bin")]).unwrap(), None);
        // An allocation alone starts nothing: `dft` typed inside `salloc` is one process.
        assert_eq!(with(&[("SLURM_NTASKS", "4"), ("SLURM_STEP_NUM_TASKS", "1")]).unwrap(), None);
    }

    #[test]
    fn each_launcher_is_recognised_and_its_size_read() {
        for variable in &LAUNCHERS {
            let found = with(&[(variable.name, "3")]).unwrap().expect(variable.name);
            assert_eq!(found.size, variable.is_size.then_some(3), "{}", variable.name);
        }
    }

    #[test]
    fn srun_without_pmi_is_rejected() {
        let message = with(&[("SLURM_STEP_NUM_TASKS", "4")]).unwrap_err().to_string();
        assert!(message.contains("4 tasks") && message.contains("mpirun"), "{message}");
        let second = with(&[("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "2")]).unwrap_err();
        assert!(!second.is_reported_here());
        let under_mpirun = [("SLURM_STEP_NUM_TASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "8")];
        assert_eq!(with(&under_mpirun).unwrap().unwrap().size, Some(8));
    }

    #[test]
    fn threads_divide_the_cores_and_are_never_zero() {
        assert_eq!(threads(Some(5), None, 3), 5);
        assert_eq!(threads(Some(0), None, 3), 1);
        assert_eq!(threads(None, None, 1), cores());
        assert_eq!(threads(None, None, 10_000_000), 1);
    }

    #[test]
    fn threads_are_those_of_openmp_where_none_are_requested() {
        assert_eq!(threads(None, Some("7"), 1), 7);
        assert_eq!(threads(None, Some(" 3,2"), 1), 3);
        assert_eq!(threads(Some(5), Some("7"), 1), 5);
        assert_eq!(threads(None, Some("0"), 1), 1);
        assert_eq!(threads(None, Some("many"), 1), cores());
    }
}
