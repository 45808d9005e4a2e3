//! The score network at perturbed samples: its loss, its value, and its vector-Jacobian products.

use tch::Tensor;

use super::perturb::Perturbed;
use crate::config::{MethodSection, ScoreWeight};
use crate::model::{ScoreNetwork, Weights, per_row};

/// The score network at perturbed samples.
#[derive(Debug)]
pub struct ScoreAt {
    /// s_phi, `[R, …]`.
    pub score: Tensor,
    /// J^T (s_phi + eps/sigma), `[R, …]`, J the Jacobian of the network's own part: without that of the base.
    pub product: Tensor,
}

/// Value and gradient of the score network's loss over the rows of one rank.
pub struct ScoreLoss {
    /// Sum over the rows of weight·|sigma·s_phi + eps|², divided by the rows of all ranks.
    pub value: Tensor,
    /// Gradient of `value`, flat `[P]`.
    pub gradient: Tensor,
}

impl ScoreAt {
    /// Evaluates the score network and its product: one forward, one backward with respect to its input only.
    ///
    /// `base` is what [`ScoreNetwork::base`] makes of the target's score at the same points.
    pub fn evaluate(
        network: &ScoreNetwork,
        weights: &Weights,
        at: &Perturbed,
        base: Option<&Tensor>,
    ) -> Self {
        let x = at.x.detach().set_requires_grad(true);
        let score = network.score(weights, &x, &at.sigma, base);
        let along = (&score * (&score.detach() + at.noise_score())).sum(None);
        let product = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
        ScoreAt { score: score.detach(), product }
    }
}

/// J^T v at `x` `[R, …]` for any cotangent `v` `[R, …]`, J the Jacobian of the network's own part.
pub fn score_product(
    (network, weights): (&ScoreNetwork, &Weights),
    x: &Tensor,
    sigma: &Tensor,
    v: &Tensor,
) -> Tensor {
    let x = x.detach().set_requires_grad(true);
    // A constant base takes the place of the built-in one where the target is the base, and has no Jacobian.
    let nothing = v.zeros_like();
    let along = (network.score(weights, &x, sigma, network.base(&nothing)) * v).sum(None);
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
    base: Option<&Tensor>,
    global_rows: i64,
) -> ScoreLoss {
    let score = network.score(weights, &at.x, &at.sigma, base);
    let rows = ScoreNetwork::denoising_loss(&score, &at.eps, &at.sigma);
    let loss = (rows * weights_of_rows(section, &at.sigma)).sum(None) / global_rows as f64;
    let (gradient, _) = weights.gradient(&loss, &[]);
    ScoreLoss { value: loss.detach(), gradient }
}

/// As [`score_loss`], and from the same forward and backward pass the score itself and its product J^T
/// (s_phi + eps/sigma): the loss of a row depends on s_phi through weight·sigma²·|s_phi + eps/sigma|², so its
/// gradient with respect to x is the product times 2·weight·sigma².
pub fn score_loss_and_products(
    section: &MethodSection,
    (network, weights): (&ScoreNetwork, &Weights),
    at: &Perturbed,
    base: Option<&Tensor>,
    global_rows: i64,
) -> (ScoreLoss, ScoreAt) {
    let x = at.x.detach().set_requires_grad(true);
    let score = network.score(weights, &x, &at.sigma, base);
    let rows = ScoreNetwork::denoising_loss(&score, &at.eps, &at.sigma);
    let row_weights = weights_of_rows(section, &at.sigma);
    let loss = (rows * &row_weights).sum(None) / global_rows as f64;
    let (gradient, inputs) = weights.gradient(&loss, &[&x]);
    let factor = row_weights * at.sigma.square() * (2.0 / global_rows as f64);
    let product = &inputs[0] / per_row(&factor, &x);
    (ScoreLoss { value: loss.detach(), gradient }, ScoreAt { score: score.detach(), product })
}
