//! Collectives of a single rank: every sum, maximum, gather and broadcast is the buffer itself.

use tch::{Device, Tensor};

use super::{Collective, CommError, check_buffer, check_root};

/// One rank alone. Checks its arguments as the other backends do, so that a wrong call fails on
/// a laptop before it fails on a cluster.
pub(super) struct Solo {
    pub(super) device: Device,
}

impl Collective for Solo {
    fn all_reduce_sum(&self, buffer: &mut Tensor) -> Result<(), CommError> {
        check_buffer("solo", self.device, buffer)
    }

    fn all_reduce_max(&self, buffer: &mut Tensor) -> Result<(), CommError> {
        check_buffer("solo", self.device, buffer)
    }

    fn all_gather(&self, buffer: &Tensor) -> Result<Vec<Tensor>, CommError> {
        check_buffer("solo", self.device, buffer)?;
        Ok(vec![buffer.copy()])
    }

    fn broadcast(&self, buffer: &mut Tensor, root: usize) -> Result<(), CommError> {
        check_root("solo", root, 1)?;
        check_buffer("solo", self.device, buffer)
    }

    fn barrier(&self) -> Result<(), CommError> {
        if let Device::Cuda(ordinal) = self.device {
            tch::Cuda::synchronize(ordinal as i64);
        }
        Ok(())
    }
}
