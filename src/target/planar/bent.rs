//! Gaussians bent along their second coordinate: Rosenbrock's banana and the squiggle.

use tch::{Device, Kind, Tensor};

use super::Place;
use crate::rng::Generator;
use crate::target::Target;

/// How far the second coordinate is moved: y = (x1, x2 + f(x1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bend {
    /// f = x1² + 1, y ~ N((0, −1), [[1, 1/2], [1/2, 1]]).
    ///
    /// Sharrock and Nemeth write y1 = x1/a, y2 = a·x2 + a·b·(x1² + a²) with a = −1, b = 1 and mean (0, 1): the negative
    /// of this y, which leaves the quadratic form as it is.
    Rosenbrock,
    /// f = sin 2·x1, y ~ N((1, 1), [[2, 1/4], [1/4, 1/2]]).
    Squiggle,
}

impl Bend {
    /// f, `[B]` to `[B]`.
    fn offset(self, x1: &Tensor) -> Tensor {
        match self {
            Bend::Rosenbrock => x1.square() + 1.0,
            Bend::Squiggle => (x1 * 2.0).sin(),
        }
    }

    /// f', `[B]` to `[B]`.
    fn slope(self, x1: &Tensor) -> Tensor {
        match self {
            Bend::Rosenbrock => x1 * 2.0,
            Bend::Squiggle => (x1 * 2.0).cos() * 2.0,
        }
    }

    /// f'', `[B]` to `[B]`; `offset` is f there.
    fn curvature(self, offset: &Tensor) -> Tensor {
        match self {
            Bend::Rosenbrock => offset.full_like(2.0),
            Bend::Squiggle => offset * -4.0,
        }
    }

    fn mean(self) -> [f64; 2] {
        match self {
            Bend::Rosenbrock => [0.0, -1.0],
            Bend::Squiggle => [1.0, 1.0],
        }
    }

    /// (c11, c12, c22).
    fn covariance(self) -> [f64; 3] {
        match self {
            Bend::Rosenbrock => [1.0, 0.5, 1.0],
            Bend::Squiggle => [2.0, 0.25, 0.5],
        }
    }
}

/// log q(x) = −½ (y − m)ᵀ C⁻¹ (y − m) with y = (x1, x2 + f(x1)), whose Jacobian determinant is 1.
#[derive(Debug)]
pub struct Bent {
    bend: Bend,
    place: Place,
    /// m, `[2]`.
    mean: Tensor,
    /// −C⁻¹, `[2, 2]`.
    stiffness: Tensor,
    /// C⁻¹ m, `[2]`.
    pull: Tensor,
}

impl Bent {
    /// In `kind` on `device`.
    pub fn new(bend: Bend, kind: Kind, device: Device) -> Self {
        let ([m1, m2], [c11, c12, c22], place) = (bend.mean(), bend.covariance(), Place { kind, device });
        let determinant = c11 * c22 - c12 * c12;
        let [p11, p12, p22] = [c22, -c12, c11].map(|entry| entry / determinant);
        let stiffness = Tensor::from_slice(&[-p11, -p12, -p12, -p22]).reshape([2, 2]);
        let pull = Tensor::from_slice(&[p11 * m1 + p12 * m2, p12 * m1 + p22 * m2]);
        let mean = place.of(Tensor::from_slice(&bend.mean()));
        Bent { bend, place, mean, stiffness: place.of(stiffness), pull: place.of(pull) }
    }

    /// g = −C⁻¹(y − m), `[B, 2]`, with x1 and f(x1), `[B]`.
    fn straight_score(&self, x: &Tensor) -> (Tensor, Tensor, Tensor) {
        let x1 = x.select(1, 0);
        let offset = self.bend.offset(&x1);
        let y = Tensor::stack(&[&x1, &(x.select(1, 1) + &offset)], 1);
        (self.pull.addmm(&y, &self.stiffness), x1, offset)
    }
}

/// Jᵀg `[B, 2]` for the Jacobian J = [[1, 0], [f', 1]] of y.
fn bend_back(g: &Tensor, slope: &Tensor) -> Tensor {
    let g2 = g.select(1, 1);
    Tensor::stack(&[&g.select(1, 0).addcmul(slope, &g2), &g2], 1)
}

impl Target for Bent {
    fn shape(&self) -> &[i64] {
        &[2]
    }

    fn is_recordable(&self) -> bool {
        true
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        let x1 = x.select(1, 0);
        let y = Tensor::stack(&[&x1, &(x.select(1, 1) + self.bend.offset(&x1))], 1);
        let centred = y - &self.mean;
        (centred.matmul(&self.stiffness) * &centred).sum_dim_intlist(1i64, false, None) * 0.5
    }

    fn score(&self, x: &Tensor) -> Tensor {
        let (g, x1, _) = self.straight_score(x);
        bend_back(&g, &self.bend.slope(&x1))
    }

    /// H = −Jᵀ C⁻¹ J + g2 f'' e1 e1ᵀ.
    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let (g, x1, offset) = self.straight_score(x);
        let slope = self.bend.slope(&x1);
        let score = bend_back(&g, &slope);
        let v = direction(&score);
        let v1 = v.select(1, 0);
        let straight = Tensor::stack(&[&v1, &v.select(1, 1).addcmul(&slope, &v1)], 1).matmul(&self.stiffness);
        let turning = g.select(1, 1) * self.bend.curvature(&offset) * v1;
        let u2 = straight.select(1, 1);
        let first = (straight.select(1, 0) + turning).addcmul(&slope, &u2);
        (score, Tensor::stack(&[first, u2], 1))
    }

    fn exact_samples(&self, generator: &mut Generator, rows: i64) -> Option<Tensor> {
        let z = generator.normal(&[rows, 2]).to_kind(Kind::Double);
        let ([m1, m2], [c11, c12, c22]) = (self.bend.mean(), self.bend.covariance());
        let deviation = c11.sqrt();
        let shared = c12 / deviation; // the covariance's Cholesky factor is [[deviation, 0], [shared, own]]
        let own = (c22 - shared * shared).sqrt();
        let (z1, z2) = (z.select(1, 0), z.select(1, 1));
        let x1 = &z1 * deviation + m1;
        let x2 = z1 * shared + z2 * own + m2 - self.bend.offset(&x1);
        Some(self.place.of(Tensor::stack(&[x1, x2], 1)))
    }
}
