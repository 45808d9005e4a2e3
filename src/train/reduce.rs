//! What ranks exchange in an update: gradients and statistics, summed over shards and ranks.

use tch::{Device, Kind, Tensor};

use crate::comm::{CommError, World, sum_exactly};
use crate::config::Reduction;

/// What one piece of the batch adds to an update: its part of the global means.
#[derive(Debug)]
pub struct Part {
    /// Flat gradients, f32 `[P]`.
    pub gradients: Vec<Tensor>,
    /// Scalars.
    pub statistics: Vec<Tensor>,
}

/// What came back, equal on all ranks.
#[derive(Debug)]
pub struct Reduced {
    /// The summed gradients, flat, in the order given.
    pub gradients: Vec<Tensor>,
    /// The summed statistics, in the order given.
    pub statistics: Vec<f64>,
}

/// Sums the parts of this rank, each with the same number of gradients and statistics, and those of all ranks.
///
/// A fast reduction is one all-reduce of f32; the bits depend on the number of ranks. An exact one wants as many parts
/// on every rank and gives the same bits however they are spread; see [`sum_exactly`].
///
/// # Errors
/// If a collective fails.
pub fn reduce(world: &World, reduction: Reduction, parts: Vec<Part>) -> Result<Reduced, CommError> {
    let gradients = parts.first().map_or(0, |part| part.gradients.len());
    let sums = match reduction {
        Reduction::Fast => sum_fast(world, parts)?,
        Reduction::Exact => {
            let count = parts.len() * world.size;
            let parts: Vec<Vec<Tensor>> = parts.into_iter().map(Part::into_tensors).collect();
            sum_exactly(world.collective(), &parts, count)?
        }
    };
    let (gradients, statistics) = sums.split_at(gradients);
    let gradients = gradients.iter().map(Tensor::shallow_clone).collect();
    if statistics.is_empty() {
        return Ok(Reduced { gradients, statistics: Vec::new() });
    }
    let tail = Tensor::cat(statistics, 0).to_kind(Kind::Double);
    let statistics = Vec::try_from(&tail.to_device(Device::Cpu)).expect("a one-dimensional f64 tensor");
    Ok(Reduced { gradients, statistics })
}

impl Part {
    /// Gradients and statistics `[1]`, one after the other.
    fn into_tensors(self) -> Vec<Tensor> {
        let scalars = self.statistics.into_iter().map(|value| value.reshape([1]).to_kind(Kind::Float));
        self.gradients.into_iter().chain(scalars).collect()
    }
}

/// Everything in one flat buffer and one all-reduce.
fn sum_fast(world: &World, parts: Vec<Part>) -> Result<Vec<Tensor>, CommError> {
    let mut parts: Vec<Vec<Tensor>> = parts.into_iter().map(Part::into_tensors).collect();
    if world.size == 1 && parts.len() == 1 {
        return Ok(parts.remove(0)); // all there is
    }
    let sizes: Vec<i64> = parts[0].iter().map(|tensor| tensor.numel() as i64).collect();
    let flat = parts.iter().map(|part| Tensor::cat(part, 0));
    let mut buffer = flat.reduce(|sum, part| sum + part).expect("a rank has a part");
    world.collective().all_reduce_sum(&mut buffer)?;
    Ok(buffer.split_with_sizes(&sizes, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(gradients: &[&[f32]], statistics: &[f32]) -> Part {
        Part {
            gradients: gradients.iter().map(|values| Tensor::from_slice(values)).collect(),
            statistics: statistics.iter().map(|value| Tensor::from(*value)).collect(),
        }
    }

    #[test]
    fn parts_come_back_summed_and_as_the_pieces_they_were_made_of() {
        let world = World::solo(Device::Cpu);
        for reduction in [Reduction::Fast, Reduction::Exact] {
            let parts =
                vec![part(&[&[1.0, 2.0], &[3.0]], &[0.5, 1.0]), part(&[&[4.0, 8.0], &[-3.0]], &[0.25, 0.0])];
            let reduced = reduce(&world, reduction, parts).unwrap();
            assert_eq!(reduced.gradients[0], Tensor::from_slice(&[5f32, 10.0]));
            assert_eq!(reduced.gradients[1], Tensor::from_slice(&[0f32]));
            assert_eq!(reduced.statistics, [0.75, 1.0]);
        }
    }
}
