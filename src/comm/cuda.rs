//! CUDA graphs and the precision of float32 on CUDA, through the library that `cuda.cpp` beside this file becomes.
//!
//! The library is part of the program where the CUDA headers were there when it was built (`build.rs`), and is opened only on
//! a CUDA device, after libtorch_cuda, whose symbols it takes.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::OnceLock;

use tch::Device;

use super::CommError;
use crate::config::{ComputeSection, Precision};

/// The functions of `cuda.cpp`.
#[cfg_attr(
    not(dft_cuda_shim),
    allow(dead_code, reason = "only `open` of a build with the library makes one")
)]
#[derive(Debug)]
struct Api {
    error: unsafe extern "C" fn() -> *const c_char,
    allow_tf32: unsafe extern "C" fn(bool) -> bool,
    graph_new: unsafe extern "C" fn(c_int) -> *mut c_void,
    graph_free: unsafe extern "C" fn(*mut c_void),
    graph_enter: unsafe extern "C" fn(*mut c_void) -> bool,
    graph_leave: unsafe extern "C" fn(*mut c_void) -> bool,
    graph_begin: unsafe extern "C" fn(*mut c_void) -> bool,
    graph_end: unsafe extern "C" fn(*mut c_void) -> bool,
    graph_replay: unsafe extern "C" fn(*mut c_void) -> bool,
}

/// Opened at most once, and never closed: libtorch keeps what it makes.
static API: OnceLock<Result<Api, String>> = OnceLock::new();

/// Whether this build has the library: it was made where the CUDA headers are.
pub(crate) const IS_BUILT_IN: bool = cfg!(dft_cuda_shim);

#[cfg(dft_cuda_shim)]
fn open() -> Result<Api, String> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    use super::device::{function, loader_words};

    // The loader wants a file: one that was not there and that nobody else may write, and that is gone once it is open.
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let name = format!("libdft-cuda-{}-{}.so", std::process::id(), since.as_nanos());
    let path = std::env::temp_dir().join(name);
    let mut made = std::fs::OpenOptions::new();
    made.write(true).create_new(true).mode(0o700);
    let written = made.open(&path).and_then(|mut file| file.write_all(include_bytes!(env!("DFT_CUDA_SHIM"))));
    let library = match written {
        Err(error) => Err(format!("cannot write {}: {error}; set TMPDIR to another folder", path.display())),
        // SAFETY: its initialisers are those of libtorch's headers, and libtorch_cuda is loaded.
        Ok(()) => unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            let words = loader_words(&error);
            format!(
                "cannot load {}: {words}; if its folder forbids programs, set TMPDIR to another",
                path.display()
            )
        }),
    };
    let _ = std::fs::remove_file(&path);
    let library = library?;
    // SAFETY: the fields of `Api` repeat the signatures in cuda.cpp.
    let api = unsafe {
        Api {
            error: function(&library, "dft_cuda_error")?,
            allow_tf32: function(&library, "dft_cuda_allow_tf32")?,
            graph_new: function(&library, "dft_cuda_graph_new")?,
            graph_free: function(&library, "dft_cuda_graph_free")?,
            graph_enter: function(&library, "dft_cuda_graph_enter")?,
            graph_leave: function(&library, "dft_cuda_graph_leave")?,
            graph_begin: function(&library, "dft_cuda_graph_begin")?,
            graph_end: function(&library, "dft_cuda_graph_end")?,
            graph_replay: function(&library, "dft_cuda_graph_replay")?,
        }
    };
    std::mem::forget(library);
    Ok(api)
}

#[cfg(not(dft_cuda_shim))]
fn open() -> Result<Api, String> {
    Err("this program was built without the CUDA headers; run launch/setup.sh, which fetches them, and build again".into())
}

impl Api {
    fn get() -> Result<&'static Api, CommError> {
        API.get_or_init(open).as_ref().map_err(|reason| CommError::Device(reason.clone()))
    }

    fn check(&self, call: &str, worked: bool) -> Result<(), CommError> {
        if worked {
            return Ok(());
        }
        // SAFETY: a string that lives until the next failure, which this thread alone can cause.
        let words = unsafe { CStr::from_ptr((self.error)()) }.to_string_lossy().trim().to_string();
        Err(CommError::Backend { backend: "cuda", message: format!("{call}: {words}") })
    }
}

/// Sets what `compute` says of arithmetic on CUDA, where `device` is there. libtorch's own default is TF32 in convolutions and
/// float32 in full in matrix products.
///
/// # Errors
/// In words, if this build or the environment cannot do what was asked for.
pub(crate) fn set_up(device: Device, compute: &ComputeSection) -> Result<(), String> {
    const OVERRIDE: &str = "NVIDIA_TF32_OVERRIDE"; // the libraries obey it, whatever libtorch asks of them
    if !device.is_cuda() {
        return Ok(());
    }
    let wants_tf32 = compute.precision == Precision::Tf32;
    let overridden = std::env::var(OVERRIDE).unwrap_or_default();
    if overridden == if wants_tf32 { "0" } else { "1" } {
        let (asked, other) = if wants_tf32 { ("tf32", "exact") } else { ("exact", "tf32") };
        return Err(format!(
            "compute.precision = \"{asked}\" but {OVERRIDE}={overridden} forbids it; unset {OVERRIDE} or set \
             compute.precision = \"{other}\""
        ));
    }
    let set = Api::get().and_then(|api| {
        // SAFETY: sets two flags of libtorch.
        api.check("setting the precision", unsafe { (api.allow_tf32)(wants_tf32) })
    });
    match set {
        Err(_) if !wants_tf32 && !compute.cuda_graphs && overridden == "0" => Ok(()),
        Err(error) => Err(format!(
            "{error}; without it convolutions are rounded to TF32 unless {OVERRIDE}=0 is set, and there are no CUDA graphs"
        )),
        Ok(()) => Ok(()),
    }
}

/// Work on a GPU that is recorded once and then done as often as asked, without the calls that it was made of.
///
/// What was recorded reads and writes the same memory each time: its inputs are to be written in place, and its outputs are
/// those of the recording.
#[derive(Debug)]
pub(crate) struct Graph {
    api: &'static Api,
    raw: *mut c_void,
    /// The current stream belongs to a thread.
    not_send: PhantomData<*mut ()>,
}

impl Graph {
    /// An empty graph on CUDA device `ordinal`, with a stream of its own.
    ///
    /// # Errors
    /// If the library cannot be had, or CUDA refuses.
    pub(crate) fn new(ordinal: usize) -> Result<Self, CommError> {
        let api = Api::get()?;
        // SAFETY: null if it failed.
        let raw = unsafe { (api.graph_new)(ordinal as c_int) };
        api.check("a stream for a CUDA graph", !raw.is_null())?;
        Ok(Graph { api, raw, not_send: PhantomData })
    }

    /// Does `work` on this graph's stream, before all that is asked for later: what libraries set up at their first call cannot
    /// be recorded.
    ///
    /// # Errors
    /// If CUDA refuses.
    pub(crate) fn warm_up<T>(&self, work: impl FnOnce() -> T) -> Result<T, CommError> {
        let on_stream = OnStream::enter(self)?;
        let made = work();
        on_stream.leave()?;
        Ok(made)
    }

    /// Records `work`, without doing it. It may neither read results back nor allocate on the host what the GPU is to read.
    ///
    /// # Errors
    /// If something in it cannot be recorded.
    ///
    /// # Panics
    /// As libtorch's operations do inside `work`, if one of them cannot be recorded.
    pub(crate) fn record<T>(&self, work: impl FnOnce() -> T) -> Result<T, CommError> {
        let mut on_stream = OnStream::enter(self)?;
        // SAFETY: a live graph, on its stream.
        self.api.check("recording a CUDA graph", unsafe { (self.api.graph_begin)(self.raw) })?;
        on_stream.is_recording = true;
        let made = work();
        on_stream.is_recording = false;
        // SAFETY: as above, and it is recording.
        self.api.check("a recorded CUDA graph", unsafe { (self.api.graph_end)(self.raw) })?;
        on_stream.leave()?;
        Ok(made)
    }

    /// Does what was recorded, in its turn on the current stream.
    ///
    /// # Errors
    /// If CUDA refuses.
    pub(crate) fn replay(&self) -> Result<(), CommError> {
        // SAFETY: a live graph; without a recording it says so.
        self.api.check("a CUDA graph", unsafe { (self.api.graph_replay)(self.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `graph_new`, and freed once.
        unsafe { (self.api.graph_free)(self.raw) }
    }
}

/// While it lives, work goes to a graph's stream.
struct OnStream<'g> {
    graph: &'g Graph,
    is_recording: bool,
}

impl<'g> OnStream<'g> {
    fn enter(graph: &'g Graph) -> Result<Self, CommError> {
        // SAFETY: a live graph.
        graph.api.check("the stream of a CUDA graph", unsafe { (graph.api.graph_enter)(graph.raw) })?;
        Ok(OnStream { graph, is_recording: false })
    }

    fn leave(self) -> Result<(), CommError> {
        let graph = self.graph;
        std::mem::forget(self);
        // SAFETY: a live graph, whose stream is the current one.
        graph.api.check("leaving a CUDA graph's stream", unsafe { (graph.api.graph_leave)(graph.raw) })
    }
}

impl Drop for OnStream<'_> {
    /// After a failure, which is on its way already.
    fn drop(&mut self) {
        if self.is_recording {
            eprintln!("this work cannot be recorded as a CUDA graph; set compute.cuda_graphs = false");
            // SAFETY: it is recording.
            unsafe { (self.graph.api.graph_end)(self.graph.raw) };
        }
        // SAFETY: as in `leave`.
        unsafe { (self.graph.api.graph_leave)(self.graph.raw) };
    }
}
