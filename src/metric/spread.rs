//! Mean per-pixel standard deviation: what the Fréchet distance on classifier features is blind to.

use tch::{Device, Kind, Tensor};

use crate::comm::{CommError, World};

/// Streamed sums per pixel, in f64.
#[derive(Debug)]
pub struct PixelSpread {
    count: f64,
    sums: Tensor,
}

impl PixelSpread {
    /// No samples yet; `dimension` is the number of pixels.
    pub fn new(dimension: i64) -> Self {
        PixelSpread { count: 0.0, sums: Tensor::zeros([2, dimension], (Kind::Double, Device::Cpu)) }
    }

    /// Takes in samples `[B, …]`, clamped to [0, 1].
    pub fn add(&mut self, samples: &Tensor) {
        let x = samples.clamp(0.0, 1.0).flatten(1, -1).to_device(Device::Cpu).to_kind(Kind::Double);
        self.count += x.size()[0] as f64;
        let sums = [x.sum_dim_intlist(0i64, false, None), x.square().sum_dim_intlist(0i64, false, None)];
        self.sums += Tensor::stack(&sums, 0);
    }

    /// Adds up the sums of all ranks.
    ///
    /// # Errors
    /// If the collective fails.
    pub fn merge(&mut self, world: &World) -> Result<(), CommError> {
        let parts = [Tensor::from_slice(&[self.count]), self.sums.reshape([-1])];
        let mut buffer = Tensor::cat(&parts, 0).to_device(world.device);
        world.collective().all_reduce_sum(&mut buffer)?;
        let buffer = buffer.to_device(Device::Cpu);
        self.count = buffer.double_value(&[0]);
        self.sums = buffer.narrow(0, 1, self.sums.numel() as i64).view_as(&self.sums).copy();
        Ok(())
    }

    /// Standard deviation over samples (n − 1), averaged over pixels.
    pub fn value(&self) -> f64 {
        let mean = self.sums.get(0) / self.count;
        let variance = (self.sums.get(1) - mean.square() * self.count) / (self.count - 1.0);
        variance.clamp_min(0.0).sqrt().mean(None).double_value(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_two_streamed_batches_equals_torch_std_of_the_whole() {
        let x = Tensor::linspace(0.0, 1.0, 60, (Kind::Float, Device::Cpu)).square().view([10, 6]);
        let mut spread = PixelSpread::new(6);
        spread.add(&x.narrow(0, 0, 4));
        spread.add(&x.narrow(0, 4, 6));
        let expected = x.to_kind(Kind::Double).std_dim(0i64, true, false).mean(None).double_value(&[]);
        assert!((spread.value() - expected).abs() < 1e-12);
    }
}
