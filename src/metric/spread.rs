//! Mean per-pixel standard deviation: what the Fréchet distance on classifier features is blind to.

use tch::{Device, Kind, Tensor};

/// Streamed sums per pixel, in f64.
#[derive(Debug)]
pub struct PixelSpread {
    /// Number, sums `[P]` and sums of squares `[P]`, one after the other.
    sums: Tensor,
}

impl PixelSpread {
    /// No samples yet; `dimension` is the number of pixels.
    pub fn new(dimension: i64) -> Self {
        PixelSpread { sums: Tensor::zeros([1 + 2 * dimension], (Kind::Double, Device::Cpu)) }
    }

    /// Takes in samples `[B, …]`, clamped to [0, 1].
    pub fn add(&mut self, samples: &Tensor) {
        self.add_sums(&Self::sums_of(samples));
    }

    /// What samples `[B, …]` add to the sums: f64 `[length]` on the CPU.
    pub fn sums_of(samples: &Tensor) -> Tensor {
        let x = samples.clamp(0.0, 1.0).flatten(1, -1).to_device(Device::Cpu).to_kind(Kind::Double);
        let count = Tensor::from_slice(&[x.size()[0] as f64]);
        let sums = [x.sum_dim_intlist(0i64, false, None), x.square().sum_dim_intlist(0i64, false, None)];
        Tensor::cat(&[&count, &sums[0], &sums[1]], 0)
    }

    /// How many numbers the sums are.
    pub fn length(&self) -> i64 {
        self.sums.size()[0]
    }

    /// Takes in samples by their sums.
    pub fn add_sums(&mut self, sums: &Tensor) {
        self.sums += sums;
    }

    /// Standard deviation over samples (n − 1), averaged over pixels.
    pub fn value(&self) -> f64 {
        let (count, pixels) = (self.sums.double_value(&[0]), (self.length() - 1) / 2);
        let mean = self.sums.narrow(0, 1, pixels) / count;
        let variance = (self.sums.narrow(0, 1 + pixels, pixels) - mean.square() * count) / (count - 1.0);
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
