//! The fields: what a sampler descends. Denoising Fisher training and its relatives as functions from
//! perturbed samples to the gradient of a loss with respect to those samples.
//!
//! With x = x0 + sigma·eps, c = −eps/sigma and u = s_phi − s_q, the paper's loss is
//! `E[|u|² + 2 u·(c − s_phi)] = DSM(s_q) − DSM(s_phi)`, and its gradient with respect to x is
//! `2 J_q^T (s_q + eps/sigma) − 2 J_phi^T (s_phi + eps/sigma)`: two vector-Jacobian products. The theorem behind it holds for
//! any distance d of scores, with the loss `E[d(u) + d'(u)·(c − s_phi)]`.

mod field;
mod fisher;
mod flow;
mod perturb;
mod score;

pub use field::{Cotangents, FieldValue, ScoreCotangent, cotangents, sampler_field};
pub use fisher::fisher_field;
pub use flow::ProbabilityFlow;
pub use perturb::Perturbed;
pub use score::{ScoreAt, ScoreLoss, score_loss, score_loss_and_products, score_product};
