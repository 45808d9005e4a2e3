//! Kernel Stein discrepancy: a distance of samples from a target that needs only the target's score.

use rayon::prelude::*;
use tch::{Device, Tensor};

use super::cloud::{Cloud, lane_sum};
use crate::comm::{CommError, World};

/// Rows that one task sums against all later rows.
const BLOCK: usize = 256;

/// Pairs whose parts are held at once: three such arrays fit the fastest cache.
const LANE: usize = 128;

/// Both estimates of the kernel Stein discrepancy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ksd {
    /// sqrt(Σ_ij k_p(x_i, x_j)) / N with the diagonal, as the literature prints it: exact samples have
    /// E ksd² = E[|s_q|² + D] / N.
    pub v: f64,
    /// Σ_{i≠j} k_p(x_i, x_j) / (N (N − 1)): estimates the *squared* discrepancy without bias, so exact samples
    /// have mean 0, and it may be negative.
    pub u: f64,
}

/// Kernel Stein discrepancy of points `x` with the target's score `score` at each, on this rank's threads.
///
/// The base kernel is the inverse multiquadric k(x, y) = (1 + |x − y|²)^(−1/2) in the units of `x` (Gorham and
/// Mackey 2017, who show that it detects tails that a Gaussian kernel misses). With u = 1 + r², r = |x − y|:
///
/// k_p(x, y) = s_x·s_y u^(−1/2) + [(s_x − s_y)·(x − y) + D] u^(−3/2) − 3 r² u^(−5/2).
///
/// It sees shapes, and hardly the weights of separated modes.
pub fn ksd(x: &Cloud, score: &Cloud) -> Ksd {
    finish(x, score, &block_sums(x, score, 0, 1))
}

/// As [`ksd`] for points that all ranks hold, each rank summing its share of the pairs: the same bits on any
/// number of ranks.
///
/// # Errors
/// If the collective fails.
pub fn ksd_over_ranks(x: &Cloud, score: &Cloud, world: &World) -> Result<Ksd, CommError> {
    let own = block_sums(x, score, world.rank, world.size);
    // Every block is a number on one rank and 0 on the others, so the sum over ranks rounds nothing.
    let mut sums = Tensor::from_slice(&own).to_device(world.device);
    world.collective().all_reduce_sum(&mut sums)?;
    let sums = Vec::try_from(sums.to_device(Device::Cpu)).expect("a vector of f64");
    Ok(finish(x, score, &sums))
}

fn finish(x: &Cloud, score: &Cloud, block_sums: &[f64]) -> Ksd {
    let n = x.rows() as f64;
    let pairs = 2.0 * block_sums.iter().sum::<f64>();
    let squares = |i| score.column(i).iter().map(|s| s * s).sum::<f64>();
    let diagonal = (0..score.dimension()).map(squares).sum::<f64>() + n * x.dimension() as f64;
    // k_p is positive definite: a sum below 0 is rounding.
    Ksd { v: (pairs + diagonal).max(0.0).sqrt() / n, u: pairs / (n * (n - 1.0)) }
}

/// For each block of rows, the sum of k_p over pairs of one of its rows and a later one; blocks of other ranks
/// are 0.
fn block_sums(x: &Cloud, score: &Cloud, rank: usize, size: usize) -> Vec<f64> {
    assert_eq!((x.rows(), x.dimension()), (score.rows(), score.dimension()), "one score for each point");
    let blocks = x.rows().div_ceil(BLOCK);
    let sum = |block: usize| {
        let end = ((block + 1) * BLOCK).min(x.rows());
        (block * BLOCK..end).map(|row| later_pairs(x, score, row)).sum()
    };
    // In a fixed order, however many threads there are.
    (0..blocks).into_par_iter().map(|block| if block % size == rank { sum(block) } else { 0.0 }).collect()
}

/// Σ_{j > i} k_p(x_i, x_j).
fn later_pairs(x: &Cloud, score: &Cloud, i: usize) -> f64 {
    let dimension = x.dimension();
    let (mut r2, mut dot, mut cross) = ([0.0; LANE], [0.0; LANE], [0.0; LANE]);
    let mut total = 0.0;
    for first in (i + 1..x.rows()).step_by(LANE) {
        let end = (first + LANE).min(x.rows());
        let width = end - first;
        let (r2, dot, cross) = (&mut r2[..width], &mut dot[..width], &mut cross[..width]);
        r2.fill(0.0);
        dot.fill(0.0);
        cross.fill(dimension as f64);
        for d in 0..dimension {
            let (xd, sd) = (x.column(d), score.column(d));
            let (xi, si) = (xd[i], sd[i]);
            let (xj, sj) = (&xd[first..end], &sd[first..end]);
            for k in 0..width {
                let difference = xi - xj[k];
                r2[k] += difference * difference;
                dot[k] += si * sj[k];
                cross[k] += (si - sj[k]) * difference;
            }
        }
        for k in 0..width {
            let w2 = 1.0 / (1.0 + r2[k]);
            r2[k] = w2.sqrt() * (dot[k] + w2 * (cross[k] - 3.0 * r2[k] * w2));
        }
        total += lane_sum(r2);
    }
    total
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::rng::{Generator, Stream};
    use crate::target::{Gaussian, Target};

    fn normal(rows: i64, dimension: i64, iteration: u64) -> Tensor {
        Generator::new(0, Stream::Exact, iteration, 0).normal(&[rows, dimension]).to_kind(Kind::Double)
    }

    /// (1 + |x − y|²)^(−1/2).
    fn kernel(x: &[f64], y: &[f64]) -> f64 {
        let r2: f64 = x.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum();
        (1.0 + r2).powf(-0.5)
    }

    /// Stein kernel s_x·s_y k + s_x·∇_y k + s_y·∇_x k + Σ_d ∂²k/∂x_d∂y_d by central differences of the kernel.
    fn stein_kernel_by_differences(x: &[f64], y: &[f64], sx: &[f64], sy: &[f64]) -> f64 {
        let h = 1e-4;
        let moved = |point: &[f64], d: usize, by: f64| {
            let mut point = point.to_vec();
            point[d] += by;
            point
        };
        let mut total = sx.iter().zip(sy).map(|(a, b)| a * b).sum::<f64>() * kernel(x, y);
        for d in 0..x.len() {
            let at = |a: f64, b: f64| kernel(&moved(x, d, a * h), &moved(y, d, b * h));
            total += sx[d] * (at(0.0, 1.0) - at(0.0, -1.0)) / (2.0 * h);
            total += sy[d] * (at(1.0, 0.0) - at(-1.0, 0.0)) / (2.0 * h);
            total += (at(1.0, 1.0) - at(1.0, -1.0) - at(-1.0, 1.0) + at(-1.0, -1.0)) / (4.0 * h * h);
        }
        total
    }

    #[test]
    fn both_statistics_equal_a_double_loop_over_the_differentiated_kernel() {
        // 300 rows: more than one block, and no multiple of anything. Scores that belong to no density.
        let (x, score) = (Cloud::new(&normal(300, 3, 1)), Cloud::new(&(normal(300, 3, 2) * 2.0)));
        let (mut with_diagonal, mut without) = (0.0, 0.0);
        for i in 0..300 {
            for j in 0..300 {
                let k =
                    stein_kernel_by_differences(&x.point(i), &x.point(j), &score.point(i), &score.point(j));
                with_diagonal += k;
                without += if i == j { 0.0 } else { k };
            }
        }
        let found = ksd(&x, &score);
        // Central differences: error h² = 1e-8 and rounding 1e-16 / h² = 1e-8 a pair.
        assert!((found.v - with_diagonal.sqrt() / 300.0).abs() < 1e-6, "{found:?}");
        assert!((found.u - without / (300.0 * 299.0)).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn blocks_of_three_ranks_add_up_to_the_bits_of_one() {
        let (x, score) = (Cloud::new(&normal(1000, 2, 1)), Cloud::new(&normal(1000, 2, 2)));
        let whole = block_sums(&x, &score, 0, 1);
        let parts: Vec<_> = (0..3).map(|rank| block_sums(&x, &score, rank, 3)).collect();
        let merged: Vec<f64> =
            (0..whole.len()).map(|block| parts.iter().map(|part| part[block]).sum()).collect();
        assert_eq!(whole, merged);
        let world = World::solo(Device::Cpu);
        assert_eq!(ksd(&x, &score), ksd_over_ranks(&x, &score, &world).unwrap());
    }

    #[test]
    fn discrepancy_does_not_change_when_samples_are_permuted() {
        let (x, score) = (normal(500, 2, 1), normal(500, 2, 2));
        let order = Tensor::from_slice(&Generator::new(0, Stream::Split, 0, 0).permutation(500));
        let permuted =
            ksd(&Cloud::new(&x.index_select(0, &order)), &Cloud::new(&score.index_select(0, &order)));
        let found = ksd(&Cloud::new(&x), &Cloud::new(&score));
        assert!((found.v - permuted.v).abs() < 1e-12 && (found.u - permuted.u).abs() < 1e-12);
    }

    #[test]
    fn exact_samples_of_the_planar_gaussian_score_the_known_floor() {
        // N((−1, 1), A⁻¹) with A = [[3, −.5], [−.5, 1]]. E ksd² = (E|s|² + D)/N = (tr A + 2)/N = 6/N; a pilot
        // in numpy found .104 ± .024 at N = 500, over repeats.
        let rows = [vec![1.0 / 2.75, 0.5 / 2.75], vec![0.5 / 2.75, 3.0 / 2.75]]; // A⁻¹
        let target = Gaussian::new(&[-1.0, 1.0], &rows, Kind::Double, Device::Cpu).unwrap();
        let repeats = 100;
        let (mut squares, mut values, mut unbiased) = (0.0, 0.0, 0.0);
        for repeat in 0..repeats {
            let mut generator = Generator::new(0, Stream::Exact, 7, repeat);
            let x = target.exact_samples(&mut generator, 500).unwrap();
            let found = ksd(&Cloud::new(&x), &Cloud::new(&target.score(&x)));
            squares += found.v * found.v / repeats as f64;
            values += found.v / repeats as f64;
            unbiased += found.u / repeats as f64;
        }
        // Standard errors over 100 repeats: .024/10 of the mean, and about .005/10 of ksd² and ksd_u.
        assert!((values - 0.104).abs() < 0.010, "{values}");
        assert!((squares - 6.0 / 500.0).abs() < 0.002, "{squares}");
        assert!(unbiased.abs() < 0.002, "{unbiased}");
    }

    #[test]
    fn samples_beside_the_target_score_far_above_exact_ones() {
        // Standard normal target, s(x) = −x; samples shifted by 0.3.
        let exact = normal(500, 2, 1);
        let shifted = &exact + 0.3;
        let (exact, shifted) = (Cloud::new(&exact), Cloud::new(&shifted));
        let score = |x: &Cloud| {
            let columns: Vec<_> = (0..2).map(|i| Tensor::from_slice(x.column(i))).collect();
            Cloud::new(&-Tensor::stack(&columns, 1))
        };
        let (low, high) = (ksd(&exact, &score(&exact)), ksd(&shifted, &score(&shifted)));
        assert!(high.v > 2.0 * low.v && high.u > 0.02, "{low:?} {high:?}");
    }
}
