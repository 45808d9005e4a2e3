//! Scores of posterior draws: predictions of a logistic classifier on held-out data, and errors against reference
//! draws with what exact draws would score.

use std::collections::BTreeMap;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::cloud::Cloud;
use super::moments::coordinate_moments;
use super::points::{Measured, mean_and_deviation};
use super::wasserstein::sliced_w2;
use crate::rng::{Generator, Stream};

/// Bins of equal width that predicted probabilities are sorted into.
const BINS: usize = 10;

/// Logits that are held at once, 16 MiB. Measured on 2 cores with 1000 draws of 55 weights and 116,203 data: 1 MiB,
/// which fits a core's cache, takes as long on a quiet machine (0.5 to 1 s) and, since threads meet 16 times as often,
/// several times longer on a busy one.
const LOGITS: i64 = 1 << 22;

/// Probabilities below this are computed again from logarithms in f64; f32 ends at 1e-38.
const FAINT: f32 = 1e-30;

// Keys of the numbers that belong to the metric, so their seed is fixed; `points` has those up to 4.
const ORDER: u64 = 5;
const SETS: u64 = 6;
const BOOTSTRAP: u64 = 7;

/// Resamplings that the floors of moments are the mean over, and how many are summed at once.
const RESAMPLINGS: (u64, u64) = (100, 20);

/// Why posterior draws have no scores.
#[derive(Debug, thiserror::Error)]
pub enum PosteriorError {
    /// Draws that are not finite.
    #[error("{bad} of {rows} posterior draws are not finite")]
    NotFinite {
        /// How many.
        bad: i64,
        /// Of how many.
        rows: i64,
    },
    /// Another number or dimension of draws.
    #[error("scores need posterior draws of shape {wanted:?}, found {found:?}")]
    Shape {
        /// `[samples · sets, D]`.
        wanted: Vec<i64>,
        /// What came.
        found: Vec<i64>,
    },
    /// Fewer reference draws than two sets have.
    #[error("sets of {samples} draws need {needed} reference draws or more, found {found}", needed = 2 * samples)]
    FewReferenceDraws {
        /// Draws of a set.
        samples: usize,
        /// Reference draws.
        found: i64,
    },
    /// A coordinate in which all reference draws are the same.
    #[error("coordinate {coordinate} of the reference draws has no spread, so errors have no unit")]
    NoSpread {
        /// Which one.
        coordinate: usize,
    },
}

/// Data whose predicted probability of label 1 falls into one of ten bins of equal width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationBin {
    /// Number of data.
    pub count: u64,
    /// Mean predicted probability; NaN in an empty bin.
    pub predicted: f64,
    /// Fraction with label 1; NaN in an empty bin.
    pub observed: f64,
}

/// How well posterior draws predict held-out labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Fraction of labels that are predicted at the threshold 0.5.
    pub accuracy: f64,
    /// Mean log probability of the labels, in nats per datum.
    pub log_predictive: f64,
    /// Ten bins, from probability 0 to 1.
    pub calibration: Vec<CalibrationBin>,
}

/// Predicts labels by the mean over draws of sigmoid(x · w).
///
/// `w` `[S, d]` draws of the weights · `test_x` `[N, d]` · `test_y` `[N]`, 0 or 1, of any kind. Computed in f32 where
/// `test_x` is, with probabilities that f32 cannot hold, down to any depth, in f64.
///
/// # Errors
/// If draws are not finite.
///
/// # Panics
/// If shapes do not fit, there is no draw or no datum, or labels are other than 0 and 1.
pub fn predict(w: &Tensor, test_x: &Tensor, test_y: &Tensor) -> Result<Prediction, PosteriorError> {
    check_finite(w)?;
    let (draws, rows) = (w.size()[0], test_x.size()[0]);
    assert!(draws > 0 && rows > 0, "predictions need draws and data");
    assert_eq!(
        (w.size()[1], test_y.size()),
        (test_x.size()[1], vec![rows]),
        "weights and labels of the data"
    );
    let w = w.detach().to_device(test_x.device()).to_kind(Kind::Float);
    let labels: Vec<f64> = Vec::try_from(test_y.to_device(Device::Cpu).to_kind(Kind::Double).contiguous())
        .expect("a vector of f64 on the host");
    assert!(labels.iter().all(|&y| y == 0.0 || y == 1.0), "labels are 0 or 1");
    // The probability of the label that is there, and its logarithm: that of label 1 has no digits left near 1.
    let signs = (test_y.to_device(test_x.device()).to_kind(Kind::Float) * 2.0 - 1.0).unsqueeze(1);
    let chunk = (LOGITS / draws).clamp(1, rows);
    let logits = Tensor::empty([chunk, draws], (Kind::Float, test_x.device()));
    let mut of_label: Vec<(f64, f64)> = Vec::with_capacity(rows as usize);
    for first in (0..rows).step_by(chunk as usize) {
        let count = chunk.min(rows - first);
        let x = test_x.narrow(0, first, count).to_kind(Kind::Float) * signs.narrow(0, first, count);
        of_label.extend(mean_probabilities(&x, &w, &logits.narrow(0, 0, count)));
    }
    let mut bins = [CalibrationBin { count: 0, predicted: 0.0, observed: 0.0 }; BINS];
    let (mut hits, mut log_sum) = (0, 0.0);
    for (&(probability, log), &label) in of_label.iter().zip(&labels) {
        let of_one = if label == 1.0 { probability } else { 1.0 - probability };
        hits += usize::from((of_one >= 0.5) == (label == 1.0));
        log_sum += log;
        let bin = &mut bins[((of_one * BINS as f64) as usize).min(BINS - 1)];
        bin.count += 1;
        bin.predicted += of_one;
        bin.observed += label;
    }
    for bin in &mut bins {
        bin.predicted /= bin.count as f64;
        bin.observed /= bin.count as f64;
    }
    let rows = rows as f64;
    Ok(Prediction {
        accuracy: hits as f64 / rows,
        log_predictive: log_sum / rows,
        calibration: bins.to_vec(),
    })
}

/// Mean over draws `w` `[S, d]` of sigmoid(x · w) and its logarithm, for each row of `x` `[n, d]`; `logits` `[n, S]` is
/// where they are computed.
fn mean_probabilities(x: &Tensor, w: &Tensor, logits: &Tensor) -> Vec<(f64, f64)> {
    let means = x.mm_out(logits, &w.tr()).sigmoid_().mean_dim(1i64, false, None);
    let means: Vec<f32> = Vec::try_from(means.to_device(Device::Cpu)).expect("a vector of f32 on the host");
    let faint: Vec<i64> = (0..).zip(&means).filter(|(_, mean)| **mean < FAINT).map(|(row, _)| row).collect();
    let mut means: Vec<_> = means.into_iter().map(|mean| (f64::from(mean), f64::from(mean).ln())).collect();
    if !faint.is_empty() {
        let x = x.index_select(0, &Tensor::from_slice(&faint).to_device(x.device())).to_kind(Kind::Double);
        let logs = x.mm(&w.to_kind(Kind::Double).tr()).log_sigmoid().logsumexp(1i64, false);
        let logs = (logs - (w.size()[0] as f64).ln()).to_device(Device::Cpu);
        let logs: Vec<f64> = Vec::try_from(logs).expect("a vector of f64 on the host");
        for (row, log) in faint.into_iter().zip(logs) {
            means[row as usize] = (log.exp(), log);
        }
    }
    means
}

fn check_finite(draws: &Tensor) -> Result<(), PosteriorError> {
    let rows = draws.size()[0];
    let bad = rows - draws.isfinite().all_dim(1, false).sum(Kind::Int64).int64_value(&[]);
    if bad > 0 { Err(PosteriorError::NotFinite { bad, rows }) } else { Ok(()) }
}

/// Reference draws as the yardstick of other draws, with what exact draws in the same number would score.
///
/// Reference draws count as independent: chains should be thinned until they nearly are. Their order is shuffled,
/// so it does not matter.
pub struct PosteriorReference {
    samples: usize,
    sets: usize,
    moments: Vec<(f64, f64)>,
    sets_of_reference: Vec<Cloud>,
    floors: BTreeMap<&'static str, (f64, Option<f64>)>,
}

impl PosteriorReference {
    /// From reference draws `[R, D]`, for `sets` sets of `samples` draws each: measures the floors.
    ///
    /// Floors of moments are bootstrap means: `samples` · `sets` of the reference draws, with replacement, are scored
    /// against `R` others, 100 times. So they hold the errors of both sides, whatever the shape and the correlations
    /// of the posterior; for `mean_error_rms` that comes to sqrt(1/(samples · sets) + 1/R).
    ///
    /// For the sliced distance the reference draws are halved: each set of reference draws is from one half, and
    /// that which stands for exact draws from the other, without replacement in either. With `R ≥ 2 · samples · sets`
    /// all sets are disjoint; with fewer, sets share draws and the deviation of the floor comes out too small.
    /// `R ≥ 4 · samples` is advisable.
    ///
    /// # Errors
    /// If draws are not finite, are fewer than two sets, or have a coordinate without spread.
    ///
    /// # Panics
    /// If there is no set, or one of fewer than two draws.
    pub fn new(draws: &Tensor, samples: usize, sets: usize) -> Result<Self, PosteriorError> {
        assert!(sets > 0 && samples > 1, "scores need one set or more, of two draws or more");
        check_finite(draws)?;
        let rows = draws.size()[0];
        if rows < 2 * samples as i64 {
            return Err(PosteriorError::FewReferenceDraws { samples, found: rows });
        }
        let order = Generator::new(0, Stream::Exact, ORDER, 0).permutation(rows);
        let draws = on_host(draws).index_select(0, &Tensor::from_slice(&order));
        let moments = coordinate_moments(&Cloud::new(&draws));
        if let Some(coordinate) = moments.iter().position(|moments| moments.1 == 0.0) {
            return Err(PosteriorError::NoSpread { coordinate });
        }
        let sets_of_reference = draw_sets(&draws.narrow(0, 0, rows / 2), samples, sets, 0);
        let exact_sets = draw_sets(&draws.narrow(0, rows / 2, rows - rows / 2), samples, sets, 1);
        let mut reference =
            PosteriorReference { samples, sets, moments, sets_of_reference, floors: BTreeMap::new() };
        let sliced = reference.sliced(&exact_sets);
        reference.floors = floors_of_moments(&reference.standardised(&draws), (samples * sets) as i64);
        reference.floors.insert("sliced_w2", sliced);
        Ok(reference)
    }

    /// Mean and standard deviation (n − 1) of each coordinate of the reference draws, `[D]`.
    pub fn moments(&self) -> &[(f64, f64)] {
        &self.moments
    }

    /// Scores of draws `x` `[samples · sets, D]`.
    ///
    /// | name | what it is |
    /// | --- | --- |
    /// | `mean_error_rms`, `mean_error_max` | root mean square and largest over coordinates of \|mean − reference mean\| / reference deviation |
    /// | `deviation_ratio_min`, `deviation_ratio_max` | smallest and largest ratio of deviation and reference deviation |
    /// | `deviation_error_max` | largest \|ratio − 1\| |
    /// | `sliced_w2` | [`sliced_w2`](super::sliced_w2) from as many reference draws, in the coordinates of `x` |
    ///
    /// All but the last are of all rows at once, so they have no deviation over sets and their `samples` is the
    /// number of rows; the sliced distance is the mean over sets of consecutive rows. It averages an error of few
    /// coordinates over all: it tells shapes, the moments tell which coordinate is off.
    ///
    /// # Errors
    /// If draws have another shape or are not finite.
    pub fn scores(&self, x: &Tensor) -> Result<BTreeMap<String, Measured>, PosteriorError> {
        let rows = self.samples * self.sets;
        let wanted = vec![rows as i64, self.moments.len() as i64];
        if x.size() != wanted {
            return Err(PosteriorError::Shape { wanted, found: x.size() });
        }
        check_finite(x)?;
        let x = on_host(x);
        let samples = self.samples as i64;
        let sets: Vec<_> =
            (0..self.sets as i64).map(|set| Cloud::new(&x.narrow(0, set * samples, samples))).collect();
        let standardised = coordinate_moments(&Cloud::new(&self.standardised(&x)));
        let mut measured = BTreeMap::new();
        let mut keep = |name: &str, (value, deviation), samples| {
            let (floor, floor_deviation) = self.floors[name];
            let floor = Some(floor);
            measured.insert(name.to_owned(), Measured { value, deviation, floor, floor_deviation, samples });
        };
        for (name, value) in moment_scores(&standardised) {
            keep(name, (value, None), rows);
        }
        keep("sliced_w2", self.sliced(&sets), self.samples);
        Ok(measured)
    }

    /// Draws less the reference mean, in units of the reference deviation.
    fn standardised(&self, x: &Tensor) -> Tensor {
        let (means, deviations): (Vec<f64>, Vec<f64>) = self.moments.iter().copied().unzip();
        (x - Tensor::from_slice(&means)) / Tensor::from_slice(&deviations)
    }

    /// Mean and deviation over sets of their distances from the sets of reference draws.
    fn sliced(&self, sets: &[Cloud]) -> (f64, Option<f64>) {
        let pairs = sets.par_iter().zip(&self.sets_of_reference);
        mean_and_deviation(&pairs.map(|(set, reference)| sliced_w2(set, reference)).collect::<Vec<_>>())
    }
}

fn on_host(x: &Tensor) -> Tensor {
    x.detach().to_device(Device::Cpu).to_kind(Kind::Double)
}

/// Sets of `samples` rows of `pool` `[n, D]`, each without replacement: one after the other while there are rows,
/// then from the start in a new order.
fn draw_sets(pool: &Tensor, samples: usize, sets: usize, side: u64) -> Vec<Cloud> {
    let rows = pool.size()[0];
    let in_a_round = rows as usize / samples;
    let rounds = sets.div_ceil(in_a_round) as u64;
    let orders = (0..rounds).map(|round| {
        let order = Generator::new(side, Stream::Exact, SETS, round).permutation(rows);
        order
            .chunks_exact(samples)
            .map(|set| Cloud::new(&pool.index_select(0, &Tensor::from_slice(set))))
            .collect()
    });
    orders.flat_map(|sets: Vec<Cloud>| sets).take(sets).collect()
}

/// The scores of moments, from the mean and deviation of each coordinate in units of the reference.
fn moment_scores(moments: &[(f64, f64)]) -> [(&'static str, f64); 5] {
    let squares: f64 = moments.iter().map(|(error, _)| error * error).sum();
    let largest_error = moments.iter().map(|(error, _)| error.abs()).fold(0.0, f64::max);
    let smallest = moments.iter().map(|(_, ratio)| *ratio).fold(f64::INFINITY, f64::min);
    let largest = moments.iter().map(|(_, ratio)| *ratio).fold(0.0, f64::max);
    [
        ("mean_error_rms", (squares / moments.len() as f64).sqrt()),
        ("mean_error_max", largest_error),
        ("deviation_ratio_min", smallest),
        ("deviation_ratio_max", largest),
        ("deviation_error_max", (1.0 - smallest).max(largest - 1.0)),
    ]
}

/// What `count` exact draws score on average, and its deviation: a bootstrap of draws and of reference, both from
/// `standardised` reference draws `[R, D]`.
fn floors_of_moments(standardised: &Tensor, count: i64) -> BTreeMap<&'static str, (f64, Option<f64>)> {
    let rows = standardised.size()[0];
    let dimension = standardised.size()[1] as usize;
    let powers = Tensor::cat(&[standardised.shallow_clone(), standardised.square()], 1);
    let (resamplings, at_once) = RESAMPLINGS;
    let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for first in (0..resamplings).step_by(at_once as usize) {
        // How often each row is drawn, as a matrix: its product with the powers is all sums at once.
        let moments = |side: u64, count: i64| {
            let weights: Vec<Tensor> = (first..first + at_once)
                .map(|resampling| {
                    let mut generator = Generator::new(side, Stream::Exact, BOOTSTRAP, resampling);
                    let drawn = Tensor::from_slice(&generator.indices(count as usize, rows));
                    drawn.bincount::<Tensor>(None, rows).to_kind(Kind::Double) / count as f64
                })
                .collect();
            let sums: Vec<f64> = Vec::try_from(Tensor::stack(&weights, 0).mm(&powers).view([-1]))
                .expect("a vector of f64 on the host");
            let unbiased = count as f64 / (count - 1) as f64;
            let row = move |sums: &[f64]| -> Vec<(f64, f64)> {
                let (means, squares) = sums.split_at(dimension);
                let deviation =
                    |(mean, square): (&f64, &f64)| (*mean, ((square - mean * mean) * unbiased).sqrt());
                means.iter().zip(squares).map(deviation).collect()
            };
            sums.chunks_exact(2 * dimension).map(row).collect::<Vec<_>>()
        };
        for (draws, reference) in moments(0, count).into_iter().zip(moments(1, rows)) {
            let relative = draws.iter().zip(&reference).map(|(x, of)| ((x.0 - of.0) / of.1, x.1 / of.1));
            for (name, value) in moment_scores(&relative.collect::<Vec<_>>()) {
                values.entry(name).or_default().push(value);
            }
        }
    }
    values.into_iter().map(|(name, values)| (name, mean_and_deviation(&values))).collect()
}
