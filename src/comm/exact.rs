//! Sums whose bits do not depend on the order of the terms, so not on who holds which of them.
//!
//! Adding floats rounds, and another order rounds differently; adding integers does not round. So every term is written
//! as a whole multiple of one power of two that all ranks agree on, the multiples are added as 64-bit integers, and the
//! sum is written as a float again. It takes two all-reduces: the maximum of a few exponents, and the integers.
//!
//! **No overflow.** With |term| < 2^e for every term and n ≤ 2^l terms, the unit is 2^(e + l − 62). Then a multiple is
//! below 2^(62 − l), and n of them add up to less than 2^62.
//!
//! **Precision.** What a term has below the unit is cut off. The unit is 2^(l − 62) of the largest term, l = 5 for 24
//! shards: an f32 of at least 2^−33 of the largest loses nothing, and the whole sum is closer to the true one than
//! a sum in f32, whose first addition alone may be off by 2^−25 of it.

use pulp::Arch;
use tch::{Device, Kind, Tensor};

use super::memory::{elements, elements_mut};
use super::{Collective, CommError};

/// Bits that the sum of all terms may take; the sign and one bit to spare are left.
const BITS: i64 = 62;
/// Exponents below this are taken for it, so that every scale is a normal f64.
const LEAST: i64 = -900;
/// Sums that are added to part by part while they are in the fastest cache.
const BLOCK: usize = 2048;
/// Stands for a term that is no finite number: above the exponent of every number.
const NOT_FINITE: i64 = 4096;

/// Elementwise sums of `parts` over this rank's parts and all ranks.
///
/// A part is a list of tensors (f32 or f64, on the rank's device), the same shapes and kinds in every part; each of
/// them has a unit of its own. `count` is the number of parts of all ranks together. The result has the shapes and kinds
/// of a part, and the same bits on every rank and for every way of dealing the parts out. Where a term is not
/// finite, the whole tensor is NaN.
///
/// # Errors
/// If a collective fails, or a tensor is of another kind.
pub fn sum_exactly(
    collective: &dyn Collective,
    parts: &[Vec<Tensor>],
    count: usize,
) -> Result<Vec<Tensor>, CommError> {
    let Some(first) = parts.first() else {
        let message = "a rank without parts; deal them out evenly".to_string();
        return Err(CommError::Backend { backend: "exact sum", message });
    };
    if let Some(other) = first.iter().find(|t| ![Kind::Float, Kind::Double].contains(&t.kind())) {
        let message = format!("a tensor of kind {:?}; convert it to f32 or f64", other.kind());
        return Err(CommError::Backend { backend: "exact sum", message });
    }
    let Some(device) = first.first().map(Tensor::device) else { return Ok(Vec::new()) };
    let terms = Terms::new(parts, device);

    // The largest exponent of each tensor among all parts.
    let mut exponents = Tensor::from_slice(&terms.exponents()).to_device(device);
    collective.all_reduce_max(&mut exponents)?;
    let exponents: Vec<i64> = Vec::try_from(exponents.to_device(Device::Cpu)).expect("a vector of i64");

    // Multiples of each tensor's unit, summed.
    let bits = BITS - i64::from(count.next_power_of_two().trailing_zeros());
    let shifts: Vec<i64> = exponents.iter().map(|exponent| bits - exponent.clamp(&LEAST, &1024)).collect();
    let scales = shifts.iter().zip(&exponents);
    let scales = scales.map(|(shift, exponent)| (*exponent != NOT_FINITE).then(|| power_of_two(*shift)));
    let mut multiples = terms.multiples(&scales.collect::<Vec<_>>());
    collective.all_reduce_sum(&mut multiples)?;

    let unit = |(shift, exponent): (&i64, &i64)| match *exponent {
        NOT_FINITE => f64::NAN,
        _ => power_of_two(-shift),
    };
    Ok(terms.sums(&multiples, shifts.iter().zip(&exponents).map(unit)))
}

/// The terms of this rank, each tensor flat and contiguous. On a CPU one pass over plain memory does what takes
/// several operations on tensors.
struct Terms {
    parts: Vec<Vec<Tensor>>,
    shapes: Vec<Vec<i64>>,
    is_on_host: bool,
}

impl Terms {
    fn new(parts: &[Vec<Tensor>], device: Device) -> Self {
        let flat = |t: &Tensor| t.detach().contiguous().view([-1]);
        Terms {
            parts: parts.iter().map(|part| part.iter().map(flat).collect()).collect(),
            shapes: parts[0].iter().map(Tensor::size).collect(),
            is_on_host: device == Device::Cpu,
        }
    }

    /// For each tensor the least e with |term| < 2^e for all its terms in all parts.
    fn exponents(&self) -> Vec<i64> {
        let of_parts = self.parts.iter().map(|part| {
            if self.is_on_host {
                return part.iter().map(|t| exponent(largest(t))).collect();
            }
            let most = |t: &Tensor| t.abs().max().to_kind(Kind::Double).reshape([1]);
            let most = Tensor::cat(&part.iter().map(most).collect::<Vec<_>>(), 0).to_device(Device::Cpu);
            elements::<f64>(&most).iter().map(|most| exponent(*most)).collect::<Vec<_>>()
        });
        of_parts
            .reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect())
            .expect("at least one part")
    }

    /// Σ over the parts of the whole part of term · scale, all tensors one after the other, as i64; 0 where there is no
    /// scale.
    fn multiples(&self, scales: &[Option<f64>]) -> Tensor {
        if self.is_on_host {
            let mut sums = Tensor::zeros([self.length()], (Kind::Int64, Device::Cpu));
            let mut rest = elements_mut::<i64>(&mut sums);
            for (at, scale) in scales.iter().enumerate() {
                let (own, after) = rest.split_at_mut(self.parts[0][at].numel());
                for (block, sums) in own.chunks_mut(BLOCK).enumerate() {
                    let Some(scale) = scale else { break };
                    for part in &self.parts {
                        add_multiples(&part[at], block * BLOCK, *scale, sums);
                    }
                }
                rest = after;
            }
            return sums;
        }
        let of_part = |part: &Vec<Tensor>| {
            let multiples = part.iter().zip(scales).map(|(t, scale)| match scale {
                Some(scale) => (t.to_kind(Kind::Double) * *scale).to_kind(Kind::Int64),
                None => t.zeros_like().to_kind(Kind::Int64),
            });
            Tensor::cat(&multiples.collect::<Vec<_>>(), 0)
        };
        self.parts.iter().map(of_part).reduce(|sum, part| sum + part).expect("at least one part")
    }

    /// The `multiples` of all tensors times the unit of each, in shape and kind of the terms.
    fn sums(&self, multiples: &Tensor, units: impl Iterator<Item = f64>) -> Vec<Tensor> {
        let mut start = 0;
        self.parts[0]
            .iter()
            .zip(&self.shapes)
            .zip(units)
            .map(|((like, shape), unit)| {
                let own = multiples.narrow(0, start, like.numel() as i64);
                start += like.numel() as i64;
                if !self.is_on_host {
                    return (own.to_kind(Kind::Double) * unit).to_kind(like.kind()).view(shape.as_slice());
                }
                let mut sum = like.zeros_like();
                let own = elements::<i64>(&own).iter().map(|multiple| *multiple as f64 * unit);
                match like.kind() {
                    Kind::Float => {
                        elements_mut(&mut sum).iter_mut().zip(own).for_each(|(sum, own)| *sum = own as f32);
                    }
                    _ => elements_mut(&mut sum).iter_mut().zip(own).for_each(|(sum, own)| *sum = own),
                }
                sum.view(shape.as_slice())
            })
            .collect()
    }

    /// Numbers of a part.
    fn length(&self) -> i64 {
        self.parts[0].iter().map(|t| t.numel() as i64).sum()
    }
}

/// The largest size of a number in a tensor, with infinity and what is not a number above all; 0 if it has none.
fn largest(t: &Tensor) -> f64 {
    // Without its sign a float's bits are in the order of its size, as signed integers too: of those a baseline processor
    // compares several at once.
    match t.kind() {
        Kind::Float => {
            let bits = elements::<f32>(t).iter().map(|value| value.abs().to_bits() as i32);
            f64::from(f32::from_bits(Arch::new().dispatch(|| bits.fold(0, i32::max)) as u32))
        }
        _ => {
            let bits = elements::<f64>(t).iter().map(|value| value.abs().to_bits() as i64);
            f64::from_bits(bits.fold(0, i64::max) as u64)
        }
    }
}

/// Adds the whole part of `scale` times the numbers of `t` from number `first` on to `sums`. All numbers are finite, and with
/// the scale below 2^62.
fn add_multiples(t: &Tensor, first: usize, scale: f64, sums: &mut [i64]) {
    // A product with a power of two is exact, and so is the cast, but for what lies below the unit.
    let add = |sum: &mut i64, value: f64| *sum += (value * scale) as i64;
    match t.kind() {
        Kind::Float => {
            let values = elements::<f32>(t)[first..].iter();
            Arch::new().dispatch(|| {
                sums.iter_mut().zip(values).for_each(|(sum, value)| add(sum, f64::from(*value)));
            });
        }
        _ => sums.iter_mut().zip(&elements::<f64>(t)[first..]).for_each(|(sum, value)| add(sum, *value)),
    }
}

/// The least e ≥ [`LEAST`] with `value` < 2^e, for a `value` that is not negative.
fn exponent(value: f64) -> i64 {
    if !value.is_finite() {
        return NOT_FINITE;
    }
    let biased = (value.to_bits() >> 52) as i64;
    (biased - 1022).max(LEAST)
}

/// 2^`exponent`, for exponents of normal numbers.
fn power_of_two(exponent: i64) -> f64 {
    assert!((-1022..=1023).contains(&exponent), "2^{exponent} is no normal number");
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::World;
    use crate::rng::{Generator, Stream};

    /// Terms of sizes from 1e-12 to 1, of both signs: parts of one tensor each.
    fn terms(parts: u64, kind: Kind) -> Vec<Vec<Tensor>> {
        let part = |shard| {
            let mut generator = Generator::new(1, Stream::Data, 0, shard);
            let size = (generator.uniform(&[500]) * -27.6).exp();
            vec![(generator.normal(&[500]) * size).to_kind(kind)]
        };
        (0..parts).map(part).collect()
    }

    fn solo(parts: &[Vec<Tensor>], count: usize) -> Vec<Tensor> {
        let world = World::solo(Device::Cpu);
        sum_exactly(world.collective(), parts, count).unwrap()
    }

    fn bits(t: &Tensor) -> Vec<u64> {
        Vec::<f64>::try_from(t.to_kind(Kind::Double).reshape([-1]))
            .unwrap()
            .iter()
            .map(|v| v.to_bits())
            .collect()
    }

    #[test]
    fn sums_do_not_depend_on_the_order_of_the_parts_where_float_sums_do() {
        for kind in [Kind::Float, Kind::Double] {
            let mut parts = terms(24, kind);
            let forwards = bits(&solo(&parts, 24)[0]);
            let float_sum = |parts: &[Vec<Tensor>]| {
                let sum = parts.iter().fold(parts[0][0].zeros_like(), |sum, part| sum + &part[0]);
                bits(&sum)
            };
            let float_forwards = float_sum(&parts);
            parts.reverse();
            assert_eq!(forwards, bits(&solo(&parts, 24)[0]), "{kind:?}");
            assert_ne!(float_forwards, float_sum(&parts), "the float sums of this test should differ");
        }
    }

    #[test]
    fn sum_of_f32_is_the_nearest_f32_to_the_true_sum() {
        let parts = terms(24, Kind::Float);
        let found = &solo(&parts, 24)[0];
        // In f64 the sum of 24 such f32 is off by 2^-52 of the largest; the true sum is that near to a tie hardly ever.
        let sum = parts.iter().fold(Tensor::zeros([500], (Kind::Double, Device::Cpu)), |sum, part| {
            sum + part[0].to_kind(Kind::Double)
        });
        assert_eq!(bits(found), bits(&sum.to_kind(Kind::Float)));
    }

    #[test]
    fn every_tensor_has_a_unit_of_its_own_and_keeps_its_shape_and_kind() {
        let part = || {
            let tiny = Tensor::from_slice(&[1e-30f32, -3e-30]).view([2, 1]);
            vec![tiny, Tensor::from(1e30f64), Tensor::zeros([3], (Kind::Float, Device::Cpu))]
        };
        let sums = solo(&[part(), part()], 2);
        assert_eq!((sums[0].size(), sums[0].kind()), (vec![2, 1], Kind::Float));
        assert_eq!(sums[0], Tensor::from_slice(&[2e-30f32, -6e-30]).view([2, 1]));
        assert_eq!((sums[1].kind(), sums[1].double_value(&[])), (Kind::Double, 2e30));
        assert_eq!(sums[2], Tensor::zeros([3], (Kind::Float, Device::Cpu)));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        // 4,096 parts of the largest f32, and of its negative: 2^12 · (2 − 2^-23) · 2^127, exactly.
        for sign in [1.0, -1.0] {
            let parts: Vec<_> = (0..4096).map(|_| vec![Tensor::from(f64::from(f32::MAX) * sign)]).collect();
            let found = solo(&parts, 4096)[0].double_value(&[]);
            assert_eq!(found, sign * 4096.0 * f64::from(f32::MAX));
        }
        assert_eq!(exponent(f64::MAX), 1024);
        assert_eq!((exponent(1.0), exponent(0.999), exponent(0.0)), (1, 0, LEAST));
    }

    #[test]
    fn one_infinite_or_undefined_term_makes_its_tensor_undefined_and_no_other() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let parts = [vec![1.0, 2.0], vec![1.0, f64::from(bad)]]
                .map(|values| vec![Tensor::from_slice(&values).to_kind(Kind::Float), Tensor::from(5.0)]);
            let sums = solo(&parts, 2);
            assert!(sums[0].isnan().all().int64_value(&[]) == 1, "{bad}: {:?}", bits(&sums[0]));
            assert_eq!(sums[1].double_value(&[]), 10.0);
        }
    }

    #[test]
    fn integers_and_empty_ranks_are_refused() {
        let world = World::solo(Device::Cpu);
        let refused =
            |parts: &[Vec<Tensor>]| sum_exactly(world.collective(), parts, 1).unwrap_err().to_string();
        assert!(refused(&[]).contains("without parts"));
        assert!(refused(&[vec![Tensor::from(1i64)]]).contains("Int64"));
    }
}
