//! Scores of posterior draws: predictions that can be worked out by hand, and errors that were put in.

use dft::metric::{PosteriorError, PosteriorReference, predict};
use dft::rng::{Generator, Stream};
use tch::{Device, Kind, Tensor};

fn normal(rows: i64, dimension: i64, iteration: u64) -> Tensor {
    Generator::new(0, Stream::Chains, iteration, 0).normal(&[rows, dimension]).to_kind(Kind::Double)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap()
}

/// The definitions, one datum and one draw at a time in f64.
#[test]
fn prediction_equals_its_definition_in_f64() {
    let (draws, rows, d) = (37, 501, 5);
    let (w, x) = (normal(draws, d, 1).to_kind(Kind::Float), normal(rows, d, 2).to_kind(Kind::Float));
    let y = normal(rows, 1, 3).gt(0.0).view([-1]).to_kind(Kind::Int64);
    let found = predict(&w, &x, &y).unwrap();
    let (w, x, y) = (numbers(&w), numbers(&x), numbers(&y));
    let (mut hits, mut log_sum, mut bins) = (0, 0.0, [(0, 0.0, 0.0); 10]);
    for (x, y) in x.chunks(d as usize).zip(y) {
        let probability = |w: &[f64]| 1.0 / (1.0 + (-x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).exp());
        let mean = w.chunks(d as usize).map(probability).sum::<f64>() / draws as f64;
        hits += i32::from((mean >= 0.5) == (y == 1.0));
        log_sum += if y == 1.0 { mean.ln() } else { (1.0 - mean).ln() };
        let bin = &mut bins[(mean * 10.0) as usize];
        *bin = (bin.0 + 1, bin.1 + mean, bin.2 + y);
    }
    assert!((found.accuracy - f64::from(hits) / rows as f64).abs() < 1e-12);
    // Logits and probabilities are f32.
    assert!((found.log_predictive - log_sum / rows as f64).abs() < 1e-5);
    for (found, (count, predicted, observed)) in found.calibration.iter().zip(bins) {
        assert_eq!(found.count, count);
        assert!(
            count == 0 && found.predicted.is_nan()
                || (found.predicted - predicted / count as f64).abs() < 1e-5
        );
        assert!(
            count == 0 && found.observed.is_nan() || (found.observed - observed / count as f64).abs() < 1e-12
        );
    }
}

/// One draw w = 1 and the wrong label: log sigmoid(−500) = −500, where f32 has e^−500 = 0, and log sigmoid(−20) =
/// −20 − e^−20, where 1 less the probability 1 − 2e-9 of the other label is 0 in f32.
#[test]
fn log_predictive_is_exact_where_probabilities_leave_f32() {
    let w = Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
    let predictive = |x: &[f32], y: &[i64]| {
        let x = Tensor::from_slice(x).unsqueeze(1);
        predict(&w, &x, &Tensor::from_slice(y)).unwrap().log_predictive
    };
    assert!((predictive(&[500.0, -500.0, 0.0], &[0, 1, 1]) - (-1000.0 - 2f64.ln()) / 3.0).abs() < 1e-6);
    assert!((predictive(&[20.0, -20.0], &[0, 1]) + 20.0).abs() < 1e-5);
    // Logits are −20 of one draw and −1000 of the other: ln(e^−20/2).
    let two = Tensor::from_slice(&[1f32, 50.0]).unsqueeze(1);
    let x = Tensor::from_slice(&[-20f32]).unsqueeze(1);
    let found = predict(&two, &x, &Tensor::from_slice(&[1i64])).unwrap().log_predictive;
    assert!((found + 20.0 + 2f64.ln()).abs() < 1e-5, "{found}");
}

/// Draws of ±w predict 1/2 for everything, and the log of the mean is not the mean of the logs.
#[test]
fn opposite_draws_predict_one_half() {
    let w = Tensor::from_slice(&[3f32, -3.0]).unsqueeze(1);
    let x = normal(200, 1, 4).to_kind(Kind::Float);
    let found = predict(&w, &x, &Tensor::ones([200], (Kind::Float, Device::Cpu))).unwrap();
    assert!((found.log_predictive - 0.5f64.ln()).abs() < 1e-6);
}

/// Labels drawn from the probabilities that one draw predicts.
#[test]
fn labels_of_the_model_itself_are_calibrated() {
    let w = Tensor::from_slice(&[1.5f32, -1.0]).unsqueeze(0);
    let x = normal(20_000, 2, 5).to_kind(Kind::Float);
    let probability = x.mm(&w.tr()).sigmoid().view([-1]);
    let y = Generator::new(0, Stream::Chains, 6, 0).uniform(&[20_000]).lt_tensor(&probability);
    let found = predict(&w, &x, &y).unwrap();
    assert_eq!(found.calibration.iter().map(|bin| bin.count).sum::<u64>(), 20_000);
    for bin in found.calibration {
        let standard_error = (bin.predicted * (1.0 - bin.predicted) / bin.count as f64).sqrt();
        assert!((bin.observed - bin.predicted).abs() < 4.0 * standard_error, "{bin:?}");
    }
}

/// Correlated coordinates of different scales, as reference and as samples.
fn posterior(rows: i64, iteration: u64) -> Tensor {
    let mixing = normal(6, 6, 7) + Tensor::eye(6, (Kind::Double, Device::Cpu)) * 2.0;
    normal(rows, 6, iteration).mm(&mixing) + 5.0
}

#[test]
fn exact_draws_score_their_floors() {
    let (samples, sets, rows) = (500, 8, 20_000i64);
    let reference = PosteriorReference::new(&posterior(rows, 8), samples, sets).unwrap();
    // Mean over repetitions, so that its own noise is a fraction of a floor's deviation.
    let repetitions = 20;
    let mut sums = std::collections::BTreeMap::<String, f64>::new();
    let mut last = None;
    for repetition in 0..repetitions {
        let scores = reference.scores(&posterior((samples * sets) as i64, 10 + repetition)).unwrap();
        for (name, measured) in &scores {
            *sums.entry(name.clone()).or_default() += measured.value / repetitions as f64;
        }
        last = Some(scores);
    }
    let last = last.unwrap();
    assert_eq!(last.len(), 6);
    for (name, mean) in sums {
        let (floor, deviation) = (last[&name].floor.unwrap(), last[&name].floor_deviation.unwrap());
        // One reference serves all repetitions, so part of the deviation does not average out: it is of order
        // sqrt(samples · sets / rows) = .45 of the whole.
        assert!((mean - floor).abs() < 1.5 * deviation, "{name}: {mean} {floor} ± {deviation}");
    }
    // Variance of the difference of two means of independent draws; the mean of a root lies below the root.
    let expected = (1.0 / (samples * sets) as f64 + 1.0 / rows as f64).sqrt();
    let floor = last["mean_error_rms"].floor.unwrap();
    assert!(floor < expected && floor > 0.8 * expected, "{floor} {expected}");
    assert_eq!((last["mean_error_rms"].samples, last["sliced_w2"].samples), (4000, 500));
}

#[test]
fn errors_of_one_coordinate_are_found_in_units_of_its_deviation() {
    let reference = PosteriorReference::new(&posterior(20_000, 8), 1000, 10).unwrap();
    let x = posterior(10_000, 9);
    let exact = reference.scores(&x).unwrap();
    let (mean, deviation) = reference.moments()[2];
    let column = x.select(1, 2);
    // Half as wide about the mean, then a shift by 0.4 deviations.
    x.select(1, 2).copy_(&((&column - mean) * 0.5 + (mean + 0.4 * deviation)));
    let found = reference.scores(&x).unwrap();
    let value = |name: &str| found[name].value;
    // Standard error of a mean of 10,000 and a reference of 20,000: .012.
    assert!((value("mean_error_max") - 0.4).abs() < 0.05);
    assert!((value("mean_error_rms") - 0.4 / 6f64.sqrt()).abs() < 0.02);
    assert!((value("deviation_ratio_min") - 0.5).abs() < 0.02);
    assert!((value("deviation_error_max") - 0.5).abs() < 0.02);
    assert_eq!(value("deviation_ratio_max"), exact["deviation_ratio_max"].value);
    assert!(value("sliced_w2") > exact["sliced_w2"].value);
}

#[test]
fn draws_without_scores_are_refused_with_the_reason() {
    let draws = posterior(100, 8);
    let error = PosteriorReference::new(&draws, 51, 1).err().unwrap();
    assert_eq!(error.to_string(), "sets of 51 draws need 102 reference draws or more, found 100");
    let reference = PosteriorReference::new(&draws, 10, 2).unwrap();
    let error = reference.scores(&posterior(21, 9)).unwrap_err();
    assert!(matches!(error, PosteriorError::Shape { ref wanted, .. } if wanted == &[20, 6]), "{error}");
    let x = posterior(20, 9);
    let _ = x.get(3).fill_(f64::NAN);
    let error = reference.scores(&x).unwrap_err();
    assert_eq!(error.to_string(), "1 of 20 posterior draws are not finite");
    assert!(matches!(
        predict(&x, &x, &Tensor::zeros([20], (Kind::Float, Device::Cpu))),
        Err(PosteriorError::NotFinite { .. })
    ));
    let _ = draws.select(1, 4).fill_(1.0);
    let error = PosteriorReference::new(&draws, 10, 2).err().unwrap();
    assert_eq!(
        error.to_string(),
        "coordinate 4 of the reference draws has no spread, so errors have no unit"
    );
}
