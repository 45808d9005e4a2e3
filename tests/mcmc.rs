//! Baselines against what is known of their distributions, their costs and their failures.

use std::cell::Cell;

use dft::config::{
    HmcSettings, MalaSettings, McmcSection, NutsSettings, SgldSettings, StepSizes, SvgdSettings, UlaSettings,
};
use dft::mcmc::{McmcError, McmcRun};
use dft::rng::{Generator, Stream};
use dft::target::{Gaussian, Target};
use tch::{Device, Kind, Tensor};

const MEAN: [f64; 2] = [1.0, -2.0];
const COVARIANCE: [[f64; 2]; 2] = [[0.5, 0.3], [0.3, 1.5]];

fn gaussian(kind: Kind) -> Gaussian {
    Gaussian::new(&MEAN, &COVARIANCE.map(Vec::from), kind, Device::Cpu).unwrap()
}

fn generator(number: u64) -> Generator {
    Generator::new(3, Stream::Chains, number, 0)
}

/// N(0, 2² I): wider than the target and beside it.
fn starts(rows: i64, kind: Kind) -> Tensor {
    (generator(100).normal(&[rows, 2]) * 2.0).to_kind(kind)
}

fn ula(step_size: f64) -> McmcSection {
    McmcSection::Ula(UlaSettings { step_size: StepSizes::One(step_size) })
}

fn mala(settings: MalaSettings) -> McmcSection {
    McmcSection::Mala(settings)
}

fn new<'a>(section: &McmcSection, target: &'a dyn Target, start: &Tensor) -> McmcRun<'a> {
    McmcRun::new(section, target, start, generator(0)).unwrap()
}

fn advance(run: &mut McmcRun, evaluations: u64) {
    run.run_until(Some(evaluations), None, &mut |_, _| {}).unwrap();
}

/// Mean of each coordinate and the covariance [var 0, cov, var 1] of `x` `[N, 2]`.
fn moments(x: &Tensor) -> ([f64; 2], [f64; 3]) {
    let x = x.to_kind(Kind::Double);
    let centred = &x - x.mean_dim(0i64, true, None);
    let entry = |i: i64, j: i64| (centred.select(1, i) * centred.select(1, j)).mean(None).double_value(&[]);
    let mean = |i: i64| x.select(1, i).mean(None).double_value(&[]);
    ([mean(0), mean(1)], [entry(0, 0), entry(0, 1), entry(1, 1)])
}

/// Mean and covariance of `x` `[N, 2]` within 4 standard errors of `covariance` around `MEAN`, for `independent`
/// draws: sqrt(S_ii/n) for a mean and sqrt((S_ii·S_jj + S_ij²)/n) for a covariance of a Gaussian.
#[track_caller]
fn assert_moments(x: &Tensor, covariance: [[f64; 2]; 2], independent: f64) {
    let (mean, found) = moments(x);
    for i in 0..2 {
        let error = (covariance[i][i] / independent).sqrt();
        assert!((mean[i] - MEAN[i]).abs() < 4.0 * error, "mean {mean:?}, standard error {error}");
    }
    for (found, (i, j)) in found.iter().zip([(0, 0), (0, 1), (1, 1)]) {
        let expected = covariance[i][j];
        let error = ((covariance[i][i] * covariance[j][j] + expected.powi(2)) / independent).sqrt();
        assert!((found - expected).abs() < 4.0 * error, "{found} for {expected}, standard error {error}");
    }
}

/// Stationary covariance of unadjusted Langevin with step h on a Gaussian of covariance S. In the eigenvectors
/// of S a step is y ← y(1 − h/l) + sqrt(2h)·n, with variance 2h/(1 − (1 − h/l)²) = l/(1 − h/(2l)).
fn discretised(h: f64) -> [[f64; 2]; 2] {
    let [[a, b], [_, d]] = COVARIANCE;
    let (half, root) = ((a + d) / 2.0, (((a - d) / 2.0).powi(2) + b * b).sqrt());
    let angle = 0.5 * (2.0 * b).atan2(a - d);
    let variance = |l: f64| l / (1.0 - h / (2.0 * l));
    let (big, small) = (variance(half + root), variance(half - root));
    let (c, s) = (angle.cos(), angle.sin());
    let cross = (big - small) * c * s;
    [[big * c * c + small * s * s, cross], [cross, big * s * s + small * c * c]]
}

#[test]
fn ula_has_the_covariance_of_its_discretised_gaussian() {
    // The slowest mode, l = 1.58, forgets its start by (1 − 0.3/1.58)^100 = 6e-10.
    let target = gaussian(Kind::Float);
    let mut run = new(&ula(0.3), &target, &starts(20_000, Kind::Float));
    advance(&mut run, 20_000 * 100);
    assert_moments(&run.positions(), discretised(0.3), 20_000.0);
    // What makes this a test of the step: the bias is 20 standard errors, sqrt(2/20000) = 1 % each.
    assert!(discretised(0.3)[0][0] / COVARIANCE[0][0] > 1.2);
    assert_eq!((run.divergences(), run.acceptance()), (0, None));
}

#[test]
fn sgld_steps_fall_as_written_and_lose_the_bias_of_langevin() {
    let settings = |step, decay, gradient_noise| {
        McmcSection::Sgld(SgldSettings {
            step_size: StepSizes::One(step),
            delay: 10.0,
            decay,
            gradient_noise,
        })
    };
    let target = gaussian(Kind::Float);
    let start = starts(10_000, Kind::Float);
    let mut run = new(&settings(0.3, 1.0, 0.0), &target, &start);
    advance(&mut run, 10_000 * 990);
    assert!((run.step_size() - 0.3 / 100.0).abs() < 1e-12); // (1 + 990/10)^−1
    // What is left of the bias at h = 0.003 is 0.3 %, below the standard error sqrt(2/10000) = 1.4 %.
    assert_moments(&run.positions(), COVARIANCE, 10_000.0);

    // Without a fall and noise on the gradient of standard deviation g, a step has the noise of variance
    // 2h + (h·g)²: (1 + h·g²/2) times the covariance of unadjusted Langevin. Here 1 + 0.3·4/2 = 1.6.
    let mut run = new(&settings(0.3, 0.0, 2.0), &target, &start);
    advance(&mut run, 10_000 * 100);
    assert_moments(&run.positions(), discretised(0.3).map(|row| row.map(|v| v * 1.6)), 10_000.0);
}

#[test]
fn mala_reaches_the_exact_moments_at_the_acceptance_it_aims_at() {
    let target = gaussian(Kind::Float);
    let mut run = new(&mala(MalaSettings::default()), &target, &starts(4000, Kind::Float));
    advance(&mut run, 4000 * 401);
    assert!(!run.is_adapting());
    // Adaptation ends on an average over 200 steps, so the acceptance it settles at is near the aim only.
    let acceptance = run.acceptance().unwrap();
    assert!((acceptance - 0.574).abs() < 0.03, "{acceptance}");
    assert_moments(&run.positions(), COVARIANCE, 4000.0);
}

#[test]
fn hmc_reaches_the_exact_moments_at_the_acceptance_it_aims_at() {
    let target = gaussian(Kind::Float);
    let section = McmcSection::Hmc(HmcSettings { leapfrog: 5, ..HmcSettings::default() });
    let mut run = new(&section, &target, &starts(4000, Kind::Float));
    advance(&mut run, 4000 * 5 * 300);
    let acceptance = run.acceptance().unwrap();
    assert!((acceptance - 0.8).abs() < 0.05, "{acceptance}");
    assert_moments(&run.positions(), COVARIANCE, 4000.0);
    assert_eq!(run.divergences(), 0);
}

#[test]
fn metropolis_keeps_exact_draws_exact_at_a_step_size_that_rejects_often() {
    // Detailed balance: started from the target itself, chains stay in it after any number of steps, although
    // the same Langevin step untested has 1/(1 − 0.35/0.83) = 1.7 times the smallest variance.
    let target = gaussian(Kind::Double);
    let start = target.exact_samples(&mut generator(7), 20_000).unwrap();
    let fixed = mala(MalaSettings { step_size: 0.35, adaptation_steps: 0, ..MalaSettings::default() });
    let hmc = McmcSection::Hmc(HmcSettings {
        step_size: 1.0,
        leapfrog: 2,
        adaptation_steps: 0,
        ..HmcSettings::default()
    });
    for (section, steps) in [(fixed, 15), (hmc, 20)] {
        let mut run = new(&section, &target, &start);
        advance(&mut run, 20_000 * (steps + 1));
        let acceptance = run.acceptance().unwrap();
        assert!(acceptance > 0.3 && acceptance < 0.9, "{acceptance}");
        assert_moments(&run.positions(), COVARIANCE, 20_000.0);
    }
}

#[test]
fn small_steps_are_nearly_always_accepted_and_energy_is_kept_to_the_square_of_the_step() {
    // 1 − acceptance of MALA is of order h^1.5, and that of HMC over a fixed length of order step² (the energy
    // error of leapfrog): four times the steps of a quarter the size reject 16 times less.
    let target = gaussian(Kind::Double);
    let start = target.exact_samples(&mut generator(8), 5000).unwrap();
    let rejection = |section: &McmcSection, steps: u64| {
        let mut run = new(section, &target, &start);
        advance(&mut run, steps);
        1.0 - run.acceptance().unwrap()
    };
    let tiny = mala(MalaSettings { step_size: 1e-4, adaptation_steps: 0, ..MalaSettings::default() });
    assert!(rejection(&tiny, 5000 * 11) < 1e-3);
    let hmc = |step_size, leapfrog| {
        McmcSection::Hmc(HmcSettings {
            step_size,
            leapfrog,
            jitter: 0.0,
            adaptation_steps: 0,
            ..HmcSettings::default()
        })
    };
    let (coarse, fine) = (rejection(&hmc(0.2, 4), 5000 * 41), rejection(&hmc(0.05, 16), 5000 * 161));
    assert!((coarse / fine / 16.0 - 1.0).abs() < 0.2, "{coarse} and {fine}");
}

#[test]
fn stein_particles_take_the_mean_and_nearly_the_covariance() {
    // Stein's identity at a fixed point with a Gaussian target holds exactly for the mean; the covariance of
    // finitely many particles is too small, a few percent for 300 in two dimensions.
    let target = gaussian(Kind::Double);
    let section =
        McmcSection::Svgd(SvgdSettings { step_size: StepSizes::One(0.1), ..SvgdSettings::default() });
    let mut run = new(&section, &target, &starts(300, Kind::Double));
    advance(&mut run, 300 * 1000);
    let particles = run.draws(10);
    assert_eq!(particles.size(), [300, 2]);
    let (mean, found) = moments(&particles);
    assert!((mean[0] - MEAN[0]).abs() < 0.05 && (mean[1] - MEAN[1]).abs() < 0.05, "{mean:?}");
    let expected = [COVARIANCE[0][0], COVARIANCE[0][1], COVARIANCE[1][1]];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.15 * expected, "{found} for {expected}");
    }
}

#[test]
fn one_stein_step_is_the_one_written_out_by_pairs() {
    // The direction by loops over pairs, from the formula of Liu and Wang (2016); AdaGrad's first step divides
    // it by its own size. Seven particles have 49 distances, whose median is one of them.
    let target = gaussian(Kind::Double);
    let x = starts(7, Kind::Double);
    let section = McmcSection::Svgd(SvgdSettings {
        step_size: StepSizes::One(0.25),
        fudge: 0.5,
        ..SvgdSettings::default()
    });
    let mut run = new(&section, &target, &x);
    advance(&mut run, 7);

    let point = |t: &Tensor, i: i64| [t.double_value(&[i, 0]), t.double_value(&[i, 1])];
    let squared = |i: i64, j: i64| {
        let (a, b) = (point(&x, i), point(&x, j));
        (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)
    };
    let mut distances: Vec<f64> = (0..49).map(|pair| squared(pair / 7, pair % 7)).collect();
    distances.sort_by(f64::total_cmp);
    let gamma = 8f64.ln() / distances[24];
    let score = target.score(&x);
    for i in 0..7 {
        for d in 0..2 {
            let phi: f64 = (0..7)
                .map(|j| {
                    let kernel = (-gamma * squared(i, j)).exp();
                    kernel * (point(&score, j)[d] + 2.0 * gamma * (point(&x, i)[d] - point(&x, j)[d]))
                })
                .sum::<f64>()
                / 7.0;
            let expected = point(&x, i)[d] + 0.25 * phi / (0.5 + phi.abs());
            let found = point(&run.positions(), i)[d];
            assert!((found - expected).abs() < 1e-9, "{found} for {expected}");
        }
    }
}

#[test]
fn two_thousand_stein_particles_are_computed_in_blocks_to_the_same_directions() {
    // The particles are 4 copies of 500, whose kernel sums are those of 500 alone: blocks of N² entries, 524 rows
    // each, must not show. Only gamma differs, by log(2001)/log(501), so the target is checked by symmetry:
    // equal particles move equally wherever their blocks are cut.
    let target = gaussian(Kind::Double);
    let section = McmcSection::Svgd(SvgdSettings::default());
    let x = starts(500, Kind::Double).repeat([4, 1]);
    let mut run = new(&section, &target, &x);
    advance(&mut run, 2000 * 3);
    let moved = run.positions().reshape([4, 500, 2]);
    for copy in 1..4 {
        assert!(moved.get(copy).allclose(&moved.get(0), 1e-9, 1e-9, false));
    }
    assert!(!moved.get(0).allclose(&x.narrow(0, 0, 500), 1e-2, 1e-2, false));
}

#[test]
fn nuts_reaches_the_exact_moments_and_counts_what_it_evaluates() {
    let target = Counting::new(gaussian(Kind::Double));
    let section = McmcSection::Nuts(NutsSettings { chains: 2, tuning_draws: 300, ..NutsSettings::default() });
    let mut run = new(&section, &target, &starts(500, Kind::Double));
    advance(&mut run, 30_000);
    assert_eq!(run.evaluations(), target.scores.get());
    assert!(!run.is_adapting() && run.step_size() > 0.1, "{}", run.step_size());
    let draws = run.draws(4);
    assert_eq!(draws.size(), [2000, 2]);
    // NUTS draws of a Gaussian's coordinates are nearly independent, its squares less so: a quarter of the
    // draws is taken to count, the standard errors are twice those of independent ones.
    assert_moments(&draws, COVARIANCE, 500.0);
    assert_eq!(run.divergences(), 0);
}

/// A target that counts the rows of its calls.
struct Counting {
    target: Gaussian,
    scores: Cell<u64>,
    log_densities: Cell<u64>,
}

impl Counting {
    fn new(target: Gaussian) -> Self {
        Counting { target, scores: Cell::new(0), log_densities: Cell::new(0) }
    }
}

impl Target for Counting {
    fn shape(&self) -> &[i64] {
        self.target.shape()
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        self.log_densities.set(self.log_densities.get() + x.size()[0] as u64);
        self.target.log_density(x)
    }

    fn score(&self, x: &Tensor) -> Tensor {
        self.scores.set(self.scores.get() + x.size()[0] as u64);
        self.target.score(x)
    }
}

#[test]
fn evaluations_are_the_rows_of_the_gradients_and_never_exceed_the_budget() {
    // 10 chains: one evaluation a step for all but hmc, with 10; mala and hmc evaluate the starts as well, and
    // no log-density comes without its gradient.
    let hmc = McmcSection::Hmc(HmcSettings { adaptation_steps: 3, ..HmcSettings::default() });
    for (section, at_start, per_step, with_density) in [
        (ula(0.1), 0, 10, false),
        (McmcSection::Sgld(SgldSettings::default()), 0, 10, false),
        (mala(MalaSettings::default()), 10, 10, true),
        (hmc, 10, 100, true),
        (McmcSection::Svgd(SvgdSettings::default()), 0, 10, false),
    ] {
        let name = section.name();
        let target = Counting::new(gaussian(Kind::Float));
        let mut run = new(&section, &target, &starts(10, Kind::Float));
        assert_eq!(run.evaluations(), at_start, "{name}");
        let mut reported = Vec::new();
        run.run_until(Some(1019), None, &mut |evaluations, _| reported.push(evaluations)).unwrap();
        let steps = (1019 - at_start) / per_step;
        assert_eq!((run.steps(), run.evaluations()), (steps, at_start + steps * per_step), "{name}");
        assert_eq!(run.evaluations(), target.scores.get(), "{name}");
        let densities = if with_density { at_start + steps * 10 } else { 0 };
        assert_eq!(target.log_densities.get(), densities, "{name}");
        assert_eq!(reported.len() as u64, steps, "{name}");
        assert_eq!(reported.last(), Some(&run.evaluations()), "{name}");
        // A budget already spent buys nothing.
        advance(&mut run, 1019);
        assert_eq!(run.steps(), steps, "{name}");
    }
}

#[test]
fn equal_generators_give_equal_bits_and_a_stop_on_the_way_does_not_show() {
    let target = gaussian(Kind::Float);
    let nuts = McmcSection::Nuts(NutsSettings { chains: 2, tuning_draws: 20, ..NutsSettings::default() });
    for section in [
        ula(0.1),
        McmcSection::Sgld(SgldSettings { gradient_noise: 0.1, ..SgldSettings::default() }),
        mala(MalaSettings::default()),
        McmcSection::Hmc(HmcSettings::default()),
        McmcSection::Svgd(SvgdSettings::default()),
        nuts,
    ] {
        let start = starts(16, Kind::Float);
        let mut whole = new(&section, &target, &start);
        advance(&mut whole, 16 * 400);
        let mut halves = new(&section, &target, &start);
        advance(&mut halves, 16 * 170);
        assert_eq!(halves.draws(1).size()[0] % 2, 0);
        advance(&mut halves, 16 * 400);
        assert_eq!(whole.draws(10), halves.draws(10), "{}", section.name());
        let mut other = McmcRun::new(&section, &target, &start, generator(1)).unwrap();
        advance(&mut other, 16 * 400);
        // Particles draw no random numbers.
        assert_eq!(whole.draws(10) == other.draws(10), section.name() == "svgd", "{}", section.name());
    }
}

/// log q = −Σ x⁴/4: Langevin steps from far out overshoot ever further.
struct Quartic;

impl Target for Quartic {
    fn shape(&self) -> &[i64] {
        &[2]
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        x.square().square().sum_dim_intlist(1i64, false, None) * -0.25
    }
}

#[test]
fn chains_that_leave_to_infinity_are_counted_and_put_back() {
    // x − h·x³ with h = 0.5 grows without bound from |x| > 2; half the chains start at 0.5, half at 100, and
    // noise of standard deviation 1 sends some of the first out too.
    let at = |value: f64| Tensor::full([50, 2], value, (Kind::Float, Device::Cpu));
    let start = Tensor::cat(&[at(0.5), at(100.0)], 0);
    let mut run = new(&ula(0.5), &Quartic, &start);
    advance(&mut run, 100 * 40);
    assert_eq!(run.steps(), 40);
    assert!((50..=100).contains(&run.diverged_chains()), "{}", run.diverged_chains());
    // 100, 5e5, 6e16: two steps to a state beyond 1e6, 20 times in 40 steps.
    assert!(run.divergences() >= 50 * 20, "{}", run.divergences());
    let draws = run.draws(10);
    assert_eq!(draws.size(), [1000, 2]);
    assert!(draws.abs().max().double_value(&[]) <= 1e6);
}

#[test]
fn proposals_that_are_not_finite_are_rejected_and_counted() {
    // The same step from 1e13: the score −1e39 is not finite in f32 and neither is the log-density. From 100 the
    // proposal is 5e5 away, with a log-density of −1.6e22: finite, and an energy error above 1000.
    let start = Tensor::full([20, 2], 100.0, (Kind::Float, Device::Cpu));
    let fixed = mala(MalaSettings { step_size: 0.5, adaptation_steps: 0, ..MalaSettings::default() });
    let hmc = McmcSection::Hmc(HmcSettings { step_size: 0.5, adaptation_steps: 0, ..HmcSettings::default() });
    for section in [fixed, hmc] {
        let mut run = new(&section, &Quartic, &start);
        advance(&mut run, 20 * 101);
        assert_eq!(run.divergences(), 20 * run.steps());
        assert_eq!((run.diverged_chains(), run.acceptance()), (20, Some(0.0)));
        assert_eq!(run.positions(), start);
        let far = Tensor::full([20, 2], 1e13, (Kind::Float, Device::Cpu));
        let error = McmcRun::new(&section, &Quartic, &far, generator(0)).err().unwrap().to_string();
        assert!(error.contains("20 of 20 starts"), "{error}");
    }
}

#[test]
fn a_few_chains_that_start_where_only_short_steps_are_accepted_come_in_while_the_others_adapt() {
    // At 30 a Langevin step above 2/30² = 0.002 overshoots; the one that suits the other 190 chains is above 0.1.
    let at = |rows, value: f64| Tensor::full([rows, 2], value, (Kind::Float, Device::Cpu));
    let start = Tensor::cat(&[at(190, 0.5), at(10, 30.0)], 0);
    for section in [mala(MalaSettings::default()), McmcSection::Hmc(HmcSettings::default())] {
        let mut run = new(&section, &Quartic, &start);
        while run.is_adapting() || run.steps() < 300 {
            let next = run.evaluations() + 2000;
            advance(&mut run, next);
        }
        assert!(run.positions().abs().max().double_value(&[]) < 4.0, "{}", section.name());
        assert!(run.step_size() > 0.1, "{}", run.step_size());
    }
}

/// N(0, 2² I) whose score is not a number at a radius of 3 and more.
struct Walled;

impl Target for Walled {
    fn shape(&self) -> &[i64] {
        &[2]
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        x.square().sum_dim_intlist(1i64, false, None) / -8.0
    }

    fn score(&self, x: &Tensor) -> Tensor {
        let is_inside = x.square().sum_dim_intlist(1i64, true, None).less(9.0);
        (x / -4.0).where_self(&is_inside, &Tensor::from(f64::NAN))
    }
}

#[test]
fn particles_whose_score_is_not_finite_are_put_back_and_leave_the_others_defined() {
    // A third of N(0, 2² I), exp(−9/8), is beyond the wall, so that particles reach it sooner or later. If the
    // score of the first that does entered the sums of all, all 50 would be put back a step later.
    let start = generator(5).normal(&[50, 2]) * 0.3;
    let mut run = new(&McmcSection::Svgd(SvgdSettings::default()), &Walled, &start);
    while run.diverged_chains() == 0 {
        let next = run.evaluations() + 50;
        assert!(next < 50 * 1000, "no particle reached the wall");
        advance(&mut run, next);
    }
    let next = run.evaluations() + 50;
    advance(&mut run, next);
    assert!((1..25).contains(&run.diverged_chains()), "{}", run.diverged_chains());
    assert_eq!(run.positions().isfinite().all().int64_value(&[]), 1);
    let mut run = new(&McmcSection::Svgd(SvgdSettings::default()), &Walled, &(start + 3.0));
    let message = run.run_until(Some(5000), None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("of 50 starts"), "{message}");
}

#[test]
fn nuts_counts_trajectories_into_a_wall_as_divergent_and_refuses_starts_behind_it() {
    let section = McmcSection::Nuts(NutsSettings { chains: 2, tuning_draws: 50, ..NutsSettings::default() });
    let start = (generator(5).normal(&[2, 2]) * 0.3).to_kind(Kind::Double);
    let mut run = new(&section, &Walled, &start);
    advance(&mut run, 5000);
    assert!(!run.is_adapting() && run.divergences() > 0, "{}", run.divergences());
    assert!(run.draws(1).square().sum_dim_intlist(1i64, false, None).max().double_value(&[]) < 9.0);
    let second_outside = Tensor::from_slice(&[0.1, 0.1, 5.0, 5.0]).reshape([2, 2]);
    let message = McmcRun::new(&section, &Walled, &second_outside, generator(0)).err().unwrap().to_string();
    assert!(message.contains("not finite at 1 of 2 starts"), "{message}");
}

#[test]
fn a_budget_of_seconds_ends_the_run_and_a_run_without_budget_is_refused() {
    let target = gaussian(Kind::Float);
    let mut run = new(&ula(0.1), &target, &starts(100, Kind::Float));
    run.run_until(None, Some(0.05), &mut |_, _| {}).unwrap();
    assert!(run.steps() > 0 && run.seconds() >= 0.05, "{}", run.seconds());
    // Seconds are those of the whole run: the budget is already spent, and both budgets together stop at the first.
    let steps = run.steps();
    run.run_until(None, Some(0.05), &mut |_, _| {}).unwrap();
    run.run_until(Some(u64::MAX), Some(0.05), &mut |_, _| {}).unwrap();
    assert_eq!(run.steps(), steps);
    assert_eq!(run.draws(10).size(), [1000, 2]);
    assert!(matches!(run.run_until(None, None, &mut |_, _| {}), Err(McmcError::NoBudget)));
}

#[test]
fn sets_of_draws_are_the_states_at_equally_spaced_steps_of_the_second_half() {
    let target = gaussian(Kind::Float);
    let start = starts(5, Kind::Float);
    let mut run = new(&ula(0.1), &target, &start);
    assert_eq!(run.draws(10), start); // before the first step
    let mut at = Vec::new();
    for step in 1..=40 {
        advance(&mut run, 5 * step);
        at.push(run.positions());
    }
    let expected: Vec<&Tensor> = (0..10).map(|set| &at[21 + 2 * set]).collect(); // after steps 22, 24, …, 40
    assert_eq!(run.draws(10), Tensor::cat(&expected, 0));
    // Of a run in which the step size was still adapted in the second half, only what came after.
    let settings = MalaSettings { adaptation_steps: 35, ..MalaSettings::default() };
    let mut run = new(&mala(settings), &target, &start);
    advance(&mut run, 5 * 41);
    assert_eq!((run.steps(), run.draws(10).size()), (40, vec![5 * 5, 2]));
}

/// Chains do not know how long a set of draws is: those of the first starts move as if there were no others.
#[test]
fn fewer_chains_than_draws_move_as_they_would_alone_and_fill_their_sets_over_time() {
    let target = gaussian(Kind::Double);
    let (rows, few) = (40, 8);
    let start = starts(rows, Kind::Double);
    let hmc = McmcSection::Hmc(HmcSettings { adaptation_steps: 10, ..HmcSettings::default() });
    for section in [ula(0.1), McmcSection::Sgld(SgldSettings::default()), mala(MalaSettings::default()), hmc]
    {
        let section = section.candidates().remove(0);
        let mut all = new(&section, &target, &start.narrow(0, 0, few));
        let mut set = McmcRun::with_chains(&section, &target, &start, few as usize, generator(0)).unwrap();
        advance(&mut all, 20_000);
        advance(&mut set, 20_000);
        assert_eq!(all.positions(), set.positions());
        assert_eq!((set.steps(), set.evaluations()), (all.steps(), all.evaluations()));
        // Five steps of eight chains are a set of forty.
        let draws = set.draws(3);
        assert_eq!(draws.size(), [3 * rows, 2]);
        let first = Vec::<f64>::try_from(draws.select(1, 0)).unwrap();
        let states = first.chunks(few as usize).collect::<Vec<_>>();
        assert!((1..states.len()).all(|i| !states[..i].contains(&states[i])), "a state is there twice");
    }
}

#[test]
fn settings_and_starts_that_do_not_fit_are_refused_with_what_was_wanted() {
    let target = gaussian(Kind::Float);
    let several = McmcSection::Ula(UlaSettings { step_size: StepSizes::Several(vec![0.1, 0.2]) });
    let image = Tensor::zeros([5, 3], (Kind::Float, Device::Cpu));
    let lost = Tensor::full([5, 2], f64::NAN, (Kind::Float, Device::Cpu));
    let nuts = McmcSection::Nuts(NutsSettings { chains: 6, ..NutsSettings::default() });
    let good = starts(5, Kind::Float);
    for (section, start, words) in [
        (&several, &good, ["[0.1, 0.2]", "choose one"]),
        (&ula(-1.0), &good, ["mcmc.step_size = [-1.0]", "above 0"]),
        (&ula(0.1), &image, ["[5, 3]", "shape [2]"]),
        (&ula(0.1), &lost, ["finite", "starts"]),
        (&nuts, &good, ["6 chains", "has 5"]),
    ] {
        let message =
            McmcRun::new(section, &target, start, generator(0)).err().expect("it is refused").to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}
