//! All scores of points in R^D against one target, each with its floor: what exact samples score.

use std::collections::BTreeMap;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::cloud::Cloud;
use super::mmd::MmdKernel;
use super::modes::ModeCover;
use super::moments::StreamedMoments;
use super::set::{Exact, MOST_LISTED, Set, list_fractions, list_moments, names};
use crate::comm::{CommError, World};
use crate::rng::{Generator, Stream};
use crate::target::Target;

// What exact samples are drawn for, as the iteration of their stream; 0 is the reference of a Fréchet distance.
// They belong to the metric, not to a run, so their seed is fixed.
const FLOOR: u64 = 1;
const REFERENCE: u64 = 2;
const TRUTH: u64 = 3;
/// Key of the directions that points are projected on.
pub(super) const DIRECTIONS: u64 = 4;

/// Chunks and rows of each of the exact samples that stand for the truth of moments and fractions.
const TRUTH_CHUNKS: (u64, i64) = (10, 100_000);

/// How points are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointPlan {
    /// Points in a set, `N`: most metrics and all floors depend on it.
    pub samples: usize,
    /// Independent sets; every metric is the mean over them.
    pub repeats: usize,
    /// Sets that the exact Wasserstein distance is measured on, which takes longest.
    pub w2_repeats: usize,
    /// Points of such a set that it uses.
    pub w2_samples: usize,
    /// Whether the angle about the origin should be uniform, as on a ring: adds `rayleigh`.
    pub is_ring: bool,
}

impl Default for PointPlan {
    fn default() -> Self {
        PointPlan { samples: 2000, repeats: 10, w2_repeats: 3, w2_samples: 1000, is_ring: false }
    }
}

impl PointPlan {
    /// Points that are scored in all: `samples` · `repeats`.
    pub fn rows(&self) -> i64 {
        (self.samples * self.repeats) as i64
    }
}

/// A metric with its floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Mean over the repeats.
    pub value: f64,
    /// Standard deviation over the repeats; `None` for one repeat.
    pub deviation: Option<f64>,
    /// The same of exact samples; for means, deviations and fractions the truth. `None` if the target has no
    /// exact samples.
    pub floor: Option<f64>,
    /// Standard deviation of exact samples over the repeats.
    pub floor_deviation: Option<f64>,
    /// Points of one repeat.
    pub samples: usize,
}

/// Why points have no scores.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// Points that are not finite.
    #[error("{bad} of {rows} samples are not finite")]
    NotFinite {
        /// How many.
        bad: i64,
        /// Of how many.
        rows: i64,
    },
    /// Another number or shape of points.
    #[error("scores need samples of shape {wanted:?}, found {found:?}")]
    Shape {
        /// `[samples · repeats, …shape]`.
        wanted: Vec<i64>,
        /// What came.
        found: Vec<i64>,
    },
    /// Finite points at which a metric is none.
    #[error(
        "{metric} of set {repeat} is not finite, though its samples are: they lie where the target's score or their \
         squared distances overflow"
    )]
    Overflow {
        /// Name of the metric.
        metric: String,
        /// Which set.
        repeat: usize,
    },
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] CommError),
}

/// A target as the yardstick of points, with the floors of one [`PointPlan`].
///
/// Distances and moments are measured in the target's chart, discrepancies of scores in raw coordinates. For
/// what the names mean see [`PointReference::scores`].
pub struct PointReference<'a> {
    target: &'a dyn Target,
    world: &'a World,
    plan: PointPlan,
    kind: Option<Kind>,
    exact: Option<Exact>,
    floors: BTreeMap<String, (f64, Option<f64>)>,
}

impl<'a> PointReference<'a> {
    /// Draws exact samples, if the target has a sampler, and measures the floors with them, over all ranks.
    ///
    /// # Errors
    /// If a collective fails or exact samples have no finite scores.
    ///
    /// # Panics
    /// If the plan has no repeat or fewer than two samples.
    pub fn new(target: &'a dyn Target, plan: PointPlan, world: &'a World) -> Result<Self, PointError> {
        assert!(plan.repeats > 0 && plan.samples > 1, "scores need one set or more, of two points or more");
        let mut reference =
            PointReference { target, world, plan, kind: None, exact: None, floors: BTreeMap::new() };
        let Some(first) = reference.draw_exact(REFERENCE, 0) else { return Ok(reference) };
        reference.kind = Some(first.kind());
        reference.exact = Some(reference.measure_exact(&first));
        let sets = reference.own_repeats().into_iter().map(|repeat| {
            let x = reference.draw_exact(FLOOR, repeat as u64).expect("the target has just drawn");
            reference.set(repeat, &x)
        });
        let values = reference.measure(sets.collect())?;
        reference.floors =
            values.iter().map(|(name, values)| (name.clone(), mean_and_deviation(values))).collect();
        for (name, truth) in reference.truth() {
            reference.floors.entry(name).and_modify(|floor| floor.0 = truth);
        }
        Ok(reference)
    }

    /// How points are scored.
    pub fn plan(&self) -> &PointPlan {
        &self.plan
    }

    /// Scores of `x` `[samples · repeats, …shape]`, finite, the same on all ranks; consecutive rows are one set,
    /// and every score is the mean over the sets.
    ///
    /// | name | what it is |
    /// | --- | --- |
    /// | `ksd`, `ksd_u` | [`ksd`](super::ksd()), in raw coordinates |
    /// | `mmd`, `sliced_w2`, `w2` | [`MmdKernel`], [`sliced_w2`](super::sliced_w2), [`w2`](super::w2): from fresh exact samples |
    /// | `mode_fraction_min`, `mode_ratio_max`, `mode_error`, `modes_hit` | [`ModeCover`], for targets with modes |
    /// | `mode_fraction_0`, … | the fractions, of up to eight modes |
    /// | `mean_0`, `deviation_0`, … | of each coordinate of the chart, in up to eight dimensions |
    /// | `rayleigh` | [`rayleigh`](super::rayleigh), if the plan says that it is a ring |
    ///
    /// Without exact samples there are `ksd` and `ksd_u` alone, and no floors. Sets are spread over ranks; the
    /// numbers do not depend on how many there are.
    ///
    /// # Errors
    /// If samples have another shape or are not finite, a metric overflows, or a collective fails; all ranks
    /// return the same.
    pub fn scores(&self, x: &Tensor) -> Result<BTreeMap<String, Measured>, PointError> {
        let rows = self.plan.rows();
        let wanted = [&[rows], self.target.shape()].concat();
        if x.size() != wanted {
            return Err(PointError::Shape { wanted, found: x.size() });
        }
        let bad = rows - x.isfinite().flatten(1, -1).all_dim(1, false).sum(Kind::Int64).int64_value(&[]);
        if bad > 0 {
            return Err(PointError::NotFinite { bad, rows });
        }
        let samples = self.plan.samples as i64;
        let set = |repeat| self.set(repeat, &x.narrow(0, repeat as i64 * samples, samples));
        let values = self.measure(self.own_repeats().into_iter().map(set).collect())?;
        let measured = values.into_iter().map(|(name, values)| {
            let (value, deviation) = mean_and_deviation(&values);
            let floor = self.floors.get(&name);
            let samples = if name == "w2" { self.w2_samples() } else { self.plan.samples };
            let measured = Measured {
                value,
                deviation,
                floor: floor.map(|floor| floor.0),
                floor_deviation: floor.and_then(|floor| floor.1),
                samples,
            };
            (name, measured)
        });
        Ok(measured.collect())
    }

    fn w2_samples(&self) -> usize {
        self.plan.w2_samples.min(self.plan.samples)
    }

    /// Repeats of this rank.
    fn own_repeats(&self) -> Vec<usize> {
        (0..self.plan.repeats).filter(|repeat| repeat % self.world.size == self.world.rank).collect()
    }

    fn dimension(&self) -> usize {
        self.target.shape().iter().product::<i64>() as usize
    }

    fn draw_exact(&self, purpose: u64, repeat: u64) -> Option<Tensor> {
        let mut generator = Generator::new(0, Stream::Exact, purpose, repeat);
        self.target.exact_samples(&mut generator, self.plan.samples as i64)
    }

    fn chart(&self, x: &Tensor) -> Cloud {
        Cloud::new(&self.target.chart(x))
    }

    fn measure_exact(&self, first: &Tensor) -> Exact {
        let kernel = MmdKernel::new(&self.chart(first));
        let set = |repeat: usize| {
            let x = self.draw_exact(REFERENCE, repeat as u64).expect("the target has just drawn");
            let chart = self.chart(&x);
            let within = kernel.within(&chart);
            (repeat, (chart, within))
        };
        let sets = self.own_repeats().into_iter().map(set).collect();
        let modes = self.target.modes().map(|modes| (self.chart(&modes.centres), modes.weights));
        Exact { kernel, sets, modes }
    }

    /// What a million exact samples say about moments and fractions, on every rank.
    fn truth(&self) -> Vec<(String, f64)> {
        let Some(exact) = &self.exact else { return Vec::new() };
        let dimension = self.dimension();
        let listed_modes = exact.modes.as_ref().filter(|modes| modes.1.len() <= MOST_LISTED);
        if dimension > MOST_LISTED && listed_modes.is_none() {
            return Vec::new();
        }
        let mut moments = StreamedMoments::new(dimension);
        let mut fractions = vec![0.0; listed_modes.map_or(0, |modes| modes.1.len())];
        let (chunks, rows) = TRUTH_CHUNKS;
        for chunk in 0..chunks {
            let mut generator = Generator::new(0, Stream::Exact, TRUTH, chunk);
            let x = self.target.exact_samples(&mut generator, rows).expect("the target has just drawn");
            let chart = self.chart(&x);
            moments.add(&chart);
            if let Some((centres, weights)) = listed_modes {
                let cover = ModeCover::new(&chart, centres, weights);
                for (total, fraction) in fractions.iter_mut().zip(cover.fractions) {
                    *total += fraction / chunks as f64;
                }
            }
        }
        let mut truth = Vec::new();
        list_moments(&moments.finish(), |name, value| truth.push((name, value)));
        list_fractions(&fractions, |name, value| truth.push((name, value)));
        truth
    }

    fn set(&self, repeat: usize, x: &Tensor) -> Set {
        let mut x = x.detach().to_device(self.world.device);
        if let Some(kind) = self.kind {
            x = x.to_kind(kind);
        }
        let score = Cloud::new(&self.target.score(&x));
        Set { repeat, points: Cloud::new(&x), score, chart: self.chart(&x) }
    }

    /// Values of every metric by repeat, from the sets of this rank: on its threads, and one all-reduce.
    fn measure(&self, sets: Vec<Set>) -> Result<BTreeMap<String, Vec<f64>>, PointError> {
        let (plan, exact) = (&self.plan, self.exact.as_ref());
        let own: Vec<_> = sets.par_iter().map(|set| (set.repeat, set.values(plan, exact))).collect();
        let names = names(plan, exact, self.dimension());
        let index: BTreeMap<&str, usize> =
            names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let mut table = vec![0.0; names.len() * plan.repeats];
        for (repeat, values) in own {
            for (name, value) in values {
                table[index[name.as_str()] * plan.repeats + repeat] = value;
            }
        }
        // A number on one rank and 0 on the others: the sum over ranks rounds nothing.
        let mut sums = Tensor::from_slice(&table).to_device(self.world.device);
        self.world.collective().all_reduce_sum(&mut sums)?;
        let table: Vec<f64> = Vec::try_from(sums.to_device(Device::Cpu)).expect("a vector of f64");
        let mut by_name = BTreeMap::new();
        for (name, values) in names.into_iter().zip(table.chunks_exact(plan.repeats)) {
            let count = if name == "w2" { plan.w2_repeats.min(plan.repeats) } else { plan.repeats };
            if let Some(repeat) = values.iter().position(|value| !value.is_finite()) {
                return Err(PointError::Overflow { metric: name, repeat });
            }
            by_name.insert(name, values[..count].to_vec());
        }
        Ok(by_name)
    }
}

/// Mean, and standard deviation (n − 1) where there are two.
pub(super) fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}
