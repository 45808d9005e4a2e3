//! Mean and deviation of each coordinate, and the evenness of angles: errors that one can read.

use super::cloud::Cloud;

/// Mean and standard deviation (n − 1) of each coordinate, `[D]`.
pub fn coordinate_moments(x: &Cloud) -> Vec<(f64, f64)> {
    let mut moments = StreamedMoments::new(x.dimension());
    moments.add(x);
    moments.finish()
}

/// Count, mean and sum of squares about the mean of each coordinate, merged set by set.
#[derive(Debug)]
pub(super) struct StreamedMoments {
    count: f64,
    means: Vec<f64>,
    squares: Vec<f64>,
}

impl StreamedMoments {
    pub(super) fn new(dimension: usize) -> Self {
        StreamedMoments { count: 0.0, means: vec![0.0; dimension], squares: vec![0.0; dimension] }
    }

    /// Takes in points, by the pairwise update of Chan, Golub and LeVeque (1983).
    pub(super) fn add(&mut self, x: &Cloud) {
        let n = x.rows() as f64;
        let total = self.count + n;
        for (i, (mean, squares)) in self.means.iter_mut().zip(&mut self.squares).enumerate() {
            let own_mean = x.column(i).iter().sum::<f64>() / n;
            let own_squares: f64 = x.column(i).iter().map(|value| (value - own_mean).powi(2)).sum();
            let difference = own_mean - *mean;
            *mean += difference * n / total;
            *squares += own_squares + difference * difference * self.count * n / total;
        }
        self.count = total;
    }

    pub(super) fn finish(&self) -> Vec<(f64, f64)> {
        let deviation = |squares: &f64| (squares / (self.count - 1.0)).sqrt();
        self.means.iter().copied().zip(self.squares.iter().map(deviation)).collect()
    }
}

/// Rayleigh's statistic n R² of the angles of points in the plane about the origin, R the length of the mean
/// unit vector: about exponential with mean 1 if the angle is uniform, as on a ring, and n at most.
///
/// # Panics
/// If the points are not in the plane.
pub fn rayleigh(x: &Cloud) -> f64 {
    assert_eq!(x.dimension(), 2, "angles are those of points in the plane");
    let (mut cosines, mut sines) = (0.0, 0.0);
    for (x, y) in x.column(0).iter().zip(x.column(1)) {
        let radius = x.hypot(*y);
        // The origin has no angle, and adds nothing.
        if radius > 0.0 {
            cosines += x / radius;
            sines += y / radius;
        }
    }
    (cosines * cosines + sines * sines) / x.rows() as f64
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::rng::{Generator, Stream};

    #[test]
    fn merged_moments_equal_torchs_of_the_whole() {
        let x = Generator::new(0, Stream::Exact, 1, 0).normal(&[500, 3]).to_kind(Kind::Double) * 1e-3 + 50.0;
        let mut moments = StreamedMoments::new(3);
        moments.add(&Cloud::new(&x.narrow(0, 0, 123)));
        moments.add(&Cloud::new(&x.narrow(0, 123, 377)));
        let (means, deviations) = (x.mean_dim(0i64, false, None), x.std_dim(0i64, true, false));
        for (i, (mean, deviation)) in moments.finish().into_iter().enumerate() {
            assert!((mean - means.double_value(&[i as i64])).abs() < 1e-12);
            assert!((deviation - deviations.double_value(&[i as i64])).abs() < 1e-12);
        }
    }

    #[test]
    fn rayleigh_is_one_on_average_for_isotropic_points_and_n_for_one_direction() {
        let mean: f64 = (0..400)
            .map(|shard| rayleigh(&Cloud::new(&Generator::new(0, Stream::Exact, 1, shard).normal(&[100, 2]))))
            .sum::<f64>()
            / 400.0;
        // Exponential with mean 1: standard error 1/20 over 400 sets.
        assert!((mean - 1.0).abs() < 0.2, "{mean}");
        let aligned = Tensor::from_slice(&[3.0, 4.0]).expand([100, 2], false);
        assert!((rayleigh(&Cloud::new(&aligned)) - 100.0).abs() < 1e-9);
        let opposite = Tensor::from_slice(&[1.0, 0.0, -5.0, 0.0]).view([2, 2]);
        assert!(rayleigh(&Cloud::new(&opposite)) < 1e-12);
    }
}
