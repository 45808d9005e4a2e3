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
        let pass = network.pass(weights, &at.x, &at.sigma, base, wants_product);
        let score = pass.score.shallow_clone();
        let product = wants_product.then(|| pass.product(&(&score + at.noise_score())));
        ScoreAt { score, product }
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
    // The base is a constant here where it is the target's score, so its value does not matter.
    let nothing = v.zeros_like();
    let base = match base {
        Base::Target(_) => Base::Target(&nothing),
        start => start,
    };
    network.pass(weights, x, sigma, base, true).product(v)
}

/// Weight of each row of `global_rows`, `[R]`.
fn weights_of_rows(section: &MethodSection, sigma: &Tensor, global_rows: i64) -> Tensor {
    match section.score_weight {
        ScoreWeight::Uniform => sigma.full_like(1.0 / global_rows as f64),
        ScoreWeight::Edm => {
            let data = section.sigma_data.powi(2);
            (sigma.square() + data) / (data * global_rows as f64)
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
    score_loss_and_products(section, (network, weights), at, base, global_rows, false).0
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
    let pass = network.pass(weights, &at.x, &at.sigma, base, has_product);
    let score = pass.score.shallow_clone();
    let row_weights = weights_of_rows(section, &at.sigma, global_rows);
    let (value, slope) = network.denoising_loss(&score, (&at.x, &at.eps, &at.sigma), &row_weights);
    let (gradient, input) = pass.gradient(&slope, has_product);
    let product = input.map(|input| input / per_row(&(row_weights * at.sigma.square() * 2.0), &at.x));
    (ScoreLoss { value, gradient }, ScoreAt { score, product })
}
