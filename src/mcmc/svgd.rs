//! Stein variational gradient descent.

use tch::Tensor;

use super::McmcError;
use super::evaluator::Evaluator;
use super::kernel::{Kernel, finite_rows, no_events, require_finite_starts, rows_inside};
use super::noise::Noise;
use crate::config::SvgdSettings;

/// Kernel entries computed at once, 4 MiB of f32: N² of them would not fit for large N.
const ENTRIES: i64 = 1 << 20;

/// Least exponent of the kernel: e^−80 = 2e-35 is nothing beside a particle's own 1, and below e^−87 an f32 is
/// subnormal, which made a step of 2000 particles several times slower.
const SMALLEST: f64 = -80.0;

/// Particles whose distances give the median, at most: all pairs of more cost as much as the step itself.
const MEDIAN_PARTICLES: i64 = 512;

/// Particles x_i ← x_i + step·AdaGrad(phi_i), phi_i = (1/N) Σ_j k(x_j, x_i)·s(x_j) + ∇_{x_j} k(x_j, x_i), with
/// k(x, y) = exp(−gamma·|x − y|²) and gamma = log(N + 1)/median |x_i − x_j|²: Liu and Wang (2016), the constants
/// and AdaGrad's form as in the implementation they published. The median is over all pairs, each particle with
/// itself included as there, of every k-th particle where there are more than 512.
///
/// A particle is put back to its start and counted where its score is not finite or a coordinate is beyond 1e6: it
/// would make every other particle's direction undefined.
pub(super) struct Svgd {
    x: Tensor,
    start: Tensor,
    step_size: f64,
    memory: f64,
    fudge: f64,
    squares: Option<Tensor>,
    divergences: Tensor,
}

impl Svgd {
    /// Particles that start at `start` `[N, D]`.
    pub(super) fn new(start: &Tensor, step_size: f64, settings: &SvgdSettings) -> Self {
        Svgd {
            x: start.shallow_clone(),
            start: start.shallow_clone(),
            step_size,
            memory: settings.memory,
            fudge: settings.fudge,
            squares: None,
            divergences: no_events(start),
        }
    }
}

impl Kernel for Svgd {
    fn step(&mut self, target: &Evaluator, _noise: &mut Noise) -> Result<(), McmcError> {
        let score = target.score(&self.x);
        let is_finite = finite_rows(&score).logical_and(&rows_inside(&self.x));
        if self.squares.is_none() {
            require_finite_starts(&is_finite)?;
        }
        let rows = is_finite.unsqueeze(1);
        let nothing = score.zeros_like();
        let x = self.x.where_self(&rows, &self.start);
        let score = score.where_self(&rows, &nothing);

        // Finite scores may still add up to more than the kind can hold: such a particle waits for the others.
        let phi = direction(&x, &score);
        let is_defined = finite_rows(&phi.square());
        let phi = phi.where_self(&is_defined.unsqueeze(1), &nothing);
        self.divergences += is_finite.logical_and(&is_defined).logical_not();

        let square = phi.square();
        let squares = match &self.squares {
            Some(old) => old * self.memory + square * (1.0 - self.memory),
            None => square,
        };
        self.x = x + phi / (squares.sqrt() + self.fudge) * self.step_size;
        self.squares = Some(squares);
        Ok(())
    }

    fn cost(&self) -> u64 {
        self.x.size()[0] as u64
    }

    fn positions(&self) -> Tensor {
        self.x.shallow_clone()
    }

    fn step_size(&self) -> f64 {
        self.step_size
    }

    fn divergences(&self) -> Tensor {
        self.divergences.shallow_clone()
    }

    fn is_chain(&self) -> bool {
        false
    }
}

/// gamma of the kernel, a scalar on the device of `x` `[N, D]`.
fn inverse_width(x: &Tensor) -> Tensor {
    let particles = x.size()[0];
    let some = x.slice(0, None, None, (particles + MEDIAN_PARTICLES - 1) / MEDIAN_PARTICLES);
    let median = Tensor::cdist(&some, &some, 2.0, None).square().median();
    // Particles that lie on one another repel one another however wide the kernel; the bound keeps gamma finite.
    ((particles + 1) as f64).ln() / median.clamp_min(1e-12)
}

/// phi `[N, D]` for particles `x` `[N, D]` with scores `score` `[N, D]`.
fn direction(x: &Tensor, score: &Tensor) -> Tensor {
    let (particles, columns) = x.size2().expect("states are rows of numbers");
    let gamma = inverse_width(x);
    // Distances do not depend on the origin, and rounding is least with it in the middle.
    let x = x - x.mean_dim(0i64, true, None);
    let square = x.square().sum_dim_intlist(1i64, true, None);
    let one = square.ones_like();
    // −gamma·(|x|² + |y|² − 2x·y) as one product, and all that is summed against the kernel as another.
    let left = Tensor::cat(&[&x * 2.0, -&square, -&one], 1) * &gamma;
    let right = Tensor::cat(&[&x, &one, &square], 1).transpose(0, 1);
    let summed = Tensor::cat(&[score, &x, &one], 1);
    let rows = (ENTRIES / particles).max(1);
    let sums: Vec<Tensor> = left
        .split(rows, 0)
        .iter()
        .map(|block| block.matmul(&right).clamp_(SMALLEST, 0.0).exp_().matmul(&summed))
        .collect();
    let sums = Tensor::cat(&sums, 0);
    let pull = sums.narrow(1, 0, columns);
    let push = x * sums.narrow(1, 2 * columns, 1) - sums.narrow(1, columns, columns);
    (pull + push * (gamma * 2.0)) / particles as f64
}
