//! Two-dimensional targets that papers compare samplers on.
//!
//! Gaussian, MOG2, Rosenbrock, donut, funnel and squiggle are the six of Sharrock and Nemeth (COIN, ICML 2023) with
//! that paper's constants; their names and order are those of the denoising Fisher paper's first table. The Gaussian
//! is [`Gaussian`](super::Gaussian), and MOG2 a [`Mixture`](super::Mixture) like the ring and GMM-40.

mod bent;
mod donut;
mod funnel;
mod mixtures;

pub use bent::{Bend, Bent};
pub use donut::Donut;
pub use funnel::Funnel;
pub use mixtures::{gmm40, mog2, ring};

use tch::{Device, Kind, Tensor};

/// Mean of the Gaussian of Sharrock and Nemeth.
pub const GAUSSIAN_MEAN: [f64; 2] = [-1.0, 1.0];

/// Its covariance: the inverse of the precision [[3, −1/2], [−1/2, 1]], whose determinant is 11/4.
pub const GAUSSIAN_COVARIANCE: [[f64; 2]; 2] = [[4.0 / 11.0, 2.0 / 11.0], [2.0 / 11.0, 12.0 / 11.0]];

/// Where samples in f64 on the CPU go: what a target computes in.
#[derive(Debug, Clone, Copy)]
struct Place {
    kind: Kind,
    device: Device,
}

impl Place {
    fn of(self, t: Tensor) -> Tensor {
        t.to_kind(self.kind).to_device(self.device)
    }
}
