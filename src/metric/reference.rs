//! What samples are compared with: statistics of one half of the real data, and the other half as the floor.

use tch::{Device, Kind, Tensor};

use super::chunks::{CHUNK, sum_over_chunks};
use super::features::Extractor;
use super::frechet::Moments;
use super::spread::PixelSpread;
use crate::comm::{CommError, World};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// Rows of exact samples that stand for a target with a sampler of its own.
const EXACT_ROWS: i64 = 60_000;

/// Statistics of the reference half, and the real samples of the other half.
pub struct Reference {
    extractor: Extractor,
    moments: Moments,
    other_half: Tensor,
}

/// Exact samples that stand for a target with a sampler of its own, `[60000, …]` on the CPU: they belong to
/// the metric, not to a run, so their seed is fixed.
pub fn exact_samples(target: &dyn Target) -> Option<Tensor> {
    let mut generator = Generator::new(0, Stream::Exact, 0, 0);
    target.exact_samples(&mut generator, EXACT_ROWS).map(|samples| samples.to_device(Device::Cpu))
}

impl Reference {
    /// Halves the real samples `data` `[N, …]` by a fixed permutation and measures the second half, over all
    /// ranks.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn new(extractor: Extractor, data: &Tensor, world: &World) -> Result<Self, CommError> {
        // The split belongs to the metric, not to a run, so its seed is fixed.
        let order = Tensor::from_slice(&Generator::new(0, Stream::Split, 0, 0).permutation(data.size()[0]));
        let half = data.size()[0] / 2;
        let other_half = data.index_select(0, &order.narrow(0, 0, half));
        let reference = data.index_select(0, &order.narrow(0, half, half));
        let first = extractor.features(&reference.narrow(0, 0, CHUNK.min(half)).to_device(world.device));
        let mut moments = Moments::new(&first.to_kind(Kind::Double).mean_dim(0i64, false, None));
        let sums = sum_over_chunks(half, moments.length(), world, |chunk, rows| {
            let x = reference.narrow(0, chunk as i64 * CHUNK, rows).to_device(world.device);
            moments.sums_of(&extractor.features(&x))
        })?;
        moments.add_sums(&sums);
        Ok(Reference { extractor, moments, other_half })
    }

    /// The extractor.
    pub fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    /// Statistics of the reference half.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// `rows` real samples that the reference does not contain.
    ///
    /// # Panics
    /// If there are not that many: the other half has half of the real samples.
    pub fn real(&self, rows: i64) -> Tensor {
        self.other_half.narrow(0, 0, rows)
    }

    /// Moments of features and spread of pixels of what `samples`(chunk, rows) returns for the chunks of this rank,
    /// over all ranks.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn measure(
        &self,
        rows: i64,
        world: &World,
        mut samples: impl FnMut(u64, i64) -> Tensor,
    ) -> Result<(Moments, PixelSpread), CommError> {
        let mut moments = Moments::new(&self.moments.mean());
        let mut spread = PixelSpread::new(self.other_half.size()[1..].iter().product());
        let (of_features, of_pixels) = (moments.length(), spread.length());
        let sums = sum_over_chunks(rows, of_features + of_pixels, world, |chunk, rows| {
            let x = samples(chunk, rows);
            Tensor::cat(&[moments.sums_of(&self.extractor.features(&x)), PixelSpread::sums_of(&x)], 0)
        })?;
        moments.add_sums(&sums.narrow(0, 0, of_features));
        spread.add_sums(&sums.narrow(0, of_features, of_pixels));
        Ok((moments, spread))
    }

    /// Scores of `rows` real samples: the Fréchet distance's floor for this count, and the pixel deviation
    /// that perfect samples would have.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn floor(&self, rows: i64, world: &World) -> Result<(f64, f64), CommError> {
        let (moments, spread) = self.measure(rows, world, |chunk, rows| {
            self.other_half.narrow(0, chunk as i64 * CHUNK, rows).to_device(world.device)
        })?;
        Ok((moments.distance(&self.moments), spread.value()))
    }
}
