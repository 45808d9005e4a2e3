//! One network, one loss: the loop that fits an energy or a classifier.

use std::rc::Rc;
use std::time::Instant;

use tch::Tensor;

use super::TrainError;
use super::adam::Adam;
use super::average::Average;
use super::clip::RunningNorm;
use super::observer::FitRow;
use super::reduce::{Part, reduce};
use super::schedule::{learning_rate_factor, rise};
use crate::comm::World;
use crate::config::{ComputeSection, FitSection};
use crate::model::{Layout, Parameters, Weights};
use crate::rng::{Shards, Stream};

/// Minimises `loss`, a function of tracked weights, the update's number and a piece of the batch that returns the
/// piece's part of the global mean, with Adam; returns the averaged weights.
pub(super) fn fit(
    (settings, compute): (&FitSection, &ComputeSection),
    seed: u64,
    world: &World,
    layout: &Rc<Layout>,
    loss: &dyn Fn(&Weights, u64, &Shards) -> Tensor,
    report: &mut dyn FnMut(&FitRow) -> anyhow::Result<()>,
) -> Result<Parameters, TrainError> {
    let parameters = Parameters::initialise(layout, seed, Stream::Parameters, world.device);
    let mut adam = Adam::new(parameters.flat(), settings.betas);
    let average = Average::new(&parameters, settings.ema_half_life_samples);
    let shards = Shards::of_rank(settings.batch, compute.shards, world.rank, world.size);
    let pieces = shards.pieces(compute.reduction);
    let started = Instant::now();
    for iteration in 0..settings.iterations {
        let part = |piece| {
            let value = loss(parameters.tracked(), iteration, piece);
            let (gradient, _) = parameters.tracked().gradient(&value, &[]);
            Part { gradients: vec![gradient], statistics: vec![value.detach()] }
        };
        let reduced = reduce(world, compute.reduction, pieces.iter().map(part).collect())?;
        let gradient_norm = RunningNorm::default().clip(&reduced.gradients[0], settings.clip_norm, 0.0);
        if !gradient_norm.is_finite() || !reduced.statistics[0].is_finite() {
            return Err(TrainError::Diverged { iteration: iteration + 1, what: "loss or gradient" });
        }
        let fraction = iteration as f64 / settings.iterations as f64;
        let rise = rise(iteration, settings.warmup_updates);
        let learning_rate = settings.lr * rise * learning_rate_factor(fraction, settings.cosine_from, 0.0);
        adam.update(parameters.flat(), &reduced.gradients[0], learning_rate);
        let batch = settings.batch as f64;
        average.update(&parameters, batch, (iteration + 1) as f64 * batch);
        report(&FitRow {
            iteration: iteration + 1,
            wall_seconds: started.elapsed().as_secs_f64(),
            loss: reduced.statistics[0],
            gradient_norm,
            learning_rate,
        })?;
    }
    Ok(average.parameters)
}
