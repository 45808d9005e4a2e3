//! The score of a target with noise, estimated from the target itself.

use tch::{Kind, Tensor};

use super::Target;

/// Below this variance of the difference of the two estimates they are one.
const LEAST_VARIANCE: f64 = 1e-12;

/// Estimates the score of q convolved with N(0, sigma² I) at `x` `[R, D]`, sigma `[R]`, from probes `[R, n, D]`, which
/// are standard normal: n evaluations of the target for each row.
///
/// With y_i = x + sigma·probe_i and weights w_i in proportion to q(y_i), both Σ w_i ∇log q(y_i) (Akhound-Sadegh et al.,
/// ICML 2024, equation 8) and Σ w_i (y_i − x)/sigma² (Tweedie) tend to it as n grows. The first is precise where sigma is below
/// the target's length scale and useless above, the second the other way round. Their difference has the
/// mean zero (Stein's identity), so it serves as a control variate: the row's own weighted variances say how much of
/// the first to take, between nothing and all.
pub(super) fn smoothed_score(target: &dyn Target, x: &Tensor, sigma: &Tensor, probes: &Tensor) -> Tensor {
    let (rows, count, dimension) = probes.size3().expect("probes are [R, n, D]");
    let sigma = sigma.reshape([rows, 1, 1]);
    let y = (x.unsqueeze(1) + probes * &sigma).reshape([rows * count, dimension]);
    let (log_density, score) = target.log_density_and_score(&y);
    let weights = log_density.reshape([rows, count]).softmax(1, Kind::Float).unsqueeze(2);
    let score = score.reshape([rows, count, dimension]);
    let pull = probes / &sigma;
    let mean = |values: &Tensor| (values * &weights).sum_dim_intlist(1i64, true, None);
    let (of_target, of_noise) = (mean(&score), mean(&pull));
    // The weighted covariance of the second with the difference, over the variance of the difference.
    let difference = (&pull - &score) - (&of_noise - &of_target);
    let total = |values: Tensor| mean(&values).sum_dim_intlist(2i64, true, None);
    let covariance = total((&pull - &of_noise) * &difference);
    let part = (covariance / (total(difference.square()) + LEAST_VARIANCE)).clamp(0.0, 1.0);
    (&of_noise + (of_target - &of_noise) * part).squeeze_dim(1)
}
