//! The mode of the posterior and the Gaussian that has its curvature there.

use tch::{Kind, Tensor};

use super::{Logistic, invalid};
use crate::target::TargetError;

/// The Gaussian approximation of a posterior at its mode, all in f64.
#[derive(Debug)]
pub struct Laplace {
    /// The mode (w, a), `[D]`.
    pub mode: Tensor,
    /// L `[D, D]`, lower triangular, with L Lᵀ the covariance: minus the inverse of the Hessian at the mode.
    pub factor: Tensor,
    /// Steps of Newton's method that it took.
    pub steps: usize,
}

/// Steps before the search is given up.
const STEPS: usize = 100;
/// Newton decrement gᵀ(−H)⁻¹g of a mode: the squared distance to it, in standard deviations.
const CONVERGED: f64 = 1e-14;
/// Below this decrement the log-density is quadratic to the eye, and joint steps converge.
const NEAR: f64 = 1.0;
/// Decrement below which a step is taken without asking the log-density, whose rounding error may exceed the gain.
const UNRESOLVED: f64 = 1e-6;
/// Share of the gain that the slope promises with which a step is content (Armijo).
const SUFFICIENT: f64 = 1e-4;

impl Laplace {
    /// The weights of the mode, `[d]`: where to put an anchor.
    pub fn weights(&self) -> Tensor {
        self.mode.narrow(0, 0, self.mode.size()[0] - 1)
    }

    /// Covariance of all unknowns, `[D, D]`.
    pub fn covariance(&self) -> Tensor {
        self.factor.matmul(&self.factor.transpose(0, 1))
    }

    /// Covariance of the weights, `[d, d]`.
    pub fn weights_covariance(&self) -> Tensor {
        let d = self.mode.size()[0] - 1;
        self.covariance().narrow(0, 0, d).narrow(1, 0, d)
    }
}

/// The posterior to second order at a point.
struct Point {
    x: Tensor,
    value: f64,
    gradient: Tensor,
    /// Minus the Hessian.
    precision: Tensor,
}

/// A Newton step in some of the unknowns, with the slope gᵀ·step that the log-density has along it.
struct Step {
    step: Tensor,
    decrement: f64,
}

impl Logistic {
    /// The posterior's Laplace approximation, from all rows and in f64, whatever the form; collective.
    ///
    /// Away from the mode the joint Hessian of (w, a) may be indefinite, but the posterior of w given a is
    /// log-concave and the best a given w has a closed form: damped Newton steps in w, each with its best a, come
    /// first, and joint Newton steps end the search.
    ///
    /// # Errors
    /// If the search does not end at a mode in 100 steps.
    pub fn laplace(&self) -> Result<Laplace, TargetError> {
        let d = self.shape[0] - 1;
        // w = 0 with precision 1: the likelihood alone decides on the first step.
        let mut point = self.point(&Tensor::zeros([d + 1], (Kind::Double, self.device)));
        for steps in 0..STEPS {
            let joint = newton(&point.gradient, &point.precision);
            if let Some(joint) = &joint
                && joint.decrement < CONVERGED
            {
                return laplace_at(&point, &joint.step, steps);
            }
            let next = match joint.filter(|joint| joint.decrement < NEAR) {
                Some(joint) => self.climb(&point, joint.decrement, |length| &point.x + &joint.step * length),
                None => self.climb_in_weights(&point),
            };
            let Some(next) = next else { break };
            point = next;
        }
        invalid(format!(
            "no mode of the posterior was found in {STEPS} steps of Newton's method; the last log-density is {:.6e} \
             and the largest slope {:.1e}: scale the features to the order of 1",
            point.value,
            point.gradient.abs().max().double_value(&[])
        ))
    }

    /// A damped Newton step in w, with the a that suits the new w best.
    fn climb_in_weights(&self, point: &Point) -> Option<Point> {
        let d = self.shape[0] - 1;
        let w = point.x.narrow(0, 0, d);
        let block = point.precision.narrow(0, 0, d).narrow(1, 0, d);
        let Step { step, decrement } = newton(&point.gradient.narrow(0, 0, d), &block)?;
        self.climb(point, decrement, |length| {
            let w = &w + &step * length;
            let a = Tensor::from(self.prior.best_log_precision(&w)).view([1]).to_device(self.device);
            Tensor::cat(&[w, a], 0)
        })
    }

    /// The first of the points `at`(1), `at`(½), … that is enough above `point`.
    fn climb(&self, point: &Point, decrement: f64, at: impl Fn(f64) -> Tensor) -> Option<Point> {
        let lengths = (0..40).map(|halvings| 0.5_f64.powi(halvings));
        lengths.map(|length| (length, self.point(&at(length)))).find_map(|(length, next)| {
            let is_enough = next.value >= point.value + SUFFICIENT * length * decrement;
            (is_enough || decrement < UNRESOLVED).then_some(next)
        })
    }

    /// Value, gradient and Hessian at the unknowns `x` `[D]` (f64), summed over the rows of all ranks.
    fn point(&self, x: &Tensor) -> Point {
        let d = self.shape[0] - 1;
        let row = x.unsqueeze(0);
        let (_, p) = self.relative(&row);
        let p = p.squeeze_dim(0);
        let [likelihood] = self.ranks.sum(self.blocks.iter().map(|block| [block.expansion(&p)]).collect());
        // Columns of the prior's Hessian: its products with the unit vectors.
        let unit = Tensor::eye(d + 1, (Kind::Double, self.device));
        let of_prior = self.prior.product(&row.expand([d + 1, d + 1], false), &unit);
        Point {
            x: x.shallow_clone(),
            value: (likelihood.value + self.prior.log_density(&row).squeeze()).double_value(&[]),
            gradient: likelihood.gradient.constant_pad_nd([0, 1]) + self.prior.score(&row).squeeze_dim(0),
            precision: likelihood.curvature.constant_pad_nd([0, 1, 0, 1]) - of_prior,
        }
    }
}

/// The Newton step, if `precision` is positive definite and all is finite.
fn newton(gradient: &Tensor, precision: &Tensor) -> Option<Step> {
    let cholesky = precision.f_linalg_cholesky(false).ok()?;
    let step = gradient.unsqueeze(1).cholesky_solve(&cholesky, false).squeeze_dim(1);
    let decrement = gradient.dot(&step).double_value(&[]);
    decrement.is_finite().then_some(Step { step, decrement })
}

/// The end of the search, within 1e-7 standard deviations of the mode: one more `step` makes that 1e-14, and the
/// curvature is the mode's to about 1e-7.
fn laplace_at(point: &Point, step: &Tensor, steps: usize) -> Result<Laplace, TargetError> {
    let covariance = Tensor::linalg_inv(&point.precision);
    let symmetric = (&covariance + covariance.transpose(0, 1)) * 0.5;
    let Ok(factor) = symmetric.f_linalg_cholesky(false) else {
        return invalid(
            "the covariance at the mode is not positive definite in f64; scale the features to the order of 1"
                .to_string(),
        );
    };
    Ok(Laplace { mode: &point.x + step, factor, steps })
}
