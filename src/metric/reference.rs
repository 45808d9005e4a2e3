//! What samples are compared with: statistics of one half of the real data, and the other half as the floor.

use tch::{Device, Kind, Tensor};

use super::chunks::{CHUNK, sum_over_chunks};
use super::classes::ClassCounts;
use super::features::Extractor;
use super::frechet::Moments;
use super::nearest::nearest_distances;
use super::spread::PixelSpread;
use crate::comm::{CommError, World};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// Rows of exact samples that stand for a target with a sampler of its own.
const EXACT_ROWS: i64 = 60_000;

/// The reference half and its statistics, and the real samples of the other half.
pub struct Reference {
    extractor: Extractor,
    moments: Moments,
    /// Of the reference half, if the extractor is a classifier's.
    classes: Option<ClassCounts>,
    /// The reference half, of images.
    half: Option<Tensor>,
    other_half: Tensor,
}

/// What was seen in a number of samples, over all ranks.
pub struct Seen {
    /// Of their features.
    pub moments: Moments,
    /// Of their pixels.
    pub spread: PixelSpread,
    /// Of their classes, if the extractor is a classifier's.
    pub classes: Option<ClassCounts>,
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
        let classes = extractor.probabilities(&first).map(|probabilities| probabilities.size()[1]);
        let mut moments = Moments::new(&first.to_kind(Kind::Double).mean_dim(0i64, false, None));
        let mut classes = classes.map(ClassCounts::new);
        let of_features = moments.length();
        let of_classes = classes.as_ref().map_or(0, ClassCounts::length);
        let sums = sum_over_chunks(half, of_features + of_classes, world, |chunk, rows| {
            let x = reference.narrow(0, chunk as i64 * CHUNK, rows).to_device(world.device);
            let features = extractor.features(&x);
            let mut sums = vec![moments.sums_of(&features)];
            sums.extend(extractor.probabilities(&features).map(|p| ClassCounts::sums_of(&p)));
            Tensor::cat(&sums, 0)
        })?;
        moments.add_sums(&sums.narrow(0, 0, of_features));
        if let Some(classes) = &mut classes {
            classes.add_sums(&sums.narrow(0, of_features, of_classes));
        }
        let half = (data.dim() == 4).then_some(reference);
        Ok(Reference { extractor, moments, classes, half, other_half })
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

    /// What is seen in what `samples`(chunk, rows) returns for the chunks of this rank, over all ranks.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn measure(
        &self,
        rows: i64,
        world: &World,
        mut samples: impl FnMut(u64, i64) -> Tensor,
    ) -> Result<Seen, CommError> {
        let mut moments = Moments::new(&self.moments.mean());
        let mut spread = PixelSpread::new(self.other_half.size()[1..].iter().product());
        let mut classes = self.classes.as_ref().map(|classes| ClassCounts::new(classes.classes()));
        let (of_features, of_pixels) = (moments.length(), spread.length());
        let of_classes = classes.as_ref().map_or(0, ClassCounts::length);
        let sums = sum_over_chunks(rows, of_features + of_pixels + of_classes, world, |chunk, rows| {
            let x = samples(chunk, rows);
            let features = self.extractor.features(&x);
            let mut sums = vec![moments.sums_of(&features), PixelSpread::sums_of(&x)];
            sums.extend(self.extractor.probabilities(&features).map(|p| ClassCounts::sums_of(&p)));
            Tensor::cat(&sums, 0)
        })?;
        moments.add_sums(&sums.narrow(0, 0, of_features));
        spread.add_sums(&sums.narrow(0, of_features, of_pixels));
        if let Some(classes) = &mut classes {
            classes.add_sums(&sums.narrow(0, of_features + of_pixels, of_classes));
        }
        Ok(Seen { moments, spread, classes })
    }

    /// What is seen in `rows` real samples that the reference does not contain: what perfect samples would score.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn floor(&self, rows: i64, world: &World) -> Result<Seen, CommError> {
        self.measure(rows, world, |chunk, rows| {
            self.other_half.narrow(0, chunk as i64 * CHUNK, rows).to_device(world.device)
        })
    }

    /// Distance of the features to those of the reference.
    pub fn distance(&self, seen: &Seen) -> f64 {
        seen.moments.distance(&self.moments)
    }

    /// Classes of the reference half, if the extractor is a classifier's.
    pub fn classes(&self) -> Option<&ClassCounts> {
        self.classes.as_ref()
    }

    /// Median over samples `[n, …]` of the distance to the nearest image of the reference, in units of one pixel's range;
    /// `None` if samples are no images.
    pub fn nearest(&self, samples: &Tensor) -> Option<f64> {
        let distances = nearest_distances(&samples.to_device(Device::Cpu), self.half.as_ref()?);
        Some(distances.quantile_scalar(0.5, None::<i64>, false, "linear").double_value(&[]))
    }
}
