//! Named mixtures of Gaussians in the plane.

use std::f64::consts::TAU;

use tch::{Device, Kind};

use crate::target::{Mixture, TargetError};

/// MOG2: means (−2, 2) and (2, −2), covariance I/2 each (COIN: log Σ exp(−|x − m|²)). `weights` empty: equal.
///
/// # Errors
/// If the weights are not two positive numbers that sum to 1.
pub fn mog2(weights: &[f64], kind: Kind, device: Device) -> Result<Mixture, TargetError> {
    Mixture::new(&[vec![-2.0, 2.0], vec![2.0, -2.0]], &[0.5f64.sqrt()], weights, kind, device)
}

/// `modes` equal Gaussians of standard deviation `deviation` on a circle of radius `radius`, the first on the x1 axis.
///
/// # Errors
/// If there is no mode or the deviation is not above 0.
pub fn ring(
    modes: usize,
    radius: f64,
    deviation: f64,
    kind: Kind,
    device: Device,
) -> Result<Mixture, TargetError> {
    let angle = |mode: usize| TAU * mode as f64 / modes as f64;
    let means: Vec<Vec<f64>> =
        (0..modes).map(|mode| vec![radius * angle(mode).cos(), radius * angle(mode).sin()]).collect();
    Mixture::new(&means, &[deviation], &[], kind, device)
}

/// GMM-40 of Midgley et al. (FAB, ICLR 2023): 40 equal Gaussians of standard deviation softplus(1) with means uniform
/// in [−40, 40]².
pub fn gmm40(kind: Kind, device: Device) -> Mixture {
    let means: Vec<Vec<f64>> = GMM40_MEANS.iter().map(|mean| mean.map(f64::from).to_vec()).collect();
    let deviation = 1f64.exp().ln_1p(); // softplus(1) = 1.3133
    Mixture::new(&means, &[deviation], &[], kind, device)
        .expect("40 means, one deviation above 0, equal weights")
}

/// Means of GMM-40: `torch.manual_seed(0); (torch.rand((40, 2)) - 0.5) * 2 * 40` in PyTorch 2.11 on the CPU, in f32.
#[rustfmt::skip]
const GMM40_MEANS: [[f32; 2]; 40] = [
    [-0.2994728, 21.457745],
    [-32.921806, -29.437561],
    [-15.406175, 10.7262945],
    [-0.7925272, 31.71558],
    [-3.5497618, 10.584502],
    [-12.088523, -7.8626156],
    [-38.21394, -26.491283],
    [-16.488924, 1.4817429],
    [15.813408, 24.000912],
    [-27.117643, -17.418514],
    [14.528685, 33.21552],
    [-8.232007, 29.93247],
    [-6.4473343, 4.232564],
    [36.219048, -37.106815],
    [-25.181519, -10.12661],
    [-15.591998, 34.56003],
    [-25.927185, -18.413315],
    [-27.945618, -37.46244],
    [-23.349619, 34.383923],
    [17.848736, 19.386902],
    [2.1036625, -20.50734],
    [6.7673874, -37.34779],
    [-28.902649, -20.6212],
    [25.237518, 23.45285],
    [-17.739801, -1.4432955],
    [25.582428, 39.765324],
    [15.875287, 5.403714],
    [26.819454, -23.552094],
    [7.453761, -31.01222],
    [-27.723446, -20.663342],
    [18.098923, 16.086416],
    [-23.6941, 12.084284],
    [21.958881, -5.0486946],
    [1.5272617, 9.268188],
    [24.815063, 38.407764],
    [-30.824944, -14.65879],
    [15.720396, 33.141975],
    [34.808292, 35.29427],
    [7.960582, -34.783306],
    [3.6797, -25.024214],
];
