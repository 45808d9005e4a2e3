//! A Gaussian target in closed form.

use tch::{Device, Kind, Tensor};

use super::{Target, TargetError};
use crate::rng::Generator;

/// N(mean, covariance) on `[D]`.
#[derive(Debug)]
pub struct Gaussian {
    shape: [i64; 1],
    mean: Tensor,
    precision: Tensor,
    cholesky: Tensor,
}

impl Gaussian {
    /// From a mean `[D]` and a covariance `[D][D]`, computing in `kind` on `device`.
    ///
    /// # Errors
    /// If the sizes differ, or the covariance is not symmetric and positive definite.
    pub fn new(
        mean: &[f64],
        covariance: &[Vec<f64>],
        kind: Kind,
        device: Device,
    ) -> Result<Self, TargetError> {
        let d = mean.len();
        let invalid = |message: String| TargetError::Invalid(message);
        if d == 0 || covariance.len() != d || covariance.iter().any(|row| row.len() != d) {
            return Err(invalid(format!(
                "target.covariance should be {d} rows of {d} numbers, as target.mean has {d}, and has rows of {:?}",
                covariance.iter().map(Vec::len).collect::<Vec<_>>()
            )));
        }
        let flat: Vec<f64> = covariance.iter().flatten().copied().collect();
        let covariance = Tensor::from_slice(&flat).reshape([d as i64, d as i64]);
        let is_symmetric = covariance.allclose(&covariance.transpose(0, 1), 1e-9, 1e-12, false);
        let cholesky =
            covariance.f_linalg_cholesky(false).ok().filter(|_| is_symmetric).ok_or_else(|| {
                invalid("target.covariance should be symmetric and positive definite, and is not".into())
            })?;
        let precision = Tensor::linalg_inv(&covariance);
        let on_device = |t: Tensor| t.to_kind(kind).to_device(device);
        Ok(Gaussian {
            shape: [d as i64],
            mean: on_device(Tensor::from_slice(mean)),
            precision: on_device(precision),
            cholesky: on_device(cholesky),
        })
    }
}

impl Target for Gaussian {
    fn shape(&self) -> &[i64] {
        &self.shape
    }

    fn is_recordable(&self) -> bool {
        true
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        let centred = x - &self.mean;
        (centred.matmul(&self.precision) * &centred).sum_dim_intlist(1i64, false, None) * -0.5
    }

    fn score(&self, x: &Tensor) -> Tensor {
        -(x - &self.mean).matmul(&self.precision)
    }

    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let score = self.score(x);
        let product = -direction(&score).matmul(&self.precision);
        (score, product)
    }

    fn exact_samples(&self, generator: &mut Generator, rows: i64) -> Option<Tensor> {
        let z =
            generator.normal(&[rows, self.shape[0]]).to_kind(self.mean.kind()).to_device(self.mean.device());
        Some(z.matmul(&self.cholesky.transpose(0, 1)) + &self.mean)
    }
}
