//! States at equally spaced steps of a run whose length nobody knows beforehand.

use tch::Tensor;

/// Keeps every `interval`-th state. When there is no more room every second one goes and the interval doubles,
/// so what is kept is equally spaced at any time, and at least half of the room is used.
pub(super) struct Snapshots {
    capacity: usize,
    interval: u64,
    kept: Vec<(u64, Tensor)>,
}

impl Snapshots {
    /// Room for `capacity` states, 2 or more.
    pub(super) fn new(capacity: usize) -> Self {
        Snapshots { capacity, interval: 1, kept: Vec::with_capacity(capacity) }
    }

    /// Offers the state after `step` steps, counted from 1; `state` is called if it is kept.
    pub(super) fn offer(&mut self, step: u64, state: impl FnOnce() -> Tensor) {
        if !step.is_multiple_of(self.interval) {
            return;
        }
        self.kept.push((step, state()));
        if self.kept.len() == self.capacity {
            self.interval *= 2;
            let interval = self.interval;
            self.kept.retain(|(step, _)| step.is_multiple_of(interval));
        }
    }

    /// `count` states after step `from`, as equally spaced up to step `to` as what is kept allows, the last at
    /// its end; fewer if fewer are kept.
    pub(super) fn spread(&self, from: u64, to: u64, count: u64) -> Vec<&(u64, Tensor)> {
        let first = self.kept.partition_point(|(step, _)| *step <= from);
        let after = &self.kept[first..];
        let mut found: Vec<&(u64, Tensor)> = Vec::new();
        for number in 1..=count {
            let wanted = from as f64 + (to - from) as f64 * number as f64 / count as f64;
            let right = after.partition_point(|(step, _)| (*step as f64) < wanted);
            let distance = |kept: &&(u64, Tensor)| (kept.0 as f64 - wanted).abs();
            let nearest = after[right.saturating_sub(1)..(right + 1).min(after.len())]
                .iter()
                .min_by(|a, b| distance(a).total_cmp(&distance(b)));
            if let Some(nearest) = nearest
                && found.last().is_none_or(|last| last.0 != nearest.0)
            {
                found.push(nearest);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: u64) -> Snapshots {
        let mut snapshots = Snapshots::new(64);
        for step in 1..=steps {
            snapshots.offer(step, || Tensor::from(step as i64));
        }
        snapshots
    }

    fn steps(found: &[&(u64, Tensor)]) -> Vec<u64> {
        found.iter().map(|(step, _)| *step).collect()
    }

    #[test]
    fn a_run_that_fits_gives_exactly_the_wanted_steps() {
        let snapshots = after(40);
        assert_eq!(steps(&snapshots.spread(20, 40, 10)), [22, 24, 26, 28, 30, 32, 34, 36, 38, 40]);
        assert_eq!(steps(&snapshots.spread(37, 40, 10)), [38, 39, 40]);
        assert!(after(0).spread(0, 0, 10).is_empty());
    }

    #[test]
    fn ten_states_of_the_second_half_are_distinct_and_within_an_interval_of_their_place_at_any_length() {
        for total in [64, 100, 127, 128, 129, 1000, 4095, 4097, 100_000] {
            let snapshots = after(total);
            assert!((31..64).contains(&snapshots.kept.len()), "{} of {total}", snapshots.kept.len());
            let found = snapshots.spread(total / 2, total, 10);
            assert_eq!(found.len(), 10, "{total}");
            let half = (total - total / 2) as f64;
            for (number, (step, state)) in found.iter().enumerate() {
                assert_eq!(state.int64_value(&[]) as u64, *step);
                let wanted = (total / 2) as f64 + half * (number + 1) as f64 / 10.0;
                assert!((*step as f64 - wanted).abs() <= snapshots.interval as f64, "{step} of {total}");
            }
        }
    }
}
