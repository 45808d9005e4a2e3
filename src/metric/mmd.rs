//! Maximum mean discrepancy between two point sets, with a kernel that the target fixes.

use rayon::prelude::*;

use super::cloud::{Cloud, lane_sum};

/// Points of the reference whose pairwise distances give the bandwidth.
const MEDIAN_ROWS: usize = 1000;

/// Rows that one task sums.
const BLOCK: usize = 256;

/// Pairs held at once.
const LANE: usize = 256;

/// Mean of five Gaussian kernels exp(−r² / (2 h²)) with h = m/4, m/2, m, 2m and 4m, m the median distance
/// between two points of a reference: k(x, x) = 1, and both the modes' places and their shapes are seen.
///
/// The bandwidth belongs to the target and never to the samples, so that values of two samplers compare.
#[derive(Debug, Clone, Copy)]
pub struct MmdKernel {
    /// 1 / (2 h²) of the widest kernel.
    rate: f64,
}

impl MmdKernel {
    /// The kernel of a target with exact samples `reference`, of which the first 1000 are used.
    pub fn new(reference: &Cloud) -> Self {
        let median = median_distance(&reference.head(MEDIAN_ROWS));
        MmdKernel { rate: 1.0 / (2.0 * (4.0 * median).powi(2)) }
    }

    /// Mean of k over all pairs of a point with one of its own set, the diagonal included.
    pub fn within(&self, x: &Cloud) -> f64 {
        let n = x.rows() as f64;
        let later = self.sum(x, x, |row| row + 1);
        (2.0 * later + n) / (n * n)
    }

    /// Mean of k over all pairs of a point of `x` with one of `y`.
    pub fn between(&self, x: &Cloud, y: &Cloud) -> f64 {
        self.sum(x, y, |_| 0) / (x.rows() as f64 * y.rows() as f64)
    }

    /// Σ k(x_i, y_j) over the j from `first(i)` on.
    fn sum(&self, x: &Cloud, y: &Cloud, first: impl Fn(usize) -> usize + Sync) -> f64 {
        let of_row = |row: usize| {
            let point = x.point(row);
            let mut values = [0.0; LANE];
            let mut total = 0.0;
            for start in (first(row)..y.rows()).step_by(LANE) {
                let values = &mut values[..LANE.min(y.rows() - start)];
                y.square_distances(&point, start, values);
                for value in values.iter_mut() {
                    *value = self.value(*value);
                }
                total += lane_sum(values);
            }
            total
        };
        let starts: Vec<usize> = (0..x.rows()).step_by(BLOCK).collect();
        let sums = starts.par_iter().map(|&start| (start..(start + BLOCK).min(x.rows())).map(of_row).sum());
        // Added in order, however many threads there are.
        sums.collect::<Vec<f64>>().iter().sum()
    }

    /// k at the squared distance `r2`: one exponential, since halving h raises it to the fourth power.
    fn value(&self, r2: f64) -> f64 {
        let fourth = |e: f64| (e * e) * (e * e);
        let widest = (-r2 * self.rate).exp();
        let wide = fourth(widest);
        let middle = fourth(wide);
        let narrow = fourth(middle);
        (widest + wide + middle + narrow + fourth(narrow)) / 5.0
    }
}

/// Maximum mean discrepancy of `x` from `y`, the square root of the V-statistic (Gretton et al. 2012):
/// sqrt(mean k(x, x') + mean k(y, y') − 2 mean k(x, y)) over all pairs, the diagonals included.
///
/// Two exact sets of N points have E mmd² = 2 (1 − E k)/N, so that value and floor are positive and of one kind.
pub fn mmd(kernel: &MmdKernel, x: &Cloud, y: &Cloud) -> f64 {
    mmd_from_means(kernel.within(x), kernel.within(y), kernel.between(x, y))
}

/// [`mmd`] of the three means of the kernel.
pub(super) fn mmd_from_means(xx: f64, yy: f64, xy: f64) -> f64 {
    // The kernel is positive definite: below 0 is rounding.
    (xx + yy - 2.0 * xy).max(0.0).sqrt()
}

fn median_distance(x: &Cloud) -> f64 {
    let mut squares = Vec::with_capacity(x.rows() * x.rows() / 2);
    let mut row_squares = vec![0.0; x.rows()];
    for row in 0..x.rows() {
        let later = &mut row_squares[row + 1..];
        x.square_distances(&x.point(row), row + 1, later);
        squares.extend_from_slice(later);
    }
    let middle = squares.len() / 2;
    squares.select_nth_unstable_by(middle, f64::total_cmp).1.sqrt()
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::rng::{Generator, Stream};

    fn normal(rows: i64, iteration: u64) -> Tensor {
        Generator::new(0, Stream::Exact, iteration, 0).normal(&[rows, 2]).to_kind(Kind::Double)
    }

    #[test]
    fn statistic_equals_a_double_loop_over_the_five_kernels() {
        let (x, y) = (Cloud::new(&(normal(70, 1) * 1.5)), Cloud::new(&normal(90, 2)));
        let kernel = MmdKernel { rate: 1.0 / (2.0 * (4.0f64 * 1.3).powi(2)) }; // m = 1.3
        let k = |a: &[f64], b: &[f64]| {
            let r2 = (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
            [0.25, 0.5, 1.0, 2.0, 4.0].map(|h| (-r2 / (2.0 * (h * 1.3f64).powi(2))).exp()).iter().sum::<f64>()
                / 5.0
        };
        let mean = |a: &Cloud, b: &Cloud| {
            let pairs = (0..a.rows()).flat_map(|i| (0..b.rows()).map(move |j| (i, j)));
            pairs.map(|(i, j)| k(&a.point(i), &b.point(j))).sum::<f64>() / (a.rows() * b.rows()) as f64
        };
        let expected = (mean(&x, &x) + mean(&y, &y) - 2.0 * mean(&x, &y)).sqrt();
        let found = mmd(&kernel, &x, &y);
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    #[test]
    fn set_has_no_discrepancy_from_itself_and_the_square_scales_with_the_floor() {
        let y = Cloud::new(&normal(400, 2));
        let kernel = MmdKernel::new(&y);
        assert!(mmd(&kernel, &y, &y) < 1e-7); // the root of 1e-15
        let exact = mmd(&kernel, &Cloud::new(&normal(400, 1)), &y);
        let shifted = mmd(&kernel, &Cloud::new(&(normal(400, 1) + 0.5)), &y);
        // E mmd² = 2 (1 − E k)/N with E k < 1: a floor below sqrt(2/400) = .07.
        assert!(exact < 0.07 && shifted > 3.0 * exact, "{exact} {shifted}");
    }

    #[test]
    fn bandwidth_is_the_median_distance_of_the_reference() {
        // Three points with the distances 1, 2 and 3: m = 2, the widest kernel has h = 8.
        let kernel = MmdKernel::new(&Cloud::new(&Tensor::from_slice(&[0.0, 1.0, 3.0]).view([3, 1])));
        assert!((kernel.rate - 1.0 / 128.0).abs() < 1e-15);
    }
}
