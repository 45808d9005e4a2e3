//! One all-reduce for all that ranks exchange in an update: gradients and statistics in one flat buffer.

use tch::{Kind, Tensor};

use crate::comm::{CommError, World};

/// What came back, equal on all ranks.
#[derive(Debug)]
pub struct Reduced {
    /// The summed gradients, flat, in the order given.
    pub gradients: Vec<Tensor>,
    /// The summed statistics, in the order given.
    pub statistics: Vec<f64>,
}

/// Sums flat gradients and scalar statistics over all ranks with a single all-reduce of f32.
///
/// # Errors
/// If the collective fails.
pub fn reduce(world: &World, gradients: &[&Tensor], statistics: &[&Tensor]) -> Result<Reduced, CommError> {
    let sizes: Vec<i64> = gradients.iter().map(|gradient| gradient.numel() as i64).collect();
    let scalars = statistics.iter().map(|value| value.reshape([1]).to_kind(Kind::Float));
    let parts: Vec<Tensor> =
        gradients.iter().map(|gradient| gradient.shallow_clone()).chain(scalars).collect();
    let mut buffer = Tensor::cat(&parts, 0);
    world.collective().all_reduce_sum(&mut buffer)?;
    let total: i64 = sizes.iter().sum();
    let gradients = buffer.narrow(0, 0, total).split_with_sizes(&sizes, 0);
    let tail = buffer.narrow(0, total, statistics.len() as i64).to_kind(Kind::Double);
    let statistics = Vec::try_from(&tail.to_device(tch::Device::Cpu)).expect("a one-dimensional f64 tensor");
    Ok(Reduced { gradients, statistics })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_buffer_comes_back_as_the_parts_it_was_made_of() {
        let world = World::solo(tch::Device::Cpu);
        let (a, b) = (Tensor::from_slice(&[1f32, 2.0]), Tensor::from_slice(&[3f32]));
        let reduced = reduce(&world, &[&a, &b], &[&Tensor::from(0.5f32), &Tensor::from(1f32)]).unwrap();
        assert_eq!((&reduced.gradients[0], &reduced.gradients[1]), (&a, &b));
        assert_eq!(reduced.statistics, [0.5, 1.0]);
    }
}
