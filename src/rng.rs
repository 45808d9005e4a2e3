//! The only source of randomness: counter-based and stateless.
//!
//! A generator is keyed by (run seed, stream, iteration, shard). The four numbers *are* the 256-bit
//! ChaCha key, so two different tuples can never collide, nothing has to be saved in a checkpoint, and
//! the noise of a shard is the same whichever rank owns it. Noise is made on the host on every device,
//! so CPU and CUDA runs see the same numbers.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Tensor};

use crate::config::Reduction;

/// What a stream of random numbers is for. The discriminants are part of the reproducibility contract:
/// changing one changes the bits of every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Initial values of the sampler's parameters.
    SamplerParameters = 1,
    /// Initial values of the score network's parameters.
    ScoreParameters = 2,
    /// Initial values of an energy's or a classifier's parameters.
    Parameters = 3,
    /// Latents, noise levels and noise of the sampler updates.
    SamplerUpdate = 4,
    /// Latents, noise levels and noise of the score updates.
    ScoreUpdate = 5,
    /// Which data rows a fit sees, and their noise.
    Data = 6,
    /// Latents and noise of evaluation samples.
    Evaluation = 7,
    /// Starts and noise of MCMC chains.
    Chains = 8,
    /// Splits and permutations of data sets.
    Split = 9,
    /// Exact samples of a target.
    Exact = 10,
    /// Mini-batches of a target that is a sum over data.
    MiniBatch = 11,
    /// Points around samples at which the target with noise is estimated.
    Probes = 12,
    /// Latents of the warm start.
    WarmStart = 13,
    /// Data, restarts and noise of the chains that an energy is contrasted with.
    Contrast = 14,
    /// Latents and chains of the pairs of a regression beside the field.
    Pairs = 15,
    /// Which pairs an update sees.
    PairsOfUpdate = 16,
}

/// A generator for one (run, stream, iteration, shard).
#[derive(Clone)]
pub struct Generator(ChaCha8Rng);

impl Generator {
    /// The generator with this key; equal keys give equal numbers on every machine.
    pub fn new(run_seed: u64, stream: Stream, iteration: u64, shard: u64) -> Self {
        let mut key = [0u8; 32];
        for (word, value) in key.chunks_exact_mut(8).zip([run_seed, stream as u64, iteration, shard]) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        Generator(ChaCha8Rng::from_seed(key))
    }

    /// Standard normal numbers as a CPU tensor of this shape.
    pub fn normal(&mut self, shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let values: Vec<f32> = StandardNormal.sample_iter(&mut self.0).take(count).collect();
        Tensor::from_slice(&values).reshape(shape)
    }

    /// Numbers uniform in [0, 1) as a CPU tensor of this shape.
    pub fn uniform(&mut self, shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let values: Vec<f32> = (0..count).map(|_| self.0.random::<f32>()).collect();
        Tensor::from_slice(&values).reshape(shape)
    }

    /// Noise levels log-uniform in [low, high) for the rows `rows` of a global batch of `batch`, one in each
    /// of `batch` strata, as a CPU tensor.
    pub fn stratified_levels(&mut self, (low, high): (f64, f64), rows: Range<i64>, batch: usize) -> Tensor {
        let (start, span) = (low.ln(), (high / low).ln());
        let level = |row: i64| {
            let quantile = (row as f64 + self.0.random::<f64>()) / batch as f64;
            if span == 0.0 { low as f32 } else { (start + quantile * span).exp() as f32 }
        };
        Tensor::from_slice(&rows.map(level).collect::<Vec<_>>())
    }

    /// `count` indices below `bound`, independent and uniform.
    pub fn indices(&mut self, count: usize, bound: i64) -> Vec<i64> {
        (0..count).map(|_| self.0.random_range(0..bound)).collect()
    }

    /// A uniform permutation of `0..count` (Fisher and Yates).
    pub fn permutation(&mut self, count: i64) -> Vec<i64> {
        let mut order: Vec<i64> = (0..count).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.0.random_range(0..=last));
        }
        order
    }
}

/// The shards that one rank owns, and how many rows each has: the way a global batch is cut.
#[derive(Debug, Clone, Copy)]
pub struct Shards {
    /// First shard of this rank.
    pub first: usize,
    /// Number of shards of this rank.
    pub count: usize,
    /// Rows of each shard.
    pub rows: usize,
}

impl Shards {
    /// The shards of rank `rank` when a batch of `batch` rows is cut into `shards` for `world_size` ranks;
    /// all three must divide, as the plan has checked.
    pub fn of_rank(batch: usize, shards: usize, rank: usize, world_size: usize) -> Self {
        let count = shards / world_size;
        Shards { first: rank * count, count, rows: batch / shards }
    }

    /// The pieces that a rank computes at once: all its shards, or for an exact sum each by itself, so that it has the
    /// same shapes wherever it is computed.
    pub fn pieces(self, reduction: Reduction) -> Vec<Shards> {
        match reduction {
            Reduction::Fast => vec![self],
            Reduction::Exact => (self.first..self.first + self.count)
                .map(|first| Shards { first, count: 1, ..self })
                .collect(),
        }
    }

    /// Runs `draw` once for each owned shard, with the rows of the global batch that the shard holds, and
    /// concatenates each of the results along dimension 0.
    pub fn draw<const N: usize>(
        &self,
        key: (u64, Stream, u64),
        device: Device,
        draw: impl Fn(&mut Generator, Range<i64>) -> [Tensor; N],
    ) -> [Tensor; N] {
        let mut parts: [Vec<Tensor>; N] = std::array::from_fn(|_| Vec::with_capacity(self.count));
        for shard in self.first..self.first + self.count {
            let mut generator = Generator::new(key.0, key.1, key.2, shard as u64);
            let rows = (shard * self.rows) as i64..((shard + 1) * self.rows) as i64;
            for (part, tensor) in parts.iter_mut().zip(draw(&mut generator, rows)) {
                part.push(tensor);
            }
        }
        let whole = |mut part: Vec<Tensor>| match part.len() {
            1 => part.remove(0),
            _ => Tensor::cat(&part, 0),
        };
        parts.map(|part| whole(part).to_device(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_number(run: u64, stream: Stream, iteration: u64, shard: u64) -> f64 {
        Generator::new(run, stream, iteration, shard).normal(&[1]).double_value(&[0])
    }

    #[test]
    fn equal_keys_give_equal_numbers_and_any_changed_part_gives_others() {
        let reference = first_number(1, Stream::Data, 2, 3);
        assert_eq!(reference, first_number(1, Stream::Data, 2, 3));
        // Linear seeds would collide on swapped parts; keys must not.
        for other in [
            first_number(2, Stream::Data, 1, 3),
            first_number(1, Stream::Data, 3, 2),
            first_number(1, Stream::Chains, 2, 3),
            first_number(3, Stream::Data, 2, 1),
        ] {
            assert_ne!(reference, other);
        }
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_standard_normal() {
        let x = Generator::new(0, Stream::Data, 0, 0).normal(&[200_000]).to_kind(tch::Kind::Double);
        // Standard errors: 1/sqrt(n) = 0.0022 for the mean, sqrt(2/n) = 0.0032 and sqrt(96/n) = 0.022 for
        // the second and fourth moment; bounds are 5 of them.
        assert!(x.mean(None).double_value(&[]).abs() < 0.011);
        assert!((x.square().mean(None).double_value(&[]) - 1.0).abs() < 0.016);
        assert!((x.pow_tensor_scalar(4).mean(None).double_value(&[]) - 3.0).abs() < 0.11);
    }

    #[test]
    fn stratified_levels_fall_one_into_each_stratum_of_the_band() {
        let levels = |rows| Generator::new(0, Stream::Data, 0, 0).stratified_levels((0.1, 10.0), rows, 8);
        let quantile = (levels(4..8).log10() + 1.0) / 2.0; // log10 of the band is [−1, 1)
        let stratum = Vec::<i64>::try_from((quantile * 8.0).floor().to_kind(tch::Kind::Int64)).unwrap();
        assert_eq!(stratum, [4, 5, 6, 7]);
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let mut order = Generator::new(0, Stream::Split, 0, 0).permutation(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn two_halves_of_the_shards_concatenate_to_the_whole() {
        let draw = |g: &mut Generator, rows: Range<i64>| [g.normal(&[rows.end - rows.start, 3])];
        let key = (7, Stream::SamplerUpdate, 5);
        let [whole] = Shards::of_rank(8, 4, 0, 1).draw(key, Device::Cpu, draw);
        let [left] = Shards::of_rank(8, 4, 0, 2).draw(key, Device::Cpu, draw);
        let [right] = Shards::of_rank(8, 4, 1, 2).draw(key, Device::Cpu, draw);
        assert_eq!(whole, Tensor::cat(&[left, right], 0));
    }
}
