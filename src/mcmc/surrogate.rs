//! Trajectories on a cheap target, accepted by the exact one.

use tch::{Tensor, no_grad};

use crate::target::Target;

/// A target whose log-density is exact and whose score is that of a surrogate.
///
/// Hamiltonian Monte Carlo on it draws from the exact density: leapfrog steps of any gradient keep volume and can be
/// reversed, and the Metropolis test asks for the log-density alone (Rasmussen 2003; Neal 2011, section 5). Samplers
/// that do not test would draw from the surrogate.
pub struct Surrogate<'a> {
    exact: &'a dyn Target,
    score_of: &'a dyn Target,
}

impl<'a> Surrogate<'a> {
    /// Log-densities of `exact`, scores of `score_of`; both of one shape.
    pub fn new(exact: &'a dyn Target, score_of: &'a dyn Target) -> Self {
        assert_eq!(exact.shape(), score_of.shape(), "a surrogate has the shape of its target");
        Surrogate { exact, score_of }
    }
}

impl Target for Surrogate<'_> {
    fn shape(&self) -> &[i64] {
        self.exact.shape()
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        self.exact.log_density(x)
    }

    fn score(&self, x: &Tensor) -> Tensor {
        self.score_of.score(x)
    }

    fn log_density_and_score(&self, x: &Tensor) -> (Tensor, Tensor) {
        (no_grad(|| self.exact.log_density(x)), self.score(x))
    }
}
