//! Whether Markov chains have converged: rank-normalised split R-hat and effective sample sizes.
//!
//! Definitions of Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization"
//! (2021), with ArviZ's choices where the paper leaves one open: `tests/diagnostics.rs` holds its numbers. Crates
//! that have R-hat have the older one without ranks.
//!
//! Chains are `[draws]` of one scalar, all of one length; each is split in halves, and of an odd number of draws
//! the middle one belongs to neither. Where a number has no meaning it is NaN: fewer than four draws, a draw that
//! is not finite (ArviZ ranks infinities), and for R-hat a single chain or draws that are all the same. The
//! effective sizes of draws that are all the same are their count, as in ArviZ.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::cloud::lane_sum;

/// Numbers below this have no digits left beside draws of order one; ArviZ's bound for draws that are all the same.
const RESOLUTION: f64 = 1e-15;

/// Quantiles whose indicators make the tail ESS.
const TAILS: [f64; 2] = [0.05, 0.95];

/// R-hat: root of the ratio of the variance of all draws to that within half chains, near 1 when all agree.
///
/// It is the larger of those of rank-normalised draws, which sees different places, and of their distances from
/// the median, which sees different widths. The usual bound is 1.01.
///
/// # Panics
/// If chains differ in length.
pub fn r_hat(chains: &[Vec<f64>]) -> f64 {
    ranked(chains, r_hat_by_ranks)
}

/// Effective sample size of the rank-normalised draws: how well the chains know the middle of the distribution.
///
/// # Panics
/// If chains differ in length.
pub fn ess_bulk(chains: &[Vec<f64>]) -> f64 {
    ranked(chains, ess_by_ranks)
}

/// The smaller of the effective sample sizes of the 5 % and the 95 % quantile.
///
/// # Panics
/// If chains differ in length.
pub fn ess_tail(chains: &[Vec<f64>]) -> f64 {
    if !are_valid(chains) {
        return f64::NAN;
    }
    let mut sorted = chains.concat();
    sorted.sort_unstable_by(f64::total_cmp);
    let size = |probability: f64| {
        let at = quantile(&sorted, probability);
        let is_below = |chain: &Vec<f64>| chain.iter().map(|&value| f64::from(value <= at)).collect();
        effective_size(HalfChains::new(&chains.iter().map(is_below).collect::<Vec<_>>()))
    };
    let [low, high] = TAILS.map(size);
    low.min(high)
}

/// Effective sample size of the mean: the variance of the draws over the square of its standard error.
///
/// # Panics
/// If chains differ in length.
pub fn ess_mean(chains: &[Vec<f64>]) -> f64 {
    if are_valid(chains) { effective_size(HalfChains::new(chains)) } else { f64::NAN }
}

/// Diagnostics of each coordinate, `[D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnostics {
    /// [`r_hat`].
    pub r_hat: Vec<f64>,
    /// [`ess_bulk`].
    pub ess_bulk: Vec<f64>,
    /// [`ess_tail`].
    pub ess_tail: Vec<f64>,
}

impl Diagnostics {
    /// The largest R-hat of a coordinate; NaN if one is.
    pub fn worst_r_hat(&self) -> f64 {
        worst(&self.r_hat, f64::max)
    }

    /// The smallest bulk ESS of a coordinate; NaN if one is.
    pub fn least_ess_bulk(&self) -> f64 {
        worst(&self.ess_bulk, f64::min)
    }

    /// The smallest tail ESS of a coordinate; NaN if one is.
    pub fn least_ess_tail(&self) -> f64 {
        worst(&self.ess_tail, f64::min)
    }
}

/// Diagnoses `draws` `[chains, draws, D]`, coordinate by coordinate on all threads.
///
/// # Panics
/// If `draws` has another number of dimensions.
pub fn diagnose(draws: &Tensor) -> Diagnostics {
    let [chains, length, dimension] = draws.size()[..] else {
        panic!("draws for diagnostics have the shape {:?}, wanted [chains, draws, D]", draws.size());
    };
    // Coordinate by coordinate in memory, so that threads read slices and no tensors.
    let draws = draws.detach().to_device(Device::Cpu).to_kind(Kind::Double).permute([2, 0, 1]).contiguous();
    let draws: Vec<f64> = Vec::try_from(draws.view([-1])).expect("a vector of f64 on the host");
    let scores = normal_scores(split_count(chains as usize, length as usize));
    let diagnose = |coordinate: usize| {
        let chain = |number: usize| {
            let start = (coordinate * chains as usize + number) * length as usize;
            draws[start..start + length as usize].to_vec()
        };
        let chains: Vec<_> = (0..chains as usize).map(chain).collect();
        if !are_valid(&chains) {
            return [f64::NAN; 3];
        }
        [r_hat_by_ranks(&chains, &scores), ess_by_ranks(&chains, &scores), ess_tail(&chains)]
    };
    let by_coordinate: Vec<[f64; 3]> = (0..dimension as usize).into_par_iter().map(diagnose).collect();
    let column = |which: usize| by_coordinate.iter().map(|values| values[which]).collect();
    Diagnostics { r_hat: column(0), ess_bulk: column(1), ess_tail: column(2) }
}

/// `f64::max` and `f64::min` pass over NaN, which here is the worst of all.
fn worst(values: &[f64], choose: fn(f64, f64) -> f64) -> f64 {
    if values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    values.iter().copied().reduce(choose).unwrap_or(f64::NAN)
}

fn are_valid(chains: &[Vec<f64>]) -> bool {
    let length = chains.first().map_or(0, Vec::len);
    assert!(chains.iter().all(|chain| chain.len() == length), "chains of one length");
    length >= 4 && chains.iter().flatten().all(|value| value.is_finite())
}

/// `measure` of valid chains and the table of their normal scores, or NaN.
fn ranked(chains: &[Vec<f64>], measure: fn(&[Vec<f64>], &[f64]) -> f64) -> f64 {
    if !are_valid(chains) {
        return f64::NAN;
    }
    measure(chains, &normal_scores(split_count(chains.len(), chains[0].len())))
}

fn r_hat_by_ranks(chains: &[Vec<f64>], scores: &[f64]) -> f64 {
    if chains.len() < 2 {
        return f64::NAN;
    }
    let halves = HalfChains::new(chains);
    let mut sorted = halves.values.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2; // two halves of each chain: the number of values is even
    let median = (sorted[middle - 1] + sorted[middle]) / 2.0;
    let folded = halves.with(halves.values.iter().map(|value| (value - median).abs()).collect());
    // Draws of two values lie equally far from their median: their folded R-hat is NaN, and `max` passes over it.
    variance_ratio(&halves.rank_normalised(scores)).max(variance_ratio(&folded.rank_normalised(scores)))
}

fn ess_by_ranks(chains: &[Vec<f64>], scores: &[f64]) -> f64 {
    effective_size(HalfChains::new(chains).rank_normalised(scores))
}

/// Values of half chains one after the other, `[2 · chains · length]`.
struct HalfChains {
    values: Vec<f64>,
    length: usize,
}

impl HalfChains {
    fn new(chains: &[Vec<f64>]) -> Self {
        let length = chains[0].len() / 2;
        let halves = |chain: &Vec<f64>| [&chain[..length], &chain[chain.len() - length..]].concat();
        HalfChains { values: chains.iter().flat_map(halves).collect(), length }
    }

    fn with(&self, values: Vec<f64>) -> Self {
        HalfChains { values, length: self.length }
    }

    /// Each value's normal score; values that are equal share the mean of their ranks.
    fn rank_normalised(&self, scores: &[f64]) -> Self {
        let values = &self.values;
        let mut order: Vec<(f64, usize)> = values.iter().copied().zip(0..).collect();
        order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut normalised = vec![0.0; values.len()];
        let mut first = 0;
        for equal in order.chunk_by(|a, b| a.0 == b.0) {
            // Ranks first + 1 to first + count: twice their mean is the sum of both ends.
            let twice_rank = 2 * first + equal.len() + 1;
            for &(_, index) in equal {
                normalised[index] = scores[twice_rank];
            }
            first += equal.len();
        }
        self.with(normalised)
    }

    fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.length)
    }
}

/// Values that halves of chains hold in all.
fn split_count(chains: usize, length: usize) -> usize {
    2 * chains * (length / 2)
}

/// Normal scores of twice a rank among `count`, `[2 · count + 1]`: the quantile of (rank − 3/8)/(count + 1/4)
/// (Blom 1958). A table, since it costs more than all the rest.
fn normal_scores(count: usize) -> Vec<f64> {
    let twice_rank = Tensor::arange(2 * count as i64 + 1, (Kind::Double, Device::Cpu));
    let probability = (twice_rank / 2.0 - 0.375) / (count as f64 + 0.25);
    // Twice a rank is 2 or more; the first two entries, one without a quantile, are never read.
    Vec::try_from(probability.special_ndtri()).expect("a vector of f64 on the host")
}

/// Quantile of sorted values, linear between them (type 7 of Hyndman and Fan 1996).
fn quantile(sorted: &[f64], probability: f64) -> f64 {
    let n = sorted.len() as f64;
    let rank = n * probability + (1.0 - probability);
    let below = rank.clamp(1.0, n - 1.0).floor();
    let weight = (rank - below).clamp(0.0, 1.0);
    let below = below as usize;
    (1.0 - weight) * sorted[below - 1] + weight * sorted[below]
}

/// Split R-hat of values as they are.
fn variance_ratio(chains: &HalfChains) -> f64 {
    let n = chains.length as f64;
    let (means, variances): (Vec<f64>, Vec<f64>) = chains.iter().map(mean_and_variance).unzip();
    let within = lane_sum(&variances) / variances.len() as f64;
    let between = n * mean_and_variance(&means).1;
    ((between / within + n - 1.0) / n).sqrt()
}

/// Mean and variance (n − 1).
fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = lane_sum(values) / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, squares / (n - 1.0))
}

/// Number of values over the integrated autocorrelation time, by Geyer's initial monotone sequence (1992).
fn effective_size(mut chains: HalfChains) -> f64 {
    let (count, n) = (chains.values.len() as f64, chains.length as f64);
    let lowest = chains.values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = chains.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if highest - lowest < RESOLUTION {
        return count;
    }
    let means: Vec<f64> = chains.iter().map(|chain| lane_sum(chain) / n).collect();
    for (chain, mean) in chains.values.chunks_exact_mut(chains.length).zip(&means) {
        chain.iter_mut().for_each(|value| *value -= mean);
    }
    let within = autocovariance(&chains, 0) * n / (n - 1.0);
    let total = within * (n - 1.0) / n + mean_and_variance(&means).1;
    let autocorrelation = |lag: usize| 1.0 - (within - autocovariance(&chains, lag)) / total;
    // Lags in pairs (even, odd), whose sums are positive for a reversible chain, until noise makes one negative.
    let mut pairs = vec![[1.0, autocorrelation(1)]];
    let mut last = pairs[0];
    while last[0] + last[1] > 0.0 && 2 * pairs.len() + 2 < chains.length {
        last = [autocorrelation(2 * pairs.len()), autocorrelation(2 * pairs.len() + 1)];
        pairs.push(last);
    }
    pairs.pop();
    // Of the last pair only the even lag counts, and once: the odd one is where the noise begins.
    let end = if last[0] > 0.0 || last[0] + last[1] >= 0.0 { last[0] } else { 0.0 };
    for k in 1..pairs.len() {
        let before = pairs[k - 1][0] + pairs[k - 1][1];
        if pairs[k][0] + pairs[k][1] > before {
            pairs[k] = [before / 2.0; 2];
        }
    }
    let time = -1.0 + 2.0 * pairs.iter().flatten().sum::<f64>() + end;
    // Draws that alternate may be worth more than as many independent ones, but not without bound. The comparison
    // keeps a NaN, of values whose squares overflow.
    let least = 1.0 / count.log10();
    if time < least { count / least } else { count / time }
}

/// Mean over chains, which have mean 0, of (1/n) Σ x_i x_{i + lag}.
fn autocovariance(chains: &HalfChains, lag: usize) -> f64 {
    let product = |chain: &[f64]| -> f64 {
        // Eight lanes: one running sum would wait for itself.
        let (ahead, mut lanes) = (&chain[lag..], [0.0; 8]);
        let (left, right) = (chain[..ahead.len()].chunks_exact(8), ahead.chunks_exact(8));
        let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
        for (left, right) in left.zip(right) {
            for (lane, (a, b)) in lanes.iter_mut().zip(left.iter().zip(right)) {
                *lane += a * b;
            }
        }
        lanes.iter().sum::<f64>() + rest
    };
    chains.iter().map(product).sum::<f64>() / chains.values.len() as f64
}
