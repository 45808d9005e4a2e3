//! Which device a rank computes on: what it finds, and what all ranks then choose together.

use std::ffi::c_int;
use std::path::PathBuf;

use cudarc::driver::{result as driver, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::{Deserialize, Serialize};

use super::{CommError, DeviceRequest};

/// What one rank found, for all others to see.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) host: String,
    /// The GPU it would use, or why there is none.
    pub(super) gpu: Result<Gpu, String>,
}

/// A GPU as one rank sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Gpu {
    /// Index among the GPUs visible to this process.
    pub(super) ordinal: usize,
    pub(super) name: String,
    /// Identifies the device (or the MIG slice) across processes and hosts.
    pub(super) uuid: [u8; 16],
}

/// The GPU for this local rank, or in words why CUDA cannot be used here.
///
/// The ordinal is `local_rank % visible`: where a launcher shows all GPUs to all ranks that is
/// one each, and where it shows each rank its own (Slurm's `--gpus-per-task`) it is that one.
pub(super) fn find(request: DeviceRequest, local_rank: usize) -> Result<Gpu, String> {
    let driver = visible_gpus();
    if request == DeviceRequest::Auto {
        // Ends the search before libtorch_cuda, over a gigabyte with its libraries, is opened.
        driver.clone()?;
    }
    let library = load_libtorch_cuda();
    let visible = match (driver, library) {
        (Ok(visible), Ok(())) => visible,
        (driver, library) => {
            let reasons: Vec<_> = [driver.err(), library.err()].into_iter().flatten().collect();
            return Err(reasons.join("; "));
        }
    };
    // The first CUDA call of libtorch: it remembers the answer, so it must come after the loading.
    if !tch::Cuda::is_available() {
        return Err(format!(
            "the driver shows {visible} GPU(s) but libtorch can use none of them; \
             the driver may be too old for libtorch's CUDA, see nvidia-smi"
        ));
    }
    let ordinal = local_rank % visible;
    describe(ordinal).map_err(|error| format!("GPU {ordinal} can not be asked: {error:?}"))
}

/// How many GPUs the driver shows to this process: at least one.
fn visible_gpus() -> Result<usize, String> {
    // SAFETY: only opens the driver library by its well-known names.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver: libcuda.so.1 cannot be loaded".to_string());
    }
    driver::init().map_err(|error| format!("the NVIDIA driver does not start: {error:?}"))?;
    let count = driver::device::get_count().map_err(|error| format!("the NVIDIA driver: {error:?}"))?;
    match (count, std::env::var("CUDA_VISIBLE_DEVICES")) {
        (1.., _) => Ok(count as usize),
        (_, Ok(list)) => Err(format!("CUDA_VISIBLE_DEVICES={list:?} leaves no GPU visible")),
        (_, Err(_)) => Err("the NVIDIA driver finds no GPU".to_string()),
    }
}

fn describe(ordinal: usize) -> Result<Gpu, driver::DriverError> {
    let device = driver::device::get(ordinal as c_int)?;
    let name = driver::device::get_name(device)?;
    let uuid = driver::device::get_uuid(device)?.bytes.map(|byte| byte as u8);
    Ok(Gpu { ordinal, name, uuid })
}

/// Brings CUDA into libtorch. The linker drops `libtorch_cuda.so`, since nothing refers to its
/// symbols; opening it registers its kernels, and keeps one program for hosts with and without.
fn load_libtorch_cuda() -> Result<(), String> {
    const NAME: &str = "libtorch_cuda.so";
    // The copy beside the libtorch in use belongs to it; any other may not fit.
    let beside = libtorch_directory().map(|folder| folder.join(NAME)).filter(|path| path.exists());
    let path = beside.unwrap_or_else(|| NAME.into());
    // SAFETY: libtorch's initialisers expect to run at load time, in any order relative to main.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // Never unloaded: libtorch keeps pointers into it.
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(format!("{NAME} cannot be loaded: {}", loader_words(&error))),
    }
}

/// The folder of the libtorch this process runs with.
pub(crate) fn libtorch_directory() -> Option<PathBuf> {
    loaded_library("libtorch_cpu.so")?.parent().map(PathBuf::from)
}

/// The path of a library that is loaded into this process, by the start of its file name.
pub(crate) fn loaded_library(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    paths.into_iter().find(|path| {
        path.file_name().and_then(|file| file.to_str()).is_some_and(|file| file.starts_with(name))
    })
}

/// The dynamic loader's own message: which library, and what is wrong with it.
pub(super) fn loader_words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The function called `name` in a library, as the type that its place has; an error in the loader's words.
///
/// # Safety
/// `F` must be the C signature of `name`.
pub(super) unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller's.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol).map_err(|error| loader_words(&error))
}

/// Whether all ranks use CUDA (`true`) or all the CPU; `found` is in rank order, and the same on
/// every rank, so that every rank comes to the same answer.
///
/// # Errors
/// CUDA asked for and absent on some rank; `auto` where only some ranks have it; several ranks on
/// one GPU without `share_gpus`.
pub(super) fn choose(request: DeviceRequest, share_gpus: bool, found: &[Found]) -> Result<bool, CommError> {
    let (with, without): (Vec<_>, Vec<_>) =
        found.iter().enumerate().partition(|(_, found)| found.gpu.is_ok());
    match (request, with.is_empty(), without.first()) {
        (DeviceRequest::Cpu, ..) => return Ok(false),
        (DeviceRequest::Auto, true, _) => return Ok(false),
        (_, _, None) => {}
        (DeviceRequest::Cuda, _, Some((rank, first))) => {
            let reason = first.gpu.as_ref().expect_err("it is among those without");
            return Err(CommError::Device(format!(
                "compute.device = \"cuda\" but rank {rank} on {} has none: {reason}; install it with \
                 launch/setup.sh --cuda or set compute.device = \"cpu\"",
                first.host
            )));
        }
        (DeviceRequest::Auto, false, Some((rank, first))) => {
            let reason = first.gpu.as_ref().expect_err("it is among those without");
            let (good, other) = with.first().expect("not empty");
            return Err(CommError::Device(format!(
                "compute.device = \"auto\" finds CUDA on {} of {} ranks: rank {good} on {} has it, rank {rank} on {} \
                 does not ({reason}); start on GPU hosts only or set compute.device = \"cpu\"",
                with.len(),
                found.len(),
                other.host,
                first.host
            )));
        }
    }
    match shared(found) {
        Some((other, rank)) if !share_gpus => {
            let name = found[rank].gpu.as_ref().map_or("", |gpu| &gpu.name);
            Err(CommError::Device(format!(
                "ranks {other} and {rank} on {} would share one GPU ({name}): start one rank per GPU or, to test \
                 correctness only, set compute.share_gpus = true and give each rank its own NCCL_HOSTID",
                found[rank].host
            )))
        }
        _ => Ok(true),
    }
}

/// Two ranks on one GPU, if there are any.
pub(super) fn shared(found: &[Found]) -> Option<(usize, usize)> {
    let uuid = |found: &Found| found.gpu.as_ref().ok().map(|gpu| gpu.uuid);
    (0..found.len()).find_map(|rank| {
        let own = uuid(&found[rank])?;
        found[..rank].iter().position(|earlier| uuid(earlier) == Some(own)).map(|other| (other, rank))
    })
}

/// Makes this GPU the current device of the calling thread: NCCL starts on the current device,
/// tch has no call to set it, and libtorch always comes back to it.
pub(super) fn make_current(ordinal: usize) -> Result<(), CommError> {
    let bind = || {
        let device = driver::device::get(ordinal as c_int)?;
        // SAFETY: the device comes from `get`; its primary context, which the CUDA runtimes of
        // libtorch and NCCL use too, is retained for as long as the process lives.
        unsafe { driver::ctx::set_current(driver::primary_ctx::retain(device)?) }
    };
    bind().map_err(|error: driver::DriverError| {
        CommError::Device(format!("GPU {ordinal} can not be used: {error:?}; see nvidia-smi"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(host: &str, uuid: u8) -> Found {
        let gpu = Gpu { ordinal: 0, name: "H100".to_string(), uuid: [uuid; 16] };
        Found { host: host.to_string(), gpu: Ok(gpu) }
    }

    fn none(host: &str) -> Found {
        Found { host: host.to_string(), gpu: Err("no NVIDIA driver".to_string()) }
    }

    #[test]
    fn auto_follows_what_all_ranks_have() {
        assert!(choose(DeviceRequest::Auto, false, &[gpu("a", 1), gpu("b", 2)]).unwrap());
        assert!(!choose(DeviceRequest::Auto, false, &[none("a"), none("b")]).unwrap());
        assert!(!choose(DeviceRequest::Cpu, false, &[gpu("a", 1), none("b")]).unwrap());
    }

    #[test]
    fn auto_with_mixed_ranks_names_both_hosts() {
        let found = [gpu("fast", 1), none("slow")];
        let message = choose(DeviceRequest::Auto, false, &found).unwrap_err().to_string();
        for part in ["1 of 2", "fast", "slow", "no NVIDIA driver", "compute.device"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn absent_cuda_is_an_error_and_never_a_fallback() {
        let message = choose(DeviceRequest::Cuda, false, &[gpu("a", 1), none("b")]).unwrap_err().to_string();
        for part in ["compute.device = \"cuda\"", "rank 1 on b", "no NVIDIA driver", "setup.sh --cuda"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn ranks_share_a_gpu_only_when_told_to() {
        let found = [gpu("a", 1), gpu("a", 2), gpu("a", 1)];
        let message = choose(DeviceRequest::Auto, false, &found).unwrap_err().to_string();
        for part in ["ranks 0 and 2", "compute.share_gpus = true", "NCCL_HOSTID"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(choose(DeviceRequest::Cuda, true, &found).unwrap());
    }

    #[test]
    fn libtorch_is_found_among_the_loaded_libraries() {
        let _ = tch::get_num_threads(); // the linker keeps libtorch only where it is used
        let folder = libtorch_directory().expect("libtorch is loaded");
        assert!(folder.join("libtorch_cpu.so").exists(), "{}", folder.display());
    }
}
