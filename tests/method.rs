//! The fields against independent mathematics: quadrature, the paper's two-term loss by autograd, and the
//! optimum of a linear Gaussian sampler. All in f64, without training noise.

use dft::config::{FieldKind, MethodSection, ScoreBase, ScoreKind, ScoreWeight, SigmaPath, Variance};
use dft::method::{
    Cotangents, Perturbed, ScoreAt, ScoreCotangent, cotangents, sampler_field, score_loss,
    score_loss_and_products,
};
use dft::model::{Base, Parameters, ScoreNetwork, ScoreSpec};
use dft::rng::{Generator, Stream};
use dft::target::{Gaussian, StartingGaussian, Target, TargetAtLevel, TargetOnPath};
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// log of an equal mixture of N(m_k, v) at `x` `[R]`.
fn log_mixture(x: &Tensor, means: &Tensor, variance: f64) -> Tensor {
    let distance = (x.unsqueeze(1) - means.unsqueeze(0)).square();
    let constant = -0.5 * (2.0 * std::f64::consts::PI * variance).ln() - (means.numel() as f64).ln();
    (distance * (-0.5 / variance)).logsumexp(1i64, false) + constant
}

/// Score of a density by autograd, and its Jacobian contracted with what `cotangent` makes of the score.
fn score_and_product(
    log_density: &dyn Fn(&Tensor) -> Tensor,
    x: &Tensor,
    cotangent: &dyn Fn(&Tensor) -> Tensor,
) -> (Tensor, Tensor) {
    let x = x.detach().set_requires_grad(true);
    let score = Tensor::run_backward(&[log_density(&x).sum(None)], &[&x], true, true).remove(0);
    let along = (&score * cotangent(&score.detach())).sum(None);
    let product = Tensor::run_backward(&[along], &[&x], false, false).remove(0);
    (score.detach(), product)
}

/// A field put together from its cotangents and two densities whose scores autograd gives.
fn field(
    (section, kind): (&MethodSection, FieldKind),
    at: &Perturbed,
    log_p: &dyn Fn(&Tensor) -> Tensor,
    log_q: &dyn Fn(&Tensor) -> Tensor,
) -> Tensor {
    let zero = |s: &Tensor| s.zeros_like();
    let (score, _) = score_and_product(log_p, &at.x, &zero);
    let (target, _) = score_and_product(log_q, &at.x, &zero);
    let Cotangents { direct, products } = cotangents(section, kind, at, &score, &target);
    let mut field = direct.unwrap_or_else(|| score.zeros_like());
    if let Some((of_score, of_target)) = products {
        let of_score = match of_score {
            ScoreCotangent::Denoising(factor) => factor * (&score + at.noise_score()),
            ScoreCotangent::Other(cotangent) => cotangent,
        };
        field += score_and_product(log_p, &at.x, &|_| of_score.shallow_clone()).1;
        field += score_and_product(log_q, &at.x, &|_| of_target.shallow_clone()).1;
    }
    field
}

fn section(kind: FieldKind, sigma: f64) -> MethodSection {
    let mut section: MethodSection = toml::from_str(&format!("sigma = {sigma}")).unwrap();
    section.kind = kind;
    section
}

/// The target itself, at the end of its path.
fn whole(target: &TargetAtLevel) -> TargetOnPath<'_> {
    target.on_path(StartingGaussian { offset: 0.0, scale: 1.0 }, 1.0)
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

    /// ∫ p d(s − s_q) dx by the trapezoid rule, differentiable in θ; and its gradient. With d = u² it is the denoising
    /// Fisher divergence.
    fn divergence_by_quadrature(&self, distance: &dyn Fn(&Tensor) -> Tensor) -> (f64, Tensor) {
        let x = Tensor::linspace(-9.0, 9.0, 6001, DOUBLE).set_requires_grad(true);
        let atoms = self.atoms();
        let log_p = log_mixture(&x, &atoms, self.sigma * self.sigma);
        let s = Tensor::run_backward(&[log_p.sum(None)], &[&x], true, true).remove(0);
        let log_q = self.log_target(&x);
        let s_q = Tensor::run_backward(&[log_q.sum(None)], &[&x], true, true).remove(0);
        let divergence = (log_p.exp() * distance(&(s - s_q))).sum(None) * (18.0 / 6000.0);
        let gradient = Tensor::run_backward(&[&divergence], &[&self.theta], false, false).remove(0);
        (divergence.double_value(&[]), gradient)
    }

    /// E[field · dg/dθ] over atoms and noise, the noise by the trapezoid rule on ±8 standard deviations.
    fn pulled_back(&self, section: &MethodSection) -> Tensor {
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
        let fixed = atoms.detach();
        let gradient =
            field((section, section.kind), &at, &|x| log_mixture(x, &fixed, self.sigma * self.sigma), &|x| {
                self.log_target(x)
            });
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
    let (divergence, expected) = setting.divergence_by_quadrature(&|u| u.square());
    assert!(divergence > 0.1, "a test at the optimum would show nothing");
    assert_within_a_millionth(&setting.pulled_back(&section(FieldKind::Dft, setting.sigma)), &expected);
}

fn assert_within_a_millionth(found: &Tensor, expected: &Tensor) {
    for i in 0..3 {
        let (found, expected) = (found.double_value(&[i]), expected.double_value(&[i]));
        assert!((found - expected).abs() < 1e-6, "component {i}: {found} for {expected}");
    }
}

#[test]
fn huber_field_pulled_back_is_the_gradient_of_the_divergence_with_that_distance() {
    // As above; at this scale both the square and the linear part of the distance count.
    let setting = Atoms::new();
    let limit = 0.4 / setting.sigma;
    let distance = |u: &Tensor| (((u / limit).square() + 1.0).sqrt() - 1.0) * (2.0 * limit * limit);
    let (_, expected) = setting.divergence_by_quadrature(&distance);
    let (_, squared) = setting.divergence_by_quadrature(&|u| u.square());
    assert!(!expected.allclose(&squared, 0.1, 0.1, false), "a test in the square part would show nothing");
    let mut section = section(FieldKind::Huber, setting.sigma);
    section.huber_scale = 0.4;
    assert_within_a_millionth(&setting.pulled_back(&section), &expected);
}

#[test]
fn kl_field_pulled_back_is_the_gradient_of_the_kl_divergence() {
    // KL(p‖q) = ∫ p (log p − log q) dx by quadrature, differentiated in θ.
    let setting = Atoms::new();
    let x = Tensor::linspace(-9.0, 9.0, 6001, DOUBLE);
    let log_p = log_mixture(&x, &setting.atoms(), setting.sigma * setting.sigma);
    let divergence = (log_p.exp() * (&log_p - setting.log_target(&x))).sum(None) * (18.0 / 6000.0);
    let expected = Tensor::run_backward(&[divergence], &[&setting.theta], false, false).remove(0);
    let found = setting.pulled_back(&section(FieldKind::Kl, setting.sigma));
    assert!(found.allclose(&expected, 1e-6, 1e-6, false), "{found:?} for {expected:?}");
}

/// A score network in f64, `by` standard normal numbers away from its start: the last layer starts at zero, and
/// that would be a Gaussian's score.
fn moved_network(spec: &ScoreSpec, by: f64) -> (ScoreNetwork, Parameters) {
    let network = ScoreNetwork::new(spec).unwrap();
    let start = Parameters::initialise(network.layout(), 1, Stream::ScoreParameters, Device::Cpu);
    let noise = Generator::new(2, Stream::Exact, 0, 0).normal(&[start.count()]).to_kind(Kind::Double);
    let moved = start.flat().to_kind(Kind::Double) + noise * by;
    let parameters = Parameters::from_flat(network.layout(), moved);
    (network, parameters)
}

/// A score network in f64, and a method for it.
fn network_on(base: ScoreBase, tail_scaling: bool) -> (ScoreNetwork, Parameters, MethodSection) {
    let spec = ScoreSpec {
        kind: ScoreKind::Mlp,
        shape: vec![3],
        width: 16,
        depth: 2,
        scale: 1.5,
        offset: 0.2,
        base,
        tail_scaling,
        frequencies: 0,
        linear_skip: false,
        noise_scaling: false,
        conservative: false,
        starts_as_denoiser: false,
    };
    let (network, parameters) = moved_network(&spec, 0.1);
    let mut section = section(FieldKind::Dft, 0.5);
    section.sigma = SigmaPath::Band([0.2, 0.9]);
    section.field_power = 1.5;
    section.score_weight = ScoreWeight::Edm;
    section.sigma_data = 0.4;
    (network, parameters, section)
}

fn network() -> (ScoreNetwork, Parameters, MethodSection) {
    network_on(ScoreBase::Gaussian, false)
}

fn draws(rows: i64) -> (Tensor, Tensor, Tensor) {
    let mut generator = Generator::new(3, Stream::Exact, 0, 0);
    let mut normal = || generator.normal(&[rows, 3]).to_kind(Kind::Double);
    let (x0, eps) = (normal(), normal());
    (x0, eps, Tensor::linspace(0.2, 0.9, rows, DOUBLE))
}

/// The field at `x0`, the score network evaluated on its own.
fn evaluate(
    section: &MethodSection,
    target: &TargetOnPath,
    (network, parameters): (&ScoreNetwork, &Parameters),
    x0: &Tensor,
    at: &Perturbed,
) -> dft::method::FieldValue {
    let weights = parameters.frozen();
    let mut score = |base: Base, wants: bool| ScoreAt::evaluate((network, weights), at, base, wants);
    sampler_field((section, section.kind), target, (network, weights), x0, at, &mut score)
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
    let (loss, expected) = two_term_loss(&x0, &eps, &sigma, section.field_power, &|x, s| {
        network.score(weights, x, s, Base::Start(1.0))
    });
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let at = Perturbed::new(&x0, &eps, &sigma, section.variance);
    let found = evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at);
    assert!(found.gradient.allclose(&expected, 1e-9, 1e-9, false));
    assert!(found.loss.allclose(&loss, 1e-9, 1e-9, false));
    assert_eq!(found.evaluations, 14);
}

#[test]
fn antithetic_field_is_the_mean_of_the_fields_at_both_signs() {
    let (network, parameters, mut section) = network();
    let (x0, eps, sigma) = draws(5);
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let mut at_sign = |eps: &Tensor, variance: Variance| {
        section.variance = variance;
        let at = Perturbed::new(&x0, eps, &sigma, variance);
        evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at).gradient
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
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let mut with = |eps: &Tensor, variance: Variance| {
        section.variance = variance;
        let at = Perturbed::new(&x0, eps, &sigma, variance);
        evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at).gradient
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
    let tracked = (&network, parameters.tracked());
    let alone = score_loss(&section, tracked, &at, Base::Start(1.0), 20);
    let product = ScoreAt::evaluate((&network, parameters.frozen()), &at, Base::Start(1.0), true);
    let (joint, joint_at) = score_loss_and_products(&section, tracked, &at, Base::Start(1.0), 20, true);
    assert!(joint.gradient.allclose(&alone.gradient, 1e-12, 1e-12, false));
    assert!(joint.value.allclose(&alone.value, 1e-12, 1e-12, false));
    assert!(joint_at.score.allclose(&product.score, 1e-12, 1e-12, false));
    assert!(joint_at.product.unwrap().allclose(&product.product.unwrap(), 1e-9, 1e-9, false));
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
    let method = section(FieldKind::Dft, sigma);
    for _ in 0..6000 {
        let x0 = z.matmul(&a.transpose(0, 1)) + &b;
        let at = Perturbed::new(&x0, &eps, &levels, Variance::Plain);
        let noisy = a.matmul(&a.transpose(0, 1)) + Tensor::eye(d, DOUBLE) * (sigma * sigma);
        let precision = Tensor::linalg_inv(&noisy);
        let log_p = |x: &Tensor| {
            let centred = x - &b;
            (centred.matmul(&precision) * centred).sum_dim_intlist(1i64, false, None) * -0.5
        };
        let value = field((&method, FieldKind::Dft), &at, &log_p, &|x| target.log_density(x));
        a -= value.transpose(0, 1).matmul(&z) * (0.02 / rows as f64);
        b -= value.mean_dim(0i64, false, None) * 0.02;
    }
    let found = a.matmul(&a.transpose(0, 1));
    let expected =
        Tensor::from_slice(&[1.0, 0.5, 0.5, 0.7]).view([2, 2]) - Tensor::eye(2, DOUBLE) * (sigma * sigma);
    assert!(found.allclose(&expected, 0.0, 1e-6, false), "{found:?}");
    assert!(b.allclose(&Tensor::from_slice(&[-1.0, 2.0]), 0.0, 1e-6, false));
}

/// Gradient of `rows`(x) `[R]` summed, with respect to x, by autograd.
fn gradient_of(x: &Tensor, rows: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
    let x = x.detach().set_requires_grad(true);
    Tensor::run_backward(&[rows(&x).sum(None)], &[&x], false, false).remove(0)
}

fn dot(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum_dim_intlist(1i64, false, None)
}

#[test]
fn every_field_is_the_gradient_of_its_loss_on_either_base_and_along_the_path() {
    // The losses as their papers write them, differentiated by autograd through both scores.
    let bases = [ScoreBase::Gaussian, ScoreBase::Fading, ScoreBase::Target];
    for (base, tails) in bases.into_iter().flat_map(|base| [(base, false), (base, true)]) {
        for weight in [1.0, 0.3] {
            let (network, parameters, mut section) = network_on(base, tails);
            let weights = parameters.frozen();
            section.field_power = 0.0;
            section.alpha = 1.2;
            let start = StartingGaussian { offset: 0.4, scale: 1.7 };
            let (x0, eps, sigma) = draws(6);
            let at = Perturbed::new(&x0, &eps, &sigma, Variance::Plain);
            let target = TargetAtLevel::new(Box::new(gaussian()), None);
            let target = target.on_path(start, weight);
            let noise = at.noise_score();
            let s_q =
                |x: &Tensor| gaussian().score(x) * weight - (x - 0.4) * ((1.0 - weight) / 1.7f64.powi(2));
            let s_phi = |x: &Tensor| network.score(weights, x, &sigma, network.base(&s_q(x), weight));
            let u = |x: &Tensor| s_phi(x) - s_q(x);
            let path = |x: &Tensor| u(x).square().sum_dim_intlist(1i64, false, None);
            let sid = |x: &Tensor| -dot(&u(x), &(s_q(x) + &noise)) * 2.0 - path(x) * 2.4;
            let dft = |x: &Tensor| path(x) - dot(&u(x), &(s_phi(x) + &noise)) * 2.0;
            // Its own derivative by autograd, kept in the graph.
            let huber = |x: &Tensor| {
                let limit = sigma.reciprocal().unsqueeze(1) * 0.6;
                let distance =
                    |u: &Tensor| (((u / &limit).square() + 1.0).sqrt() - 1.0) * limit.square() * 2.0;
                let u = u(x);
                let slope = Tensor::run_backward(&[distance(&u).sum(None)], &[&u], true, true).remove(0);
                let value = distance(&u).sum_dim_intlist(1i64, false, None);
                value - dot(&slope, &(s_phi(x) + &noise))
            };
            section.huber_scale = 0.6;
            let hybrid = gradient_of(&at.x, &dft) * sigma.unsqueeze(1) * 0.7 + u(&at.x).detach();
            section.fisher_weight = 0.7;
            for (kind, expected) in [
                (FieldKind::Path, gradient_of(&at.x, &path)),
                (FieldKind::Sid, gradient_of(&at.x, &sid)),
                (FieldKind::Dft, gradient_of(&at.x, &dft)),
                (FieldKind::Huber, gradient_of(&at.x, &huber)),
                (FieldKind::Kl, u(&at.x).detach()),
                (FieldKind::Hybrid, hybrid),
            ] {
                section.kind = kind;
                let found = evaluate(&section, &target, (&network, &parameters), &x0, &at).gradient;
                assert!(found.allclose(&expected, 1e-9, 1e-9, false), "{kind:?} on {base:?} at {weight}");
            }
        }
    }
}

#[test]
fn pseudo_huber_field_with_a_large_scale_is_dft() {
    let (network, parameters, mut section) = network();
    let (x0, eps, sigma) = draws(6);
    let at = Perturbed::new(&x0, &eps, &sigma, Variance::Plain);
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let dft = evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at).gradient;
    section.kind = FieldKind::Huber;
    section.huber_scale = 1e6;
    let huber = evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at).gradient;
    assert!(huber.allclose(&dft, 1e-9, 1e-9, false));
}

#[test]
fn sid_with_alpha_one_half_is_dft() {
    let (network, parameters, mut section) = network();
    let (x0, eps, sigma) = draws(6);
    let at = Perturbed::new(&x0, &eps, &sigma, Variance::Plain);
    let target = TargetAtLevel::new(Box::new(gaussian()), None);
    let dft = evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at).gradient;
    section.kind = FieldKind::Sid;
    section.alpha = 0.5;
    let sid = evaluate(&section, &whole(&target), (&network, &parameters), &x0, &at).gradient;
    assert!(sid.allclose(&dft, 1e-9, 1e-9, false));
}

#[test]
fn fisher_field_without_denoising_is_the_mean_of_the_dft_field_over_the_noise() {
    // Integration by parts: where p_sigma is known, −E[u·eps/sigma] = −E[div u]. In one dimension with a score
    // network that is linear (its last layer zero) and x0 = 0.3: quadrature over eps on ±8 for both fields.
    // They differ row by row and agree in the mean of the pulled-back gradient, here that of a shift.
    let spec = ScoreSpec {
        kind: ScoreKind::Mlp,
        shape: vec![1],
        width: 4,
        depth: 1,
        scale: 1.3,
        offset: 0.2,
        base: ScoreBase::Gaussian,
        tail_scaling: false,
        frequencies: 0,
        linear_skip: false,
        noise_scaling: false,
        conservative: false,
        starts_as_denoiser: false,
    };
    let (network, parameters) = moved_network(&spec, 0.3);
    let eps = Tensor::linspace(-8.0, 8.0, 4001, DOUBLE).unsqueeze(1);
    let density = (eps.square() * -0.5).exp() * (16.0 / 4000.0 / (2.0 * std::f64::consts::PI).sqrt());
    let sigma = Tensor::full([4001], 0.6, DOUBLE);
    let x0 = Tensor::full([4001, 1], 0.3, DOUBLE);
    let at = Perturbed::new(&x0, &eps, &sigma, Variance::Plain);
    let gaussian = Gaussian::new(&[1.0], &[vec![0.5]], Kind::Double, Device::Cpu).unwrap();
    let target = TargetAtLevel::new(Box::new(gaussian), None);
    let [dft, fisher] = [FieldKind::Dft, FieldKind::Fisher].map(|kind| {
        let value = evaluate(&section(kind, 0.6), &whole(&target), (&network, &parameters), &x0, &at);
        (&value.gradient * &density).sum(None).double_value(&[])
    });
    assert!(fisher.abs() > 0.1, "a field of nothing would show nothing");
    assert!((dft - fisher).abs() < 1e-6, "{fisher} for {dft}");
}
