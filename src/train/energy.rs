//! Fitting an energy network to images by multi-scale denoising score matching.

use std::path::Path;

use tch::Tensor;

use super::TrainError;
use super::contrast::Contrast;
use super::fit::{FitState, Job};
use super::observer::FitObserver;
use super::run::{Outcome, Stop};
use crate::comm::World;
use crate::config::{EnergyPlan, EnergySection};
use crate::model::{EnergyNetwork, EnergySpec, Weights, per_row};
use crate::rng::{Shards, Stream};

/// The network of an energy of `images` `[N, C, H, W]`.
///
/// # Panics
/// If `images` has other dimensions.
pub fn energy_network(section: &EnergySection, images: &Tensor) -> EnergyNetwork {
    let [_, c, h, w] = images.size()[..] else { panic!("images are [N, C, H, W]") };
    EnergyNetwork::new(&EnergySpec {
        kind: section.kind,
        width: section.width,
        shape: [c, h, w],
        sigma0: section.sigma0,
    })
}

/// Fits an energy to `images` `[N, C, H, W]` in [0, 1], from `state` to its end or a request to stop.
///
/// Loss of a row: |sigma0² ∇E(x + sigma·n) − sigma·n|²/sigma², sigma log-uniform in the band and stratified
/// over the batch, so that ∇E(x̃) ≈ (x̃ − x)/sigma0² at every level (Li, Chen and Sommer 2019, arXiv
/// 1910.07762); times the weight of the level, if the section has one. With a contrast the mean difference of energies
/// between noisy data and chains comes on top. Checkpoints go to `checkpoints` (rank 0 writes).
///
/// # Errors
/// If the loss is not finite, ranks differ, a collective or the observer fails, or a checkpoint cannot be written.
pub fn fit_energy(
    plan: &EnergyPlan,
    world: &World,
    (network, images): (&EnergyNetwork, &Tensor),
    state: &mut FitState,
    observer: &mut dyn FitObserver,
    checkpoints: &Path,
    stop: &Stop,
) -> Result<Outcome, TrainError> {
    let file = &plan.file;
    let [c, h, w] = network.spec().shape;
    let variance = network.spec().sigma0.powi(2);
    let [low, high] = file.energy.sigma;
    let batch = file.train.batch as f64;
    let weight = LevelWeight::new(&file.energy);
    let key = (file.run.seed, file.train.batch);
    let contrast = file.contrast.as_ref().map(|c| Contrast::new(c, network, images, key, world.device));
    let (contrast_from, contrast_weight) = match &file.contrast {
        Some(section) => ((section.from * file.train.iterations as f64) as u64, section.weight),
        None => (file.train.iterations, 0.0),
    };

    let loss = |weights: &Weights, iteration: u64, piece: &Shards| {
        let key = (file.run.seed, Stream::Data, iteration);
        let [index, noise, sigma] = piece.draw(key, world.device, |generator, rows| {
            let count = rows.end - rows.start;
            let index = Tensor::from_slice(&generator.indices(count as usize, images.size()[0]));
            let noise = generator.normal(&[count, c, h, w]);
            [index, noise, generator.stratified_levels((low, high), rows, file.train.batch)]
        });
        let x = images.index_select(0, &index.to_device(images.device())).to_device(world.device);
        let shift = noise * per_row(&sigma, &x);
        let noisy = (x + &shift).set_requires_grad(true);
        let gradient = network.gradient(weights, &noisy, true);
        let residual = (gradient * variance - shift) / per_row(&sigma, &noisy);
        let denoising = (residual.square() * per_row(&weight.of(&sigma), &noisy)).sum(None) / batch;
        match contrast.iter().find(|_| iteration >= contrast_from) {
            Some(contrast) => {
                let update = iteration - contrast_from;
                denoising + contrast.loss(weights, update, piece) * (contrast_weight / batch)
            }
            None => denoising,
        }
    };
    let job = Job {
        settings: &file.train,
        compute: &file.compute,
        checkpoint: &file.checkpoint,
        identity: plan.identity(),
        world,
        contrast: contrast.as_ref(),
    };
    job.run(state, &loss, observer, checkpoints, stop)
}

/// The weight (1 + sigma²/sigma_data²)^p of a level, over its mean over the band.
struct LevelWeight {
    power: f64,
    sigma_data: f64,
    mean: f64,
}

/// Points of a band, spaced as the levels are drawn, over which the mean of the weight is taken.
const BAND_POINTS: u32 = 1000;

impl LevelWeight {
    fn new(section: &EnergySection) -> Self {
        let EnergySection { sigma: [low, high], weight_power: power, sigma_data, .. } = *section;
        let level = |i| low * (high / low).powf((f64::from(i) + 0.5) / f64::from(BAND_POINTS));
        let weight = |sigma: f64| (1.0 + (sigma / sigma_data).powi(2)).powf(power);
        let mean = (0..BAND_POINTS).map(level).map(weight).sum::<f64>() / f64::from(BAND_POINTS);
        LevelWeight { power, sigma_data, mean }
    }

    /// Of levels `[B]`.
    fn of(&self, sigma: &Tensor) -> Tensor {
        ((sigma / self.sigma_data).square() + 1.0).pow_tensor_scalar(self.power) / self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EnergyKind;
    use tch::Kind;

    #[test]
    fn weight_of_a_level_is_one_on_average_and_one_everywhere_at_power_zero() {
        let section = |weight_power| EnergySection {
            kind: EnergyKind::Unet,
            width: 4,
            sigma0: 0.1,
            sigma: [0.05, 3.0],
            weight_power,
            sigma_data: 0.33,
        };
        // Log-uniform levels, a grid of their own.
        let levels =
            (Tensor::linspace(0.05f64.ln(), 3f64.ln(), 100_001, (Kind::Double, tch::Device::Cpu))).exp();
        assert!((LevelWeight::new(&section(0.0)).of(&levels) - 1.0).abs().max().double_value(&[]) < 1e-12);
        let weights = LevelWeight::new(&section(1.0)).of(&levels);
        assert!((weights.mean(None).double_value(&[]) - 1.0).abs() < 1e-3);
        // (1 + 0.66²/0.33²) / (1 + 0.33²/0.33²) = 5/2.
        let two = LevelWeight::new(&section(1.0)).of(&Tensor::from_slice(&[0.66, 0.33]));
        assert!((two.double_value(&[0]) / two.double_value(&[1]) - 2.5).abs() < 1e-12);
    }
}
