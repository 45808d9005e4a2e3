//! Every target's score and Hessian-vector product against finite differences in f64.

use std::rc::Rc;

use dft::config::EnergyKind;
use dft::model::{EnergyNetwork, EnergySpec, Parameters};
use dft::rng::{Generator, Stream};
use dft::target::{Gaussian, Mixture, StartingGaussian, Target, TargetAtLevel};
use tch::{Device, Kind, Tensor};

/// An energy network in f64, which weights files do not hold.
struct DoubleEnergy {
    network: EnergyNetwork,
    parameters: Parameters,
    shape: Vec<i64>,
}

impl DoubleEnergy {
    fn new(kind: EnergyKind, width: i64) -> Self {
        let network = EnergyNetwork::new(&EnergySpec { kind, width, shape: [1, 12, 8], sigma0: 0.3 });
        let layout = Rc::clone(network.layout());
        let start = Parameters::initialise(&layout, 5, Stream::Parameters, Device::Cpu);
        let parameters = Parameters::from_flat(&layout, start.flat().to_kind(Kind::Double));
        DoubleEnergy { network, parameters, shape: vec![1, 12, 8] }
    }
}

impl Target for DoubleEnergy {
    fn shape(&self) -> &[i64] {
        &self.shape
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        -self.network.energy(self.parameters.frozen(), x)
    }
}

fn normal(shape: &[i64], number: u64) -> Tensor {
    Generator::new(9, Stream::Exact, number, 0).normal(shape).to_kind(Kind::Double)
}

/// Central differences along a random direction, step 1e-5: error of order 1e-10 from the step and 1e-11
/// relative from rounding.
fn assert_derivatives_hold(target: &dyn Target) {
    let shape = [&[3], target.shape()].concat();
    let (x, along, direction) = (normal(&shape, 0), normal(&shape, 1), normal(&shape, 2));
    let step = 1e-5;
    let ends = [&x + &along * step, &x - &along * step];
    let close = |found: &Tensor, expected: &Tensor, what: &str| {
        let error = (found - expected).abs().max().double_value(&[]);
        let scale = expected.abs().max().double_value(&[]) + 1.0;
        assert!(error < 1e-6 * scale, "{what}: {found:?} for {expected:?}");
    };
    let rows = |t: Tensor| t.flatten(1, -1).sum_dim_intlist(1i64, false, None);

    let slope = (target.log_density(&ends[0]) - target.log_density(&ends[1])) / (2.0 * step);
    let score = target.score(&x);
    close(&rows(&score * &along), &slope, "score");

    // The Hessian is symmetric: along·H·v is the slope of v·score along the direction.
    let (again, product) = target.score_and_product(&x, &mut |_| direction.shallow_clone());
    let slope = rows((target.score(&ends[0]) - target.score(&ends[1])) * &direction) / (2.0 * step);
    close(&rows(&product * &along), &slope, "Hessian-vector product");
    assert!(again.allclose(&score, 1e-12, 1e-12, false));
}

#[test]
fn gaussian_score_and_product_match_finite_differences() {
    let covariance = [vec![0.5, 0.2], vec![0.2, 1.5]];
    assert_derivatives_hold(&Gaussian::new(&[1.0, -2.0], &covariance, Kind::Double, Device::Cpu).unwrap());
}

#[test]
fn unet_energy_score_and_product_match_finite_differences() {
    assert_derivatives_hold(&DoubleEnergy::new(EnergyKind::Unet, 4));
}

#[test]
fn resnet_energy_score_and_product_match_finite_differences() {
    assert_derivatives_hold(&DoubleEnergy::new(EnergyKind::Resnet, 4));
}

#[test]
fn paper_size_resnet_has_nine_million_parameters_at_32_pixels() {
    // 9.06 M is what the public F-MNIST configuration of the same network (64 channels, 32 × 32) counts.
    let network = EnergyNetwork::new(&EnergySpec {
        kind: EnergyKind::Resnet,
        width: 64,
        shape: [1, 32, 32],
        sigma0: 0.1,
    });
    let millions = network.layout().len() as f64 / 1e6;
    assert!((millions - 9.06).abs() < 0.01, "{millions}");
}

#[test]
fn exact_gaussian_samples_obey_stein_identities() {
    // E[s] = 0 and E[x_i s_i] = −1 for every density; standard errors at n = 40,000 are below 0.02.
    let covariance = [vec![0.5, 0.2], vec![0.2, 1.5]];
    let target = Gaussian::new(&[1.0, -2.0], &covariance, Kind::Double, Device::Cpu).unwrap();
    let mut generator = Generator::new(1, Stream::Exact, 0, 0);
    let x = target.exact_samples(&mut generator, 40_000).unwrap();
    let s = target.score(&x);
    for i in 0..2 {
        let (x, s) = (x.select(1, i), s.select(1, i));
        assert!(s.mean(None).double_value(&[]).abs() < 0.05);
        assert!(((x * s).mean(None).double_value(&[]) + 1.0).abs() < 0.1);
    }
}

#[test]
fn tempered_score_is_scaled_by_the_square_of_sigma0_over_sigma() {
    // (sigma0/sigma)² of the score, and of the product for a fixed direction.
    let gaussian = || {
        let covariance = [vec![0.5, 0.2], vec![0.2, 1.5]];
        Box::new(Gaussian::new(&[1.0, -2.0], &covariance, Kind::Double, Device::Cpu).unwrap())
    };
    let target = TargetAtLevel::new(gaussian(), Some(0.1));
    let target = target.on_path(StartingGaussian { offset: 0.0, scale: 1.0 }, 1.0);
    let (x, v) = (normal(&[2, 2], 0), normal(&[2, 2], 1));
    let sigma = Tensor::from_slice(&[0.1, 0.2]);
    let factor = Tensor::from_slice(&[1.0, 0.25]).view([2, 1]);
    let (score, product) = target.score_and_product(&x, &sigma, &mut |_| v.shallow_clone());
    let (plain, plain_product) = gaussian().score_and_product(&x, &mut |_| v.shallow_clone());
    assert!(score.allclose(&(plain * &factor), 1e-12, 1e-12, false));
    assert!(product.allclose(&(plain_product * &factor), 1e-12, 1e-12, false));
    assert!(target.score(&x, &sigma).allclose(&score, 1e-12, 1e-12, false));
}

#[test]
fn smoothed_score_of_a_gaussian_is_exact_with_few_probes() {
    // N(m, c² I) with noise is N(m, (c² + sigma²) I); there the two estimates differ by a multiple of the noise alone,
    // so the control variate removes it whatever the probes, as long as two of them count.
    let (mean, variance) = ([0.5, -1.0], 0.49);
    let covariance = [vec![variance, 0.0], vec![0.0, variance]];
    let gaussian = Gaussian::new(&mean, &covariance, Kind::Double, Device::Cpu).unwrap();
    let target = TargetAtLevel::new(Box::new(gaussian), None);
    let target = target.on_path(StartingGaussian { offset: 0.0, scale: 1.0 }, 1.0);
    let mut generator = Generator::new(3, Stream::Exact, 0, 0);
    let x = generator.normal(&[5, 2]).to_kind(Kind::Double);
    let sigma = Tensor::from_slice(&[0.05, 0.3, 1.0, 4.0, 20.0]);
    let probes = generator.normal(&[5, 8, 2]).to_kind(Kind::Double);
    let wanted = (Tensor::from_slice(&mean) - &x) / (sigma.square() + variance).unsqueeze(1);
    let found = target.smoothed_score(&x, &sigma, &probes);
    // Over 29 deviations one probe of eight, that nearest to the mean, has all of the weight: nothing shows how the
    // estimates vary, and Tweedie's remains, the noise of that probe over sigma.
    let distance = (x.get(4) + probes.get(4) * 20.0 - Tensor::from_slice(&mean)).square();
    let nearest = distance.sum_dim_intlist(1i64, false, None).argmin(None, false).int64_value(&[]);
    wanted.get(4).copy_(&(probes.get(4).get(nearest) / 20.0));
    let error = ((&found - &wanted) / &wanted).abs().max().double_value(&[]);
    assert!(error < 1e-5, "relative error {error:e}");
}

#[test]
fn smoothed_score_of_a_mixture_tends_to_its_closed_form() {
    // Components N(m_k, d² I) with noise are N(m_k, (d² + sigma²) I).
    let means = [vec![-3.0, 0.0], vec![3.0, 1.0], vec![0.0, 4.0]];
    let mixture = |variance: f64| {
        Mixture::new(&means, &[variance.sqrt()], &[0.5, 0.2, 0.3], Kind::Double, Device::Cpu).unwrap()
    };
    let target = TargetAtLevel::new(Box::new(mixture(0.5)), None);
    let target = target.on_path(StartingGaussian { offset: 0.0, scale: 1.0 }, 1.0);
    let mut generator = Generator::new(4, Stream::Exact, 0, 0);
    for sigma in [0.2, 1.0, 3.0] {
        let x = generator.normal(&[50, 2]).to_kind(Kind::Double) * 2.0;
        let wanted = mixture(0.5 + sigma * sigma).score(&x);
        let error = |count: i64, generator: &mut Generator| {
            let probes = generator.normal(&[50, count, 2]).to_kind(Kind::Double);
            let levels = Tensor::full([50], sigma, (Kind::Double, Device::Cpu));
            let found = target.smoothed_score(&x, &levels, &probes);
            ((found - &wanted) * sigma).square().mean(Kind::Double).sqrt().double_value(&[])
        };
        // In units of the noise's own score, which is 1/sigma; 64 times as many probes err about an eighth.
        let (few, many) = (error(64, &mut generator), error(4096, &mut generator));
        assert!(many < 0.05 && many < few / 2.0, "sigma {sigma}: {few} with 64 probes, {many} with 4096");
    }
}
