//! Bayesian logistic regression: its forms against autograd and each other, its estimates against what they estimate,
//! its mode, and its rows on one rank against the same rows on several.

mod support;

use dft::comm::{DeviceRequest, StartOptions, World};
use dft::rng::{Generator, Stream};
use dft::target::{Laplace, Logistic, LogisticPrior, Target, Whitened};
use support::assert_all_passed;
use support::autograd::ByAutograd;
use tch::{Device, Kind, Tensor};

const PRIOR: LogisticPrior = LogisticPrior { shape: 1.0, rate: 0.01 };
const ROWS: i64 = 500;
const FEATURES: i64 = 5;

fn normal(shape: &[i64], number: u64) -> Tensor {
    Generator::new(3, Stream::Exact, number, 0).normal(shape).to_kind(Kind::Double)
}

/// Rows `[n, 5]`: three continuous features, an indicator that one row in 25 has, and the constant; and labels drawn
/// from the model.
fn data(rows: i64) -> (Tensor, Tensor) {
    let number = Tensor::arange(rows, (Kind::Int64, Device::Cpu));
    let rare = number.remainder(25).eq(0).to_kind(Kind::Double).unsqueeze(1);
    let x =
        Tensor::cat(&[normal(&[rows, 3], 0), rare, Tensor::ones([rows, 1], (Kind::Double, Device::Cpu))], 1);
    let probability = x.matmul(&Tensor::from_slice(&[1.0, -0.7, 0.3, 1.5, 0.4])).sigmoid();
    let y = Generator::new(3, Stream::Exact, 1, 0).uniform(&[rows]).less_tensor(&probability);
    (x, y.to_kind(Kind::Int64))
}

fn plain_of(rows: i64, kind: Kind) -> Logistic {
    let (x, y) = data(rows);
    Logistic::new(&x, &y, 0, PRIOR, kind, Device::Cpu, None).unwrap()
}

fn plain() -> Logistic {
    plain_of(ROWS, Kind::Double)
}

fn laplace() -> Laplace {
    plain().laplace().unwrap()
}

fn anchored(heavy_rows: usize) -> Logistic {
    let at = laplace();
    plain().with_anchor(&at.weights(), &at.weights_covariance(), heavy_rows).unwrap()
}

/// Points `[rows, D]` at `distance` standard deviations from the mode, roughly, in every direction.
fn near_mode(rows: i64, distance: f64) -> Tensor {
    let at = laplace();
    let z = normal(&[rows, FEATURES + 1], 2) * distance;
    z.matmul(&at.factor.transpose(0, 1)) + &at.mode
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
    let error = (found - expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]) + 1.0;
    assert!(error < tolerance * scale, "off by {error:e} of {scale:e}");
}

/// The log-density, its score by central differences along a direction (step 1e-5: error of order 1e-10 from the step
/// and, at |log q| of 300, 1e-8 from rounding), and both closed forms against autograd.
#[track_caller]
fn assert_score_holds(target: &dyn Target, x: &Tensor) {
    let along = normal(&x.size(), 5);
    let step = 1e-5;
    let ends = [x + &along * step, x - &along * step];
    let slope = (target.log_density(&ends[0]) - target.log_density(&ends[1])) / (2.0 * step);
    let score = target.score(x);
    assert_close(&(&score * &along).sum_dim_intlist(1i64, false, None), &slope, 1e-6);
    assert_close(&score, &ByAutograd(target).score(x), 1e-11);
    let (value, again) = target.log_density_and_score(x);
    assert_close(&value, &target.log_density(x), 1e-12);
    assert_close(&again, &score, 1e-12);
}

#[track_caller]
fn assert_product_holds(target: &dyn Target, x: &Tensor) {
    let v = normal(&x.size(), 6);
    let (score, product) = target.score_and_product(x, &mut |_| v.shallow_clone());
    let (expected, by_autograd) = ByAutograd(target).score_and_product(x, &mut |_| v.shallow_clone());
    assert_close(&score, &expected, 1e-11);
    assert_close(&product, &by_autograd, 1e-11);
    let step = 1e-5;
    let slope = (target.score(&(x + &v * step)) - target.score(&(x - &v * step))) / (2.0 * step);
    assert_close(&product, &slope, 1e-6);
}

#[test]
fn closed_forms_of_every_exact_sum_match_autograd_and_differences() {
    for x in [near_mode(4, 1.0), normal(&[4, FEATURES + 1], 7) * 2.0] {
        for target in [plain(), anchored(0), anchored(40), anchored(40).with_batch(Some(0)).unwrap()] {
            assert_score_holds(&target, &x);
            assert_product_holds(&target, &x);
        }
    }
}

#[test]
fn score_of_a_mini_batch_matches_autograd_and_differences() {
    let x = near_mode(4, 1.0);
    assert_score_holds(&plain().with_batch(Some(64)).unwrap(), &x);
    assert_score_holds(&anchored(40).with_batch(Some(64)).unwrap(), &x);
}

#[test]
fn log_density_is_the_formula_of_the_model() {
    // One row x = (2, 1), y = 1 at w = (0.5, −0.25), a = log 3, d = 2: log sigmoid(0.75) is −log(1 + exp(−0.75)),
    // and the prior d/2 a − α |w|²/2 + a0 a − b0 α.
    let (x, y) = (Tensor::from_slice(&[2.0, 1.0]).view([1, 2]), Tensor::from_slice(&[1_i64]));
    let target = Logistic::new(&x, &y, 0, PRIOR, Kind::Double, Device::Cpu, None).unwrap();
    let a = 3.0_f64.ln();
    let expected = -(1.0 + (-0.75_f64).exp()).ln() + a - 3.0 * 0.3125 / 2.0 + a - 0.01 * 3.0;
    let found = target.log_density(&Tensor::from_slice(&[0.5, -0.25, a]).view([1, 3])).double_value(&[0]);
    assert!((found - expected).abs() < 1e-14, "{found} for {expected}");
}

#[test]
fn anchored_form_is_the_plain_one_up_to_a_constant() {
    let x = near_mode(6, 3.0);
    let v = normal(&x.size(), 6);
    let plain = plain();
    let reference = plain.score_and_product(&x, &mut |_| v.shallow_clone());
    // All rows at once; the heavy ones apart; all of them heavy, so that a surrogate has nothing to leave out.
    for target in [anchored(0), anchored(40), anchored(ROWS as usize).with_batch(Some(0)).unwrap()] {
        let difference = target.log_density(&x) - plain.log_density(&x);
        let spread = (difference.max() - difference.min()).double_value(&[]);
        assert!(spread < 1e-9, "{spread}");
        let (score, product) = target.score_and_product(&x, &mut |_| v.shallow_clone());
        assert_close(&score, &reference.0, 1e-9);
        assert_close(&product, &reference.1, 1e-9);
    }
}

#[test]
fn anchored_likelihood_is_one_at_the_anchor_in_every_form() {
    // What is left there is the prior.
    let mode = laplace().mode.unsqueeze(0);
    let (w, a) = (mode.narrow(1, 0, FEATURES), mode.double_value(&[0, FEATURES]));
    let half_square = w.square().sum(None).double_value(&[]) / 2.0;
    let prior = (FEATURES as f64 / 2.0 + 1.0) * a - a.exp() * (half_square + 0.01);
    for batch in [None, Some(0), Some(32)] {
        let found = anchored(40).with_batch(batch).unwrap().log_density(&mode).double_value(&[0]);
        assert!((found - prior).abs() < 1e-10, "{found} for {prior} with {batch:?}");
    }
}

#[test]
fn metropolis_ratios_in_f32_are_those_of_f64() {
    // 50,000 rows: the plain log-density is −25,000, and f32 resolves 0.002 of it. The anchored one is good to what
    // rounding makes of 50,000 logits near 1, 6e-8 · sqrt(50,000) = 1e-5, and of log q itself near 10, 1e-6.
    let rows = 50_000;
    let at = plain_of(rows, Kind::Double).laplace().unwrap();
    let z = normal(&[16, FEATURES + 1], 2);
    let x = (z.matmul(&at.factor.transpose(0, 1)) + &at.mode).to_kind(Kind::Float);
    let ratios = |kind, x: &Tensor| {
        let target = plain_of(rows, kind).with_anchor(&at.weights(), &at.weights_covariance(), 100).unwrap();
        let value = target.log_density(x).to_kind(Kind::Double);
        &value - value.get(0)
    };
    let exact = ratios(Kind::Double, &x.to_kind(Kind::Double));
    let error = (ratios(Kind::Float, &x) - exact).abs().max().double_value(&[]);
    assert!(error < 1e-4, "{error}");
}

#[test]
fn score_and_product_in_f32_are_those_of_f64() {
    // Through the whitened target, so the numbers are of order 1: a row's rounding of 6e-8 times sqrt(20,000) rows,
    // times a standard deviation of 1/sqrt(20,000).
    let rows = 20_000;
    let at = plain_of(rows, Kind::Double).laplace().unwrap();
    let y = normal(&[8, FEATURES + 1], 2);
    let v = normal(&[8, FEATURES + 1], 3);
    let derivatives = |target: Logistic, kind| {
        let target = Whitened::new(target, &at.mode, &at.factor).unwrap();
        let (score, product) =
            target.score_and_product(&y.to_kind(kind), &mut |score| v.to_kind(score.kind()));
        assert_eq!((score.kind(), product.kind()), (kind, kind));
        Tensor::cat(&[score, product], 1).to_kind(Kind::Double)
    };
    let (w0, covariance) = (at.weights(), at.weights_covariance());
    let forms: [&dyn Fn(Logistic) -> Logistic; 3] =
        [&|target| target, &|target| target.with_anchor(&w0, &covariance, 100).unwrap(), &|target| {
            target.with_anchor(&w0, &covariance, 100).unwrap().with_batch(Some(500)).unwrap()
        }];
    for form in forms {
        let exact = derivatives(form(plain_of(rows, Kind::Double)), Kind::Double);
        assert_close(&derivatives(form(plain_of(rows, Kind::Float)), Kind::Float), &exact, 1e-5);
    }
}

/// Means over `draws` redraws of `of`, and their standard errors.
fn mean_over_draws(target: &Logistic, draws: u64, of: impl Fn() -> Tensor) -> (Tensor, Tensor) {
    let values: Vec<Tensor> = (0..draws)
        .map(|draw| {
            target.redraw(&mut Generator::new(4, Stream::MiniBatch, draw, 0));
            of()
        })
        .collect();
    let values = Tensor::stack(&values, 0);
    (values.mean_dim(0i64, false, None), values.std_dim(0i64, true, false) / (draws as f64).sqrt())
}

#[track_caller]
fn assert_unbiased((mean, error): (Tensor, Tensor), expected: &Tensor) {
    // Components of the prior alone do not vary; they are equal but for the rounding of the mean.
    let bound = &error * 4.0 + expected.abs() * 1e-12 + 1e-12;
    let excess = (&mean - expected).abs() / bound;
    assert!(excess.max().double_value(&[]) < 1.0, "{excess}");
    assert!(error.max().double_value(&[]) > 0.0, "the draws are all the same");
}

#[test]
fn mini_batch_estimates_are_unbiased() {
    // Two rows a batch: what score and product would have in common, were they of one batch, is then largest.
    let x = near_mode(3, 2.0);
    let constant = plain().log_density(&x) - anchored(0).log_density(&x);
    for (target, exact) in [
        (plain().with_batch(Some(2)).unwrap(), plain().log_density(&x)),
        (anchored(40).with_batch(Some(2)).unwrap(), plain().log_density(&x) - constant),
    ] {
        let (score, product) = plain().score_and_product(&x, &mut |s| s.shallow_clone());
        let expected = Tensor::cat(&[exact.unsqueeze(1), score, product], 1);
        let estimate = || {
            // The direction is the score itself: the product is unbiased because it has a batch of its own.
            let (score, product) = target.score_and_product(&x, &mut |s| s.shallow_clone());
            Tensor::cat(&[target.log_density(&x).unsqueeze(1), score, product], 1)
        };
        assert_unbiased(mean_over_draws(&target, 4000, estimate), &expected);
    }
}

#[test]
fn anchor_takes_most_of_the_noise_out_of_a_mini_batch() {
    // Near the mode a row deviates from its expansion by a third-order term, and from nothing by all of it.
    let x = near_mode(3, 1.0);
    let noise = |target: Logistic| {
        let (_, error) = mean_over_draws(&target, 100, || target.score(&x));
        error.max().double_value(&[])
    };
    let (without, with) =
        (noise(plain().with_batch(Some(20)).unwrap()), noise(anchored(40).with_batch(Some(20)).unwrap()));
    assert!(with < 0.1 * without, "{with} of {without}");
}

#[test]
fn redraw_of_one_key_gives_one_estimate() {
    let x = near_mode(2, 1.0);
    let target = anchored(40).with_batch(Some(20)).unwrap();
    let score = |iteration| {
        target.redraw(&mut Generator::new(4, Stream::MiniBatch, iteration, 0));
        target.score(&x)
    };
    let first = score(0);
    assert_ne!(score(1), first);
    assert_eq!(score(0), first);
}

#[test]
fn surrogate_misses_terms_of_third_order_only() {
    // Half the distance: an eighth of the error of the log-density and a quarter of that of the score, up to terms of
    // fourth order. A tenth of a standard deviation makes those a few percent.
    let errors = |distance: f64| {
        let x = near_mode(1, distance);
        let (surrogate, exact) = (anchored(0).with_batch(Some(0)).unwrap(), anchored(0));
        let error = |a: Tensor, b: Tensor| (a - b).square().sum(None).sqrt().double_value(&[]);
        (error(surrogate.log_density(&x), exact.log_density(&x)), error(surrogate.score(&x), exact.score(&x)))
    };
    let (far, near) = (errors(0.1), errors(0.05));
    assert!((far.0 / near.0 - 8.0).abs() < 0.8, "{far:?} {near:?}");
    assert!((far.1 / near.1 - 4.0).abs() < 0.4, "{far:?} {near:?}");
}

#[test]
fn rows_of_an_evaluation_are_counted() {
    assert_eq!((plain().row_count(), plain().rows_per_evaluation()), (ROWS, ROWS));
    assert_eq!(anchored(40).rows_per_evaluation(), ROWS);
    assert_eq!(anchored(40).with_batch(Some(64)).unwrap().rows_per_evaluation(), 104);
    assert_eq!(plain().with_batch(Some(64)).unwrap().rows_per_evaluation(), 64);
}

#[test]
fn laplace_has_a_zero_score_and_the_inverse_of_the_hessian() {
    let at = laplace();
    let plain = plain();
    // One standard deviation from the mode the score is of order 1/sd, 10: zero is 1e-9 of that.
    let score = plain.score(&at.mode.unsqueeze(0)).abs().max().double_value(&[]);
    assert!(score < 1e-8, "{score}");
    // Central differences of the score, step 1e-5: error of order 1e-10 of the Hessian's 100.
    let step = Tensor::eye(FEATURES + 1, (Kind::Double, Device::Cpu)) * 1e-5;
    let hessian = (plain.score(&(&at.mode + &step)) - plain.score(&(&at.mode - &step))) / 2e-5;
    assert_close(&-Tensor::linalg_inv(&hessian), &at.covariance(), 1e-7);
    assert_close(&at.factor, &at.factor.tril(0), 1e-15);
}

#[test]
fn laplace_of_rows_in_f32_is_still_in_f64() {
    // 20,000 rows that f32 holds exactly: the mode is that of f64, and weights rounded to f32 are 1e-8 away from it.
    let (x, y) = data(20_000);
    let x = x.to_kind(Kind::Float);
    let mode = |kind| {
        let target = Logistic::new(&x, &y, 0, PRIOR, kind, Device::Cpu, None).unwrap();
        target.laplace().unwrap().mode
    };
    assert_close(&mode(Kind::Float), &mode(Kind::Double), 1e-13);
}

#[test]
fn laplace_is_the_same_from_the_anchored_form_and_better_than_all_points_around() {
    let at = laplace();
    let again = anchored(40).with_batch(Some(0)).unwrap().laplace().unwrap();
    assert_close(&again.mode, &at.mode, 1e-9);
    let around = near_mode(200, 0.1);
    let plain = plain();
    let best = plain.log_density(&at.mode.unsqueeze(0)).double_value(&[0]);
    assert!(plain.log_density(&around).max().double_value(&[]) < best);
}

#[test]
fn laplace_is_found_for_separable_classes_and_collinear_indicators() {
    // Without a prior neither has a mode: weights of separable classes go to infinity, and indicators that sum to the
    // constant leave a direction in which nothing changes.
    let number = Tensor::arange(60, (Kind::Int64, Device::Cpu));
    let indicators: Vec<Tensor> =
        (0..3).map(|class| number.remainder(3).eq(class).to_kind(Kind::Double)).collect();
    let ones = Tensor::ones([60], (Kind::Double, Device::Cpu));
    let x = Tensor::stack(&[&indicators[0], &indicators[1], &indicators[2], &ones], 1);
    let y = number.remainder(3).eq(0).to_kind(Kind::Int64);
    let target = Logistic::new(&x, &y, 0, PRIOR, Kind::Double, Device::Cpu, None).unwrap();
    let at = target.laplace().unwrap();
    let score = target.score(&at.mode.unsqueeze(0)).abs().max().double_value(&[]);
    assert!(score < 1e-8, "{score}");
    assert!(at.steps < 50, "{}", at.steps);
}

#[test]
fn whitened_hessian_at_the_mode_is_minus_the_identity() {
    let at = laplace();
    let target = Whitened::new(plain(), &at.mode, &at.factor).unwrap();
    let origin = Tensor::zeros([FEATURES + 1, FEATURES + 1], (Kind::Double, Device::Cpu));
    let unit = Tensor::eye(FEATURES + 1, (Kind::Double, Device::Cpu));
    let (score, hessian) = target.score_and_product(&origin, &mut |_| unit.shallow_clone());
    assert!(score.abs().max().double_value(&[]) < 1e-8);
    // The factor is of the search's last point, within 1e-7 standard deviations of the mode.
    assert_close(&hessian, &-unit, 1e-7);
}

#[test]
fn whitened_target_is_the_target_at_the_mapped_point() {
    let at = laplace();
    let target = Whitened::new(plain(), &at.mode, &at.factor).unwrap();
    let y = normal(&[4, FEATURES + 1], 8);
    let x = target.to_original(&y);
    assert_close(&target.to_whitened(&x), &y, 1e-11);
    assert_close(&target.log_density(&y), &plain().log_density(&x), 1e-13);
    assert_score_holds(&target, &y);
    assert_product_holds(&target, &y);
    // A user's f32 samples come back as f32.
    let small = y.to_kind(Kind::Float);
    assert_eq!(target.score(&small).kind(), Kind::Float);
    assert_close(&target.score(&small).to_kind(Kind::Double), &target.score(&y), 1e-5);
}

#[test]
fn whitened_target_redraws_what_it_wraps() {
    let at = laplace();
    let inner = anchored(40).with_batch(Some(20)).unwrap();
    let target = Whitened::new(inner, &at.mode, &at.factor).unwrap();
    let y = normal(&[2, FEATURES + 1], 8);
    let before = target.score(&y);
    target.redraw(&mut Generator::new(4, Stream::MiniBatch, 0, 0));
    assert_ne!(target.score(&y), before);
    assert_eq!(target.target().rows_per_evaluation(), 60);
}

#[test]
fn what_cannot_be_a_posterior_is_rejected() {
    let (x, y) = data(20);
    let new = |x: &Tensor, y: &Tensor, first_row, prior| {
        let made = Logistic::new(x, y, first_row, prior, Kind::Double, Device::Cpu, None);
        made.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(new(&x, &y, 0, PRIOR), "");
    assert!(new(&x, &(&y + 1), 0, PRIOR).contains("0 or 1"));
    assert!(new(&x, &y.narrow(0, 0, 19), 0, PRIOR).contains("20 rows"));
    assert!(new(&x, &y, 1, PRIOR).contains("follow each other from 0"));
    assert!(new(&x.narrow(0, 0, 0), &y.narrow(0, 0, 0), 0, PRIOR).contains("needs rows"));
    assert!(new(&x, &y, 0, LogisticPrior { shape: 1.0, rate: 0.0 }).contains("above 0"));

    let text =
        |result: Result<Logistic, _>| result.err().map(|error: dft::target::TargetError| error.to_string());
    assert!(text(plain().with_batch(Some(0))).unwrap().contains("give an anchor"));
    let at = laplace();
    let covariance = at.weights_covariance();
    assert!(text(plain().with_anchor(&at.mode, &covariance, 0)).unwrap().contains("[5]"));
    assert!(
        text(plain().with_anchor(&at.weights(), &-&covariance, 0)).unwrap().contains("positive definite")
    );
    assert!(text(plain().with_anchor(&at.weights(), &covariance, 501)).unwrap().contains("at most all"));
    assert!(text(anchored(0).with_anchor(&at.weights(), &covariance, 0)).unwrap().contains("already"));
    assert!(Whitened::new(plain(), &at.mode, &at.factor.zeros_like()).is_err());
    assert!(Whitened::new(plain(), &at.weights(), &at.factor).is_err());
}

#[test]
fn rows_spread_over_ranks_give_the_posterior_of_all_rows() {
    for ranks in [1, 2, 3] {
        assert_all_passed(ranks, "body_spread");
    }
}

/// Sums over ranks differ from those of one rank by the order of additions: 1e-11 relative.
#[test]
#[ignore = "a body: runs under mpirun"]
fn body_spread() {
    let world = World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()).unwrap();
    let (rank, size) = (world.rank as i64, world.size as i64);
    // Ranges of different lengths, and the first rank's is the last.
    let place = size - 1 - rank;
    let bound = |place: i64| place * place * ROWS / (size * size);
    let (first, end) = (bound(place), bound(place + 1));
    let spread = || {
        let (x, y) = data(ROWS);
        let (x, y) = (x.narrow(0, first, end - first), y.narrow(0, first, end - first));
        let ranks = Some(world.shared_collective());
        Logistic::new(&x, &y, first, PRIOR, Kind::Double, Device::Cpu, ranks).unwrap()
    };
    let (at, of_all) = (spread().laplace().unwrap(), laplace());
    assert_close(&at.mode, &of_all.mode, 1e-9);
    assert_close(&at.factor, &of_all.factor, 1e-9);

    let (w0, covariance) = (of_all.weights(), of_all.weights_covariance());
    let forms: [&dyn Fn(Logistic) -> Logistic; 5] = [
        &|target| target,
        &|target| target.with_batch(Some(32)).unwrap(),
        &|target| target.with_anchor(&w0, &covariance, 40).unwrap(),
        &|target| target.with_anchor(&w0, &covariance, 40).unwrap().with_batch(Some(0)).unwrap(),
        // More heavy rows than the smallest rank has.
        &|target| target.with_anchor(&w0, &covariance, 200).unwrap().with_batch(Some(32)).unwrap(),
    ];
    // Each rank asks about points of its own.
    let x = near_mode(3 * size, 1.0).narrow(0, 3 * rank, 3);
    for form in forms {
        let (spread, whole) = (form(spread()), form(plain()));
        assert_eq!(spread.row_count(), whole.row_count());
        assert_eq!(spread.rows_per_evaluation(), whole.rows_per_evaluation());
        for iteration in 0..2 {
            assert_close(&spread.log_density(&x), &whole.log_density(&x), 1e-11);
            let (value, score) = spread.log_density_and_score(&x);
            assert_close(&value, &whole.log_density(&x), 1e-11);
            assert_close(&score, &whole.score(&x), 1e-11);
            let found = spread.score_and_product(&x, &mut |s| s.tanh());
            let expected = whole.score_and_product(&x, &mut |s| s.tanh());
            assert_close(&found.0, &expected.0, 1e-11);
            assert_close(&found.1, &expected.1, 1e-11);
            for target in [&spread, &whole] {
                target.redraw(&mut Generator::new(4, Stream::MiniBatch, iteration, 0));
            }
        }
    }
}

/// All that rank 0 of [`body_exact`] has printed about `what`.
fn printed(job: &support::Finished, what: &str) -> String {
    assert_eq!(job.code, 0, "{}", job.output);
    let key = format!("{what}: ");
    let found: Vec<&str> = job.output.lines().filter_map(|line| line.strip_prefix(&key)).collect();
    assert!(!found.is_empty(), "nothing of {what} in {}", job.output);
    found.join(" ")
}

#[test]
fn exact_sums_have_the_same_bits_on_one_two_and_three_ranks_and_float_sums_have_not() {
    let jobs = [1, 2, 3].map(|ranks| support::run_body(ranks, "body_exact", &[]));
    for what in ["mode", "plain", "plain batch", "anchored", "anchored batch", "surrogate", "whitened"] {
        let hashes = [0, 1, 2].map(|job| printed(&jobs[job], &format!("exact {what}")));
        assert_eq!(hashes, [0, 1, 2].map(|_| hashes[0].clone()), "{what}");
    }
    // Were the sums of this test the same however they are added, it could not fail.
    for what in ["mode", "plain", "anchored batch"] {
        let hashes = [0, 2].map(|job| printed(&jobs[job], &format!("fast {what}")));
        assert_ne!(hashes[0], hashes[1], "{what}");
    }
}

/// Blocks, and shards of queries: 6 divide over 1, 2 and 3 ranks, and 523 rows do not into 6.
const BLOCKS: i64 = 6;

/// Rows `[523, 5]` of which the last 23 are copies of the first, on other ranks: they tie for being heavy.
fn data_with_copies() -> (Tensor, Tensor) {
    let (x, y) = data(ROWS);
    (Tensor::cat(&[&x, &x.narrow(0, 0, 23)], 0), Tensor::cat(&[&y, &y.narrow(0, 0, 23)], 0))
}

/// SHA-256 of the bits of `tensors`.
fn sha256(tensors: &[Tensor]) -> String {
    use sha2::Digest;
    let mut digest = sha2::Sha256::new();
    for tensor in tensors {
        let values = tensor.to_kind(Kind::Double).contiguous().reshape([-1]);
        Vec::<f64>::try_from(values).unwrap().iter().for_each(|value| digest.update(value.to_le_bytes()));
    }
    format!("{:x}", digest.finalize())
}

/// Each rank asks about its shards of the queries, one after the other, as training does. Exact sums agree with those of
/// one rank up to rounding: of rows in f32, whose logits are good to 6e-8 of about 1, 1e-5 relative.
#[test]
#[ignore = "a body: runs under mpirun"]
fn body_exact() {
    let world = World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()).unwrap();
    let (rank, size) = (world.rank as i64, world.size as i64);
    let (x, y) = data_with_copies();
    let rows = x.size()[0];
    let (first, end) = (rows * rank / size, rows * (rank + 1) / size);
    let spread = |is_exact: bool| {
        let (x, y) = (x.narrow(0, first, end - first), y.narrow(0, first, end - first));
        let ranks = Some(world.shared_collective());
        let spread = Logistic::new(&x, &y, first, PRIOR, Kind::Float, Device::Cpu, ranks).unwrap();
        if is_exact { spread.with_exact_sums(BLOCKS as usize).unwrap() } else { spread }
    };
    let whole = || Logistic::new(&x, &y, 0, PRIOR, Kind::Float, Device::Cpu, None).unwrap();

    let shards = BLOCKS / size * rank..BLOCKS / size * (rank + 1);
    let shard = |of: i64| near_mode(4 * BLOCKS, 1.0).narrow(0, 4 * of, 4).contiguous();
    let answers = |target: &dyn Target, x: &Tensor| {
        let (value, score) = target.log_density_and_score(x);
        // A direction that is a function of the score would carry its rounding to the product, some 100 times as large.
        let (again, product) = target.score_and_product(x, &mut |_| x.tanh());
        [target.log_density(x), target.score(x), value, score, again, product]
    };
    let report = |what: &str, hashes: &[String]| {
        let all = world.gather_strings(&hashes.join(" "));
        if world.is_root() {
            println!("\n{what}: {}", all.join(" "));
        }
    };
    for (mode, is_exact) in [("exact", true), ("fast", false)] {
        let at = spread(is_exact).laplace().unwrap();
        let of_all = whole().laplace().unwrap();
        assert_close(&at.mode, &of_all.mode, 1e-9);
        assert_close(&at.factor, &of_all.factor, 1e-9);
        let mode_sha256 = sha256(&[at.mode.shallow_clone(), at.factor.shallow_clone()]);
        assert!(world.gather_strings(&mode_sha256).iter().all(|of_rank| *of_rank == mode_sha256));
        if world.is_root() {
            println!("\n{mode} mode: {mode_sha256}");
        }
        // Equal numbers for both modes, so that only sums differ.
        let (w0, covariance) = (of_all.weights(), of_all.weights_covariance());
        let anchored = |target: Logistic, batch| {
            target.with_anchor(&w0, &covariance, 40).unwrap().with_batch(batch).unwrap()
        };
        type Form<'a> = &'a dyn Fn(Logistic) -> Box<dyn Target>;
        let forms: [(&str, Form); 6] = [
            ("plain", &|target| Box::new(target)),
            ("plain batch", &|target| Box::new(target.with_batch(Some(64)).unwrap())),
            ("anchored", &|target| Box::new(anchored(target, None))),
            ("anchored batch", &|target| Box::new(anchored(target, Some(64)))),
            ("surrogate", &|target| Box::new(anchored(target, Some(0)))),
            ("whitened", &|target| {
                let target = anchored(target, Some(64));
                Box::new(Whitened::new(target, &of_all.mode, &of_all.factor).unwrap())
            }),
        ];
        for (form, make) in forms {
            let (spread, whole) = (make(spread(is_exact)), make(whole()));
            let mut hashes = Vec::new();
            for iteration in 0..2 {
                for target in [&spread, &whole] {
                    target.redraw(&mut Generator::new(4, Stream::MiniBatch, iteration, 0));
                }
                for of in shards.clone() {
                    let found = answers(spread.as_ref(), &shard(of));
                    for (found, expected) in found.iter().zip(answers(whole.as_ref(), &shard(of))) {
                        assert_close(found, &expected, 1e-5);
                    }
                    hashes.push(sha256(&found));
                }
            }
            // In the order of the shards on any number of ranks: iteration by iteration.
            for of_iteration in hashes.chunks(shards.clone().count()) {
                report(&format!("{mode} {form}"), of_iteration);
            }
        }
    }
}

#[test]
fn exact_sums_need_collectives_whole_blocks_and_come_before_the_anchor() {
    let world = World::solo(Device::Cpu);
    let text = |result: Result<Logistic, dft::target::TargetError>| result.err().unwrap().to_string();
    assert!(text(plain().with_exact_sums(5)).contains("shared_collective"));
    let with_world = || {
        let (x, y) = data(ROWS);
        let ranks = Some(world.shared_collective());
        Logistic::new(&x, &y, 0, PRIOR, Kind::Double, Device::Cpu, ranks).unwrap()
    };
    assert!(text(with_world().with_exact_sums(0)).contains("not whole ones of 0 blocks"));
    let at = laplace();
    let anchored = with_world().with_anchor(&at.weights(), &at.weights_covariance(), 0).unwrap();
    assert!(text(anchored.with_exact_sums(5)).contains("before the anchor"));
    // More blocks than rows: most are empty, and the sums are the same.
    let x = near_mode(3, 1.0);
    let cut = with_world().with_exact_sums(2000).unwrap();
    assert_close(&cut.log_density(&x), &plain().log_density(&x), 1e-12);
    assert_close(&cut.score(&x), &plain().score(&x), 1e-12);
}

#[test]
fn autograd_over_several_ranks_is_refused() {
    let job = support::run_body(2, "body_autograd", &[]);
    assert_ne!(job.code, 0);
    assert!(job.output.contains("autograd does not follow a sum over 2 ranks"), "{}", job.output);
}

#[test]
#[ignore = "a body: runs under mpirun"]
fn body_autograd() {
    let world = World::start(DeviceRequest::Cpu, Some(1), StartOptions::default()).unwrap();
    let (x, y) = data(ROWS);
    let first = world.rank as i64 * ROWS;
    let ranks = Some(world.shared_collective());
    let target = Logistic::new(&x, &y, first, PRIOR, Kind::Double, Device::Cpu, ranks).unwrap();
    let _ = target.log_density(&near_mode(2, 1.0).set_requires_grad(true));
}
