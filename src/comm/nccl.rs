//! Collectives over NCCL, on tensors in GPU memory; MPI starts it and keeps the barrier.
//!
//! The types are cudarc's, the loading is not. cudarc's loader does not know `libnccl.so.2`, the
//! only name in the Python wheels and the copy libtorch itself is linked to; and it returns codes
//! as a Rust enum, in which the code of a newer NCCL would be undefined behaviour. So the eleven
//! functions used here are looked up once in the copy that libtorch uses, and give plain integers.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device, Kind, Tensor};

use super::control::{Control, Failure};
use super::device::function;
use super::watch::{Call, What};
use super::{Collective, CommError, check_buffer, check_root, device, launch};

/// libtorch computes on the legacy default stream unless told otherwise, and so does NCCL here:
/// work on one stream is done in order, so no collective needs an event or a wait.
const STREAM: cudaStream_t = std::ptr::null_mut();

/// `ncclSuccess`.
const SUCCESS: c_int = 0;

/// `ncclInProgress`: what an asynchronous query says while all is well.
const IN_PROGRESS: c_int = 7;

/// From this version on `NCCL_MULTI_RANK_GPU_ENABLE=1` lets ranks share a GPU.
const SHARES_GPUS: c_int = 2_30_00;

type Code = c_int;

/// The functions of libnccl that are used, with the signatures of its `nccl.h`.
struct Api {
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Code,
    init_rank: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> Code,
    destroy: unsafe extern "C" fn(ncclComm_t) -> Code,
    abort: unsafe extern "C" fn(ncclComm_t) -> Code,
    async_error: unsafe extern "C" fn(ncclComm_t, *mut Code) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
    broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        c_int,
        ncclComm_t,
        cudaStream_t,
    ) -> Code,
}

/// Loaded at most once, and never unloaded.
static API: OnceLock<Api> = OnceLock::new();

impl Api {
    /// Opens libnccl. After libtorch_cuda is loaded, the loader answers `libnccl.so.2` with the
    /// copy libtorch uses, whatever the search path; the other name is for builds of libtorch
    /// with NCCL inside, beside which any NCCL will do.
    fn load() -> Result<&'static Api, String> {
        if let Some(api) = API.get() {
            return Ok(api);
        }
        let mut reasons = Vec::new();
        for name in ["libnccl.so.2", "libnccl.so"] {
            // SAFETY: NCCL's load-time code only registers itself.
            match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    let api = Self::symbols(&library).map_err(|error| format!("{name}: {error}"))?;
                    std::mem::forget(library);
                    return Ok(API.get_or_init(|| api));
                }
                Err(error) => reasons.push(device::loader_words(&error)),
            }
        }
        Err(format!("NCCL cannot be loaded: {}", reasons.join("; ")))
    }

    fn symbols(library: &Library) -> Result<Api, String> {
        // SAFETY: the fields of `Api` repeat the signatures of nccl.h, 2.28; they have not changed
        // since NCCL 2.13 (`ncclGetLastError`), and changing them would break every program.
        unsafe {
            Ok(Api {
                get_version: function(library, "ncclGetVersion")?,
                get_unique_id: function(library, "ncclGetUniqueId")?,
                init_rank: function(library, "ncclCommInitRank")?,
                destroy: function(library, "ncclCommDestroy")?,
                abort: function(library, "ncclCommAbort")?,
                async_error: function(library, "ncclCommGetAsyncError")?,
                error_string: function(library, "ncclGetErrorString")?,
                last_error: function(library, "ncclGetLastError")?,
                all_reduce: function(library, "ncclAllReduce")?,
                all_gather: function(library, "ncclAllGather")?,
                broadcast: function(library, "ncclBroadcast")?,
            })
        }
    }

    fn version(&self) -> c_int {
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { (self.get_version)(&mut version) };
        version
    }

    /// An error in NCCL's own words: the code, what it stands for, and the last message it logged.
    fn error(&self, call: &str, code: Code, comm: ncclComm_t) -> CommError {
        // SAFETY: NCCL gives static or comm-owned strings that end in NUL, or null.
        let words = |text: *const c_char| match text.is_null() {
            true => String::new(),
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string(),
        };
        // SAFETY: `error_string` takes any code; `last_error` takes null or a live communicator.
        let (name, last) = unsafe { (words((self.error_string)(code)), words((self.last_error)(comm))) };
        let last = if last.is_empty() { "NCCL gives no detail".to_string() } else { last };
        let message =
            format!("{call} failed with code {code} ({name}): {last}; set NCCL_DEBUG=WARN to see more");
        CommError::Backend { backend: "nccl", message }
    }

    /// The number all ranks of a communicator must know.
    fn unique_id(&self) -> Result<ncclUniqueId, CommError> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: fills the 128 bytes.
        match unsafe { (self.get_unique_id)(&mut id) } {
            SUCCESS => Ok(id),
            code => Err(self.error("ncclGetUniqueId", code, std::ptr::null_mut())),
        }
    }
}

/// The version of NCCL and the file it came from; none while no world has loaded it.
pub(crate) fn version() -> Option<String> {
    let version = dotted(API.get()?.version());
    let file = device::loaded_library("libnccl.so");
    Some(file.map_or(version.clone(), |file| format!("{version} in {}", file.display())))
}

/// `22809` is 2.28.9.
fn dotted(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// This rank's communicator over all ranks of the job.
pub(super) struct Nccl {
    api: &'static Api,
    comm: ncclComm_t,
    control: Control,
    ordinal: usize,
    /// After a failure the communicator can only be aborted: destroying it would wait for peers.
    failed: Cell<bool>,
}

impl Nccl {
    /// Brings all ranks together on their current devices.
    ///
    /// # Errors
    /// What all ranks know of: NCCL absent somewhere, or ranks sharing a GPU in a way it refuses.
    /// A failure while they connect ends the job instead, since the others may wait for ever.
    pub(super) fn start(
        control: Control,
        ordinal: usize,
        shares_gpu: bool,
        limit: Duration,
        abort_code: i32,
    ) -> Result<Self, Failure<CommError>> {
        let prepared = Api::load()
            .map_err(|reason| {
                let to_do = "install it with launch/setup.sh --cuda or set compute.device = \"cpu\"";
                CommError::Device(format!("{reason}; {to_do}"))
            })
            .and_then(|api| check_sharing(api, shares_gpu).map(|()| api))
            .and_then(|api| match control.rank {
                0 => Ok((api, api.unique_id()?.internal.map(|byte| byte as u8).to_vec())),
                _ => Ok((api, Vec::new())),
            });
        let (api, id) = control.agree(prepared)?;
        let id = control.broadcast(id);
        let mut internal: [c_char; 128] = [0; 128];
        internal.iter_mut().zip(id).for_each(|(to, from)| *to = from as c_char);

        let (rank, size, host) = (control.rank, control.size, control.host.clone());
        let started = within(limit, &format!("rank {rank} of {size} on {host}"), abort_code, || {
            let mut comm: ncclComm_t = std::ptr::null_mut();
            // SAFETY: rank 0's id, on all ranks; `comm` is written before the call returns.
            let code = unsafe {
                (api.init_rank)(&mut comm, size as c_int, ncclUniqueId { internal }, rank as c_int)
            };
            if code != SUCCESS {
                return Err(api.error("ncclCommInitRank", code, std::ptr::null_mut()));
            }
            let nccl = Nccl { api, comm, control, ordinal, failed: Cell::new(false) };
            // NCCL connects peers lazily, so the first collective belongs to the start.
            super::check_first_collective(&nccl, Device::Cuda(ordinal), rank, size)?;
            Ok(nccl)
        });
        started.map_err(|error| {
            eprintln!("error: rank {rank} of {size} on {host}: {error}");
            launch::abort_job(abort_code)
        })
    }

    /// The pointer, count and type of a checked buffer. Counts are elements, not bytes.
    fn parts(&self, buffer: &Tensor) -> Result<(*mut c_void, usize, ncclDataType_t), CommError> {
        check_buffer("nccl", Device::Cuda(self.ordinal), buffer)?;
        let kind = match buffer.kind() {
            Kind::Float => ncclDataType_t::ncclFloat32,
            Kind::Double => ncclDataType_t::ncclFloat64,
            _ => ncclDataType_t::ncclInt64,
        };
        Ok((buffer.data_ptr(), buffer.numel(), kind))
    }

    fn reduce(&self, what: What, buffer: &mut Tensor, operation: ncclRedOp_t) -> Result<(), CommError> {
        let (data, count, kind) = self.parts(buffer)?;
        let _waiting = self.control.watch.enter_queued(Call::over(what, buffer));
        // SAFETY: `count` elements of device memory, in place as NCCL allows; libtorch frees or
        // reuses them only in the order of this same stream.
        let code = unsafe { (self.api.all_reduce)(data, data, count, kind, operation, self.comm, STREAM) };
        self.check("ncclAllReduce", code)
    }

    /// Turns a code into a result, and looks for what went wrong behind earlier calls' backs.
    fn check(&self, call: &str, code: Code) -> Result<(), CommError> {
        let mut behind = SUCCESS;
        // SAFETY: a live communicator, and an int to write to.
        let asked = unsafe { (self.api.async_error)(self.comm, &mut behind) };
        let bad = [code, asked, behind].into_iter().find(|code| ![SUCCESS, IN_PROGRESS].contains(code));
        bad.map_or(Ok(()), |code| {
            self.failed.set(true);
            Err(self.api.error(call, code, self.comm))
        })
    }
}

impl Collective for Nccl {
    fn all_reduce_sum(&self, buffer: &mut Tensor) -> Result<(), CommError> {
        self.reduce(What::Sum, buffer, ncclRedOp_t::ncclSum)
    }

    fn all_reduce_max(&self, buffer: &mut Tensor) -> Result<(), CommError> {
        self.reduce(What::Maximum, buffer, ncclRedOp_t::ncclMax)
    }

    fn all_gather(&self, buffer: &Tensor) -> Result<Vec<Tensor>, CommError> {
        let (data, count, kind) = self.parts(buffer)?;
        let mut shape = buffer.size();
        shape.insert(0, self.control.size as i64);
        let all = Tensor::empty(shape, (buffer.kind(), buffer.device()));
        let _waiting = self.control.watch.enter_queued(Call::over(What::Gather, buffer));
        // SAFETY: as above; `all` holds `size * count` elements, and NCCL writes each of them.
        let code = unsafe { (self.api.all_gather)(data, all.data_ptr(), count, kind, self.comm, STREAM) };
        self.check("ncclAllGather", code)?;
        Ok(all.unbind(0))
    }

    fn broadcast(&self, buffer: &mut Tensor, root: usize) -> Result<(), CommError> {
        check_root("nccl", root, self.control.size)?;
        let (data, count, kind) = self.parts(buffer)?;
        let _waiting = self.control.watch.enter_queued(Call::over(What::Broadcast, buffer));
        // SAFETY: as above, in place on the root and everywhere else.
        let code = unsafe { (self.api.broadcast)(data, data, count, kind, root as c_int, self.comm, STREAM) };
        self.check("ncclBroadcast", code)
    }

    /// Also waits for this rank's GPU, so that what came before is done and not only queued.
    fn barrier(&self) -> Result<(), CommError> {
        let _waiting = self.control.watch.enter(What::Barrier);
        Cuda::synchronize(self.ordinal as i64);
        self.check("a collective before the barrier", SUCCESS)?;
        self.control.barrier();
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let end = if self.failed.get() { self.api.abort } else { self.api.destroy };
        // SAFETY: a live communicator that nobody uses after this.
        let code = unsafe { end(self.comm) };
        if code != SUCCESS {
            tracing::warn!("NCCL's communicator did not end well: code {code}");
        }
    }
}

/// NCCL refuses two ranks on one GPU unless it takes them for ranks of two hosts.
fn check_sharing(api: &Api, shares_gpu: bool) -> Result<(), CommError> {
    let version = api.version();
    let (name, allowed) = match version < SHARES_GPUS {
        true => ("NCCL_HOSTID", std::env::var_os("NCCL_HOSTID").is_some()),
        false => ("NCCL_MULTI_RANK_GPU_ENABLE", std::env::var_os("NCCL_MULTI_RANK_GPU_ENABLE").is_some()),
    };
    if !shares_gpu || allowed {
        return Ok(());
    }
    let value = if version < SHARES_GPUS { "a different value on each rank" } else { "1" };
    Err(CommError::Device(format!(
        "compute.share_gpus = true puts several ranks on one GPU, which NCCL {} refuses; \
         set {name} to {value}, or start one rank per GPU",
        dotted(version)
    )))
}

/// Runs `work`, and ends the job if it does not return within `limit`: `ncclCommInitRank` waits
/// for ever for a peer that has died or cannot be reached.
fn within<T>(limit: Duration, who: &str, abort_code: i32, work: impl FnOnce() -> T) -> T {
    let (done, finished) = channel::<()>();
    let who = who.to_string();
    let watchdog = std::thread::spawn(move || {
        if finished.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "error: {who}: NCCL did not connect all ranks within {} s; check that every host can reach the others \
                 (NCCL_SOCKET_IFNAME chooses the interface) and set NCCL_DEBUG=INFO to see what it tries",
                limit.as_secs()
            );
            launch::abort_job(abort_code)
        }
    });
    let result = work();
    drop(done);
    watchdog.join().expect("the watchdog only waits");
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_packs_them() {
        assert_eq!(dotted(22_809), "2.28.9"); // NCCL_VERSION_CODE of nccl.h, 2.28.9
        assert_eq!(dotted(SHARES_GPUS), "2.30.0");
    }

    #[test]
    fn watchdog_ends_a_process_that_does_not_get_on() {
        let program = std::env::current_exe().unwrap();
        let body = ["--ignored", "--exact", "comm::nccl::tests::body_stuck", "--nocapture"];
        let output = std::process::Command::new(program).args(body).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{message}");
        assert!(message.contains("rank 1 of 2 on here: NCCL did not connect all ranks"), "{message}");
    }

    #[test]
    #[ignore = "a body: runs as a process of its own"]
    fn body_stuck() {
        within(Duration::from_millis(50), "rank 1 of 2 on here", 7, || {
            loop {
                std::thread::park();
            }
        })
    }

    #[test]
    fn watchdog_leaves_work_alone_that_returns_in_time() {
        assert_eq!(within(Duration::from_secs(60), "test", 1, || 42), 42);
    }
}
