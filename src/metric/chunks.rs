//! Samples in chunks that ranks share out, and sums over them with the same bits on any number of ranks.

use tch::{Device, Kind, Tensor};

use crate::comm::{CommError, World};

/// Rows that a rank handles at once: fixed, because the features of some extractors depend on it.
pub(super) const CHUNK: i64 = 100;

/// Splits `rows` into fixed chunks: (chunk number, rows) of each. Noise belongs to a chunk, so whoever draws the
/// same chunks draws the same noise, and the same samples but for a last digit that may depend on how many chunks go through
/// the network together.
pub fn chunks(rows: i64) -> impl Iterator<Item = (u64, i64)> {
    (0..(rows + CHUNK - 1) / CHUNK).map(move |chunk| (chunk as u64, CHUNK.min(rows - chunk * CHUNK)))
}

/// Those of the [`chunks`] that belong to this rank; together the ranks have each once, on any number of ranks.
pub fn chunks_of_rank(rows: i64, world: &World) -> impl Iterator<Item = (u64, i64)> {
    let (rank, size) = (world.rank as u64, world.size as u64);
    chunks(rows).filter(move |(chunk, _)| chunk % size == rank)
}

/// Numbers that ranks may hold of each other at once: half a gigabyte.
const MOST_GATHERED: i64 = 1 << 26;

/// Sum over the [`chunks`] of `rows` of what `sums_of`(chunk, rows) returns for those of this rank: f64 `[length]` on the
/// CPU, as is the result. Chunks are added in their order, one chunk of every rank at a time, so the bits do not
/// depend on the number of ranks. Where that is too much to hold (2,048 features on 16 ranks), every rank adds its own
/// chunks first, and the sum is the same up to rounding.
///
/// # Errors
/// If a collective fails.
pub fn sum_over_chunks(
    rows: i64,
    length: i64,
    world: &World,
    mut sums_of: impl FnMut(u64, i64) -> Tensor,
) -> Result<Tensor, CommError> {
    let all: Vec<(u64, i64)> = chunks(rows).collect();
    let mut total = Tensor::zeros([length], (Kind::Double, Device::Cpu));
    if length * world.size as i64 > MOST_GATHERED && world.size > 1 {
        for (chunk, rows) in chunks_of_rank(rows, world) {
            total += sums_of(chunk, rows);
        }
        let mut sums = total.to_device(world.device);
        world.collective().all_reduce_sum(&mut sums)?;
        return Ok(sums.to_device(Device::Cpu));
    }
    for round in all.chunks(world.size) {
        // In the last round some ranks may have nothing, and take part all the same.
        let own = match round.get(world.rank) {
            Some((chunk, rows)) => sums_of(*chunk, *rows).contiguous(),
            None => total.zeros_like(),
        };
        let sums = world.collective().all_gather(&own.to_device(world.device))?;
        for of_chunk in &sums[..round.len()] {
            total += of_chunk.to_device(Device::Cpu);
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_summed_in_their_order() {
        let world = World::solo(Device::Cpu);
        // 1, 1e100, −1e100 sum to 0 in this order, and to 1 in the reverse.
        let values = [1.0, 1e100, -1e100];
        let sum = |of: &dyn Fn(u64) -> f64| {
            sum_over_chunks(250, 1, &world, |chunk, _| Tensor::from_slice(&[of(chunk)]))
                .unwrap()
                .double_value(&[0])
        };
        assert_eq!(sum(&|chunk| values[chunk as usize]), 0.0);
        assert_eq!(sum(&|chunk| values[2 - chunk as usize]), 1.0);
        let rows = sum_over_chunks(250, 1, &world, |_, rows| Tensor::from_slice(&[rows as f64])).unwrap();
        assert_eq!(rows.double_value(&[0]), 250.0);
    }
}
