//! What a classifier sees in generated images: how often each class, and how often none clearly.

use tch::{Device, Kind, Tensor};

/// A classifier whose largest probability is below this is unsure of an image.
const SURE: f64 = 0.9;

/// Counts over images, in f64: of each class, and of those that the classifier is unsure of.
#[derive(Debug)]
pub struct ClassCounts {
    /// `[C + 1]`.
    counts: Tensor,
}

impl ClassCounts {
    /// No images yet; `classes` is the number of classes.
    pub fn new(classes: i64) -> Self {
        ClassCounts { counts: Tensor::zeros([classes + 1], (Kind::Double, Device::Cpu)) }
    }

    /// What images with these class probabilities `[B, C]` add to the counts: f64 `[C + 1]` on the CPU. An image counts
    /// for its most probable class.
    pub fn sums_of(probabilities: &Tensor) -> Tensor {
        let (largest, class) = probabilities.max_dim(1, false);
        let counts = class.bincount(None::<&Tensor>, probabilities.size()[1]).to_kind(Kind::Double);
        let unsure = largest.lt(SURE).sum(Kind::Double).unsqueeze(0);
        Tensor::cat(&[counts, unsure], 0).to_device(Device::Cpu)
    }

    /// Number of classes.
    pub fn classes(&self) -> i64 {
        self.length() - 1
    }

    /// How many numbers the counts are.
    pub fn length(&self) -> i64 {
        self.counts.size()[0]
    }

    /// Takes in images by their counts.
    pub fn add_sums(&mut self, sums: &Tensor) {
        self.counts += sums;
    }

    fn images(&self) -> f64 {
        self.counts.narrow(0, 0, self.classes()).sum(Kind::Double).double_value(&[])
    }

    /// Part of the images in each class.
    pub fn shares(&self) -> Vec<f64> {
        (0..self.classes()).map(|class| self.counts.double_value(&[class]) / self.images()).collect()
    }

    /// Entropy of the shares in nats; ln C if all classes are as frequent.
    pub fn entropy(&self) -> f64 {
        self.shares().iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum()
    }

    /// Part of the images whose most probable class has a probability below 0.9.
    pub fn unsure(&self) -> f64 {
        self.counts.double_value(&[self.classes()]) / self.images()
    }

    /// The smallest of the ratios of a share to that of `other`, over the classes that are there: 1 if all are as frequent,
    /// 0 if one is missing.
    pub fn least_against(&self, other: &ClassCounts) -> f64 {
        self.ratios(other).fold(f64::INFINITY, f64::min)
    }

    /// The largest of those ratios.
    pub fn most_against(&self, other: &ClassCounts) -> f64 {
        self.ratios(other).fold(0.0, f64::max)
    }

    fn ratios(&self, other: &ClassCounts) -> impl Iterator<Item = f64> {
        let pairs = self.shares().into_iter().zip(other.shares());
        pairs.filter(|(_, other)| *other > 0.0).map(|(share, other)| share / other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_two_batches_are_those_of_a_count_by_hand() {
        let mut counts = ClassCounts::new(3);
        counts
            .add_sums(&ClassCounts::sums_of(&Tensor::from_slice2(&[[0.95f32, 0.05, 0.0], [0.5, 0.4, 0.1]])));
        counts
            .add_sums(&ClassCounts::sums_of(&Tensor::from_slice2(&[[0.0f32, 0.0, 1.0], [0.02, 0.03, 0.95]])));
        assert_eq!(counts.shares(), [0.5, 0.0, 0.5]);
        assert_eq!(counts.unsure(), 0.25);
        assert!((counts.entropy() - 2f64.ln()).abs() < 1e-15);
        let mut even = ClassCounts::new(3);
        even.add_sums(&ClassCounts::sums_of(&Tensor::eye(3, (Kind::Float, Device::Cpu))));
        assert_eq!((counts.least_against(&even), counts.most_against(&even)), (0.0, 1.5));
        // A class that the other lacks has no ratio: of 1/3 each to 0.5, 0, 0.5.
        assert!((even.least_against(&counts) - 2.0 / 3.0).abs() < 1e-15);
        assert!((even.most_against(&counts) - 2.0 / 3.0).abs() < 1e-15);
        assert!((even.entropy() - 3f64.ln()).abs() < 1e-15);
    }
}
