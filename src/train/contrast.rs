//! The contrastive part of an energy's loss: noisy data against persistent chains of the energy itself.
//!
//! Denoising score matching fits the gradient where noisy data lie, and leaves open how much probability lies where: long
//! chains drift from one class into another, and into no digit at all. Chains that go on through training find where they
//! drift to, and the energy rises there and falls at the data: the gradient of the likelihood, estimated as by
//! Tieleman (2008), of the tempered energy at every noise level.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, no_grad};

use crate::config::ContrastSection;
use crate::model::{EnergyNetwork, Weights, per_row};
use crate::rng::{Generator, Shards, Stream};

/// Chains of one rank, and what they need.
pub(super) struct Contrast<'a> {
    section: &'a ContrastSection,
    network: &'a EnergyNetwork,
    images: &'a Tensor,
    seed: u64,
    batch: usize,
    device: Device,
    /// States `[chains a row, rows, C, H, W]` by the first shard of the piece whose rows they belong to: a chain belongs
    /// to a row of the global batch, so nothing of it depends on the number of ranks.
    chains: RefCell<BTreeMap<usize, Tensor>>,
}

impl<'a> Contrast<'a> {
    pub(super) fn new(
        section: &'a ContrastSection,
        network: &'a EnergyNetwork,
        images: &'a Tensor,
        (seed, batch): (u64, usize),
        device: Device,
    ) -> Self {
        Contrast { section, network, images, seed, batch, device, chains: RefCell::default() }
    }

    fn chains_a_row(&self) -> i64 {
        (self.section.chains / self.batch) as i64
    }

    /// Levels of the chains in turn `turn` of the rows of a piece, `[rows]`: strata of the band, one for each chain.
    fn levels(&self, piece: &Shards, turn: i64) -> Tensor {
        let [low, high] = self.section.sigma.map(f64::ln);
        let of_rows = piece.draw((0, Stream::Contrast, 0), Device::Cpu, |_, rows| {
            [Tensor::arange_start(rows.start, rows.end, (Kind::Float, Device::Cpu))]
        });
        let chain = &of_rows[0] * self.chains_a_row() as f64 + turn as f64 + 0.5;
        let quantile = chain / self.section.chains as f64;
        (quantile * (high - low) + low).exp().to_device(self.device)
    }

    /// Rows of data with noise of levels `sigma` `[rows]`.
    fn noisy_data(&self, piece: &Shards, key: u64, sigma: &Tensor) -> Tensor {
        let shape = &self.images.size()[1..];
        let [index, noise] =
            piece.draw((self.seed, Stream::Contrast, key), self.device, |generator, rows| {
                let count = rows.end - rows.start;
                let index = generator.indices(count as usize, self.images.size()[0]);
                [Tensor::from_slice(&index), generator.normal(&[&[count], shape].concat())]
            });
        let x = self.images.index_select(0, &index.to_device(self.images.device())).to_device(self.device);
        &x + noise * per_row(sigma, &x)
    }

    /// Sum over the rows of a piece of E(data) − E(chain), both tempered to the chain's level, after the chains have made
    /// some steps; a scalar with the graph of `weights`. `update` counts from 0.
    pub(super) fn loss(&self, weights: &Weights, update: u64, piece: &Shards) -> Tensor {
        let section = self.section;
        let turn = update as i64 % self.chains_a_row();
        let sigma = self.levels(piece, turn);
        let mut chains = self.chains.borrow_mut();
        let states = chains.entry(piece.first).or_insert_with(|| {
            let starts: Vec<Tensor> = (0..self.chains_a_row())
                .map(|turn| self.noisy_data(piece, START - turn as u64, &self.levels(piece, turn)))
                .collect();
            Tensor::stack(&starts, 0)
        });
        // Some start anew, so that what chains have found is not all that they ever find.
        let fresh = self.noisy_data(piece, KINDS * update, &sigma);
        let key = (self.seed, Stream::Contrast, KINDS * update + 1);
        let [restart] = piece.draw(key, self.device, |generator: &mut Generator, rows| {
            [generator.uniform(&[rows.end - rows.start])]
        });
        let restart = per_row(&restart.lt(section.restart), &fresh);
        let mut x = fresh.where_self(&restart, &states.select(0, turn));
        let variance = self.network.spec().sigma0.powi(2);
        let scale = per_row(&sigma, &x) * (2.0 * section.step_size).sqrt();
        for step in 0..section.steps {
            let key = (self.seed, Stream::Contrast, KINDS * update + 3 + (step << KIND_BITS));
            let [noise] = piece.draw(key, self.device, |generator, rows| {
                [generator.normal(&[&[rows.end - rows.start], &self.images.size()[1..]].concat())]
            });
            let at = x.set_requires_grad(true);
            let gradient = self.network.gradient(weights, &at, false);
            x = no_grad(|| at.detach() - gradient * (section.step_size * variance) + noise * &scale);
        }
        no_grad(|| states.select(0, turn).copy_(&x));
        // A step of size h leaves 1/(1 − h/2) of the variance of noise: the data get as much.
        let data =
            self.noisy_data(piece, KINDS * update + 2, &(&sigma / (1.0 - section.step_size / 2.0).sqrt()));
        let energy = |x: &Tensor| self.network.energy(weights, x);
        ((energy(&data) - energy(&x)) * (sigma / self.network.spec().sigma0).pow_tensor_scalar(-2)).sum(None)
    }
}

/// Kinds of random numbers in an update: restarts, which restart, data, and noise of steps, the number of the step far above.
const KINDS: u64 = 4;
const KIND_BITS: u32 = 40;

/// Starts of the chains: numbers that no update has.
const START: u64 = u64::MAX;
