//! The probability flow of a tempered target: a deterministic map from noise to samples.

use tch::{Tensor, no_grad};

use crate::target::Target;

/// Steps of the probability flow ODE of a target that is tempered from sigma0, as DDIM takes them (Song, Meng and Ermon
/// 2021, equation 13): D = x + sigma0²·s_q(x) is the mean of clean data given x, and
/// x ← D + (sigma_next/sigma)·(x − D), over levels that fall geometrically.
#[derive(Debug, Clone, Copy)]
pub struct ProbabilityFlow {
    /// Number of steps, 1 or more.
    pub steps: u64,
    /// Noise level of the start.
    pub sigma_first: f64,
    /// Noise level after the last step; the sample is D there.
    pub sigma_last: f64,
    /// Noise level of the density that the target models.
    pub sigma0: f64,
    /// Mean of the start.
    pub start_mean: f64,
}

impl ProbabilityFlow {
    /// Evaluations of the target's gradient for one sample.
    pub fn evaluations_per_sample(&self) -> u64 {
        self.steps + 1
    }

    /// Where latents `z` `[B, …]`, standard normal, are carried; same shape, without a graph.
    pub fn run(&self, target: &dyn Target, z: &Tensor) -> Tensor {
        let denoised = |x: &Tensor| x + target.score(x).detach() * self.sigma0.powi(2);
        let ratio = (self.sigma_last / self.sigma_first).powf(1.0 / self.steps as f64);
        let mut x = z * self.sigma_first + self.start_mean;
        for _ in 0..self.steps {
            let clean = denoised(&x);
            x = no_grad(|| &clean + (&x - &clean) * ratio);
        }
        denoised(&x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Generator, Stream};
    use crate::target::Gaussian;
    use tch::{Device, Kind};

    #[test]
    fn a_point_mass_is_reached_from_anywhere_in_any_number_of_steps() {
        // Of data at m alone the density at sigma0 is N(m, sigma0²), whose D is m everywhere.
        let (m, sigma0) = (1.5, 0.1);
        let target =
            Gaussian::new(&[m, m], &[vec![0.01, 0.0], vec![0.0, 0.01]], Kind::Float, Device::Cpu).unwrap();
        let z = Generator::new(0, Stream::Evaluation, 0, 0).normal(&[10, 2]);
        for steps in [1, 5] {
            let flow = ProbabilityFlow { steps, sigma_first: 3.0, sigma_last: 0.1, sigma0, start_mean: 0.0 };
            let found = flow.run(&target, &z);
            assert!((found - m).abs().max().double_value(&[]) < 1e-4);
            assert_eq!(flow.evaluations_per_sample(), steps + 1);
        }
    }

    #[test]
    fn a_step_shrinks_what_is_noise_by_the_ratio_of_levels() {
        // For N(0, 2²) and sigma0 = 1, D = x − x/4 = 3x/4: one step from level 2 to 1 gives 3x/4 + (x/4)/2 = 7x/8, and D
        // of that is 21x/32, with x = 2z.
        let target = Gaussian::new(&[0.0], &[vec![4.0]], Kind::Float, Device::Cpu).unwrap();
        let z = Tensor::from_slice(&[1.0f32, -3.0]).unsqueeze(1);
        let flow =
            ProbabilityFlow { steps: 1, sigma_first: 2.0, sigma_last: 1.0, sigma0: 1.0, start_mean: 0.0 };
        let error = flow.run(&target, &z) - &z * (2.0 * 21.0 / 32.0);
        assert!(error.abs().max().double_value(&[]) < 1e-6);
    }
}
