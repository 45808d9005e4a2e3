//! The regression beside the field: pairs of a latent and the end of its chain, and what they add to an update.

use tch::{Device, Kind, Tensor};

use super::build::Networks;
use super::warm_start::flow_from;
use crate::config::{AnnealedSchedule, RegressionSection};
use crate::mcmc::AnnealedLangevin;
use crate::model::Parameters;
use crate::rng::{Generator, Shards, Stream};

/// Latents and the ends of their chains, those of one piece: as many rows for each of its shards.
#[derive(Debug)]
pub(super) struct Pairs {
    latents: Tensor,
    ends: Tensor,
    rows_of_shard: i64,
}

impl RegressionSection {
    /// Evaluations of the target for one pair.
    fn evaluations_per_pair(&self) -> u64 {
        let langevin = if self.langevin_steps > 0 { self.langevin_steps + 1 } else { 0 };
        self.steps + 1 + langevin
    }
}

impl Pairs {
    /// The pairs of shard `shard` of `shards`, and evaluations of the target that they took. They are made shard by shard,
    /// so they are the same wherever that is.
    pub(super) fn of_shard(
        networks: &Networks,
        section: &RegressionSection,
        (seed, shard, shards): (u64, usize, usize),
        device: Device,
    ) -> (Self, u64) {
        let mut generator = Generator::new(seed, Stream::Pairs, 0, shard as u64);
        let rows_of_shard = (section.pairs / shards) as i64;
        let latents = generator.normal(&networks.sampler.latent_shape(rows_of_shard)).to_device(device);
        let target = networks.target.target();
        let flow = flow_from(networks, section.steps, section.sigma);
        let mut ends = flow.run(target, &networks.sampler.latent_in_sample_space(&latents));
        if section.langevin_steps > 0 {
            let [sigma_first, sigma_last] = section.langevin_sigma;
            let chain = AnnealedLangevin {
                steps: section.langevin_steps,
                schedule: AnnealedSchedule::Geometric,
                sigma_first,
                sigma_last,
                sigma0: flow.sigma0,
                step_size: section.langevin_step_size,
                start_mean: 0.0, // the start is given
            };
            let noise = generator.normal(&ends.size()).to_device(device) * sigma_first;
            ends = chain.continue_from(&(ends + noise), target, &mut generator, &mut |_| {});
        }
        let evaluations = section.evaluations_per_pair() * rows_of_shard as u64;
        (Pairs { latents, ends: ends.detach(), rows_of_shard }, evaluations)
    }

    /// Blank pairs, as many as an update draws, for a piece of `count` shards: a rehearsal wants the time alone.
    pub(super) fn rehearsed(
        networks: &Networks,
        section: &RegressionSection,
        shards: usize,
        count: usize,
        device: Device,
    ) -> Self {
        let rows_of_shard = (section.batch / shards) as i64;
        let rows = rows_of_shard * count as i64;
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device));
        let ends = zeros(&[&[rows], networks.target.target().shape()].concat());
        Pairs { latents: zeros(&networks.sampler.latent_shape(rows)), ends, rows_of_shard }
    }

    /// Those of several shards, one after the other.
    pub(super) fn joined(parts: &[Pairs]) -> Self {
        let cat = |of: fn(&Pairs) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        Pairs {
            latents: cat(|part| &part.latents),
            ends: cat(|part| &part.ends),
            rows_of_shard: parts[0].rows_of_shard,
        }
    }

    /// Gradient, flat `[P]`, of this piece's part of weight · mean `penalty` of g(z) − end, pooled, over pairs drawn for update
    /// `update`.
    pub(super) fn gradient(
        &self,
        networks: &Networks,
        sampler: &Parameters,
        section: &RegressionSection,
        piece: &Shards,
        (seed, update, shards): (u64, u64, usize),
    ) -> Tensor {
        let drawn = section.batch / shards;
        let rows: Vec<i64> = (0..piece.count)
            .flat_map(|place| {
                let shard = (piece.first + place) as u64;
                let mut generator = Generator::new(seed, Stream::PairsOfUpdate, update, shard);
                let first = place as i64 * self.rows_of_shard;
                generator.indices(drawn, self.rows_of_shard).into_iter().map(move |row| first + row)
            })
            .collect();
        let rows = Tensor::from_slice(&rows).to_device(self.ends.device());
        let (latents, ends) = (self.latents.index_select(0, &rows), self.ends.index_select(0, &rows));
        let weights = sampler.tracked();
        let distance = pooled(&(networks.sampler.forward(weights, &latents) - ends), section.pool);
        let loss = penalty(&distance, section.huber_scale) * (section.weight / section.batch as f64);
        weights.gradient(&loss, &[]).0
    }
}

/// Sum over rows of |d|², or of 2 c² (√(1 + |d|²/c²) − 1), which is |d|² for |d| far below c and 2 c |d| far above.
fn penalty(distance: &Tensor, scale: f64) -> Tensor {
    if scale == 0.0 {
        return distance.square().sum(None);
    }
    let squared = distance.square().flatten(1, -1).sum_dim_intlist(1, false, None::<Kind>);
    (((squared / (scale * scale) + 1.0).sqrt() - 1.0) * (2.0 * scale * scale)).sum(None)
}

/// The part of images `[B, C, H, W]` that is constant over squares of `pool` pixels a side, in coordinates that keep its
/// norm: `[B, C, H/pool, W/pool]`. Vectors are their own.
fn pooled(x: &Tensor, pool: i64) -> Tensor {
    if pool == 1 {
        return x.shallow_clone();
    }
    x.avg_pool2d([pool, pool], [pool, pool], [0, 0], false, true, None::<i64>) * pool as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_is_squared_far_below_its_scale_and_linear_far_above() {
        // |d| = 5 of one row: 25 squared, and 2 c (|d| - c) up to c²/|d| for c far below.
        let distance = Tensor::from_slice(&[3f64, 4.0]).reshape([1, 1, 1, 2]);
        let at = |scale: f64| penalty(&distance, scale).double_value(&[]);
        assert_eq!(at(0.0), 25.0);
        assert!((at(1e4) - 25.0).abs() < 1e-5);
        assert!((at(0.01) - 2.0 * 0.01 * (5.0 - 0.01)).abs() < 1e-5);
        // Rows count one by one: two of them are twice one.
        assert!(
            (penalty(&distance.repeat([2, 1, 1, 1]), 0.5).double_value(&[]) / at(0.5) - 2.0).abs() < 1e-12
        );
    }

    #[test]
    fn pooling_keeps_the_norm_of_what_is_constant_over_squares_and_drops_the_rest() {
        let numbers = Generator::new(0, Stream::Data, 0, 0).normal(&[2, 1, 2, 2]);
        let blocks = numbers.repeat_interleave_self_int(2, 2, None).repeat_interleave_self_int(2, 3, None);
        let norm = |x: &Tensor| x.square().sum(None).double_value(&[]);
        assert!((norm(&pooled(&blocks, 2)) / norm(&blocks) - 1.0).abs() < 1e-6);
        let checks = Tensor::from_slice(&[1f32, -1.0, -1.0, 1.0]).reshape([1, 1, 2, 2]).repeat([2, 1, 2, 2]);
        assert_eq!(norm(&pooled(&checks, 2)), 0.0);
        assert_eq!(pooled(&checks, 1), checks);
    }
}
