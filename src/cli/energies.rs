//! Energies of samples under the model, beside those of long chains. Samples that follow the energy have theirs; that they do is no
//! proof, as one class can have them too.

use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};

use super::summary::Score;
use crate::comm::World;
use crate::metric::{chunks, sum_over_chunks, w1};
use crate::rng::{Generator, Stream};
use crate::target::{Target, TargetAtLevel};

/// Name of the score in records.
pub const METRIC: &str = "energy_w1";

/// Noise of the samples, as the iteration of its stream: it belongs to the metric, not to a run.
const NOISE: u64 = 6;

/// A tempered target, as energies of its samples are read.
///
/// exp(−E) is the density of samples with noise sigma0, and samplers hand out clean ones: they get that noise here, the same
/// for all.
pub struct EnergyGauge<'a> {
    target: &'a dyn Target,
    sigma0: f64,
}

impl<'a> EnergyGauge<'a> {
    /// `None` for targets that are not tempered, whose samples are what they are.
    pub fn new(target: &'a TargetAtLevel) -> Option<Self> {
        target.tempered_from().map(|sigma0| EnergyGauge { target: target.target(), sigma0 })
    }

    /// Energies `[rows]` of the clean samples `x` `[rows, …]` of chunk `chunk`, in nats, up to the constant that nobody knows;
    /// f64 on the CPU.
    pub fn of_chunk(&self, chunk: u64, x: &Tensor) -> Tensor {
        let noise = Generator::new(0, Stream::Exact, NOISE, chunk).normal(&x.size()).to_device(x.device());
        let energies = no_grad(|| -self.target.log_density(&(x + noise * self.sigma0)));
        energies.to_kind(Kind::Double).to_device(Device::Cpu)
    }

    /// Of all samples `x` `[rows, …]`, on this rank alone.
    pub fn of(&self, x: &Tensor, device: Device) -> Tensor {
        let of_chunk = |(chunk, (first, rows)): (usize, &(i64, i64))| {
            self.of_chunk(chunk as u64, &x.narrow(0, *first, *rows).to_device(device))
        };
        Tensor::cat(&places(x.size()[0]).iter().enumerate().map(of_chunk).collect::<Vec<_>>(), 0)
    }
}

/// First row and number of rows of each chunk of `rows`.
fn places(rows: i64) -> Vec<(i64, i64)> {
    let starts = chunks(rows).scan(0, |next, (_, count)| {
        *next += count;
        Some((*next - count, count))
    });
    starts.collect()
}

/// Energies of the chunks that one rank has drawn.
#[derive(Default)]
pub struct DrawnEnergies(Vec<(u64, Tensor)>);

impl DrawnEnergies {
    /// Reads those of one more chunk.
    pub fn read(&mut self, gauge: &EnergyGauge, chunk: u64, x: &Tensor) {
        self.0.push((chunk, gauge.of_chunk(chunk, x)));
    }

    /// Those of all `rows` samples, `[rows]`, on every rank.
    ///
    /// # Errors
    /// If a collective fails.
    pub fn gathered(self, rows: i64, world: &World) -> Result<Tensor> {
        let (mut own, places) = (self.0.into_iter(), places(rows));
        // Every number is one rank's, and the zeros of the others leave it as it is.
        Ok(sum_over_chunks(rows, rows, world, |chunk, _| {
            let whole = Tensor::zeros([rows], (Kind::Double, Device::Cpu));
            let (drawn, energies) = own.next().expect("a rank reads each of its chunks");
            assert_eq!(drawn, chunk, "in their order");
            let (first, count) = places[chunk as usize];
            whole.narrow(0, first, count).copy_(&energies);
            whole
        })?)
    }
}

/// How far the energies of samples are from those of long chains, and those of as many real samples beside it: their
/// 1-Wasserstein distance, in standard deviations of the chains'. `None` where energies are not finite.
pub fn energy_score(energies: &[f64], real: &[f64], chains: &[f64]) -> Option<Score> {
    let n = chains.len() as f64;
    let mean = chains.iter().sum::<f64>() / n;
    let deviation = (chains.iter().map(|energy| (energy - mean).powi(2)).sum::<f64>() / n).sqrt();
    let distance = |energies: &[f64]| w1(energies, chains) / deviation;
    let (value, floor) = (distance(energies), distance(real));
    (value.is_finite() && floor.is_finite()).then_some(Score {
        value,
        deviation: None,
        floor: Some(floor),
        floor_deviation: None,
        samples: energies.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TargetSection;
    use crate::target::load_exact;

    #[test]
    fn energies_are_those_of_samples_with_noise_of_their_chunk_and_all_chunks_come_in_their_order() {
        // E = |x|²/2 and a constant, of a standard normal in the plane.
        let section = TargetSection::Gaussian {
            mean: Some(vec![0.0, 0.0]),
            covariance: Some(vec![vec![1.0, 0.0], vec![0.0, 1.0]]),
        };
        let normal = load_exact(&section, Kind::Float, Device::Cpu).unwrap();
        let target = TargetAtLevel::new(normal, Some(0.5));
        let gauge = EnergyGauge::new(&target).unwrap();
        let x = Generator::new(1, Stream::Exact, 0, 0).normal(&[150, 2]);
        let noise = [(0, 100), (1, 50)]
            .map(|(chunk, rows)| Generator::new(0, Stream::Exact, NOISE, chunk).normal(&[rows, 2]));
        let noisy = (&x + Tensor::cat(&noise, 0) * 0.5).to_kind(Kind::Double);
        let expected = noisy.square().sum_dim_intlist(1i64, false, None) / 2.0;
        let found = gauge.of(&x, Device::Cpu);
        let constant = &found - expected;
        assert!((&constant - constant.get(0)).abs().max().double_value(&[]) < 1e-5, "{constant:?}");
        let mut drawn = DrawnEnergies::default();
        drawn.read(&gauge, 0, &x.narrow(0, 0, 100));
        drawn.read(&gauge, 1, &x.narrow(0, 100, 50));
        assert_eq!(drawn.gathered(150, &World::solo(Device::Cpu)).unwrap(), found);
        assert!(
            EnergyGauge::new(&TargetAtLevel::new(
                load_exact(&section, Kind::Float, Device::Cpu).unwrap(),
                None
            ))
            .is_none()
        );
    }

    #[test]
    fn energies_a_deviation_apart_score_one() {
        let chains = [-3.0, -1.0, 1.0, 3.0]; // a deviation of sqrt(5)
        let apart = chains.map(|energy| energy + 5f64.sqrt());
        let score = energy_score(&apart, &chains, &chains).unwrap();
        assert!((score.value - 1.0).abs() < 1e-12 && score.floor == Some(0.0), "{score:?}");
        assert!(energy_score(&[f64::NAN], &chains, &chains).is_none());
    }
}
