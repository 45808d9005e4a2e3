//! Wasserstein distances between two point sets of equal size: sliced, and exact by optimal assignment.

use std::f64::consts::PI;

use tch::Kind;

use super::assignment::assignment;
use super::cloud::Cloud;
use crate::rng::{Generator, Stream};

/// Directions that points are projected on.
const DIRECTIONS: usize = 128;

/// Sliced 2-Wasserstein distance: sqrt of the mean over 128 directions of the squared W2 between projections,
/// each the mean squared difference of sorted projections (Bonneel et al. 2015).
///
/// The directions are fixed: evenly spaced in the plane, otherwise uniform on the sphere with a fixed seed. A
/// shift by v scores |v|/sqrt(D) on average over directions.
///
/// # Panics
/// If the sets differ in size or dimension.
pub fn sliced_w2(x: &Cloud, y: &Cloud) -> f64 {
    check(x, y);
    let directions = directions(x.dimension());
    let sorted = |cloud: &Cloud, direction: &[f64]| {
        let mut values = cloud.along(direction);
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let square = |direction: &Vec<f64>| -> f64 {
        let (x, y) = (sorted(x, direction), sorted(y, direction));
        x.iter().zip(&y).map(|(a, b)| (a - b).powi(2)).sum()
    };
    let total: f64 = directions.iter().map(square).sum();
    (total / (directions.len() * x.rows()) as f64).sqrt()
}

/// 2-Wasserstein distance: sqrt of the mean squared distance under the best pairing of the two sets.
///
/// Cubic in the number of points: for about a thousand. `None` if squared distances overflow.
///
/// # Panics
/// If the sets differ in size or dimension.
pub fn w2(x: &Cloud, y: &Cloud) -> Option<f64> {
    check(x, y);
    let n = x.rows();
    // A shift adds its square to the cost of every pairing, so the sets can be centred.
    let shift: f64 = x.mean().iter().zip(y.mean()).map(|(a, b)| (a - b).powi(2)).sum();
    let (x, y) = (x.centred(), y.centred());
    // Of |x − y|² only −2 x·y depends on the pairing. Scaling a coordinate of x by a and that of y by 1/a leaves it,
    // and costs of two sets of equal spread are solved several times faster.
    let balance: Vec<f64> = (0..x.dimension()).map(|i| balance(x.column(i), y.column(i))).collect();
    let inverse: Vec<f64> = balance.iter().map(|a| 1.0 / a).collect();
    let (x_balanced, y_balanced) = (x.scaled(&balance), y.scaled(&inverse));
    let mut costs = vec![0.0; n * n];
    for (row, costs) in costs.chunks_exact_mut(n).enumerate() {
        y_balanced.square_distances(&x_balanced.point(row), 0, costs);
    }
    let columns = assignment(&costs, n)?;
    let square = |(row, &column): (usize, &usize)| {
        (0..x.dimension()).map(|i| (x.column(i)[row] - y.column(i)[column]).powi(2)).sum::<f64>()
    };
    let total: f64 = columns.iter().enumerate().map(square).sum();
    Some((total / n as f64 + shift).sqrt()).filter(|distance| distance.is_finite())
}

/// 1-Wasserstein distance between two sets of numbers, each of any size: the area between their distribution functions. NaN if
/// one is empty or holds NaN.
pub fn w1(x: &[f64], y: &[f64]) -> f64 {
    if x.is_empty() || y.is_empty() || x.iter().chain(y).any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let weight = |values: &[f64]| 1.0 / values.len() as f64;
    // The difference of the two functions rises at a number of x and falls at one of y.
    let rises = x.iter().map(|&value| (value, weight(x)));
    let falls = y.iter().map(|&value| (value, -weight(y)));
    let mut steps: Vec<(f64, f64)> = rises.chain(falls).collect();
    steps.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut difference = 0.0;
    steps
        .windows(2)
        .map(|pair| {
            difference += pair[0].1;
            difference.abs() * (pair[1].0 - pair[0].0)
        })
        .sum()
}

/// Root of the ratio of the deviations of `y` and `x`, both centred; 1 if either has none.
fn balance(x: &[f64], y: &[f64]) -> f64 {
    let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let ratio = (square(y) / square(x)).powf(0.25);
    if ratio.is_finite() && ratio > 0.0 { ratio } else { 1.0 }
}

fn check(x: &Cloud, y: &Cloud) {
    assert_eq!((x.rows(), x.dimension()), (y.rows(), y.dimension()), "two point sets of one size");
}

/// Unit vectors, `[…][D]`.
fn directions(dimension: usize) -> Vec<Vec<f64>> {
    match dimension {
        1 => vec![vec![1.0]],
        2 => {
            let angles = (0..DIRECTIONS).map(|k| PI * k as f64 / DIRECTIONS as f64);
            angles.map(|angle| vec![angle.cos(), angle.sin()]).collect()
        }
        _ => {
            // They belong to the metric, not to a run, so their seed is fixed.
            let mut generator = Generator::new(0, Stream::Exact, super::points::DIRECTIONS, 0);
            let normal = generator.normal(&[DIRECTIONS as i64, dimension as i64]).to_kind(Kind::Double);
            let cloud = Cloud::new(&(&normal / normal.square().sum_dim_intlist(1i64, true, None).sqrt()));
            (0..DIRECTIONS).map(|row| cloud.point(row)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    fn normal(rows: i64, dimension: i64, iteration: u64) -> Tensor {
        Generator::new(0, Stream::Exact, iteration, 0).normal(&[rows, dimension]).to_kind(Kind::Double)
    }

    #[test]
    fn shift_is_its_own_distance_whatever_the_order_of_points() {
        let x = normal(300, 2, 1);
        let order = Tensor::from_slice(&Generator::new(0, Stream::Split, 0, 0).permutation(300));
        let shifted = x.index_select(0, &order) + Tensor::from_slice(&[3.0, 4.0]);
        let (x, shifted) = (Cloud::new(&x), Cloud::new(&shifted));
        assert!((w2(&x, &shifted).unwrap() - 5.0).abs() < 1e-9);
        // Mean of cos² over evenly spaced directions is exactly 1/2.
        assert!((sliced_w2(&x, &shifted) - 5.0 / 2f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn sliced_distance_in_eight_dimensions_sees_a_shift_as_its_length_over_the_root_of_the_dimension() {
        let x = normal(200, 8, 1);
        let shift = Tensor::from_slice(&[0.0, 0.0, 2.0, 0.0, 0.0, -2.0, 0.0, 1.0]);
        let found = sliced_w2(&Cloud::new(&x), &Cloud::new(&(&x + shift)));
        // |shift|² / D = 9/8; the mean of 128 squared cosines has a relative standard error of .11.
        assert!((found * found / (9.0 / 8.0) - 1.0).abs() < 0.35, "{found}");
    }

    #[test]
    fn distances_of_two_gaussians_on_the_line_follow_their_means_and_deviations() {
        // W2² = (m1 − m2)² + (sd1 − sd2)² = 4 + 1; both solve the same problem on the line.
        let (x, y) = (Cloud::new(&normal(2000, 1, 1)), Cloud::new(&(normal(2000, 1, 2) * 2.0 + 2.0)));
        let sliced = sliced_w2(&x, &y);
        // Deviation of a mean difference of 2000: sqrt(5/2000) = .05.
        assert!((sliced - 5f64.sqrt()).abs() < 0.15, "{sliced}");
        assert!((w2(&x, &y).unwrap() - sliced).abs() < 1e-9);
    }

    #[test]
    fn area_between_distribution_functions_is_a_shift_and_knows_sets_of_different_sizes() {
        let x: Vec<f64> = Vec::try_from(normal(500, 1, 1).squeeze_dim(1)).unwrap();
        let shifted: Vec<f64> = x.iter().rev().map(|value| value - 0.7).collect();
        assert!((w1(&x, &shifted) - 0.7).abs() < 1e-12);
        // Half of the mass of {0} moves to 4, and repeating a set changes nothing.
        assert!((w1(&[0.0], &[0.0, 4.0]) - 2.0).abs() < 1e-12);
        assert!((w1(&[0.0, 0.0, 0.0], &[4.0, 0.0, 4.0, 0.0]) - 2.0).abs() < 1e-12);
        assert!(w1(&[], &[1.0]).is_nan() && w1(&[f64::NAN], &[1.0]).is_nan());
    }

    #[test]
    fn best_pairing_of_few_points_beats_all_permutations() {
        let (x, y) = (Cloud::new(&normal(7, 3, 1)), Cloud::new(&normal(7, 3, 2)));
        let cost = |order: &[usize]| {
            let squares = order
                .iter()
                .enumerate()
                .map(|(i, &j)| x.point(i).iter().zip(y.point(j)).map(|(a, b)| (a - b).powi(2)).sum::<f64>());
            squares.sum::<f64>()
        };
        fn permutations(left: &[usize], order: &mut Vec<usize>, visit: &mut dyn FnMut(&[usize])) {
            if left.is_empty() {
                visit(order);
            }
            for &next in left {
                order.push(next);
                let rest: Vec<usize> = left.iter().copied().filter(|&other| other != next).collect();
                permutations(&rest, order, visit);
                order.pop();
            }
        }
        let mut best = f64::INFINITY;
        permutations(&[0, 1, 2, 3, 4, 5, 6], &mut Vec::new(), &mut |order| best = best.min(cost(order)));
        assert!((w2(&x, &y).unwrap() - (best / 7.0).sqrt()).abs() < 1e-12);
    }

    /// Points ((i·a mod 1), (i·b mod 1)): a lattice that any language reproduces to the last bit or so.
    fn lattice(rows: i64, a: f64, b: f64) -> Tensor {
        let i = Tensor::arange(rows, (Kind::Double, tch::Device::Cpu));
        Tensor::stack(&[(&i * a).frac(), (&i * b).frac()], 1)
    }

    #[test]
    fn best_pairings_of_a_thousand_points_equal_scipys() {
        let x = lattice(1000, 0.618_033_98, 0.414_213_56);
        let y = lattice(1000, 0.732_050_8, 0.236_067_97);
        let narrow = &x * 0.3 + Tensor::from_slice(&[2.0, 0.0]);
        // scipy 1.17.1, with i = numpy.arange(1000.0) and the point sets as here:
        //   d = scipy.spatial.distance.cdist(x, y, "sqeuclidean")
        //   r, c = scipy.optimize.linear_sum_assignment(d); numpy.sqrt(d[r, c].mean())
        for (x, scipy) in [(x, 0.023_893_162_206_883_468), (narrow, 1.710_444_743_321_502)] {
            let found = w2(&Cloud::new(&x), &Cloud::new(&y)).unwrap();
            assert!((found - scipy).abs() < 1e-9, "{found} {scipy}");
        }
    }
}
