//! Networks as pure functions of their weights: a [`Layout`] names the parameters, [`Parameters`] hold
//! their values in one flat buffer, and a network's `forward` takes the weights it should use. So the
//! same network runs with trained, averaged or frozen weights, and Adam, EMA, clipping, the all-reduce,
//! checksum and checkpoint each act on one tensor.
//!
//! What training asks of a network is a *pass*: its values at some points, and then one product with its Jacobian
//! ([`ScorePass`], [`SamplerPass`]). Autograd answers for every network on every device; on a CPU perceptrons, and the
//! energy of a U-Net, have their passes by hand, because there the calls cost as much as the arithmetic.

#[cfg(test)]
mod check;
mod energy;
mod generator;
mod kernels;
mod layers;
mod lenet;
mod mlp;
mod parameters;
mod resnet;
mod sampler;
mod score;
mod score_pass;
mod unet;
mod unet_product;
mod weights_file;

pub use energy::{ByHand, EnergyNetwork, EnergySpec};
pub use layers::{Init, per_row};
pub use lenet::LeNet;
pub use parameters::{Layout, Parameters, Slot, Weights};
pub use sampler::{SamplerNetwork, SamplerPass, SamplerSpec};
pub use score::{Base, ScoreNetwork, ScoreSpec};
pub use score_pass::ScorePass;
pub use weights_file::{COORDINATES, WeightsError, WeightsFile, replace_atomically, write_atomically};
