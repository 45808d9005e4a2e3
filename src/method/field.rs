//! The fields themselves, and their evaluation at samples of a sampler.

use tch::Tensor;

use super::perturb::Perturbed;
use crate::config::{FieldKind, MethodSection, Variance};
use crate::model::{ScoreNetwork, Weights, per_row};
use crate::target::TargetAtLevel;

/// The score network at perturbed samples.
#[derive(Debug)]
pub struct ScoreAt {
    /// s_phi, `[R, …]`.
    pub score: Tensor,
    /// J_phi^T (s_phi + eps/sigma), `[R, …]`.
    pub product: Tensor,
}

/// The target at perturbed samples.
#[derive(Debug)]
pub struct TargetAt {
    /// s_q, `[R, …]`.
    pub score: Tensor,
    /// J_q^T (s_q + eps/sigma), `[R, …]`.
    pub product: Tensor,
    /// Evaluations of the target's gradient, a product counted as one more.
    pub evaluations: i64,
}

/// A field at the samples of one rank.
#[derive(Debug)]
pub struct FieldValue {
    /// Gradient of the loss of each sample with respect to x0, `[B, …]`; not yet divided by the batch.
    pub gradient: Tensor,
    /// The denoising Fisher loss of each sample in the same weighting, `[B]`: whatever the field, a
    /// diagnostic of how far the sampler is.
    pub loss: Tensor,
    /// Evaluations of the target's gradient that this took.
    pub evaluations: i64,
}

impl ScoreAt {
    /// Evaluates the score network and its product: one forward, one backward with respect to its input only.
    pub fn evaluate(network: &ScoreNetwork, weights: &Weights, at: &Perturbed) -> Self {
        let x = at.x.detach().set_requires_grad(true);
        let score = network.score(weights, &x, &at.sigma);
        let along = (&score * (&score.detach() + at.noise_score())).sum(None);
        let product = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
        ScoreAt { score: score.detach(), product }
    }
}

impl TargetAt {
    /// Evaluates the target's score, and its product unless the field has no use for it.
    pub fn evaluate(kind: FieldKind, target: &TargetAtLevel, at: &Perturbed) -> Self {
        let rows = at.rows();
        match kind {
            FieldKind::Dft | FieldKind::Hybrid => {
                let noise = at.noise_score();
                let (score, product) = target.score_and_product(&at.x, &at.sigma, &mut |score| score + &noise);
                TargetAt { score, product, evaluations: 2 * rows }
            }
            FieldKind::Kl => {
                let score = target.score(&at.x, &at.sigma);
                TargetAt { product: score.zeros_like(), score, evaluations: rows }
            }
        }
    }
}

/// A field at perturbed samples, `[R, …]`, unweighted.
///
/// - `dft`: 2 J_q^T (s_q + eps/sigma) − 2 J_phi^T (s_phi + eps/sigma), the gradient of the paper's loss.
/// - `kl`: s_phi − s_q, the gradient of KL(p_sigma ‖ q).
/// - `hybrid`: kl + sigma·dft.
pub fn field(kind: FieldKind, at: &Perturbed, score: &ScoreAt, target: &TargetAt) -> Tensor {
    let dft = || (&target.product - &score.product) * 2.0;
    let kl = || &score.score - &target.score;
    match kind {
        FieldKind::Dft => dft(),
        FieldKind::Kl => kl(),
        FieldKind::Hybrid => kl() + dft() * per_row(&at.sigma, &at.x),
    }
}

/// The denoising Fisher loss of each row, `[R]`: −u·(s_phi + s_q + 2 eps/sigma), the product form of
/// |s_q + eps/sigma|² − |s_phi + eps/sigma|² that does not cancel in floating point.
fn denoising_fisher_loss(at: &Perturbed, score: &ScoreAt, target: &TargetAt) -> Tensor {
    let sum = &score.score + &target.score + at.noise_score() * 2.0;
    ((&target.score - &score.score) * sum).flatten(1, -1).sum_dim_intlist(1i64, false, None)
}

/// The configured field at samples `x0` `[B, …]` perturbed as `at`, given the score network there.
///
/// `score_network` is asked again at x0 itself only for the control variate.
pub fn sampler_field(
    section: &MethodSection,
    target: &TargetAtLevel,
    score_network: (&ScoreNetwork, &Weights),
    x0: &Tensor,
    at: &Perturbed,
    score: &ScoreAt,
) -> FieldValue {
    let target_at = TargetAt::evaluate(section.kind, target, at);
    let weight = at.sigma.pow_tensor_scalar(section.field_power);
    let mut gradient = at.fold(&(field(section.kind, at, score, &target_at) * per_row(&weight, &at.x)));
    let loss = at.fold(&(denoising_fisher_loss(at, score, &target_at) * &weight));
    let mut evaluations = target_at.evaluations;
    if section.variance == Variance::ControlVariate && section.kind != FieldKind::Kl {
        let variate = control_variate(target, score_network, &x0.detach(), at);
        let scale = match section.kind {
            FieldKind::Hybrid => &weight * &at.sigma,
            FieldKind::Dft | FieldKind::Kl => weight,
        };
        gradient += variate * per_row(&scale, x0);
        evaluations += 2 * at.rows();
    }
    FieldValue { gradient, loss, evaluations }
}

/// Gradient with respect to x0 of 2 u(x0)·eps/sigma, `[B, …]`. Its mean over eps is zero for every x0, and it
/// cancels the 1/sigma part of the denoising term's variance.
fn control_variate(
    target: &TargetAtLevel,
    (network, weights): (&ScoreNetwork, &Weights),
    x0: &Tensor,
    at: &Perturbed,
) -> Tensor {
    let direction = at.noise_score() * 2.0;
    let (_, of_target) = target.score_and_product(x0, &at.sigma, &mut |_| direction.shallow_clone());
    let x = x0.detach().set_requires_grad(true);
    let along = (network.score(weights, &x, &at.sigma) * &direction).sum(None);
    Tensor::run_backward(&[along], &[&x], false, false).remove(0) - of_target
}
