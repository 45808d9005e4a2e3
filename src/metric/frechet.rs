//! Fréchet distance between Gaussians fitted to features, in f64 from streamed sums.

use tch::{Device, Kind, Tensor};

/// Number, sum and sum of outer products of feature vectors, shifted by a fixed vector so that little is lost
/// when the covariance is small beside the mean.
#[derive(Debug)]
pub struct Moments {
    shift: Tensor,
    /// Number, sum `[F]` and sum of outer products `[F, F]`, one after the other.
    sums: Tensor,
}

impl Moments {
    /// No features yet; `shift` `[F]` should be near their mean.
    pub fn new(shift: &Tensor) -> Self {
        let shift = shift.to_kind(Kind::Double).to_device(Device::Cpu);
        let features = shift.size()[0];
        let sums = Tensor::zeros([1 + features + features * features], (Kind::Double, Device::Cpu));
        Moments { shift, sums }
    }

    /// Takes in features `[B, F]`.
    pub fn add(&mut self, features: &Tensor) {
        let sums = self.sums_of(features);
        self.add_sums(&sums);
    }

    /// What features `[B, F]` add to the sums: f64 `[length]` on the CPU.
    pub fn sums_of(&self, features: &Tensor) -> Tensor {
        let centred = features.to_device(Device::Cpu).to_kind(Kind::Double) - &self.shift;
        let count = Tensor::from_slice(&[features.size()[0] as f64]);
        let sum = centred.sum_dim_intlist(0i64, false, None);
        let outer = centred.transpose(0, 1).matmul(&centred);
        Tensor::cat(&[count, sum, outer.reshape([-1])], 0)
    }

    /// How many numbers the sums are.
    pub fn length(&self) -> i64 {
        self.sums.size()[0]
    }

    /// Takes in features by their sums, which other ranks may have made with the same shift.
    pub fn add_sums(&mut self, sums: &Tensor) {
        self.sums += sums;
    }

    /// Whether every feature taken in was a finite number.
    pub fn is_finite(&self) -> bool {
        self.sums.isfinite().all().int64_value(&[]) == 1
    }

    /// Mean, `[F]`.
    pub fn mean(&self) -> Tensor {
        self.shifted_mean() + &self.shift
    }

    /// Covariance with n − 1, `[F, F]`.
    pub fn covariance(&self) -> Tensor {
        let (mean, features) = (self.shifted_mean(), self.shift.size()[0]);
        let outer = self.sums.narrow(0, 1 + features, features * features).view([features, features]);
        (outer - mean.outer(&mean) * self.count()) / (self.count() - 1.0)
    }

    fn count(&self) -> f64 {
        self.sums.double_value(&[0])
    }

    fn shifted_mean(&self) -> Tensor {
        self.sums.narrow(0, 1, self.shift.size()[0]) / self.count()
    }

    /// Fréchet distance to another set of features; NaN if either holds numbers that are not finite.
    pub fn distance(&self, other: &Moments) -> f64 {
        // LAPACK stops with an error of its own on them.
        if !(self.is_finite() && other.is_finite()) {
            return f64::NAN;
        }
        frechet_distance(&self.mean(), &self.covariance(), &other.mean(), &other.covariance())
    }
}

/// |m1 − m2|² + tr(C1 + C2 − 2 (C1^½ C2 C1^½)^½), the squared 2-Wasserstein distance between two Gaussians
/// (Dowson and Landau 1982; Heusel et al. 2017), means `[F]` and covariances `[F, F]` in f64.
///
/// The trace of the root is a sum over eigenvalues of a symmetric matrix, so singular covariances are fine
/// and no complex part can appear.
pub fn frechet_distance(mean1: &Tensor, covariance1: &Tensor, mean2: &Tensor, covariance2: &Tensor) -> f64 {
    let (values, vectors) = covariance1.linalg_eigh("L");
    let root = (&vectors * values.clamp_min(0.0).sqrt()).matmul(&vectors.transpose(0, 1));
    let product = root.matmul(covariance2).matmul(&root);
    let symmetric = (&product + product.transpose(0, 1)) * 0.5;
    let overlap = symmetric.linalg_eigvalsh("L").clamp_min(0.0).sqrt().sum(None).double_value(&[]);
    let trace = (covariance1.trace() + covariance2.trace()).double_value(&[]);
    (mean1 - mean2).square().sum(None).double_value(&[]) + trace - 2.0 * overlap
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Mean cos(1.1 i + k) and covariance a aᵀ with a = sin(1.7 i + 2.3 j + k) + δ/2, five features.
    fn gaussian(k: f64) -> (Tensor, Tensor) {
        let i = Tensor::arange(5, DOUBLE);
        let angles = (&i * 1.7).unsqueeze(1) + (&i * 2.3).unsqueeze(0) + k;
        let a = angles.sin() + Tensor::eye(5, DOUBLE) * 0.5;
        ((i * 1.1 + k).cos(), a.matmul(&a.transpose(0, 1)))
    }

    #[test]
    fn distance_equals_scipys_matrix_root() {
        // scipy 1.17.1, with gaussian(k) as above in numpy:
        //   root = scipy.linalg.sqrtm(c1 @ c2).real
        //   ((m1 - m2)**2).sum() + np.trace(c1 + c2 - 2 * root)
        let ((m1, c1), (m2, c2)) = (gaussian(0.0), gaussian(1.0));
        let found = frechet_distance(&m1, &c1, &m2, &c2);
        assert!((found - 2.958_326_184_752_582).abs() < 1e-9, "{found}");
    }

    #[test]
    fn distance_of_a_singular_gaussian_to_itself_is_zero_and_shifts_count_squared() {
        let (mean, _) = gaussian(0.0);
        let one = Tensor::ones([5, 1], DOUBLE);
        let singular = one.matmul(&one.transpose(0, 1));
        assert!(frechet_distance(&mean, &singular, &mean, &singular).abs() < 1e-6);
        let shifted = frechet_distance(&mean, &singular, &(&mean + 2.0), &singular);
        assert!((shifted - 20.0).abs() < 1e-6); // five features, 2² each
    }

    #[test]
    fn streamed_moments_equal_those_of_the_whole() {
        let x = Tensor::arange(60, DOUBLE).sin().view([12, 5]) * 0.01 + 100.0;
        let mut moments = Moments::new(&x.get(0));
        moments.add(&x.narrow(0, 0, 7));
        moments.add(&x.narrow(0, 7, 5));
        assert!(moments.is_finite());
        let mean = x.mean_dim(0i64, false, None);
        // The spread is 1e-4 of the mean: without the shift the covariance would lose 8 digits.
        assert!(moments.mean().allclose(&mean, 1e-14, 0.0, false));
        assert!(moments.covariance().allclose(
            &x.transpose(0, 1).cov(1, None::<&Tensor>, None::<&Tensor>),
            1e-9,
            1e-16,
            false
        ));
    }
}
