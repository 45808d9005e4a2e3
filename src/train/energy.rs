//! Fitting an energy network to images by multi-scale denoising score matching.

use tch::Tensor;

use super::TrainError;
use super::fit::fit;
use super::observer::FitRow;
use crate::comm::World;
use crate::config::EnergyPlan;
use crate::model::{EnergyNetwork, EnergySpec, Parameters, Weights, per_row};
use crate::rng::{Shards, Stream};

/// Fits an energy to `images` `[N, C, H, W]` in [0, 1] and returns the network with its averaged weights.
///
/// Loss of a row: |sigma0² ∇E(x + sigma·n) − sigma·n|²/sigma², sigma log-uniform in the band and stratified
/// over the batch, so that ∇E(x̃) ≈ (x̃ − x)/sigma0² at every level (Li, Chen and Sommer 2019, arXiv
/// 1910.07762). `report` is called on every rank after each update.
///
/// # Errors
/// If the loss is not finite, a collective fails, or `report` fails.
pub fn fit_energy(
    plan: &EnergyPlan,
    world: &World,
    images: &Tensor,
    report: &mut dyn FnMut(&FitRow) -> anyhow::Result<()>,
) -> Result<(EnergyNetwork, Parameters), TrainError> {
    let file = &plan.file;
    let [_, c, h, w] = images.size()[..] else { panic!("images are [N, C, H, W]") };
    let section = &file.energy;
    let spec =
        EnergySpec { kind: section.kind, width: section.width, shape: [c, h, w], sigma0: section.sigma0 };
    let network = EnergyNetwork::new(&spec);
    let [low, high] = section.sigma;
    let batch = file.train.batch as f64;

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
        let residual = (gradient * spec.sigma0.powi(2) - shift) / per_row(&sigma, &noisy);
        residual.square().sum(None) / batch
    };
    let seed = file.run.seed;
    let parameters = fit((&file.train, &file.compute), seed, world, network.layout(), &loss, report)?;
    Ok((network, parameters))
}
