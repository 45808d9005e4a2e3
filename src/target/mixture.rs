//! Mixtures of isotropic Gaussians in closed form, in any dimension.

use tch::{Device, Kind, Tensor};

use super::{Modes, Target, TargetError};
use crate::rng::Generator;

/// Responsibilities below exp(−80) = 2e-35 are counted as that: they change no digit, and the subnormal numbers below
/// 1e-38 cost a processor ten times as long as others.
const LEAST_LOGIT: f64 = -80.0;

/// `cdist` without its matrix-product shortcut, which cancels digits where samples are close to a mean.
const DIRECT_DISTANCES: i64 = 2;

/// Σ_k w_k N(m_k, d_k² I) on `[D]`: `M` components with means m `[M, D]`, standard deviations d and weights w `[M]`.
///
/// With responsibilities r_k(x) and component scores s_k = (m_k − x)/d_k², the score is s = Σ r_k s_k and the Hessian
/// H = Σ r_k (s_k − s)(s_k − s)ᵀ − (Σ r_k/d_k²) I.
#[derive(Debug)]
pub struct Mixture {
    shape: [i64; 1],
    means: Tensor,
    weights: Vec<f64>,
    deviations: Tensor,
    /// log w_k − D log d_k, `[M, 1]`.
    offsets: Tensor,
    /// −1/(2 d_k²), `[M, 1]`.
    falloff: Tensor,
    /// Rows (m_k/d_k², −1/d_k²), `[M, D + 1]`: s_k is this row times (1, …, 1, x).
    pull: Tensor,
}

impl Mixture {
    /// From means `[M][D]`, standard deviations `[M]` (or one for all) and weights `[M]` (empty: all equal),
    /// computing in `kind` on `device`.
    ///
    /// # Errors
    /// If the sizes differ, a deviation or weight is not above 0, or the weights do not sum to 1.
    pub fn new(
        means: &[Vec<f64>],
        deviations: &[f64],
        weights: &[f64],
        kind: Kind,
        device: Device,
    ) -> Result<Self, TargetError> {
        let (m, d) = (means.len(), means.first().map_or(0, Vec::len));
        let deviations = if deviations.len() == 1 { vec![deviations[0]; m] } else { deviations.to_vec() };
        let weights = if weights.is_empty() { vec![1.0 / m as f64; m] } else { weights.to_vec() };
        check(means, &deviations, &weights)?;
        let flat: Vec<f64> = means.iter().flatten().copied().collect();
        let means = Tensor::from_slice(&flat).reshape([m as i64, d as i64]);
        let (d, w) = (Tensor::from_slice(&deviations), Tensor::from_slice(&weights));
        let precision = d.square().reciprocal();
        let offsets = w.log() - d.log() * means.size()[1] as f64;
        let column = precision.unsqueeze(1);
        let pull = Tensor::cat(&[&means * &column, -&column], 1);
        let on_device = |t: &Tensor| t.to_kind(kind).to_device(device);
        Ok(Mixture {
            shape: [means.size()[1]],
            weights,
            deviations: on_device(&d),
            offsets: on_device(&offsets.unsqueeze(1)),
            falloff: on_device(&(&column * -0.5)),
            pull: on_device(&pull),
            means: on_device(&means),
        })
    }

    /// Σ_k c_k (m_k − x)/d_k² and −Σ_k c_k/d_k² for coefficients c `[M, B]`: `[B, D]` and `[B, 1]`.
    fn pulled(&self, coefficients: &Tensor, x: &Tensor) -> (Tensor, Tensor) {
        let [d] = self.shape;
        let joined = coefficients.transpose(0, 1).matmul(&self.pull);
        let stiffness = joined.narrow(1, d, 1);
        (joined.narrow(1, 0, d).addcmul(x, &stiffness), stiffness)
    }

    /// log w_k N(x; m_k, d_k² I) up to a constant, `[M, B]`: components first, because sums over a short last
    /// dimension are slow. For constants only: `cdist` has no third derivative.
    fn logits(&self, x: &Tensor) -> Tensor {
        let distance = Tensor::cdist(&self.means, x, 2.0, DIRECT_DISTANCES);
        self.offsets.addcmul(&distance.square(), &self.falloff)
    }

    /// Responsibilities `[M, B]` from the logits.
    fn shares(logits: &Tensor) -> Tensor {
        (logits - logits.amax(0i64, true)).clamp_min(LEAST_LOGIT).softmax(0, None)
    }

    /// r_k(x), `[M, B]`.
    fn responsibilities(&self, x: &Tensor) -> Tensor {
        Self::shares(&self.logits(x))
    }
}

fn check(means: &[Vec<f64>], deviations: &[f64], weights: &[f64]) -> Result<(), TargetError> {
    let (m, d) = (means.len(), means.first().map_or(0, Vec::len));
    let invalid = |message: String| Err(TargetError::Invalid(message));
    if d == 0 || means.iter().any(|mean| mean.len() != d || mean.iter().any(|value| !value.is_finite())) {
        return invalid(format!(
            "target.means should be one row of D numbers for each component, and has rows of {:?}",
            means.iter().map(Vec::len).collect::<Vec<_>>()
        ));
    }
    for (name, values) in [("deviations", deviations), ("weights", weights)] {
        if values.len() != m || !values.iter().all(|value| *value > 0.0 && value.is_finite()) {
            return invalid(format!(
                "target.{name} should be {m} numbers above 0, one for each component, and is {values:?}"
            ));
        }
    }
    let sum: f64 = weights.iter().sum();
    if (sum - 1.0).abs() > 1e-6 {
        return invalid(format!("target.weights should sum to 1, and {weights:?} sum to {sum}"));
    }
    Ok(())
}

impl Target for Mixture {
    fn shape(&self) -> &[i64] {
        &self.shape
    }

    fn is_recordable(&self) -> bool {
        true
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        let squares = (x.unsqueeze(1) - &self.means).square().sum_dim_intlist(2i64, false, None);
        (squares * self.falloff.squeeze_dim(1) + self.offsets.squeeze_dim(1)).logsumexp(1i64, false)
    }

    fn score(&self, x: &Tensor) -> Tensor {
        self.pulled(&self.responsibilities(x), x).0
    }

    fn log_density_and_score(&self, x: &Tensor) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let logits = self.logits(x);
            let r = Self::shares(&logits);
            (logits.logsumexp(0i64, false), self.pulled(&r, x).0)
        })
    }

    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let r = self.responsibilities(x);
        let (score, stiffness) = self.pulled(&r, x);
        let v = direction(&score);
        // s_k·v, `[M, B]`, and its mean Σ r_k s_k·v = s·v, `[B]`.
        let with_x = Tensor::cat(&[&v, &(x * &v).sum_dim_intlist(1i64, true, None)], 1);
        let along = self.pull.matmul(&with_x.transpose(0, 1));
        let mean = (&score * &v).sum_dim_intlist(1i64, false, None);
        // These coefficients sum to 0, so that s drops out of Σ c_k (s_k − s).
        let coefficients = r * (along - mean);
        let (spread, _) = self.pulled(&coefficients, x);
        let product = spread.addcmul(&stiffness, &v);
        (score, product)
    }

    fn modes(&self) -> Option<Modes> {
        Some(Modes { centres: self.means.shallow_clone(), weights: self.weights.clone() })
    }

    fn exact_samples(&self, generator: &mut Generator, rows: i64) -> Option<Tensor> {
        let device = self.means.device();
        // A component is where a uniform number falls among the cumulative weights; the last boundary, 1, is left out
        // because rounding may have put it below 1.
        let last = self.weights.len() as i64 - 1;
        let boundaries = Tensor::from_slice(&self.weights).cumsum(0, None).narrow(0, 0, last);
        let uniform = generator.uniform(&[rows]).to_kind(Kind::Double);
        let component = uniform.bucketize(&boundaries, false, true).to_device(device);
        let z = generator.normal(&[rows, self.shape[0]]).to_kind(self.means.kind()).to_device(device);
        let deviations = self.deviations.index_select(0, &component).unsqueeze(1);
        Some(self.means.index_select(0, &component).addcmul(&z, &deviations))
    }
}
