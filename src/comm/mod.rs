//! Ranks and the collectives between them: solo, MPI (host memory) and NCCL (device memory).
//!
//! Every rank calls every collective, unconditionally and in the same order.

use tch::{Device, Tensor};

pub use crate::config::DeviceRequest;

/// Why ranks could not be brought together, or a collective failed.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// CUDA was asked for and cannot be had; says what was found and what to do.
    #[error("{0}")]
    Device(String),
    /// A backend reported an error.
    #[error("{backend}: {message}")]
    Backend {
        /// `mpi` or `nccl`.
        backend: &'static str,
        /// The backend's own words.
        message: String,
    },
}

/// What a rank can do together with all others. Buffers are contiguous and live on the rank's device.
pub trait Collective {
    /// Replaces `buffer` (f32, f64 or i64, any shape) by its elementwise sum over all ranks.
    fn all_reduce_sum(&self, buffer: &mut Tensor) -> Result<(), CommError>;
    /// The tensors of all ranks in rank order; all have the shape and kind of `buffer`.
    fn all_gather(&self, buffer: &Tensor) -> Result<Vec<Tensor>, CommError>;
    /// Replaces `buffer` on every rank by that of rank `root`.
    fn broadcast(&self, buffer: &mut Tensor, root: usize) -> Result<(), CommError>;
    /// Returns once all ranks have called it.
    fn barrier(&self) -> Result<(), CommError>;
}

/// This process among all: who it is, where it computes, and its collectives.
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
    /// Threads libtorch may use for one operation on this rank.
    pub threads: usize,
    /// `solo`, `mpi` or `nccl`.
    pub backend: &'static str,
}
