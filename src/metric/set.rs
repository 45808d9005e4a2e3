//! The metrics of one set of points by name: everything that needs neither a target nor other ranks.

use std::collections::{BTreeMap, BTreeSet};

use super::cloud::Cloud;
use super::ksd::ksd;
use super::mmd::{MmdKernel, mmd_from_means};
use super::modes::ModeCover;
use super::moments::{coordinate_moments, rayleigh};
use super::points::PointPlan;
use super::wasserstein::{sliced_w2, w2};

/// Coordinates and modes that have a metric each; with more of them only summaries are reported.
pub(super) const MOST_LISTED: usize = 8;

const MODE_SUMMARIES: [&str; 4] = ["mode_error", "mode_fraction_min", "mode_ratio_max", "modes_hit"];

/// What exact samples tell, on this rank.
pub(super) struct Exact {
    pub(super) kernel: MmdKernel,
    /// The set that each repeat of this rank is compared with, by repeat: its points in the chart and the mean
    /// of the kernel within.
    pub(super) sets: BTreeMap<usize, (Cloud, f64)>,
    pub(super) modes: Option<(Cloud, Vec<f64>)>,
}

/// One set of points in the forms that metrics read.
pub(super) struct Set {
    pub(super) repeat: usize,
    pub(super) points: Cloud,
    pub(super) score: Cloud,
    pub(super) chart: Cloud,
}

/// Names of all metrics of points in `dimension` coordinates: those that [`Set::values`] finds over all repeats,
/// known also to a rank that has no set of its own.
pub(super) fn names(plan: &PointPlan, exact: Option<&Exact>, dimension: usize) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["ksd", "ksd_u"].map(String::from).into();
    let Some(exact) = exact else { return names };
    names.extend(["mmd", "sliced_w2"].map(String::from));
    if plan.w2_repeats > 0 {
        names.insert("w2".to_string());
    }
    if let Some((_, weights)) = &exact.modes {
        names.extend(MODE_SUMMARIES.map(String::from));
        list_fractions(weights, |name, _| {
            names.insert(name);
        });
    }
    list_moments(&vec![(0.0, 0.0); dimension], |name, _| {
        names.insert(name);
    });
    if plan.is_ring {
        names.insert("rayleigh".to_string());
    }
    names
}

impl Set {
    /// Every metric of this set by name. No tensors, so that sets can be measured side by side.
    pub(super) fn values(&self, plan: &PointPlan, exact: Option<&Exact>) -> Vec<(String, f64)> {
        let stein = ksd(&self.points, &self.score);
        let mut values = vec![("ksd".to_string(), stein.v), ("ksd_u".to_string(), stein.u)];
        let Some(exact) = exact else { return values };
        let mut add = |name: String, value: f64| values.push((name, value));
        let (other, other_within) = &exact.sets[&self.repeat];
        let kernel = &exact.kernel;
        let (within, between) = (kernel.within(&self.chart), kernel.between(&self.chart, other));
        add("mmd".to_string(), mmd_from_means(within, *other_within, between));
        add("sliced_w2".to_string(), sliced_w2(&self.chart, other));
        if self.repeat < plan.w2_repeats {
            let distance = w2(&self.chart.head(plan.w2_samples), &other.head(plan.w2_samples));
            add("w2".to_string(), distance.unwrap_or(f64::NAN));
        }
        if let Some((centres, weights)) = &exact.modes {
            let cover = ModeCover::new(&self.chart, centres, weights);
            let summaries = [cover.error(), cover.fraction_min(), cover.ratio_max(), cover.hit() as f64];
            for (name, value) in MODE_SUMMARIES.into_iter().zip(summaries) {
                add(name.to_string(), value);
            }
            list_fractions(&cover.fractions, &mut add);
        }
        list_moments(&coordinate_moments(&self.chart), &mut add);
        if plan.is_ring {
            add("rayleigh".to_string(), rayleigh(&self.points));
        }
        values
    }
}

pub(super) fn list_moments(moments: &[(f64, f64)], mut add: impl FnMut(String, f64)) {
    if moments.len() <= MOST_LISTED {
        for (i, &(mean, deviation)) in moments.iter().enumerate() {
            add(format!("mean_{i}"), mean);
            add(format!("deviation_{i}"), deviation);
        }
    }
}

pub(super) fn list_fractions(fractions: &[f64], mut add: impl FnMut(String, f64)) {
    if fractions.len() <= MOST_LISTED {
        for (mode, &fraction) in fractions.iter().enumerate() {
            add(format!("mode_fraction_{mode}"), fraction);
        }
    }
}
