//! Fitting the LeNet-5 whose features FD-LeNet is measured on.

use std::path::Path;

use tch::{Kind, Tensor, no_grad};

use super::TrainError;
use super::fit::{FitState, Job};
use super::observer::FitObserver;
use super::run::{Outcome, Stop};
use crate::comm::World;
use crate::config::FeaturesPlan;
use crate::model::{LeNet, Weights};
use crate::rng::{Shards, Stream};

/// Largest shift of a training image in pixels, in each direction.
const SHIFT: i64 = 2;

/// Fits a LeNet-5 to `images` `[N, 1, 28, 28]` in [0, 1] and `labels` `[N]` by cross-entropy, on images
/// shifted by up to two pixels, from `state` to its end or a request to stop. Checkpoints go to `checkpoints` (rank 0
/// writes).
///
/// # Errors
/// If the loss is not finite, ranks differ, a collective or the observer fails, or a checkpoint cannot be written.
pub fn fit_features(
    plan: &FeaturesPlan,
    world: &World,
    (network, images, labels): (&LeNet, &Tensor, &Tensor),
    state: &mut FitState,
    observer: &mut dyn FitObserver,
    checkpoints: &Path,
    stop: &Stop,
) -> Result<Outcome, TrainError> {
    let file = &plan.file;
    let (height, width) = (images.size()[2], images.size()[3]);
    let padded = images.constant_pad_nd([SHIFT; 4]);

    let loss = |weights: &Weights, iteration: u64, piece: &Shards| {
        let key = (file.run.seed, Stream::Data, iteration);
        let [x, y] = piece.draw(key, world.device, |generator, rows| {
            let count = (rows.end - rows.start) as usize;
            let index = Tensor::from_slice(&generator.indices(count, images.size()[0]));
            // One shift for all rows of a shard: a cheap augmentation that stays on tensors.
            let shift = generator.indices(2, 2 * SHIFT + 1);
            let x = padded.index_select(0, &index).narrow(2, shift[0], height).narrow(3, shift[1], width);
            [x.contiguous(), labels.index_select(0, &index)]
        });
        let logits = network.logits(weights, &network.features(weights, &x));
        let shares = file.train.batch as f64 / x.size()[0] as f64;
        logits.cross_entropy_for_logits(&y) / shares
    };
    let job = Job {
        settings: &file.train,
        compute: &file.compute,
        checkpoint: &file.checkpoint,
        identity: plan.identity(),
        world,
        contrast: None,
    };
    job.run(state, &loss, observer, checkpoints, stop)
}

/// Fraction of `images` `[N, 1, 28, 28]` whose class is `labels` `[N]`.
pub fn accuracy(network: &LeNet, weights: &Weights, images: &Tensor, labels: &Tensor) -> f64 {
    no_grad(|| {
        let right: i64 = images
            .split(1000, 0)
            .iter()
            .zip(labels.split(1000, 0))
            .map(|(x, y)| {
                let classes = network.logits(weights, &network.features(weights, x)).argmax(-1, false);
                classes.eq_tensor(&y).sum(Kind::Int64).int64_value(&[])
            })
            .sum();
        right as f64 / images.size()[0] as f64
    })
}
