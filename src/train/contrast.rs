//! The contrastive part of an energy's loss: noisy data against persistent chains of the energy itself.
//!
//! Denoising score matching fits the gradient where noisy data lie, and leaves open how much probability lies where: long
//! chains drift from one class into another, and into no digit at all. Chains that go on through training find where they
//! drift to, and the energy rises there and falls at the data: the gradient of the likelihood, estimated as by
//! Tieleman (2008), of the tempered energy at every noise level.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, no_grad};

use crate::comm::{CommError, World};
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
    /// States `[chains a row, rows, C, H, W]` by the first of their rows: a chain belongs to a row of the global batch, so
    /// nothing of it depends on the number of ranks.
    chains: RefCell<BTreeMap<i64, Tensor>>,
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

    /// Goes on with the chains that [`collect`](Self::collect) gave, those of this rank's pieces.
    pub(super) fn restore(&self, chains: &Tensor, pieces: &[Shards]) {
        let own = pieces.iter().map(|piece| {
            let first = (piece.first * piece.rows) as i64;
            (first, chains.narrow(1, first, (piece.count * piece.rows) as i64).copy())
        });
        self.chains.borrow_mut().extend(own);
    }

    /// The chains of all ranks, `[chains a row, batch, C, H, W]`, on every rank; none before their first update. All ranks
    /// must call it.
    pub(super) fn collect(&self, world: &World) -> Result<Option<Tensor>, CommError> {
        let chains = self.chains.borrow();
        let Some(first) = chains.values().next() else {
            return Ok(None); // on all ranks alike
        };
        let mut size = first.size();
        size[1] = self.batch as i64;
        // Every row is one rank's, and the zeros of the others leave it as it is.
        let mut whole = Tensor::zeros(&size, (first.kind(), first.device()));
        for (row, states) in chains.iter() {
            whole.narrow(1, *row, states.size()[1]).copy_(states);
        }
        world.collective().all_reduce_sum(&mut whole)?;
        Ok(Some(whole))
    }

    fn chains_a_row(&self) -> i64 {
        (self.section.chains / self.batch) as i64
    }

    /// Levels of the chains in turn `turn` of the rows of a piece, `[rows]`: strata of the band, one for each chain.
    fn levels(&self, piece: &Shards, turn: i64) -> Tensor {
        let [low, high] = self.section.sigma.map(f64::ln);
        let first = (piece.first * piece.rows) as i64;
        let rows = first..first + (piece.count * piece.rows) as i64;
        let rows = Tensor::arange_start(rows.start, rows.end, (Kind::Float, Device::Cpu));
        let chain = rows * self.chains_a_row() as f64 + turn as f64 + 0.5;
        let quantile = chain / self.section.chains as f64;
        (quantile * (high - low) + low).exp().to_device(self.device)
    }

    /// Rows of data with noise of levels `sigma` `[rows]`.
    fn noisy_data(&self, piece: &Shards, numbers: Numbers, sigma: &Tensor) -> Tensor {
        let shape = &self.images.size()[1..];
        let [index, noise] =
            piece.draw((self.seed, Stream::Contrast, numbers.key()), self.device, |generator, rows| {
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
        let first = (piece.first * piece.rows) as i64;
        let states = chains.entry(first).or_insert_with(|| {
            let starts: Vec<Tensor> = (0..self.chains_a_row())
                .map(|turn| self.noisy_data(piece, Numbers::Start(turn as u64), &self.levels(piece, turn)))
                .collect();
            Tensor::stack(&starts, 0)
        });
        // Some start anew, so that what chains have found is not all that they ever find.
        let fresh = self.noisy_data(piece, Numbers::Restart(update), &sigma);
        let key = (self.seed, Stream::Contrast, Numbers::Which(update).key());
        let [restart] = piece.draw(key, self.device, |generator: &mut Generator, rows| {
            [generator.uniform(&[rows.end - rows.start])]
        });
        let restart = per_row(&restart.lt(section.restart), &fresh);
        let mut x = fresh.where_self(&restart, &states.select(0, turn));
        let variance = self.network.spec().sigma0.powi(2);
        let scale = per_row(&sigma, &x) * (2.0 * section.step_size).sqrt();
        for step in 0..section.steps {
            let key = (self.seed, Stream::Contrast, Numbers::Step(update, step).key());
            let [noise] = piece.draw(key, self.device, |generator, rows| {
                [generator.normal(&[&[rows.end - rows.start], &self.images.size()[1..]].concat())]
            });
            let gradient = match self.network.by_hand(weights, &x, None) {
                Some(by_hand) => by_hand.gradient,
                None => self.network.gradient(weights, &x.detach().set_requires_grad(true), false),
            };
            x = no_grad(|| &x - gradient * (section.step_size * variance) + noise * &scale);
        }
        no_grad(|| states.select(0, turn).copy_(&x));
        // A step of size h leaves 1/(1 − h/2) of the variance of noise: the data get as much.
        let widened = &sigma / (1.0 - section.step_size / 2.0).sqrt();
        let data = self.noisy_data(piece, Numbers::Data(update), &widened);
        let energy = |x: &Tensor| self.network.energy(weights, x);
        ((energy(&data) - energy(&x)) * (sigma / self.network.spec().sigma0).pow_tensor_scalar(-2)).sum(None)
    }
}

/// What random numbers are for, by update or turn.
enum Numbers {
    /// States from which a chain starts anew.
    Restart(u64),
    /// Which chains do.
    Which(u64),
    /// Data that the chains are contrasted with.
    Data(u64),
    /// A step of the chains, by its number.
    Step(u64, u64),
    /// The first states of the chains of a turn.
    Start(u64),
}

/// Steps in an update differ far above the bits of its number.
const STEP_SHIFT: u32 = 40;

impl Numbers {
    /// The iteration of their stream: different for all.
    fn key(&self) -> u64 {
        match self {
            Numbers::Restart(update) => 4 * update,
            Numbers::Which(update) => 4 * update + 1,
            Numbers::Data(update) => 4 * update + 2,
            Numbers::Step(update, step) => 4 * update + 3 + (step << STEP_SHIFT),
            Numbers::Start(turn) => u64::MAX - turn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EnergyKind;
    use crate::model::{EnergySpec, Parameters};

    const BATCH: usize = 4;
    const WHOLE: Shards = Shards { first: 0, count: 2, rows: 2 };

    fn network() -> EnergyNetwork {
        EnergyNetwork::new(&EnergySpec { kind: EnergyKind::Unet, width: 2, shape: [1, 4, 4], sigma0: 0.1 })
    }

    fn images() -> Tensor {
        Generator::new(1, Stream::Split, 0, 0).uniform(&[10, 1, 4, 4])
    }

    fn section(chains: usize, restart: f64) -> ContrastSection {
        ContrastSection { chains, restart, steps: 3, step_size: 1e-3, ..ContrastSection::default() }
    }

    #[test]
    fn levels_of_all_turns_are_one_in_each_stratum_of_the_band() {
        let (section, network, images) = (section(12, 0.0), network(), images());
        let contrast = Contrast::new(&section, &network, &images, (0, BATCH), Device::Cpu);
        let levels: Vec<Tensor> = (0..3).map(|turn| contrast.levels(&WHOLE, turn)).collect();
        let (sorted, _) = Tensor::cat(&levels, 0).log().sort(0, false);
        let [low, high] = section.sigma.map(f64::ln);
        let expected = (Tensor::arange(12, (Kind::Float, Device::Cpu)) + 0.5) / 12.0 * (high - low) + low;
        assert!((sorted - expected).abs().max().double_value(&[]) < 1e-5);
        // A rank that owns the second shard has its rows' levels.
        let part = contrast.levels(&Shards { first: 1, count: 1, rows: 2 }, 1);
        assert_eq!(part, levels[1].narrow(0, 2, 2));
    }

    #[test]
    fn chains_go_on_where_their_last_turn_ended_unless_they_start_anew() {
        let (network, images) = (network(), images());
        let parameters = Parameters::initialise(network.layout(), 0, Stream::Parameters, Device::Cpu);
        let states = |contrast: &Contrast| contrast.chains.borrow()[&0].copy();
        for restart in [0.0, 1.0] {
            let section = section(2 * BATCH, restart);
            let contrast = Contrast::new(&section, &network, &images, (0, BATCH), Device::Cpu);
            let update = |number| {
                let _ = contrast.loss(parameters.tracked(), number, &WHOLE);
                states(&contrast)
            };
            let (first, second) = (update(0), update(1));
            // Turns alternate: each update moves its own half of the chains.
            assert_eq!(first.select(0, 0), second.select(0, 0));
            assert_ne!(first.select(0, 1), second.select(0, 1));
            // Steps this small leave a chain beside where it began.
            let third = update(2).select(0, 0);
            let fresh = contrast.noisy_data(&WHOLE, Numbers::Restart(2), &contrast.levels(&WHOLE, 0));
            let began = if restart == 1.0 { fresh } else { second.select(0, 0) };
            let moved = (&third - began).abs().max().double_value(&[]);
            assert!(moved > 0.0 && moved < 0.5, "{moved}");
        }
    }

    #[test]
    fn gradient_lowers_the_energy_of_data_and_raises_that_of_chains_each_over_its_temperature() {
        let (section, network, images) = (section(BATCH, 0.0), network(), images());
        let parameters = Parameters::initialise(network.layout(), 0, Stream::Parameters, Device::Cpu);
        let contrast = Contrast::new(&section, &network, &images, (0, BATCH), Device::Cpu);
        let weights = parameters.tracked();
        let (found, _) = weights.gradient(&contrast.loss(weights, 0, &WHOLE), &[]);
        // Again from what the update left: its data, and the states of its chains.
        let sigma = contrast.levels(&WHOLE, 0);
        let data = contrast.noisy_data(&WHOLE, Numbers::Data(0), &(&sigma / (1.0f64 - 0.5e-3).sqrt()));
        let states = contrast.chains.borrow()[&0].select(0, 0);
        let temperature = (&sigma / 0.1).square();
        let mean = |x: &Tensor| (network.energy(weights, x) / &temperature).sum(None);
        let (of_data, _) = weights.gradient(&mean(&data), &[]);
        let (of_chains, _) = weights.gradient(&mean(&states), &[]);
        let expected = of_data - of_chains;
        let error = (&found - &expected).abs().max().double_value(&[]);
        assert!(error < 1e-4 * expected.abs().max().double_value(&[]), "{error}");
    }
}
