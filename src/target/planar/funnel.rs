//! Neal's funnel, with the constants of Sharrock and Nemeth.

use tch::{Device, Kind, Tensor};

use super::Place;
use crate::rng::Generator;
use crate::target::Target;

/// Mean of x2.
const MEAN: f64 = 4.0;
/// Variance of x2.
const VARIANCE: f64 = 9.0;
/// Mean of x1.
const CENTRE: f64 = 1.0;

/// x2 ~ N(4, 3²) and x1 given x2 ~ N(1, exp(x2)).
///
/// COIN's public code has another second score component: where −(x2 − 4)/9 belongs, the derivative in x2, it has
/// ((x2 − 4)² − 9)/27, the derivative in the standard deviation. That field is the score of no density, and its
/// "exact samples" do not solve it; this is the score of the density above.
#[derive(Debug)]
pub struct Funnel {
    place: Place,
}

/// What score and Hessian share, `[B]` each.
struct Parts {
    /// exp(−x2), the precision of x1.
    precision: Tensor,
    /// (x1 − 1) exp(−x2).
    pull: Tensor,
    /// (x1 − 1)² exp(−x2)/2.
    energy: Tensor,
    score: Tensor,
}

impl Funnel {
    /// In `kind` on `device`.
    pub fn new(kind: Kind, device: Device) -> Self {
        Funnel { place: Place { kind, device } }
    }

    fn parts(&self, x: &Tensor) -> Parts {
        let x2 = x.select(1, 1);
        let (precision, centred) = (x2.neg().exp(), x.select(1, 0) - CENTRE);
        let pull = &centred * &precision;
        let energy = centred * &pull * 0.5;
        let score =
            Tensor::stack(&[pull.neg(), &energy + x2 * (-1.0 / VARIANCE) + (MEAN / VARIANCE - 0.5)], 1);
        Parts { precision, pull, energy, score }
    }
}

impl Target for Funnel {
    fn shape(&self) -> &[i64] {
        &[2]
    }

    fn is_recordable(&self) -> bool {
        true
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        let (centred, x2) = (x.select(1, 0) - CENTRE, x.select(1, 1));
        (&x2 - MEAN).square() * (-0.5 / VARIANCE) - &x2 * 0.5 - centred.square() * x2.neg().exp() * 0.5
    }

    fn score(&self, x: &Tensor) -> Tensor {
        self.parts(x).score
    }

    /// With p = exp(−x2) and d = x1 − 1: H = [[−p, p·d], [p·d, −1/9 − p·d²/2]].
    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let Parts { precision, pull, energy, score } = self.parts(x);
        let v = direction(&score);
        let (v1, v2) = (v.select(1, 0), v.select(1, 1));
        let first = &pull * &v2 - precision * &v1;
        let second = pull * v1 - (energy + 1.0 / VARIANCE) * v2;
        (score, Tensor::stack(&[first, second], 1))
    }

    /// (asinh(x1 − 1), x2): x1 has standard deviation exp(17/4) = 70, and a few samples decide its second moment.
    fn chart(&self, x: &Tensor) -> Tensor {
        Tensor::stack(&[(x.select(1, 0) - CENTRE).asinh(), x.select(1, 1)], 1)
    }

    fn exact_samples(&self, generator: &mut Generator, rows: i64) -> Option<Tensor> {
        let z = generator.normal(&[rows, 2]).to_kind(Kind::Double);
        let x2 = z.select(1, 1) * VARIANCE.sqrt() + MEAN;
        let x1 = z.select(1, 0) * (&x2 * 0.5).exp() + CENTRE;
        Some(self.place.of(Tensor::stack(&[x1, x2], 1)))
    }
}
