//! The fields against independent mathematics: quadrature, the paper's two-term loss by autograd, and the
//! optimum of a linear Gaussian sampler. All in f64, without training noise.

use dft::config::{FieldKind, MethodSection, ScoreWeight, SigmaPath, Variance};
use dft::method::{Perturbed, ScoreAt, TargetAt, field, sampler_field, score_loss, score_loss_and_products};
use dft::model::{Parameters, ScoreNetwork, ScoreSpec};
use dft::rng::{Generator, Stream};
use dft::target::{Gaussian, Target, TargetAtLevel};
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// log of an equal mixture of N(m_k, v) at `x` `[R]`.
fn log_mixture(x: &Tensor, means: &Tensor, variance: f64) -> Tensor {
    let distance = (x.unsqueeze(1) - means.unsqueeze(0)).square();
    let constant = -0.5 * (2.0 * std::f64::consts::PI * variance).ln() - (means.numel() as f64).ln();
    (distance * (-0.5 / variance)).logsumexp(1i64, false) + constant
}

/// Score of a density in one dimension and its derivative times `direction`(score), both by autograd.
fn score_and_product(
    log_density: &dyn Fn(&Tensor) -> Tensor,
    x: &Tensor,
    direction: &dyn Fn(&Tensor) -> Tensor,
) -> (Tensor, Tensor) {
    let x = x.detach().set_requires_grad(true);
    let score = Tensor::run_backward(&[log_density(&x).sum(None)], &[&x], true, true).remove(0);
    let along = (&score * direction(&score.detach())).sum(None);
    let product = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
    (score.detach(), product)
}

/// The setting of the gradient identity: a sampler of four atoms g(z) = a + b z + c z², its exact noisy
/// density, and a target with two modes.
struct Atoms {
    theta: Tensor,
    z: Tensor,
    sigma: f64,
    target_means: Tensor,
}

impl Atoms {
    fn new() -> Self {
        Atoms {
            theta: Tensor::from_slice(&[0.3, 0.8, -0.2]).set_requires_grad(true),
            z: Tensor::from_slice(&[-1.5, -0.4, 0.5, 1.3]),
            sigma: 0.5,
            target_means: Tensor::from_slice(&[-1.0, 1.4]),
        }
    }

    fn atoms(&self) -> Tensor {
        let [a, b, c] = [0, 1, 2].map(|i| self.theta.get(i));
        a + b * &self.z + c * self.z.square()
    }

    fn log_target(&self, x: &Tensor) -> Tensor {
        log_mixture(x, &self.target_means, 0.6)
    }

    /// DFD(θ) = ∫ p (s_q − s)² dx by the trapezoid rule, differentiable in θ; and its gradient.
    fn divergence_by_quadrature(&self) -> (f64, Tensor) {
        let x = Tensor::linspace(-9.0, 9.0, 6001, DOUBLE).set_requires_grad(true);
        let atoms = self.atoms();
        let log_p = log_mixture(&x, &atoms, self.sigma * self.sigma);
        let s = Tensor::run_backward(&[log_p.sum(None)], &[&x], true, true).remove(0);
        let log_q = self.log_target(&x);
        let s_q = Tensor::run_backward(&[log_q.sum(None)], &[&x], true, true).remove(0);
        let divergence = (log_p.exp() * (s_q - s).square()).sum(None) * (18.0 / 6000.0);
        let gradient = Tensor::run_backward(&[&divergence], &[&self.theta], false, false).remove(0);
        (divergence.double_value(&[]), gradient)
    }

    /// E[field · dg/dθ] over atoms and noise, the noise by the trapezoid rule on ±8 standard deviations.
    fn pulled_back(&self, kind: FieldKind) -> Tensor {
        let steps = 4001i64;
        let eps = Tensor::linspace(-8.0, 8.0, steps, DOUBLE);
        let weight =
            (eps.square() * -0.5).exp() * (16.0 / (steps - 1) as f64 / (2.0 * std::f64::consts::PI).sqrt());
        let atoms = self.atoms();
        let count = atoms.numel() as i64;
        let x0 = atoms.unsqueeze(1).expand([count, steps], false).reshape([-1]);
        let eps = eps.repeat([count]);
        let weight = weight.repeat([count]) / count as f64;
        let sigma = Tensor::full([count * steps], self.sigma, DOUBLE);
        let at = Perturbed::new(&x0, &eps, &sigma, Variance::Plain);
        let noise = at.noise_score();
        let fixed = atoms.detach();
        let (score, product) =
            score_and_product(&mut |x| log_mixture(x, &fixed, self.sigma * self.sigma), &at.x, &|s| s + &noise);
        let score = ScoreAt { score, product };
        let (target, product) = score_and_product(&mut |x| self.log_target(x), &at.x, &|s| s + &noise);
        let target = TargetAt { score: target, product, evaluations: 0 };
        let gradient = field(kind, &at, &score, &target);
        let along = (x0 * gradient * weight).sum(None);
        Tensor::run_backward(&[along], &[&self.theta], false, false).remove(0)
    }
}

#[test]
fn dft_field_pulled_back_is_the_gradient_of_the_fisher_divergence() {
    // Theorem 1 of the paper: with the exact score of the sampler's noisy density, the tractable gradient
    // equals that of the divergence. Left by quadrature over x and autograd, right by quadrature over the
    // noise.
    let setting = Atoms::new();
    let (divergence, expected) = setting.divergence_by_quadrature();
    assert!(divergence > 0.1, "a test at the optimum would show nothing");
    let found = setting.pulled_back(FieldKind::Dft);
    for i in 0..3 {
        let (found, expected) = (found.double_value(&[i]), expected.double_value(&[i]));
        assert!((found - expected).abs() < 1e-6, "component {i}: {found} for {expected}");
    }
}

#[test]
fn kl_field_pulled_back_is_the_gradient_of_the_kl_divergence() {
    // KL(p‖q) = ∫ p (log p − log q) dx by quadrature, differentiated in θ.
    let setting = Atoms::new();
    let x = Tensor::linspace(-9.0, 9.0, 6001, DOUBLE);
    let log_p = log_mixture(&x, &setting.atoms(), setting.sigma * setting.sigma);
    let divergence = (log_p.exp() * (&log_p - setting.log_target(&x))).sum(None) * (18.0 / 6000.0);
    let expected = Tensor::run_backward(&[divergence], &[&setting.theta], false, false).remove(0);
    let found = setting.pulled_back(FieldKind::Kl);
    assert!(found.allclose(&expected, 1e-6, 1e-6, false), "{found:?} for {expected:?}");
}

/// A score network in f64 and noisy samples for it.
fn network() -> (ScoreNetwork, Parameters, MethodSection) {
    let spec = ScoreSpec {
        kind: dft::config::ScoreKind::Mlp,
        shape: vec![3],
        width: 16,
        depth: 2,
        scale: 1.5,
        offset: 0.2,
        starts_as_denoiser: false,
    };
    let network = ScoreNetwork::new(&spec).unwrap();
    let start = Parameters::initialise(network.layout(), 1, Stream::ScoreParameters, Device::Cpu);
    // The last layer starts at zero; move it so that the network is no Gaussian score.
    let moved = start.flat().to_kind(Kind::Double)
        + Generator::new(2, Stream::Exact, 0, 0).normal(&[start.count()]).to_kind(Kind::Double) * 0.1;
    let parameters = Parameters::from_flat(network.layout(), moved);
    let section = MethodSection {
        kind: FieldKind::Dft,
        sigma: SigmaPath::Band([0.2, 0.9]),
        variance: Variance::Plain,
        field_power: 1.5,
        score_weight: ScoreWeight::Edm,
        sigma_data: 0.4,
    };
    (network, parameters, section)
}

fn draws(rows: i64) -> (Tensor, Tensor, Tensor) {
    let mut generator = Generator::new(3, Stream::Exact, 0, 0);
    let mut normal = || generator.normal(&[rows, 3]).to_kind(Kind::Double);
    let (x0, eps) = (normal(), normal());
    (x0, eps, Tensor::linspace(0.2, 0.9, rows, DOUBLE))
}

fn gaussian() -> Gaussian {
    let covariance = [vec![1.0, 0.3, 0.0], vec![0.3, 0.8, -0.2], vec![0.0, -0.2, 0.5]];
    Gaussian::new(&[0.5, -0.2, 0.1], &covariance, Kind::Double, Device::Cpu).unwrap()
}

/// The paper's loss as written: |s_q − s_phi|² + 2 (s_phi − s_q)·(t − s_phi) at x = x0 + sigma·eps with
/// t = −eps/sigma, no gradient stopped on x; summed over rows with weight sigma^power.
fn two_term_loss(
    x0: &Tensor,
    eps: &Tensor,
    sigma: &Tensor,
    power: f64,
    s_phi: &dyn Fn(&Tensor, &Tensor) -> Tensor,
) -> (Tensor, Tensor) {
    let x0 = x0.detach().set_requires_grad(true);
    let level = sigma.unsqueeze(1);
    let x = &x0 + eps * &level;
    let (s_q, s_phi) = (gaussian().score(&x), s_phi(&x, sigma));
    let t = -(eps / &level);
    let rows = (&s_q - &s_phi).square() + (&s_phi - &s_q) * (t - &s_phi) * 2.0;
    let rows = rows.sum_dim_intlist(1i64, false, None) * sigma.pow_tensor_scalar(power);
    let gradient = Tensor::run_backward(&[rows.sum(None)], &[&x0], false, false).remove(0);
    (rows.detach(), gradient)
}

#[test]
fn two_vector_jacobian_products_equal_the_two_term_loss_by_autograd() {
    let (network, parameters, section) = network();
    let (x0, eps, sigma) = draws(7);
    let weights = parameters.frozen();
    let (loss, expected) =
        two_term_loss(&x0, &eps, &sigma, section.field_power, &|x, s| network.score(weights, x, s));
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let at = Perturbed::new(&x0, &eps, &sigma, section.variance);
    let score = ScoreAt::evaluate(&network, weights, &at);
    let found = sampler_field(&section, &target, (&network, weights), &x0, &at, &score);
    assert!(found.gradient.allclose(&expected, 1e-9, 1e-9, false));
    assert!(found.loss.allclose(&loss, 1e-9, 1e-9, false));
    assert_eq!(found.evaluations, 14);
}

#[test]
fn antithetic_field_is_the_mean_of_the_fields_at_both_signs() {
    let (network, parameters, mut section) = network();
    let (x0, eps, sigma) = draws(5);
    let weights = parameters.frozen();
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let mut at_sign = |eps: &Tensor, variance: Variance| {
        section.variance = variance;
        let at = Perturbed::new(&x0, eps, &sigma, variance);
        let score = ScoreAt::evaluate(&network, weights, &at);
        sampler_field(&section, &target, (&network, weights), &x0, &at, &score).gradient
    };
    let plus = at_sign(&eps, Variance::Plain);
    let minus = at_sign(&-&eps, Variance::Plain);
    let both = at_sign(&eps, Variance::Antithetic);
    assert!(both.allclose(&((plus + minus) * 0.5), 1e-12, 1e-12, false));
}

#[test]
fn control_variate_adds_nothing_on_average_and_takes_variance_away() {
    // Its mean over ±eps is exactly zero, because it is linear in eps; so antithetic pairs of the
    // control-variate field and of the plain field have the same mean.
    let (network, parameters, mut section) = network();
    section.field_power = 0.0;
    let (x0, _, _) = draws(2);
    let x0 = x0.narrow(0, 0, 1).repeat([4000, 1]);
    let eps = Generator::new(4, Stream::Exact, 0, 0).normal(&[4000, 3]).to_kind(Kind::Double);
    let sigma = Tensor::full([4000], 0.05, DOUBLE);
    let weights = parameters.frozen();
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let mut with = |eps: &Tensor, variance: Variance| {
        section.variance = variance;
        let at = Perturbed::new(&x0, eps, &sigma, variance);
        let score = ScoreAt::evaluate(&network, weights, &at);
        sampler_field(&section, &target, (&network, weights), &x0, &at, &score).gradient
    };
    let plain = with(&eps, Variance::Plain);
    let remedied = with(&eps, Variance::ControlVariate);
    let mut pairs = |variance| with(&eps, variance) + with(&-&eps, variance);
    let (plain_pairs, remedied_pairs) = (pairs(Variance::Plain), pairs(Variance::ControlVariate));
    assert!(plain_pairs.allclose(&remedied_pairs, 1e-9, 1e-9, false));
    let spread = |x: &Tensor| x.var_dim(0i64, true, false).sum(None).double_value(&[]);
    let ratio = spread(&remedied) / spread(&plain);
    assert!(ratio < 0.25, "the variance should fall by far at sigma = 0.05, and the ratio is {ratio}");
}

#[test]
fn one_joint_backward_gives_the_score_gradient_and_the_product_of_two() {
    let (network, parameters, section) = network();
    let (x0, eps, sigma) = draws(6);
    let at = Perturbed::new(&x0, &eps, &sigma, Variance::Antithetic);
    let alone = score_loss(&section, &network, parameters.tracked(), &at, 20);
    let product = ScoreAt::evaluate(&network, parameters.frozen(), &at);
    let (joint, joint_at) = score_loss_and_products(&section, &network, parameters.tracked(), &at, 20);
    assert!(joint.gradient.allclose(&alone.gradient, 1e-12, 1e-12, false));
    assert!(joint.value.allclose(&alone.value, 1e-12, 1e-12, false));
    assert!(joint_at.score.allclose(&product.score, 1e-12, 1e-12, false));
    assert!(joint_at.product.allclose(&product.product, 1e-9, 1e-9, false));
}

#[test]
fn gaussian_optimum_has_covariance_c_minus_sigma_squared() {
    // A linear sampler x0 = A z + b has the noisy density N(b, A Aᵀ + sigma² I), whose score is exact here.
    // Its field is linear in (z, eps), so the points ±sqrt(n) e_i of the joint space, with second moment I,
    // give the expectation of the pulled-back gradient exactly. Descent must end where A Aᵀ = C − sigma² I
    // and b = m.
    let (d, sigma) = (2i64, 0.4);
    let covariance = [vec![1.0, 0.5], vec![0.5, 0.7]];
    let target = Gaussian::new(&[-1.0, 2.0], &covariance, Kind::Double, Device::Cpu).unwrap();
    let joint = 2 * d;
    let axes = Tensor::eye(joint, DOUBLE) * (joint as f64).sqrt();
    let points = Tensor::cat(&[&axes, &-&axes], 0);
    let (z, eps) = (points.narrow(1, 0, d), points.narrow(1, d, d));
    let rows = points.size()[0];
    let levels = Tensor::full([rows], sigma, DOUBLE);
    let mut a = Tensor::eye(d, DOUBLE) * 2.0;
    let mut b = Tensor::zeros([d], DOUBLE);
    let target_at = TargetAtLevel::new(Box::new(target), None);
    for _ in 0..6000 {
        let x0 = z.matmul(&a.transpose(0, 1)) + &b;
        let at = Perturbed::new(&x0, &eps, &levels, Variance::Plain);
        let noisy = a.matmul(&a.transpose(0, 1)) + Tensor::eye(d, DOUBLE) * (sigma * sigma);
        let precision = Tensor::linalg_inv(&noisy);
        let score = -(&at.x - &b).matmul(&precision);
        let product = -(&score + at.noise_score()).matmul(&precision);
        let score = ScoreAt { score, product };
        let value = field(FieldKind::Dft, &at, &score, &TargetAt::evaluate(FieldKind::Dft, &target_at, &at));
        a -= value.transpose(0, 1).matmul(&z) * (0.02 / rows as f64);
        b -= value.mean_dim(0i64, false, None) * 0.02;
    }
    let found = a.matmul(&a.transpose(0, 1));
    let expected =
        Tensor::from_slice(&[1.0, 0.5, 0.5, 0.7]).view([2, 2]) - Tensor::eye(2, DOUBLE) * (sigma * sigma);
    assert!(found.allclose(&expected, 0.0, 1e-6, false), "{found:?}");
    assert!(b.allclose(&Tensor::from_slice(&[-1.0, 2.0]), 0.0, 1e-6, false));
}
