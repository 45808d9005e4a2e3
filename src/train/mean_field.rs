//! The mean-field Gaussian: the baseline that knows no correlations.

use std::time::Instant;

use tch::{Kind, Tensor, no_grad};

use super::adam::Adam;
use super::schedule::learning_rate_factor;
use crate::config::{ConfigError, MeanFieldSettings};
use crate::rng::{Generator, Stream};
use crate::target::Target;

/// Decay rates of Adam: its default.
const BETAS: [f64; 2] = [0.9, 0.999];

/// N(mean, diag(deviation²)) fitted to a target on `[D]`.
#[derive(Debug)]
pub struct MeanField {
    /// Mean, f64 `[D]`.
    pub mean: Tensor,
    /// Standard deviation of each coordinate, f64 `[D]`.
    pub deviation: Tensor,
    /// Evaluations of the target's score that the fit took.
    pub evaluations: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Why a mean-field Gaussian was not fitted.
#[derive(Debug, thiserror::Error)]
pub enum MeanFieldError {
    /// Its settings do not fit.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// The start does not fit the target; says what was wanted and found.
    #[error("{0}")]
    Start(String),
    /// The gradient stopped being a finite number.
    #[error(
        "the mean-field fit diverged at iteration {iteration}: the gradient is not finite; lower the learning rate, or \
         start with smaller deviations"
    )]
    Diverged {
        /// The iteration.
        iteration: u64,
    },
}

impl MeanField {
    /// Maximises the evidence lower bound E_q[log target] + entropy(q) over q = N(m, diag(exp(2r))), from `start`: a mean
    /// `[D]` and deviations `[D]`, both on the target's device.
    ///
    /// Stochastic gradients are of points x = m + exp(r)·eps in antithetic pairs ±eps, and of a mini-batch where the
    /// target has them: doubly stochastic variational inference (Titsias and Lázaro-Gredilla 2014), the mean-field
    /// family of ADVI (Kucukelbir et al. 2017),
    ///
    /// ∂m = mean of s(x) · ∂r = mean of s(x)·eps·exp(r) + eps², s the target's score,
    ///
    /// where eps² stands for the 1 that is the slope of the entropy: its mean is 1, and near the optimum it cancels the
    /// noise that curvature along the axes brings (Roeder et al. 2017). Adam moves m and r in units of the start's
    /// deviations; while its step size falls, the iterates are averaged, and the average is the fit. Measured on small
    /// Gaussians and regressions, each of the two halves the error of the deviations, roughly.
    ///
    /// The optimum depends on the coordinates: of a whitened target it has all correlations of the whitening, so give the
    /// target in the coordinates of its unknowns. All numbers are f64, as a mean far from zero in units of the
    /// deviations would lose its digits in f32. `progress` is told the iterations done. Where the target's data are
    /// spread over ranks, all call with equal arguments, and all get the fit.
    ///
    /// # Errors
    /// If the settings or the start do not fit, or the gradient is not finite.
    pub fn fit(
        target: &dyn Target,
        start: (&Tensor, &Tensor),
        settings: &MeanFieldSettings,
        seed: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, MeanFieldError> {
        let began = Instant::now();
        settings.check("mean_field")?;
        let (origin, unit) = check_start(target, start)?;
        let d = origin.size()[0];
        // (m − origin)/unit and r − log(unit), one after the other: where Adam's steps are of the right size.
        let flat = Tensor::zeros([2 * d], (Kind::Double, origin.device()));
        let mut adam = Adam::new(&flat, BETAS);
        let placed = |flat: &Tensor| {
            let mean = &origin + &unit * flat.narrow(0, 0, d);
            (mean, &unit * flat.narrow(0, d, d).exp())
        };
        let mut sum = flat.zeros_like();
        let first_averaged =
            (settings.cosine_from * settings.iterations as f64).min(settings.iterations as f64 - 1.0) as u64;
        for iteration in 0..settings.iterations {
            target.redraw(&mut Generator::new(seed, Stream::MiniBatch, iteration, 0));
            let mut generator = Generator::new(seed, Stream::SamplerUpdate, iteration, 0);
            let half =
                generator.normal(&[settings.samples / 2, d]).to_kind(Kind::Double).to_device(flat.device());
            let eps = Tensor::cat(&[&half, &-&half], 0);
            let (mean, deviation) = placed(&flat);
            let gradient = elbo_gradient(target, (&mean, &deviation), &unit, &eps);
            if gradient.isfinite().all().int64_value(&[]) == 0 {
                return Err(MeanFieldError::Diverged { iteration });
            }
            let fraction = iteration as f64 / settings.iterations as f64;
            let factor = learning_rate_factor(fraction, settings.cosine_from, 0.0);
            adam.update(&flat, &-gradient, settings.learning_rate * factor);
            if iteration >= first_averaged {
                sum += &flat;
            }
            progress(iteration + 1);
        }
        let (mean, deviation) = placed(&(sum / (settings.iterations - first_averaged) as f64));
        let evaluations = settings.iterations * settings.samples as u64;
        Ok(MeanField { mean, deviation, evaluations, seconds: began.elapsed().as_secs_f64() })
    }

    /// Independent draws, f64 `[rows, D]`.
    pub fn draws(&self, generator: &mut Generator, rows: i64) -> Tensor {
        let eps = generator.normal(&[rows, self.mean.size()[0]]).to_kind(Kind::Double);
        eps.to_device(self.mean.device()) * &self.deviation + &self.mean
    }
}

/// Gradient of the bound with respect to m/`unit` and r, `[2 D]`, at noise `eps` `[S, D]` of mean zero.
fn elbo_gradient(
    target: &dyn Target,
    (mean, deviation): (&Tensor, &Tensor),
    unit: &Tensor,
    eps: &Tensor,
) -> Tensor {
    let score = target.score(&(eps * deviation + mean)).detach();
    no_grad(|| {
        let of_mean = score.mean_dim(0i64, false, None) * unit;
        let of_log_deviation = ((score * deviation + eps) * eps).mean_dim(0i64, false, None);
        Tensor::cat(&[of_mean, of_log_deviation], 0)
    })
}

/// Mean and deviations of the start in f64.
fn check_start(
    target: &dyn Target,
    (mean, deviations): (&Tensor, &Tensor),
) -> Result<(Tensor, Tensor), MeanFieldError> {
    let invalid = |message: String| Err(MeanFieldError::Start(message));
    let shape = target.shape();
    if shape.len() != 1 {
        return invalid(format!(
            "a mean-field fit wants a target on [D], and this one makes samples {shape:?}"
        ));
    }
    if mean.size() != shape || deviations.size() != shape {
        return invalid(format!(
            "a mean-field fit starts from a mean and deviations {shape:?}, found {:?} and {:?}",
            mean.size(),
            deviations.size()
        ));
    }
    let (mean, deviations) = (mean.detach().to_kind(Kind::Double), deviations.detach().to_kind(Kind::Double));
    let is_start = mean.isfinite().logical_and(&deviations.isfinite()).logical_and(&deviations.gt(0.0));
    if is_start.all().int64_value(&[]) == 0 {
        return invalid(
            "a mean-field fit starts from a finite mean and deviations above 0; found others".into(),
        );
    }
    Ok((mean, deviations))
}
