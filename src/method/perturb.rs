//! Samples with noise added: the points at which scores are compared.

use tch::Tensor;

use crate::config::Variance;
use crate::model::per_row;

/// Perturbed samples x = x0 + sigma·eps, `R` rows: one a sample, or two if antithetic.
#[derive(Debug)]
pub struct Perturbed {
    /// x, `[R, …]`, a constant.
    pub x: Tensor,
    /// eps, `[R, …]`.
    pub eps: Tensor,
    /// sigma, `[R]`.
    pub sigma: Tensor,
    /// Standard normal numbers `[R, n, D]` that the target's score with noise is estimated from, if it is.
    pub probes: Option<Tensor>,
    copies: i64,
}

impl Perturbed {
    /// Perturbs `x0` `[B, …]` with `eps` `[B, …]` at levels `sigma` `[B]`; antithetic noise appends a second
    /// copy of the samples with −eps.
    pub fn new(x0: &Tensor, eps: &Tensor, sigma: &Tensor, variance: Variance) -> Self {
        let (x0, shift) = (x0.detach(), eps * per_row(sigma, eps));
        match variance {
            Variance::Antithetic => Perturbed {
                x: Tensor::cat(&[&x0 + &shift, &x0 - &shift], 0),
                eps: Tensor::cat(&[eps.shallow_clone(), -eps], 0),
                sigma: Tensor::cat(&[sigma, sigma], 0),
                probes: None,
                copies: 2,
            },
            Variance::Plain | Variance::ControlVariate => Perturbed {
                x: &x0 + shift,
                eps: eps.shallow_clone(),
                sigma: sigma.shallow_clone(),
                probes: None,
                copies: 1,
            },
        }
    }

    /// With `probes` `[B, n, D]`, the same for all copies of a sample.
    pub fn with_probes(self, probes: &Tensor) -> Self {
        Perturbed { probes: Some(probes.repeat([self.copies, 1, 1])), ..self }
    }

    /// Number of rows, `R`.
    pub fn rows(&self) -> i64 {
        self.x.size()[0]
    }

    /// Rows for each sample: 1, or 2 if antithetic.
    pub fn copies(&self) -> i64 {
        self.copies
    }

    /// eps/sigma, the negative score of the noise.
    pub fn noise_score(&self) -> Tensor {
        &self.eps / per_row(&self.sigma, &self.eps)
    }

    /// Mean over the copies of each sample, `[R, …] -> [B, …]`.
    pub fn fold(&self, rows: &Tensor) -> Tensor {
        let mut shape = vec![self.copies, rows.size()[0] / self.copies];
        shape.extend(&rows.size()[1..]);
        rows.view(shape.as_slice()).mean_dim(0i64, false, None)
    }
}
