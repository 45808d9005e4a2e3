//! The donut: a ring whose radius is nearly Gaussian.

use std::f64::consts::{E, TAU};

use tch::{Device, Kind, Tensor};

use super::Place;
use crate::rng::Generator;
use crate::target::Target;

/// Radius of the ring.
const RADIUS: f64 = 2.5;

/// log q(x) = −2 (|x| − 5/2)²: the density of COIN, −(|x| − 2.5)²/0.5 without a factor ½ more.
///
/// At the origin the density has a kink: the score's limits there point outwards in all directions, and the Hessian
/// grows as 1/|x|. A sample that is exactly the origin (which has probability 0) gets the mean over the directions, a
/// score of 0, and −4 I for the Hessian.
#[derive(Debug)]
pub struct Donut {
    place: Place,
}

impl Donut {
    /// In `kind` on `device`.
    pub fn new(kind: Kind, device: Device) -> Self {
        Donut { place: Place { kind, device } }
    }

    /// s = 4 (R/r − 1) x, with 1/r as `[B, 1]`, 0 at the origin.
    fn score_and_inverse_radius(&self, x: &Tensor) -> (Tensor, Tensor) {
        let r = x.norm_scalaropt_dim(2, 1i64, true);
        let inverse = r.reciprocal().masked_fill(&r.eq(0.0), 0.0);
        // R/r − 1 is −1 at the origin, and times x = 0.
        ((&inverse * (4.0 * RADIUS) - 4.0) * x, inverse)
    }
}

impl Target for Donut {
    fn shape(&self) -> &[i64] {
        &[2]
    }

    fn is_recordable(&self) -> bool {
        true
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        (x.norm_scalaropt_dim(2, 1i64, false) - RADIUS).square() * -2.0
    }

    fn score(&self, x: &Tensor) -> Tensor {
        self.score_and_inverse_radius(x).0
    }

    /// H = −4 I + (4R/r)(I − u uᵀ) with u = x/r: the ring resists along u only, up to its curvature.
    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let (score, inverse) = self.score_and_inverse_radius(x);
        let v = direction(&score);
        let u = x * &inverse;
        let along = (&u * &v).sum_dim_intlist(1i64, true, None);
        let across = &v - u * along;
        (score, across * inverse * (4.0 * RADIUS) - v * 4.0)
    }

    /// A uniform angle, and the radius, whose density is r·exp(−2 (r − R)²), by rejection.
    fn exact_samples(&self, generator: &mut Generator, rows: i64) -> Option<Tensor> {
        // r ≤ (c/e)·exp(r/c) for every c > 0, and exp(r/c − 2 (r − R)²) is a Gaussian of variance 1/4 and mean
        // R + 1/(4c): propose from it and accept with probability (r/c)·exp(1 − r/c). The c that is its own proposal's
        // mean accepts most: 98 %.
        let c = (RADIUS + (RADIUS * RADIUS + 1.0).sqrt()) / 2.0;
        let mut accepted = Vec::new();
        let mut wanted = rows;
        while wanted > 0 {
            let r = generator.normal(&[wanted]).to_kind(Kind::Double) * 0.5 + c;
            let probability = (&r / c) * (&r / -c).exp() * E;
            let uniform = generator.uniform(&[wanted]).to_kind(Kind::Double);
            let kept = r.masked_select(&uniform.lt_tensor(&probability)); // r < 0 has a negative probability
            wanted -= kept.size()[0];
            accepted.push(kept);
        }
        let r = Tensor::cat(&accepted, 0);
        let angle = generator.uniform(&[rows]).to_kind(Kind::Double) * TAU;
        Some(self.place.of(Tensor::stack(&[&r * angle.cos(), &r * angle.sin()], 1)))
    }
}
