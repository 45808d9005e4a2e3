//! How samples spread over a target's modes: what discrepancies built on scores hardly see.

use super::cloud::Cloud;

/// A mode counts as hit if it has at least this part of its share.
const HIT: f64 = 0.1;

/// The part of the samples in each mode, beside the modes' probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeCover {
    /// The part of the samples nearest to each centre, `[M]`; they sum to 1.
    pub fractions: Vec<f64>,
    /// Probability of each mode, `[M]`.
    pub weights: Vec<f64>,
}

impl ModeCover {
    /// Counts each point of `x` for the nearest of the `centres`, which have probabilities `weights`.
    pub fn new(x: &Cloud, centres: &Cloud, weights: &[f64]) -> Self {
        let mut counts = vec![0usize; centres.rows()];
        let mut point = vec![0.0; x.dimension()];
        let mut squares = vec![0.0; centres.rows()];
        for row in 0..x.rows() {
            for (coordinate, value) in point.iter_mut().enumerate() {
                *value = x.column(coordinate)[row];
            }
            centres.square_distances(&point, 0, &mut squares);
            let nearest = squares.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
            counts[nearest.expect("a target with modes has one").0] += 1;
        }
        let fractions = counts.iter().map(|&count| count as f64 / x.rows() as f64).collect();
        ModeCover { fractions, weights: weights.to_vec() }
    }

    fn ratios(&self) -> impl Iterator<Item = f64> {
        self.fractions.iter().zip(&self.weights).map(|(fraction, weight)| fraction / weight)
    }

    /// Smallest fraction relative to its mode's probability: 1 is a perfect cover, 0 a lost mode.
    ///
    /// Relative, so that it compares between targets of few and many modes; exact samples score below 1, as
    /// the least of many counts does.
    pub fn fraction_min(&self) -> f64 {
        self.ratios().fold(f64::INFINITY, f64::min)
    }

    /// Largest fraction relative to its mode's probability.
    pub fn ratio_max(&self) -> f64 {
        self.ratios().fold(0.0, f64::max)
    }

    /// Largest difference between a fraction and its mode's probability.
    pub fn error(&self) -> f64 {
        let errors =
            self.fractions.iter().zip(&self.weights).map(|(fraction, weight)| (fraction - weight).abs());
        errors.fold(0.0, f64::max)
    }

    /// Modes that have at least a tenth of their share.
    pub fn hit(&self) -> usize {
        self.ratios().filter(|&ratio| ratio >= HIT).count()
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn points_count_for_the_nearest_centre_and_shares_are_relative_to_the_weights() {
        let centres = Cloud::new(&Tensor::from_slice(&[0.0, 0.0, 4.0, 0.0, 0.0, 4.0]).view([3, 2]));
        // 100 points: 60 near the first centre, 39 near the second, 1 near the third.
        let near = |x: f64, y: f64, count| Tensor::from_slice(&[x, y]).expand([count, 2], false);
        let x = Tensor::cat(&[near(1.9, 0.1, 60), near(2.1, 0.1, 39), near(0.0, 9.0, 1)], 0);
        let cover = ModeCover::new(&Cloud::new(&x), &centres, &[0.5, 0.3, 0.2]);
        assert_eq!(cover.fractions, [0.6, 0.39, 0.01]);
        assert!((cover.fraction_min() - 0.05).abs() < 1e-12); // .01 of .2
        assert!((cover.ratio_max() - 1.3).abs() < 1e-12); // .39 of .3
        assert!((cover.error() - 0.19).abs() < 1e-12); // .01 for .2
        assert_eq!(cover.hit(), 2); // the third has a twentieth of its share
    }
}
