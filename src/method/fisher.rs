//! The field of Fisher training without denoising (arXiv 2306.04952).

use tch::{Kind, Tensor};

use super::perturb::Perturbed;
use crate::model::{ScoreNetwork, Weights};
use crate::target::TargetOnPath;

/// Gradient of |u|² − 2 u·s_phi − 2 div u with respect to x, u = s_phi − s_q, `[R, D]`.
///
/// The Fisher divergence's gradient has a part that wants the derivative of the sampler's own score. Integration
/// by parts turns E[u·s] into −E[div u], where denoising turns it into −E[u·eps/sigma]: the same expectation
/// without the noise's variance, for D more differentiations of both networks.
pub fn fisher_field(
    target: &TargetOnPath,
    (network, weights): (&ScoreNetwork, &Weights),
    at: &Perturbed,
) -> Tensor {
    let x = at.x.detach().set_requires_grad(true);
    let target_score = target.differentiable_score(&x, &at.sigma);
    let score = network.score(weights, &x, &at.sigma, network.base(&target_score, target.weight()));
    let difference = &score - target_score;
    let dimension = x.size()[1];
    let mut divergence = Tensor::zeros([x.size()[0]], (x.kind(), x.device()));
    for i in 0..dimension {
        let component = difference.select(1, i).sum(None);
        divergence += Tensor::run_backward(&[component], &[&x], true, true).remove(0).select(1, i);
    }
    let rows = (&difference * (&difference - &score * 2.0)).sum_dim_intlist(1i64, false, None::<Kind>)
        - divergence * 2.0;
    Tensor::run_backward(&[rows.sum(None)], &[&x], false, false).remove(0)
}
