//! The fields themselves, and their evaluation at samples of a sampler.

use tch::Tensor;

use super::fisher::fisher_field;
use super::perturb::Perturbed;
use super::score::{ScoreAt, score_product};
use crate::config::{FieldKind, MethodSection, ScoreBase, Variance};
use crate::model::{Base, ScoreNetwork, Weights, per_row};
use crate::target::TargetOnPath;

/// A field at the samples of one rank.
#[derive(Debug)]
pub struct FieldValue {
    /// Gradient of the loss of each sample with respect to x0, `[B, …]`; not yet divided by the batch.
    pub gradient: Tensor,
    /// The denoising Fisher loss of each sample in the same weighting, `[B]`: whatever the field, a
    /// diagnostic of how far the sampler is.
    pub loss: Tensor,
    /// Evaluations of the target's gradient that this took, a product counted as one more.
    pub evaluations: i64,
}

/// A field taken apart: `direct` + J_phi^T `score` + J_q^T `target`, all `[R, …]`.
#[derive(Debug)]
pub struct Cotangents {
    /// What no Jacobian is needed for.
    pub direct: Option<Tensor>,
    /// What the score network's Jacobian is contracted with, and the target's.
    pub products: Option<(ScoreCotangent, Tensor)>,
}

/// What the score network's Jacobian is contracted with.
#[derive(Debug)]
pub enum ScoreCotangent {
    /// A factor for each row, `[R, 1, …]`, on s_phi + eps/sigma: that product can come with the score network's
    /// loss at no cost.
    Denoising(Tensor),
    /// Anything else, `[R, …]`.
    Other(Tensor),
}

/// The cotangents of a field, given both scores `[R, …]` at perturbed samples. With u = s_phi − s_q and n =
/// eps/sigma:
///
/// - `dft`: −2 J_phi^T (s_phi + n) + 2 J_q^T (s_q + n), the gradient of the paper's loss.
/// - `kl`: u, the gradient of KL(p_sigma ‖ q); where the samples come with probes, of KL(p_sigma ‖ q_sigma), q_sigma
///   the target with the same noise.
/// - `hybrid`: kl + fisher_weight·sigma·dft.
/// - `huber`: d'(u) + d''(u)·(−n − s_phi) contracted with J_phi − J_q, less d'(u) with J_phi: the gradient of
///   d(u) + d'(u)·(−n − s_phi), which is the paper's loss for d = |u|²; here d = Σ 2c²(√(1 + u_i²/c²) − 1) with
///   c = huber_scale/sigma, so that `dft` is the limit of a large scale.
/// - `path`: the gradient of |u|² along x alone.
/// - `sid`: the gradient of −2u·(s_q + n) − 2 alpha |u|², the loss of Zhou et al. (2024), equation 23, in units
///   of dft.
///
/// # Panics
/// For `fisher`, which is no such contraction.
pub fn cotangents(
    section: &MethodSection,
    kind: FieldKind,
    at: &Perturbed,
    score: &Tensor,
    target: &Tensor,
) -> Cotangents {
    let dft = |factor: Tensor| {
        let of_target = (target + at.noise_score()) * &factor;
        Some((ScoreCotangent::Denoising(-factor), of_target))
    };
    let two = || per_row(&(at.sigma.ones_like() * 2.0), &at.x);
    match kind {
        FieldKind::Dft => Cotangents { direct: None, products: dft(two()) },
        FieldKind::Kl => Cotangents { direct: Some(score - target), products: None },
        FieldKind::Hybrid => {
            let factor = per_row(&(&at.sigma * (2.0 * section.fisher_weight)), &at.x);
            Cotangents { direct: Some(score - target), products: dft(factor) }
        }
        FieldKind::Huber => {
            let difference = score - target;
            let limit = per_row(&(at.sigma.reciprocal() * section.huber_scale), &at.x);
            let root = ((&difference / limit).square() + 1.0).sqrt();
            let slope = difference * 2.0 / &root;
            let of_score = (score + at.noise_score()) * -2.0 / root.pow_tensor_scalar(3);
            let of_target = -(slope + &of_score);
            Cotangents { direct: None, products: Some((ScoreCotangent::Other(of_score), of_target)) }
        }
        FieldKind::Path => {
            let difference = (score - target) * 2.0;
            let of_target = -&difference;
            Cotangents { direct: None, products: Some((ScoreCotangent::Other(difference), of_target)) }
        }
        FieldKind::Sid => {
            let (difference, denoising) = (score - target, (target + at.noise_score()) * 2.0);
            let of_score = -&denoising - &difference * (4.0 * section.alpha);
            let of_target = denoising + difference * (4.0 * section.alpha - 2.0);
            Cotangents { direct: None, products: Some((ScoreCotangent::Other(of_score), of_target)) }
        }
        FieldKind::Fisher => panic!("the field of Fisher training is no contraction with two Jacobians"),
    }
}

/// The denoising Fisher loss of each row, `[R]`: −u·(s_phi + s_q + 2 eps/sigma), the product form of
/// |s_q + eps/sigma|² − |s_phi + eps/sigma|² that does not cancel in floating point.
fn denoising_fisher_loss(at: &Perturbed, score: &Tensor, target: &Tensor) -> Tensor {
    let sum = score + target + at.noise_score() * 2.0;
    ((target - score) * sum).flatten(1, -1).sum_dim_intlist(1i64, false, None)
}

/// The field `kind` at samples `x0` `[B, …]` perturbed as `at`.
///
/// `score_at` evaluates the score network there, once, given its base ([`ScoreNetwork::base`]) and whether its product
/// is of use; `network` is asked again only for products that do not come with that.
pub fn sampler_field(
    (section, kind): (&MethodSection, FieldKind),
    target: &TargetOnPath,
    network: (&ScoreNetwork, &Weights),
    x0: &Tensor,
    at: &Perturbed,
    score_at: &mut dyn FnMut(Base, bool) -> ScoreAt,
) -> FieldValue {
    let rows = if target.is_evaluated() { at.rows() } else { 0 };
    let (field, score, target_score, mut evaluations) = match kind {
        FieldKind::Kl => {
            let (target_score, each) = match &at.probes {
                Some(probes) => (target.smoothed_score(&at.x, &at.sigma, probes), probes.size()[1]),
                None => (target.score(&at.x, &at.sigma), 1),
            };
            let base = network.0.base(&target_score, target.weight());
            let score = score_at(base, false).score;
            (&score - &target_score, score, target_score, rows * each)
        }
        FieldKind::Fisher => {
            let target_score = target.score(&at.x, &at.sigma);
            let base = network.0.base(&target_score, target.weight());
            let score = score_at(base, false).score;
            let dimension = at.x.size()[1];
            // The score and its divergence's D products, each differentiated once more.
            (fisher_field(target, network, at), score, target_score, rows * (1 + 2 * (1 + dimension)))
        }
        FieldKind::Dft | FieldKind::Hybrid | FieldKind::Huber | FieldKind::Path | FieldKind::Sid => {
            let (field, score, target_score) =
                contracted_field((section, kind), target, network, at, score_at);
            (field, score, target_score, 2 * rows)
        }
    };
    let weight = at.sigma.pow_tensor_scalar(section.field_power);
    let mut gradient = at.fold(&(field * per_row(&weight, &at.x)));
    let loss = at.fold(&(denoising_fisher_loss(at, &score, &target_score) * &weight));
    if section.variance == Variance::ControlVariate {
        let variate = control_variate(target, network, &x0.detach(), at);
        if network.0.spec().base != ScoreBase::Target {
            evaluations += 2 * if target.is_evaluated() { x0.size()[0] } else { 0 };
        }
        let scale = match kind {
            FieldKind::Hybrid => &weight * &at.sigma * section.fisher_weight,
            _ => weight,
        };
        gradient += variate * per_row(&scale, x0);
    }
    FieldValue { gradient, loss, evaluations }
}

/// A field made of [`cotangents`], `[R, …]`, unweighted, with s_phi and s_q.
fn contracted_field(
    (section, kind): (&MethodSection, FieldKind),
    target: &TargetOnPath,
    network: (&ScoreNetwork, &Weights),
    at: &Perturbed,
    score_at: &mut dyn FnMut(Base, bool) -> ScoreAt,
) -> (Tensor, Tensor, Tensor) {
    let mut of_network = None;
    // The network is evaluated where the target's score is known and its product not yet taken: its base may be
    // that score, and then the base's Jacobian is the target's and needs one product with the target's own.
    let (target_score, of_target) = target.score_and_product(&at.x, &at.sigma, &mut |target_score| {
        let base = network.0.base(target_score, target.weight());
        let wants_product = matches!(kind, FieldKind::Dft | FieldKind::Hybrid);
        let ScoreAt { score, product } = score_at(base, wants_product);
        let Cotangents { direct, products } = cotangents(section, kind, at, &score, target_score);
        let (of_score, mut of_target) = products.expect("these fields have products");
        let cotangent = || match &of_score {
            ScoreCotangent::Denoising(factor) => (&score + at.noise_score()) * factor,
            ScoreCotangent::Other(cotangent) => cotangent.shallow_clone(),
        };
        if let Base::Target(_) = base {
            of_target += cotangent();
        }
        let own = match (&of_score, product) {
            (ScoreCotangent::Denoising(factor), Some(product)) => product * factor,
            _ => score_product(network, &at.x, &at.sigma, base, &cotangent()),
        };
        of_network = Some((direct, own, score));
        of_target
    });
    let (direct, own, score) = of_network.expect("a target asks for the direction");
    let mut field = of_target + own;
    if let Some(direct) = direct {
        field += direct;
    }
    (field, score, target_score)
}

/// Gradient with respect to x0 of 2 u(x0)·eps/sigma, `[B, …]`. Its mean over eps is zero for every x0, and it
/// cancels the 1/sigma part of the denoising term's variance.
fn control_variate(
    target: &TargetOnPath,
    network: (&ScoreNetwork, &Weights),
    x0: &Tensor,
    at: &Perturbed,
) -> Tensor {
    let direction = at.noise_score() * 2.0;
    let base = network.0.base(&direction, target.weight());
    let own = score_product(network, x0, &at.sigma, base, &direction);
    if let Base::Target(_) = base {
        return own; // the target's part and the base's cancel
    }
    let (_, of_target) = target.score_and_product(x0, &at.sigma, &mut |_| direction.shallow_clone());
    own - of_target
}
