//! Elementwise passes over plain memory for perceptrons and U-Nets on a CPU: each does in one sweep what takes a handful of tensor
//! operations, whose calls cost more than their arithmetic at the sizes of low-dimensional experiments.
//!
//! Written as loops that the compiler vectorises, for the widest instructions that the processor has ([`pulp`]). Nothing is
//! contracted or reordered, so the bits do not depend on which.

use pulp::Arch;

/// e^x for f32 of at most ±87 (beyond, the value there), to 2 units in the last place: 2^n e^r with |r| ≤ ln 2/2, and the
/// polynomial of the Cephes library (Moshier 1992, `expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Added and subtracted, it leaves the nearest integer; and the integer is the low bits of the sum.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    // ln 2 in two parts, so that n times the first is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut p = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        p = p * r + coefficient;
    }
    // The low bits of `rounded` are n; shifted into the exponent, with its bias of 127, they are 2^n.
    f32::from_bits(rounded.to_bits().wrapping_add(127) << 23) * (p * (r * r) + r + 1.0)
}

/// ln y for normal f64 y > 0, to 1e-12, and NaN for what is not finite: y = 2^e m with m in [√½, √2), and ln m = 2 artanh((m − 1)/(m + 1)).
#[inline(always)]
fn ln(y: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    // 2^52 has the integers in its low bits: a number put there is that number more than 2^52.
    const INTEGERS: f64 = 4_503_599_627_370_496.0; // 2^52
    let bits = y.to_bits();
    let exponent = f64::from_bits(INTEGERS.to_bits() | (bits >> 52)) - (INTEGERS + 1023.0);
    let mantissa = f64::from_bits((bits & MANTISSA) | 1f64.to_bits());
    let is_upper = mantissa > std::f64::consts::SQRT_2;
    let m = if is_upper { 0.5 * mantissa } else { mantissa };
    let e = if is_upper { exponent + 1.0 } else { exponent };
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut series = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / odd;
    }
    e * std::f64::consts::LN_2 + 2.0 * s * series + 0.0 * y
}

/// The inverse hyperbolic sine, ±ln(|u| + sqrt(u² + 1)), in f64 so that small |u| lose nothing to cancellation.
#[inline(always)]
fn asinh(u: f32) -> f32 {
    let a = f64::from(u.abs());
    (ln(a + (a * a + 1.0).sqrt()) as f32).copysign(u)
}

/// e^gate, and infinity where f32 has nothing larger: a sampler that diverges is to be seen.
#[inline(always)]
fn gain(gate: f32) -> f32 {
    if gate > 88.0 { f32::INFINITY } else { exp(gate) }
}

/// SiLU, y sigmoid(y), and its derivative.
#[inline(always)]
fn silu_and_slope(y: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-y));
    let value = y * sigmoid;
    (value, sigmoid + value * (1.0 - sigmoid))
}

/// Replaces `z` `[B, width]` by SiLU(z + bias).
pub fn silu(z: &mut [f32], bias: &[f32]) {
    Arch::new().dispatch(|| {
        for row in z.chunks_exact_mut(bias.len()) {
            for (z, b) in row.iter_mut().zip(bias) {
                *z = silu_and_slope(*z + b).0;
            }
        }
    });
}

/// Writes SiLU(z + bias) to `output` and replaces `z` by the derivative there; both `[B, width]`.
pub fn silu_with_slope(z: &mut [f32], bias: &[f32], output: &mut [f32]) {
    Arch::new().dispatch(|| {
        for (row, output) in z.chunks_exact_mut(bias.len()).zip(output.chunks_exact_mut(bias.len())) {
            for ((z, b), output) in row.iter_mut().zip(bias).zip(output) {
                (*output, *z) = silu_and_slope(*z + b);
            }
        }
    });
}

/// Replaces `a` by the product with `b`.
pub fn multiply(a: &mut [f32], b: &[f32]) {
    Arch::new().dispatch(|| a.iter_mut().zip(b).for_each(|(a, b)| *a *= b));
}

/// Writes SiLU(z) to `value` and its first and second derivatives to the pair, all of the size of `z`.
pub fn silu_with_derivatives(z: &[f32], value: &mut [f32], (slope, curvature): (&mut [f32], &mut [f32])) {
    let places = value.iter_mut().zip(slope).zip(curvature);
    Arch::new().dispatch(|| {
        for (z, ((value, slope), curvature)) in z.iter().zip(places) {
            let sigmoid = 1.0 / (1.0 + exp(-z));
            let change = sigmoid * (1.0 - sigmoid);
            *value = z * sigmoid;
            *slope = sigmoid + z * change;
            *curvature = change * (2.0 + z * (1.0 - 2.0 * sigmoid));
        }
    });
}

/// Writes a·b to `product` and replaces `c` by a·c.
pub fn two_products(a: &[f32], b: &[f32], c: &mut [f32], product: &mut [f32]) {
    Arch::new().dispatch(|| {
        for ((a, b), (c, product)) in a.iter().zip(b).zip(c.iter_mut().zip(product)) {
            *product = a * b;
            *c *= a;
        }
    });
}

/// Writes a·b + c to `sum`.
pub fn multiply_add(a: &[f32], b: &[f32], c: &[f32], sum: &mut [f32]) {
    Arch::new().dispatch(|| {
        for ((a, b), (c, sum)) in a.iter().zip(b).zip(c.iter().zip(sum)) {
            *sum = a * b + c;
        }
    });
}

/// Where and how far samples lie: u = (x − offset)/scale.
#[derive(Debug, Clone, Copy)]
pub struct Affine {
    /// Mean of the samples at the start.
    pub offset: f32,
    /// Their standard deviation.
    pub scale: f32,
}

impl Affine {
    #[inline(always)]
    fn scaled(self, x: f32) -> f32 {
        (x - self.offset) / self.scale
    }
}

/// What a score network's perceptron sees of `x` `[R, D]` at levels `sigma` `[R]`: asinh u, asinh(5u)/3 and log sigma,
/// `[R, 2D + 1]`, written to `features`.
pub fn score_features(x: &[f32], sigma: &[f32], affine: Affine, features: &mut [f32]) {
    let d = x.len() / sigma.len();
    let mut values = vec![0f32; 2 * x.len() + sigma.len()];
    let (near, rest) = values.split_at_mut(x.len());
    let (far, levels) = rest.split_at_mut(x.len());
    Arch::new().dispatch(|| {
        near.iter_mut().zip(x).for_each(|(near, x)| *near = asinh(affine.scaled(*x)));
        far.iter_mut().zip(x).for_each(|(far, x)| *far = asinh(affine.scaled(*x) * 5.0) / 3.0);
        levels.iter_mut().zip(sigma).for_each(|(level, sigma)| *level = ln(f64::from(*sigma)) as f32);
    });
    let rows = near.chunks_exact(d).zip(far.chunks_exact(d)).zip(levels);
    for (features, ((near, far), level)) in features.chunks_exact_mut(2 * d + 1).zip(rows) {
        features[..d].copy_from_slice(near);
        features[d..2 * d].copy_from_slice(far);
        features[2 * d] = *level;
    }
}

/// The gradient at x `[R, D]` of a scalar whose gradient at [`score_features`] is `along` `[R, 2D + 1]`, added to
/// `gradient`.
pub fn add_through_features(x: &[f32], along: &[f32], d: usize, affine: Affine, gradient: &mut [f32]) {
    let rows = x.chunks_exact(d).zip(along.chunks_exact(2 * d + 1)).zip(gradient.chunks_exact_mut(d));
    Arch::new().dispatch(|| {
        for ((x, along), gradient) in rows {
            let (near, far) = (&along[..d], &along[d..2 * d]);
            for (((x, near), far), gradient) in x.iter().zip(near).zip(far).zip(gradient) {
                let u = affine.scaled(*x);
                let near = near / (u * u + 1.0).sqrt();
                let far = far * (5.0 / 3.0) / (25.0 * u * u + 1.0).sqrt();
                *gradient += (near + far) / affine.scale;
            }
        }
    });
}

/// How a score comes from a perceptron's output: s = D·output/scale − base·u/scale, D = 1 or 1/sqrt(1 + u²).
#[derive(Debug, Clone, Copy)]
pub struct ScoreHead {
    /// u of a sample.
    pub affine: Affine,
    /// Whether D falls with |u|.
    pub tail_scaling: bool,
    /// Weight of the score of N(offset, scale² I).
    pub base: f32,
}

impl ScoreHead {
    #[inline(always)]
    fn fall(self, u: f32) -> f32 {
        if self.tail_scaling { 1.0 / (u * u + 1.0).sqrt() } else { 1.0 }
    }

    /// Replaces `output` `[R, D]` by the score at `x` `[R, D]`.
    pub fn score(self, x: &[f32], output: &mut [f32]) {
        let affine = self.affine;
        Arch::new().dispatch(|| {
            for (output, x) in output.iter_mut().zip(x) {
                let u = affine.scaled(*x);
                *output = (*output * self.fall(u) - u * self.base) / affine.scale;
            }
        });
    }

    /// Replaces `along`, a gradient at the score at `x`, by that at the output; both `[R, D]`.
    pub fn back(self, x: &[f32], along: &mut [f32]) {
        let affine = self.affine;
        Arch::new().dispatch(|| {
            for (along, x) in along.iter_mut().zip(x) {
                *along = *along * self.fall(affine.scaled(*x)) / affine.scale;
            }
        });
    }

    /// The gradient at `x` of a scalar whose gradient at the `score` there is `along`, the output held fixed; all `[R, D]`.
    pub fn direct(self, x: &[f32], score: &[f32], along: &[f32], gradient: &mut [f32]) {
        let affine = self.affine;
        let rows = gradient.iter_mut().zip(x).zip(score).zip(along);
        Arch::new().dispatch(|| {
            for (((gradient, x), score), along) in rows {
                let u = affine.scaled(*x);
                // s·scale + base·u is D·output, and dD/du = −u/(1 + u²) D.
                let of_output = score * affine.scale + self.base * u;
                let slope = if self.tail_scaling { -of_output * u / (u * u + 1.0) } else { 0.0 };
                *gradient = along * (slope - self.base) / (affine.scale * affine.scale);
            }
        });
    }
}

/// The denoising loss Σ weight·c·(sigma·s + eps)² of scores `s` at `x`, both `[R, …]`, with `sigma` and `weight` for each row
/// `[R]`, and its gradient at the scores, written to `slope`. c is 1, or 1 + u² where `tail` says how to scale x.
pub fn denoising_loss(
    (score, x, eps): (&[f32], &[f32], &[f32]),
    (sigma, weight): (&[f32], &[f32]),
    tail: Option<Affine>,
    slope: &mut [f32],
) -> f64 {
    let d = score.len() / sigma.len();
    let rows = score.chunks_exact(d).zip(x.chunks_exact(d)).zip(eps.chunks_exact(d));
    let rows = rows.zip(slope.chunks_exact_mut(d)).zip(sigma.iter().zip(weight));
    Arch::new().dispatch(|| {
        let mut total = 0.0;
        for ((((score, x), eps), slope), (sigma, weight)) in rows {
            for (((score, x), eps), slope) in score.iter().zip(x).zip(eps).zip(slope) {
                let residual = score * sigma + eps;
                let coordinate = match tail {
                    Some(affine) => {
                        let u = affine.scaled(*x);
                        1.0 + u * u
                    }
                    None => 1.0,
                };
                let weighted = weight * coordinate * residual;
                total += f64::from(residual) * f64::from(weighted);
                *slope = 2.0 * sigma * weighted;
            }
        }
        total
    })
}

/// Samples x0 = offset + scale·(z·exp(gate) + shift) `[B, D]` from a perceptron's output (shift, gate) `[B, 2D]` and the
/// first D of the latents `z` `[B, Z]`.
pub fn samples(affine: Affine, z: &[f32], latent: usize, output: &[f32], x0: &mut [f32]) {
    let d = x0.len() / (z.len() / latent);
    let rows = x0.chunks_exact_mut(d).zip(z.chunks_exact(latent)).zip(output.chunks_exact(2 * d));
    Arch::new().dispatch(|| {
        for ((x0, z), output) in rows {
            let (shift, gate) = output.split_at(d);
            for (((x0, z), shift), gate) in x0.iter_mut().zip(z).zip(shift).zip(gate) {
                *x0 = (z * gain(*gate) + shift) * affine.scale + affine.offset;
            }
        }
    });
}

/// The gradient at the output `[B, 2D]` of [`samples`] of a scalar whose gradient at x0 `[B, D]` is `along`, in place of the
/// output.
pub fn samples_back(affine: Affine, z: &[f32], latent: usize, along: &[f32], output: &mut [f32]) {
    let d = along.len() / (z.len() / latent);
    let rows = along.chunks_exact(d).zip(z.chunks_exact(latent)).zip(output.chunks_exact_mut(2 * d));
    Arch::new().dispatch(|| {
        for ((along, z), output) in rows {
            let (shift, gate) = output.split_at_mut(d);
            for (((along, z), shift), gate) in along.iter().zip(z).zip(shift).zip(gate) {
                *shift = along * affine.scale;
                *gate = *shift * z * gain(*gate);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points of both signs, dense near 0 and out to 1e4.
    fn points() -> impl Iterator<Item = f32> {
        (-4000..4000).map(|i| ((f64::from(i) * 0.0025).sinh() * 1.0) as f32)
    }

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place_of_the_f64_function() {
        for x in points().filter(|x| x.abs() < 87.0) {
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 2.0 * 1.2e-7, "{x}");
        }
        assert_eq!((exp(0.0), exp(200.0)), (1.0, exp(87.0)));
        assert!(exp(f32::NAN).is_nan() && gain(f32::NAN).is_nan());
        assert_eq!((gain(1.0), gain(89.0)), (exp(1.0), f32::INFINITY));
        assert!(exp(-200.0) < 2e-38);
    }

    #[test]
    fn logarithms_and_inverse_hyperbolic_sines_equal_the_standard_library() {
        for u in points() {
            let expected = f64::from(u).asinh();
            let error = (f64::from(asinh(u)) - expected).abs();
            assert!(error <= 6e-8 * expected.abs() + 1e-15, "{u}: {error}"); // half a unit in the last place of f32
        }
        for y in [1e-300, 1e-3, 0.2, 0.707, 1.0, 1.42, 3.0, 1e10, 1e300] {
            assert!((ln(y) - f64::ln(y)).abs() < 1e-12 * f64::ln(y).abs().max(1.0), "{y}");
        }
        assert!(asinh(f32::NAN).is_nan() && asinh(f32::INFINITY).is_nan(), "what diverged must stay visible");
    }

    #[test]
    fn silu_and_its_slope_equal_their_definitions_in_f64() {
        for y in points().filter(|y| y.abs() < 80.0) {
            let sigmoid = 1.0 / (1.0 + (-f64::from(y)).exp());
            let value = f64::from(y) * sigmoid;
            let (found, slope) = silu_and_slope(y);
            assert!((f64::from(found) - value).abs() <= 4e-7 * value.abs(), "{y}");
            // Its second term is y times 1 − sigmoid, of which f32 knows no more than half a unit of 1.
            let error = (f64::from(slope) - (sigmoid + value * (1.0 - sigmoid))).abs();
            assert!(error < 1.2e-7 * (1.0 + f64::from(y.abs())), "{y}: {error}");
        }
    }
}
