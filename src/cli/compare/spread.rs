//! What tables say of several seeds: rows in groups, with the statistic of each value.

use std::collections::BTreeMap;

use super::results::ResultRow;
use crate::config::{ComparePlan, Statistic};

/// Rows of one target, method and setting, one for each seed.
pub struct Group<'r> {
    /// Never none.
    pub rows: Vec<&'r ResultRow>,
    statistic: Statistic,
}

/// What a table says of the values of several seeds.
pub struct Spread {
    /// The median, or the mean.
    pub middle: f64,
    /// In brackets or after ±: nothing where all values are one.
    around: Option<Around>,
}

impl Spread {
    /// As a table has it for a metric.
    pub fn shown(&self, metric: &str) -> String {
        let show = |value| shown(metric, value);
        match &self.around {
            Some(Around::Range(least, greatest)) => {
                format!("{} [{}, {}]", show(self.middle), show(*least), show(*greatest))
            }
            Some(Around::Error(error)) => format!("{} ± {}", show(self.middle), show(*error)),
            None => show(self.middle),
        }
    }
}

enum Around {
    /// Least and greatest.
    Range(f64, f64),
    /// Standard error of the mean.
    Error(f64),
}

impl Group<'_> {
    /// What is to be said of `value`; `None` if no row has it.
    pub fn spread(&self, value: impl Fn(&ResultRow) -> Option<f64>) -> Option<Spread> {
        let mut values: Vec<f64> = self.rows.iter().filter_map(|row| value(row)).collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let n = values.len() as f64;
        Some(match self.statistic {
            Statistic::Median => Spread {
                middle: (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0,
                around: (least != greatest).then_some(Around::Range(least, greatest)),
            },
            Statistic::Mean => {
                let mean = values.iter().sum::<f64>() / n;
                let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                let error = (squares / (n - 1.0) / n).sqrt();
                Spread { middle: mean, around: (least != greatest).then_some(Around::Error(error)) }
            }
        })
    }

    /// A score.
    pub fn metric(&self, name: &str) -> Option<Spread> {
        self.spread(|row| row.metrics.get(name).map(|score| score.value))
    }

    /// One value for targets in closed form; for posteriors every seed has a split, and a floor, of its own.
    pub fn floor(&self, name: &str) -> Option<Spread> {
        self.spread(|row| row.metrics.get(name)?.floor)
    }

    /// Sets that the scores are means over.
    pub fn sets(&self) -> usize {
        self.rows.iter().map(|row| row.sets).max().unwrap_or(0)
    }

    /// Seeds that failed.
    pub fn failures(&self) -> usize {
        self.rows.iter().filter(|row| row.failure.is_some()).count()
    }

    /// Sorting key: samples that exist before those that do not, then the first of the `distances` that there is.
    fn rank(&self, distances: &[&str]) -> (bool, f64) {
        let distance = distances.iter().find_map(|name| self.metric(name));
        (distance.is_none(), distance.map_or(f64::INFINITY, |spread| spread.middle))
    }

    /// A score as a table has it, with the seeds that have none.
    pub fn cell(&self, metric: &str) -> String {
        let failed = match self.failures() {
            0 => String::new(),
            n => format!(" ({n} of {} failed)", self.rows.len()),
        };
        match (self.metric(metric), self.failures()) {
            (None, 0) => "–".into(),
            (None, n) => format!("{n} of {} failed", self.rows.len()),
            (Some(spread), _) => format!("{}{failed}", spread.shown(metric)),
        }
    }

    /// Method and setting.
    pub fn name(&self) -> (&str, &str) {
        (&self.rows[0].method, &self.rows[0].setting)
    }
}

/// The rows of a target by method and setting, best first by the first of the `distances` that a group has.
pub fn groups<'r>(
    plan: &ComparePlan,
    target: &str,
    rows: &'r [ResultRow],
    distances: &[&str],
) -> Vec<Group<'r>> {
    let statistic = plan.file.run.statistic;
    let mut by_name: BTreeMap<(&str, &str), Vec<&ResultRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.target == target) {
        by_name.entry((&row.method, &row.setting)).or_default().push(row);
    }
    let mut groups: Vec<Group> = by_name.into_values().map(|rows| Group { rows, statistic }).collect();
    groups.sort_by(|a, b| {
        a.rank(distances).partial_cmp(&b.rank(distances)).unwrap_or(std::cmp::Ordering::Equal)
    });
    groups
}

/// A number of evaluations.
pub fn count(value: f64) -> String {
    if value >= 1e5 { format!("{:.2} M", value / 1e6) } else { format!("{value:.0}") }
}

/// A value of a metric: in percent for accuracies, with four decimals for log predictive densities, whose differences
/// are small.
pub fn shown(metric: &str, value: f64) -> String {
    match metric {
        "accuracy" | "accuracy_best" => format!("{:.2} %", 100.0 * value),
        "log_predictive" => format!("{value:.4}"),
        _ => number(value),
    }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{value:.1e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_that_count() {
        for (value, text) in
            [(0.05312, "0.053"), (1.234, "1.23"), (12.34, "12.3"), (1234.0, "1234"), (2.5e7, "2.5e7")]
        {
            assert_eq!(number(value), text);
        }
    }
}
