//! The score network's loss: denoising score matching, alone or together with what a field needs of it.

use tch::Tensor;

use super::field::ScoreAt;
use super::perturb::Perturbed;
use crate::config::{MethodSection, ScoreWeight};
use crate::model::{ScoreNetwork, Weights};

/// Value and gradient of the score network's loss over the rows of one rank.
pub struct ScoreLoss {
    /// Sum over the rows of weight·|sigma·s_phi + eps|², divided by the rows of all ranks.
    pub value: Tensor,
    /// Gradient of `value`, flat `[P]`.
    pub gradient: Tensor,
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
    network: &ScoreNetwork,
    weights: &Weights,
    at: &Perturbed,
    global_rows: i64,
) -> ScoreLoss {
    let score = network.score(weights, &at.x, &at.sigma);
    let rows = ScoreNetwork::denoising_loss(&score, &at.eps, &at.sigma);
    let loss = (rows * weights_of_rows(section, &at.sigma)).sum(None) / global_rows as f64;
    let (gradient, _) = weights.gradient(&loss, &[]);
    ScoreLoss { value: loss.detach(), gradient }
}

/// As [`score_loss`], and from the same forward and backward pass the score itself and its product J_phi^T
/// (s_phi + eps/sigma): the loss of a row depends on s_phi through weight·sigma²·|s_phi + eps/sigma|², so its
/// gradient with respect to x is the product times 2·weight·sigma².
pub fn score_loss_and_products(
    section: &MethodSection,
    network: &ScoreNetwork,
    weights: &Weights,
    at: &Perturbed,
    global_rows: i64,
) -> (ScoreLoss, ScoreAt) {
    let x = at.x.detach().set_requires_grad(true);
    let score = network.score(weights, &x, &at.sigma);
    let rows = ScoreNetwork::denoising_loss(&score, &at.eps, &at.sigma);
    let row_weights = weights_of_rows(section, &at.sigma);
    let loss = (rows * &row_weights).sum(None) / global_rows as f64;
    let (gradient, inputs) = weights.gradient(&loss, &[&x]);
    let factor = row_weights * at.sigma.square() * (2.0 / global_rows as f64);
    let product = &inputs[0] / crate::model::per_row(&factor, &x);
    (ScoreLoss { value: loss.detach(), gradient }, ScoreAt { score: score.detach(), product })
}
