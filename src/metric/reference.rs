//! What samples are compared with: statistics of one half of the real data, and the other half as the floor.

use tch::{Device, Kind, Tensor};

use super::features::Extractor;
use super::frechet::Moments;
use super::spread::PixelSpread;
use crate::comm::{CommError, World};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// Rows that a rank handles at once: fixed, because the features of some extractors depend on it.
const CHUNK: i64 = 100;

/// Rows of exact samples that stand for a target with a sampler of its own.
const EXACT_ROWS: i64 = 60_000;

/// Statistics of the reference half, and the real samples of the other half.
pub struct Reference {
    extractor: Extractor,
    moments: Moments,
    other_half: Tensor,
}

/// Splits `rows` into fixed chunks: (chunk number, rows) of each. Noise belongs to a chunk, so whoever draws the
/// same chunks draws the same samples.
pub fn chunks(rows: i64) -> impl Iterator<Item = (u64, i64)> {
    (0..(rows + CHUNK - 1) / CHUNK).map(move |chunk| (chunk as u64, CHUNK.min(rows - chunk * CHUNK)))
}

/// Those of the [`chunks`] that belong to this rank; together the ranks have each once, on any number of ranks.
pub fn chunks_of_rank(rows: i64, world: &World) -> impl Iterator<Item = (u64, i64)> {
    let (rank, size) = (world.rank as u64, world.size as u64);
    chunks(rows).filter(move |(chunk, _)| chunk % size == rank)
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
        for (chunk, rows) in chunks_of_rank(half, world) {
            let x = reference.narrow(0, chunk as i64 * CHUNK, rows).to_device(world.device);
            moments.add(&extractor.features(&x));
        }
        moments.merge(world)?;
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

    /// Empty moments with the reference's shift, to collect samples in.
    pub fn empty(&self) -> Moments {
        Moments::new(&self.moments.mean())
    }

    /// Scores of `rows` real samples: the Fréchet distance's floor for this count, and the pixel deviation
    /// that perfect samples would have.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn floor(&self, rows: i64, world: &World) -> Result<(f64, f64), CommError> {
        let mut moments = self.empty();
        let mut spread = PixelSpread::new(self.other_half.size()[1..].iter().product());
        for (chunk, rows) in chunks_of_rank(rows, world) {
            let x = self.other_half.narrow(0, chunk as i64 * CHUNK, rows).to_device(world.device);
            moments.add(&self.extractor.features(&x));
            spread.add(&x);
        }
        moments.merge(world)?;
        spread.merge(world)?;
        Ok((moments.distance(&self.moments), spread.value()))
    }
}
