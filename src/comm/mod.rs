//! Ranks and the collectives between them: solo, MPI (host memory) and NCCL (device memory).
//!
//! Every rank calls every collective, unconditionally and in the same order. The backend follows
//! the device and the world size, and there is no fall-back:
//!
//! | ranks | device | backend | control and start-up |
//! | --- | --- | --- | --- |
//! | 1 | any | `solo` | none |
//! | several | CPU | `mpi` | MPI |
//! | several | CUDA | `nccl` | MPI |
//!
//! How a program ends is part of the contract. A rank that fails alone must not simply return:
//! the others would wait for it for ever. So there are three ways out:
//! - **together**: a step that may fail on some ranks goes through [`World::agree`], after which
//!   all ranks know, one of them reports, and all leave with the same exit code;
//! - **alone**: [`World::abort`] ends the whole job from one rank, after any error that was not
//!   agreed on, one from a collective among them;
//! - **by panic**: a hook names the rank and host, and ends the job.
//!
//! A rank that does none of them, because its process is stopped, its host is gone or its work does not end, would
//! still make the others wait for ever. A watchdog on each rank asks the others who is missing from a collective
//! that takes too long, names that rank and ends the job.

mod control;
pub(crate) mod cuda;
pub(crate) mod device;
mod exact;
pub(crate) mod launch;
pub(crate) mod memory;
mod mpi;
pub(crate) mod nccl;
mod solo;
mod stall;
mod watch;
mod watchdog;
mod world;

use tch::{Device, Kind, Tensor};

pub use crate::config::DeviceRequest;
pub use control::Failure;
pub use exact::sum_exactly;
pub use world::{SharedCollective, StartOptions, World};

/// Why ranks could not be brought together, or a collective failed.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// CUDA was asked for and cannot be had; says what was found and what to do.
    #[error("{0}")]
    Device(String),
    /// The launcher and this program do not fit together, or a rank refused to start.
    #[error("{0}")]
    Launch(String),
    /// A backend reported an error.
    #[error("{backend}: {message}")]
    Backend {
        /// `solo`, `mpi`, `nccl` or `cuda`.
        backend: &'static str,
        /// The backend's own words.
        message: String,
    },
    /// Another rank failed to start and reports it; this one leaves quietly.
    #[error("rank {rank} could not start: {message}")]
    Elsewhere {
        /// The rank that reports.
        rank: usize,
        /// What it says.
        message: String,
    },
}

impl CommError {
    /// Whether this rank is the one to print the message.
    pub fn is_reported_here(&self) -> bool {
        !matches!(self, CommError::Elsewhere { .. })
    }
}

impl From<Failure<CommError>> for CommError {
    fn from(failure: Failure<CommError>) -> Self {
        let Failure { rank, message, .. } = &failure;
        let elsewhere = CommError::Elsewhere { rank: *rank, message: message.clone() };
        failure.error.unwrap_or(elsewhere)
    }
}

/// What a rank can do together with all others. Buffers are contiguous and live on the rank's device.
///
/// A buffer is read and written in place, out of sight of autograd: give detached tensors. On CUDA
/// a collective is queued on the default stream like any operation, so its result may be used at
/// once; only [`barrier`](Collective::barrier) waits.
///
/// # Errors
/// A buffer of another kind, of another device, or not contiguous; whatever NCCL reports. After an
/// error the ranks are out of step, and [`World::abort`] is the way out.
pub trait Collective {
    /// Replaces `buffer` (f32, f64 or i64, any shape) by its elementwise sum over all ranks.
    ///
    /// All ranks get the same bits. The order of a float sum depends on the world size and the
    /// backend; sums of i64 do not.
    fn all_reduce_sum(&self, buffer: &mut Tensor) -> Result<(), CommError>;
    /// Replaces `buffer` (f32, f64 or i64, any shape, no NaN) by its elementwise maximum over all ranks.
    fn all_reduce_max(&self, buffer: &mut Tensor) -> Result<(), CommError>;
    /// The tensors of all ranks in rank order; all have the shape and kind of `buffer`.
    fn all_gather(&self, buffer: &Tensor) -> Result<Vec<Tensor>, CommError>;
    /// Replaces `buffer` on every rank by that of rank `root`.
    fn broadcast(&self, buffer: &mut Tensor, root: usize) -> Result<(), CommError>;
    /// Returns once all ranks have called it, and their devices have done what came before.
    fn barrier(&self) -> Result<(), CommError>;
}

/// Sums rank + 1 over all ranks on the device: size (size + 1) / 2 proves that everyone takes part.
fn check_first_collective(
    collective: &dyn Collective,
    device: Device,
    rank: usize,
    size: usize,
) -> Result<(), CommError> {
    let mut sum = Tensor::from_slice(&[rank as i64 + 1]).f_to_device(device).map_err(|error| {
        CommError::Device(format!("{device:?} does not take a tensor: {error}; see nvidia-smi"))
    })?;
    collective.all_reduce_sum(&mut sum)?;
    let (found, wanted) = (sum.int64_value(&[0]), (size * (size + 1) / 2) as i64);
    if found == wanted {
        return Ok(());
    }
    let message = format!(
        "the ranks 1..={size} sum to {found} and not to {wanted}; run `dft doctor` on the same hosts"
    );
    Err(CommError::Backend { backend: "first collective", message })
}

/// The conditions on a buffer, the same for every backend.
fn check_buffer(backend: &'static str, device: Device, buffer: &Tensor) -> Result<(), CommError> {
    let wrong = |message| Err(CommError::Backend { backend, message });
    if !matches!(buffer.kind(), Kind::Float | Kind::Double | Kind::Int64) {
        return wrong(format!("a buffer of kind {:?}; convert it to f32, f64 or i64", buffer.kind()));
    }
    if buffer.device() != device {
        return wrong(format!(
            "a buffer on {:?}, and this rank computes on {device:?}; move it there",
            buffer.device()
        ));
    }
    if !buffer.is_contiguous() {
        return wrong(format!(
            "a buffer of shape {:?} that is not contiguous; call contiguous()",
            buffer.size()
        ));
    }
    Ok(())
}

fn check_root(backend: &'static str, root: usize, size: usize) -> Result<(), CommError> {
    if root < size {
        return Ok(());
    }
    let message = format!("a broadcast from rank {root} in a world of {size}; choose one below {size}");
    Err(CommError::Backend { backend, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectives_of_one_rank_return_the_buffer() {
        let world = World::solo(Device::Cpu);
        let all = world.collective();
        for kind in [Kind::Float, Kind::Double, Kind::Int64] {
            let mut buffer = Tensor::arange(6, (kind, Device::Cpu)).view([2, 3]);
            let before = buffer.copy();
            all.all_reduce_sum(&mut buffer).unwrap();
            all.all_reduce_max(&mut buffer).unwrap();
            all.broadcast(&mut buffer, 0).unwrap();
            assert_eq!(buffer, before);
            assert_eq!(all.all_gather(&buffer).unwrap(), [before]);
        }
        all.barrier().unwrap();
    }

    #[test]
    fn gathered_tensor_of_one_rank_is_a_copy() {
        let buffer = Tensor::from_slice(&[1.0_f32, 2.0]);
        let gathered = World::solo(Device::Cpu).collective().all_gather(&buffer).unwrap();
        let _ = buffer.shallow_clone().zero_();
        assert_eq!(gathered, [Tensor::from_slice(&[1.0_f32, 2.0])]);
    }

    #[test]
    fn shared_collective_lives_no_longer_than_its_world() {
        let world = World::solo(Device::Cpu);
        let shared = world.shared_collective();
        assert_eq!((shared.rank, shared.size), (0, 1));
        assert!(shared.with(|all| all.barrier()).is_ok());
        drop(world);
        let late = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.with(|_| ())));
        let message = late.unwrap_err();
        let message = message
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| message.downcast_ref::<&str>().expect("a panic with a text").to_string());
        assert!(message.contains("after its world had ended"), "{message}");
    }

    #[test]
    fn wrong_buffers_are_rejected_even_by_one_rank() {
        let world = World::solo(Device::Cpu);
        let all = world.collective();
        let options = (Kind::Float, Device::Cpu);
        let message = |result: Result<(), CommError>| result.unwrap_err().to_string();
        let mut half = Tensor::zeros([2], (Kind::Half, Device::Cpu));
        assert!(message(all.all_reduce_sum(&mut half)).contains("Half"));
        let mut transposed = Tensor::zeros([2, 3], options).tr();
        assert!(message(all.all_reduce_sum(&mut transposed)).contains("contiguous()"));
        let mut buffer = Tensor::zeros([2], options);
        assert!(message(all.broadcast(&mut buffer, 1)).contains("rank 1 in a world of 1"));
    }

    #[test]
    fn first_collective_that_loses_a_rank_is_noticed() {
        // One rank cannot stand for two: the sum is 1, and 1 + 2 was wanted.
        let alone = solo::Solo { device: Device::Cpu };
        assert!(check_first_collective(&alone, Device::Cpu, 0, 1).is_ok());
        let error = check_first_collective(&alone, Device::Cpu, 0, 2).unwrap_err();
        assert!(error.to_string().contains("sum to 1 and not to 3"), "{error}");
    }
}
