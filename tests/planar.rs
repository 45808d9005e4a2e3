//! The two-dimensional targets: score and Hessian-vector product against the density, samples against quadrature.

mod support;

use dft::config::TargetSection;
use dft::rng::{Generator, Stream};
use dft::target::{Target, load_exact};
use support::autograd::ByAutograd;
use tch::{Device, Kind, Tensor};

/// `kind = …` and further keys, as a configuration has them.
fn section(text: &str) -> TargetSection {
    toml::from_str(text).unwrap()
}

fn load(text: &str, kind: Kind) -> Box<dyn Target> {
    load_exact(&section(text), kind, Device::Cpu).unwrap()
}

/// Every closed form, and a box [low, high] per coordinate that holds all but 1e-6 of the mass; none for the funnel.
type Case = (&'static str, Option<[(f64, f64); 2]>);
const CASES: [Case; 10] = [
    ("kind = 'gaussian'", Some([(-5.0, 3.0), (-6.0, 8.0)])),
    ("kind = 'mog2'", Some([(-7.0, 7.0), (-7.0, 7.0)])),
    ("kind = 'mog2'\nweights = [0.8, 0.2]", Some([(-7.0, 7.0), (-7.0, 7.0)])),
    ("kind = 'rosenbrock'", Some([(-6.0, 6.0), (-42.0, 5.0)])),
    ("kind = 'donut'", Some([(-6.0, 6.0), (-6.0, 6.0)])),
    ("kind = 'funnel'", None),
    ("kind = 'squiggle'", Some([(-7.0, 9.0), (-5.0, 7.0)])),
    ("kind = 'gmm40'", Some([(-50.0, 50.0), (-50.0, 50.0)])),
    ("kind = 'ring'", Some([(-8.0, 8.0), (-8.0, 8.0)])),
    (
        "kind = 'mixture'\nmeans = [[-3, 0], [2, 2.5], [2, -3]]\ndeviations = [0.5, 1.0, 0.7]\nweights = [0.6, 0.3, 0.1]",
        Some([(-8.0, 8.0), (-8.0, 9.0)]),
    ),
];

fn normal(shape: &[i64], number: u64) -> Tensor {
    Generator::new(4, Stream::Exact, number, 0).normal(shape).to_kind(Kind::Double)
}

/// Exact samples, and points around the origin where some targets have none.
fn points(target: &dyn Target) -> Tensor {
    let samples = target.exact_samples(&mut Generator::new(2, Stream::Exact, 0, 0), 40).unwrap();
    Tensor::cat(&[samples, normal(&[40, 2], 0) * 2.0], 0)
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let scale = expected.abs().max().double_value(&[]) + 1.0;
    let error = (found - expected).abs().max().double_value(&[]) / scale;
    assert!(error < tolerance, "{what}: relative error {error:e}");
}

#[test]
fn closed_forms_are_what_autograd_makes_of_the_density() {
    // Two ways of computing the same numbers in f64; 1e-9 leaves seven digits to cancellation.
    for (text, _) in CASES {
        let target = load(text, Kind::Double);
        let (x, v) = (points(target.as_ref()), normal(&[80, 2], 1));
        // A direction that depends on the score, as a Fisher field's does.
        let mut direction = |score: &Tensor| score * 0.3 + &v;
        let (score, product) = target.score_and_product(&x, &mut direction);
        let (expected, expected_product) = ByAutograd(target.as_ref()).score_and_product(&x, &mut direction);
        assert_close(&score, &expected, 1e-9, text);
        assert_close(&target.score(&x), &expected, 1e-9, text);
        assert_close(&product, &expected_product, 1e-9, text);
    }
}

#[test]
fn third_derivatives_of_the_density_match_finite_differences() {
    // ∇(u·H v) by autograd against central differences of the closed-form u·H v: step error 1e-10, rounding 1e-11,
    // both times the size of fifth derivatives.
    for (text, _) in CASES.iter().filter(|(text, _)| !text.contains("gaussian")) {
        // (A Gaussian's Hessian is constant: autograd has no third derivative to take.)
        let target = load(text, Kind::Double);
        let (x, u, v) = (points(target.as_ref()), normal(&[80, 2], 1), normal(&[80, 2], 2));
        let product = |x: &Tensor| {
            let product = target.score_and_product(x, &mut |_| v.shallow_clone()).1;
            (product * &u).sum_dim_intlist(1i64, false, None)
        };
        let leaf = x.detach().set_requires_grad(true);
        let total = target.log_density(&leaf).sum(None);
        let score = Tensor::run_backward(&[total], &[&leaf], true, true).remove(0);
        let curved = Tensor::run_backward(&[(score * &v).sum(None)], &[&leaf], true, true).remove(0);
        let along = (curved * &u).sum(None);
        let third = Tensor::run_backward(&[along], &[&leaf], false, false).remove(0);
        for axis in 0..2 {
            let shift = Tensor::from_slice(if axis == 0 { &[1e-5, 0.0] } else { &[0.0, 1e-5] });
            let slope = (product(&(&x + &shift)) - product(&(&x - &shift))) / 2e-5;
            assert_close(&third.select(1, axis), &slope, 1e-6, text);
        }
    }
}

/// Formulas of Sharrock and Nemeth (2023) as they write them, up to a constant.
fn formula(name: &str, [x1, x2]: [f64; 2]) -> f64 {
    let quadratic = |y: [f64; 2], [m1, m2]: [f64; 2], [c11, c12, c22]: [f64; 3]| {
        let (d1, d2) = (y[0] - m1, y[1] - m2);
        -0.5 * (c22 * d1 * d1 - 2.0 * c12 * d1 * d2 + c11 * d2 * d2) / (c11 * c22 - c12 * c12)
    };
    match name {
        "gaussian" => {
            let (d1, d2) = (x1 + 1.0, x2 - 1.0);
            -0.5 * (3.0 * d1 * d1 - d1 * d2 + d2 * d2)
        }
        "mog2" => {
            let term = |m1: f64, m2: f64| (-(x1 - m1).powi(2) - (x2 - m2).powi(2)).exp();
            (term(-2.0, 2.0) + term(2.0, -2.0)).ln()
        }
        "rosenbrock" => {
            let (a, b) = (-1.0, 1.0);
            quadratic([x1 / a, a * x2 + a * b * (x1 * x1 + a * a)], [0.0, 1.0], [1.0, 0.5, 1.0])
        }
        "donut" => -(x1.hypot(x2) - 2.5).powi(2) / 0.5,
        "funnel" => -(x2 - 4.0).powi(2) / 18.0 - x2 / 2.0 - (x1 - 1.0).powi(2) * (-x2).exp() / 2.0,
        "squiggle" => quadratic([x1, x2 + (2.0 * x1).sin()], [1.0, 1.0], [2.0, 0.25, 0.5]),
        other => panic!("{other} is none of the six"),
    }
}

#[test]
fn the_six_densities_are_the_paper_s_formulas() {
    let at = [[0.3, -0.7], [-1.2, 0.4], [1.7, 2.1], [-0.4, -1.9], [0.9, 1.1]];
    let x = Tensor::from_slice(&at.concat()).reshape([5, 2]);
    for name in ["gaussian", "mog2", "rosenbrock", "donut", "funnel", "squiggle"] {
        let found =
            Vec::<f64>::try_from(load(&format!("kind = '{name}'"), Kind::Double).log_density(&x)).unwrap();
        for point in 1..5 {
            let expected = formula(name, at[point]) - formula(name, at[0]);
            assert!((found[point] - found[0] - expected).abs() < 1e-12, "{name} at {:?}", at[point]);
        }
    }
}

/// Fails if a column's mean is further from 0 than 5 of its standard errors.
#[track_caller]
fn assert_zero_mean(values: &Tensor, what: &str) {
    let n = values.size()[0] as f64;
    let mean = values.mean(None).double_value(&[]);
    let error = values.std(true).double_value(&[]) / n.sqrt();
    assert!(mean.abs() < 5.0 * error, "{what}: {mean} with standard error {error}");
}

#[test]
fn exact_samples_obey_stein_identities_in_the_chart() {
    // E[s_j] = 0 and E[c_i s_j + ∂_j c_i] = 0 for every slowly growing c; with c(x) = x the second is
    // E[x_i s_j] = −δ_ij. The chart c is x except for the funnel, where the variance of x1·s2 is finite but set by
    // samples rarer than these (its fourth moment is of order exp(26)); that of asinh(x1 − 1)·s2 is small.
    for (text, _) in CASES {
        let target = load(text, Kind::Double);
        let x = target.exact_samples(&mut Generator::new(1, Stream::Exact, 0, 0), 200_000).unwrap();
        let score = target.score(&x);
        let leaf = x.detach().set_requires_grad(true);
        let chart = target.chart(&leaf);
        for i in 0..2 {
            let chart_i = chart.select(1, i);
            let slope = Tensor::run_backward(&[chart_i.sum(None)], &[&leaf], true, false).remove(0);
            assert_zero_mean(&score.select(1, i), text);
            for j in 0..2 {
                let term = chart_i.detach() * score.select(1, j) + slope.select(1, j);
                assert_zero_mean(&term, &format!("{text}, i = {i}, j = {j}"));
            }
        }
    }
}

#[test]
fn exact_samples_have_the_moments_of_quadrature_over_the_density() {
    // A grid of 400² points: for smooth densities that vanish at its edge the sum converges exponentially, and the
    // coarsest step is a fifth of a standard deviation.
    for (text, bounds) in CASES {
        let Some([first, second]) = bounds else { continue };
        let target = load(text, Kind::Double);
        let axis = |(low, high)| Tensor::linspace(low, high, 400, (Kind::Double, Device::Cpu));
        let grid = Tensor::cartesian_prod(&[axis(first), axis(second)]);
        let weight = target.log_density(&grid).softmax(0, None);
        let x = target.exact_samples(&mut Generator::new(3, Stream::Exact, 0, 0), 200_000).unwrap();
        let statistics = |x: &Tensor| {
            let (x1, x2) = (x.select(1, 0), x.select(1, 1));
            let r = x.norm_scalaropt_dim(2, 1i64, false);
            // The last tells modes and quadrants apart.
            [x1.square(), x2.square(), &x1 * &x2, (&x1 * 1.3 + &x2 * 0.7).sin(), r, x1, x2]
        };
        for (number, (on_grid, of_samples)) in statistics(&grid).iter().zip(&statistics(&x)).enumerate() {
            let expected = (&weight * on_grid).sum(None);
            assert_zero_mean(&(of_samples - expected), &format!("{text}, statistic {number}"));
        }
    }
}

#[test]
fn funnel_samples_are_normal_in_the_coordinates_that_make_it_so() {
    let target = load("kind = 'funnel'", Kind::Double);
    let x = target.exact_samples(&mut Generator::new(3, Stream::Exact, 0, 0), 200_000).unwrap();
    let z2 = (x.select(1, 1) - 4.0) / 3.0;
    let z1 = (x.select(1, 0) - 1.0) * (x.select(1, 1) * -0.5).exp();
    for z in [&z1, &z2] {
        assert_zero_mean(z, "mean");
        assert_zero_mean(&(z.square() - 1.0), "variance");
    }
    assert_zero_mean(&(z1.square() * &z2), "independence");
    // asinh of samples that spread over 70 standard deviations stays within a few units.
    assert!(target.chart(&x).abs().max().double_value(&[]) < 20.0);
}

#[test]
fn f32_score_is_the_f64_score_of_the_same_points() {
    // f32 has 6e-8 relative; responsibilities of far modes and differences of means lose two to three digits of it.
    for (text, _) in CASES {
        let (single, double) = (load(text, Kind::Float), load(text, Kind::Double));
        let x = single.exact_samples(&mut Generator::new(5, Stream::Exact, 0, 0), 5000).unwrap();
        assert_eq!(x.kind(), Kind::Float);
        let v = normal(&[5000, 2], 1);
        let (score, product) = single.score_and_product(&x, &mut |_| v.to_kind(Kind::Float));
        let (expected, expected_product) =
            double.score_and_product(&x.to_kind(Kind::Double), &mut |_| v.shallow_clone());
        for (found, expected) in [(score, expected), (product, expected_product)] {
            let norm = |t: &Tensor| t.norm_scalaropt_dim(2, 1i64, false);
            let error = norm(&(found.to_kind(Kind::Double) - &expected)) / (norm(&expected) + 1.0);
            let worst = error.max().double_value(&[]);
            assert!(worst < 1e-4, "{text}: {worst:e}");
        }
    }
}

#[test]
fn fractions_of_the_modes_are_their_weights() {
    // Separated by six standard deviations or more: what falls nearer to another centre is below 0.2 %.
    let three = CASES[9].0;
    for text in ["kind = 'mog2'", "kind = 'mog2'\nweights = [0.8, 0.2]", "kind = 'ring'\nmodes = 5", three] {
        let target = load(text, Kind::Double);
        let modes = target.modes().unwrap();
        let x = target.exact_samples(&mut Generator::new(1, Stream::Exact, 0, 0), 100_000).unwrap();
        let nearest = Tensor::cdist(&x, &modes.centres, 2.0, None).argmin(1, false);
        for (mode, weight) in modes.weights.iter().enumerate() {
            let found = nearest.eq(mode as i64).to_kind(Kind::Double).mean(None).double_value(&[]);
            let error = (weight * (1.0 - weight) / 1e5).sqrt();
            assert!(
                (found - weight).abs() < 5.0 * error + 0.002,
                "{text}, mode {mode}: {found} for {weight}"
            );
        }
    }
    assert!(load("kind = 'donut'", Kind::Double).modes().is_none());
}

#[test]
fn donut_at_the_origin_is_finite() {
    // The density has a kink there and no score; the mean over the directions stands for it.
    let x = Tensor::zeros([1, 2], (Kind::Float, Device::Cpu));
    let (score, product) = load("kind = 'donut'", Kind::Float).score_and_product(&x, &mut |s| s + 1.0);
    assert_eq!(score, x);
    assert_eq!(product, &x - 4.0);
}

#[test]
fn gmm40_means_are_those_that_pytorch_draws_with_seed_0() {
    // The recipe of FAB's public code; libtorch's CPU generator is PyTorch's.
    tch::manual_seed(0);
    let expected = (Tensor::rand([40, 2], (Kind::Float, Device::Cpu)) - 0.5) * 2.0 * 40.0;
    let centres = load("kind = 'gmm40'", Kind::Float).modes().unwrap().centres;
    assert!(centres.allclose(&expected, 0.0, 1e-5, false)); // one unit in the last place of 40 is 4e-6
}

#[test]
fn keys_that_a_target_does_not_have_are_refused() {
    for text in
        ["kind = 'donut'\nradius = 3.0", "kind = 'funnel'\ntempered = true", "kind = 'ring'\nmode = 3"]
    {
        let message = toml::from_str::<TargetSection>(text).unwrap_err().to_string();
        assert!(message.contains("unknown field"), "{text}: {message}");
    }
}

#[test]
fn definitions_that_make_no_density_say_what_to_write() {
    for (text, words) in [
        ("kind = 'gaussian'\nmean = [0.0, 0.0]", ["target.covariance", "leave out both"]),
        ("kind = 'gaussian'\ncovariance = [[1.0]]", ["target.mean", "leave out both"]),
        ("kind = 'mog2'\nweights = [0.8, 0.3]", ["target.weights", "sum to 1"]),
        ("kind = 'mog2'\nweights = [1.0]", ["target.weights", "2 numbers above 0"]),
        ("kind = 'mixture'\nmeans = [[0.0], [1.0, 2.0]]\ndeviations = 1.0", ["target.means", "[1, 2]"]),
        ("kind = 'mixture'\nmeans = []\ndeviations = 1.0", ["target.means", "one row"]),
        (
            "kind = 'mixture'\nmeans = [[0.0], [1.0]]\ndeviations = [1.0, -1.0]",
            ["target.deviations", "above 0"],
        ),
    ] {
        let message = load_exact(&section(text), Kind::Float, Device::Cpu).err().unwrap().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
    }
}
