//! The score network at perturbed samples: its loss, its value, and its vector-Jacobian products.

use tch::Tensor;

use super::perturb::Perturbed;
use crate::config::{MethodSection, ScoreWeight};
use crate::model::{Base, ScoreNetwork, Weights, per_row};

/// The score network at perturbed samples.
#[derive(Debug)]
pub struct ScoreAt {
    /// s_phi, `[R, …]`.
    pub score: Tensor,
    /// J^T (s_phi + eps/sigma), `[R, …]`, where it was asked for and comes at no cost. J is the Jacobian of the
    /// network with its base, but without that of the target where the target is the base.
    pub product: Option<Tensor>,
}

/// Value and gradient of the score network's loss over the rows of one rank.
pub struct ScoreLoss {
    /// Sum over the rows of weight·|sigma·s_phi + eps|², divided by the rows of all ranks.
    pub value: Tensor,
    /// Gradient of `value`, flat `[P]`.
    pub gradient: Tensor,
}

impl ScoreAt {
    /// Evaluates the score network, and its product if `wants_product`: one forward, one backward with respect to
    /// its input only.
    pub fn evaluate(
        (network, weights): (&ScoreNetwork, &Weights),
        at: &Perturbed,
        base: Base,
        wants_product: bool,
    ) -> Self {
        if !wants_product {
            let score = network.score(weights, &at.x, &at.sigma, base).detach();
            return ScoreAt { score, product: None };
        }
        let x = at.x.detach().set_requires_grad(true);
        let score = network.score(weights, &x, &at.sigma, base);
        let along = (&score * (&score.detach() + at.noise_score())).sum(None);
        let product = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
        ScoreAt { score: score.detach(), product: Some(product) }
    }
}

/// J^T v at `x` `[R, …]` for any cotangent `v` `[R, …]`, J as in [`ScoreAt::product`].
pub fn score_product(
    (network, weights): (&ScoreNetwork, &Weights),
    x: &Tensor,
    sigma: &Tensor,
    base: Base,
    v: &Tensor,
) -> Tensor {
    let x = x.detach().set_requires_grad(true);
    // The base is a constant here where it is the target's score, so its value does not matter.
    let nothing = v.zeros_like();
    let base = match base {
        Base::Target(_) => Base::Target(&nothing),
        start => start,
    };
    let along = (network.score(weights, &x, sigma, base) * v).sum(None);
    Tensor::run_backward(&[along], &[&x], false, false).remove(0)
}

/// Weight of each row, `[R]`.
fn weights_of_rows(section: &MethodSection, sigma: &Tensor) -> Tensor {
    match section.score_weight {
        ScoreWeight::Uniform => sigma.ones_like(),
        ScoreWeight::Edm => {
            let data = section.sigma_data.powi(2);
            (sigma.square() + data) / data
        }
    }
}

/// Denoising score-matching loss of the score network, weight·|sigma·s_phi(x) + eps|², and its gradient.
///
/// `global_rows` are the perturbed rows of all ranks together, so that ranks' values and gradients sum to
/// those of the global mean. Paper: algorithm 1, score update.
pub fn score_loss(
    section: &MethodSection,
    (network, weights): (&ScoreNetwork, &Weights),
    at: &Perturbed,
    base: Base,
    global_rows: i64,
) -> ScoreLoss {
    let score = network.score(weights, &at.x, &at.sigma, base);
    let rows = network.denoising_loss(&score, &at.x, &at.eps, &at.sigma);
    let loss = (rows * weights_of_rows(section, &at.sigma)).sum(None) / global_rows as f64;
    let (gradient, _) = weights.gradient(&loss, &[]);
    ScoreLoss { value: loss.detach(), gradient }
}

/// As [`score_loss`], and from the same forward and backward pass the score itself and, if `wants_product`, its
/// product J^T (s_phi + eps/sigma).
///
/// The loss of a row depends on s_phi through weight·sigma²·|s_phi + eps/sigma|², so its gradient with respect to x
/// is the product times 2·weight·sigma². With tail scaling the coordinates have weights of their own, and there is
/// no product.
pub fn score_loss_and_products(
    section: &MethodSection,
    (network, weights): (&ScoreNetwork, &Weights),
    at: &Perturbed,
    base: Base,
    global_rows: i64,
    wants_product: bool,
) -> (ScoreLoss, ScoreAt) {
    let has_product = wants_product && !network.spec().tail_scaling;
    let x = at.x.detach().set_requires_grad(has_product);
    let score = network.score(weights, &x, &at.sigma, base);
    let rows = network.denoising_loss(&score, &x, &at.eps, &at.sigma);
    let row_weights = weights_of_rows(section, &at.sigma);
    let loss = (rows * &row_weights).sum(None) / global_rows as f64;
    let wanted = if has_product { vec![&x] } else { vec![] };
    let (gradient, inputs) = weights.gradient(&loss, &wanted);
    let product = inputs.first().map(|input| {
        let factor = row_weights * at.sigma.square() * (2.0 / global_rows as f64);
        input / per_row(&factor, &x)
    });
    (ScoreLoss { value: loss.detach(), gradient }, ScoreAt { score: score.detach(), product })
}
