//! States of chains whose proposals are accepted or rejected.

use tch::Tensor;

/// States of all chains, with what the next proposal needs of them.
pub(super) struct Evaluated {
    /// `[N, D]`.
    pub(super) x: Tensor,
    /// `[N]`.
    pub(super) log_density: Tensor,
    /// `[N, D]`.
    pub(super) score: Tensor,
}

impl Evaluated {
    /// The rows of `self` where `mask` `[N]` holds, else those of `other`.
    pub(super) fn or(self, mask: &Tensor, other: &Evaluated) -> Evaluated {
        let rows = mask.unsqueeze(1);
        Evaluated {
            x: self.x.where_self(&rows, &other.x),
            log_density: self.log_density.where_self(mask, &other.log_density),
            score: self.score.where_self(&rows, &other.score),
        }
    }
}
