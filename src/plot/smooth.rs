//! What of a long noisy curve is drawn: the band it stays in, and a smooth line through it.

/// Iteration and value.
pub type Point = (f64, f64);

/// Points that a curve is reduced to: about one for each pixel across.
pub const MOST_COLUMNS: usize = 400;

/// Lowest and highest values of at most `MOST_COLUMNS` stretches, each at the middle of its stretch.
pub fn band(points: &[Point]) -> (Vec<Point>, Vec<Point>) {
    let length = points.len().div_ceil(MOST_COLUMNS).max(2);
    let stretch = |stretch: &[Point]| {
        let (low, high) = extent(stretch.iter().map(|point| point.1))?;
        let middle = (stretch[0].0 + stretch[stretch.len() - 1].0) / 2.0;
        Some(((middle, low), (middle, high)))
    };
    points.chunks(length).filter_map(stretch).unzip()
}

/// Running median, which unlike a mean forgets a single spike, and the mean of its neighbours to round its
/// steps.
pub fn smoothed(points: &[Point]) -> Vec<Point> {
    let width = points.len() / 30;
    let step = points.len().div_ceil(MOST_COLUMNS).max(1);
    let medians = windows(points, width, step, |window| {
        let middle = window.len() / 2;
        *window.select_nth_unstable_by(middle, f64::total_cmp).1
    });
    let mean = |window: &mut [f64]| window.iter().sum::<f64>() / window.len() as f64;
    windows(&medians, medians.len() / 60, 1, mean)
}

/// `summary` of a window around every `step`-th point, with `half` points on each side.
///
/// Near the ends the window narrows on both sides, since a lopsided one would bend a sloping curve; where it
/// would be narrower than a third there is no point.
fn windows(points: &[Point], half: usize, step: usize, summary: impl Fn(&mut [f64]) -> f64) -> Vec<Point> {
    let Some(last) = points.len().checked_sub(1) else {
        return Vec::new();
    };
    let around = |index: usize| {
        let half = half.min(index).min(last - index);
        let mut window: Vec<f64> = points[index - half..=index + half].iter().map(|point| point.1).collect();
        (points[index].0, summary(&mut window))
    };
    (half / 3..=last - half / 3).step_by(step).map(around).collect()
}

/// Lowest and highest of some values; `None` when there are none.
pub fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |extent, value| match extent {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symmetric window leaves a straight line where it is, near the ends too, up to the rounding of sums.
    #[test]
    fn smoothing_keeps_a_straight_line_and_forgets_a_spike() {
        let mut line: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), 3.0 * f64::from(i) - 5.0)).collect();
        assert!(smoothed(&line).iter().all(|(x, y)| (y - (3.0 * x - 5.0)).abs() < 1e-9));
        line[500].1 = 1e9;
        // The values are 3 apart: one spike moves a median by one place at most.
        assert!(smoothed(&line).iter().all(|(x, y)| (y - (3.0 * x - 5.0)).abs() <= 3.0));
        assert!(smoothed(&[]).is_empty());
        assert_eq!(smoothed(&[(1.0, 2.0)]), [(1.0, 2.0)]);
    }

    #[test]
    fn band_keeps_the_extremes() {
        let mut curve: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 0.0)).collect();
        curve[54_321].1 = 7.0;
        let (lows, highs) = band(&curve);
        assert!(lows.len() <= MOST_COLUMNS && lows.len() == highs.len());
        assert!(highs.iter().any(|point| point.1 == 7.0));
        assert!(lows.iter().all(|point| point.1 == 0.0));
    }
}
