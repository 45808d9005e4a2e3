//! Histograms of several sets of energies over each other, as outlines.

use std::path::Path;

use anyhow::{Result, bail};
use plotters::prelude::*;

use super::smooth::Point;
use super::style::{COLORS, GREY, draw_legend, figure, px, style_mesh, tick};

const SIZE: (u32, u32) = (960, 520);

/// Least and greatest number of bins; between them it is the root of the size of the smallest set.
const BINS: (usize, usize) = (12, 48);

/// Part of a set that may lie outside of the axis, on either side: one image far off would squeeze the rest.
const OUTSIDE: f64 = 0.003;

/// Saves the histograms of the named sets of `energies`, in nats, as a PNG. The first set is grey: that of real samples. The axis
/// reaches to either side of it as far as it is wide, and no further: the legend says how much of a set lies outside.
///
/// # Errors
/// If there is nothing finite to draw, or the file cannot be written.
pub fn energy_histograms(title: &str, energies: &[(String, Vec<f64>)], path: &Path) -> Result<()> {
    let spans: Vec<Point> = energies.iter().filter_map(|(_, set)| span(set)).collect();
    let Some(&(first, last)) = spans.first() else {
        bail!("no finite energies that could be drawn; look at the samples, which are likely not finite");
    };
    let width = last - first;
    let low = spans.iter().map(|(low, _)| *low).fold(first, f64::min).max(first - width);
    let high = spans.iter().map(|(_, high)| *high).fold(last, f64::max).min(last + width);
    let margin = (0.04 * (high - low)).max(1e-6);
    let (low, high) = (low - margin, high + margin);
    let smallest = energies.iter().map(|(_, set)| set.len()).min().unwrap_or(0);
    let bins = smallest.isqrt().clamp(BINS.0, BINS.1);
    let curves: Vec<Vec<Point>> = energies.iter().map(|(_, set)| outline(set, (low, high), bins)).collect();
    let highest = curves.iter().flatten().map(|(_, share)| *share).fold(0.0, f64::max);
    figure(path, SIZE, title, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(px(14))
            .x_label_area_size(px(54))
            .y_label_area_size(px(74))
            .build_cartesian_2d(low..high, 0.0..1.1 * highest.max(f64::MIN_POSITIVE))?;
        let mut mesh = chart.configure_mesh();
        style_mesh(&mut mesh);
        mesh.x_labels(8)
            .y_labels(5)
            .x_desc("energy (nats, up to a constant)")
            .y_desc("part of the samples")
            .x_label_formatter(&|value| tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .draw()?;
        let colors = std::iter::once(GREY).chain(COLORS.into_iter().cycle());
        for (((name, _), curve), color) in energies.iter().zip(curves).zip(colors) {
            let style = ShapeStyle::from(color).stroke_width(px(2));
            let inside: f64 = curve.iter().skip(1).step_by(2).map(|(_, share)| share).sum();
            let outside = (100.0 * (1.0 - inside)).round();
            let label = if outside >= 2.0 { format!("{name} ({outside} % outside)") } else { name.clone() };
            chart
                .draw_series(LineSeries::new(curve, style))?
                .label(label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + px(24) as i32, y)], style));
        }
        draw_legend(&mut chart, SeriesLabelPosition::UpperRight)
    })
}

/// Where all finite numbers of a set lie but for [`OUTSIDE`] on either side; `None` if there are none.
fn span(set: &[f64]) -> Option<Point> {
    let mut set: Vec<f64> = set.iter().copied().filter(|energy| energy.is_finite()).collect();
    set.sort_unstable_by(f64::total_cmp);
    let outside = (set.len() as f64 * OUTSIDE) as usize;
    Some((*set.get(outside)?, *set.iter().rev().nth(outside)?))
}

/// Outline of the histogram of `set` over an axis: the part of the set in each of its `bins`.
fn outline(set: &[f64], (low, high): (f64, f64), bins: usize) -> Vec<Point> {
    let width = (high - low) / bins as f64;
    let mut shares = vec![0.0; bins];
    for energy in set.iter().filter(|energy| (low..high).contains(*energy)) {
        // Rounding may put the last number of a bin into the next.
        shares[(((energy - low) / width) as usize).min(bins - 1)] += 1.0 / set.len() as f64;
    }
    let sides = |(bin, share): (usize, f64)| [bin, bin + 1].map(|edge| (low + edge as f64 * width, share));
    let mut points = vec![(low, 0.0)];
    points.extend(shares.into_iter().enumerate().flat_map(sides));
    points.push((high, 0.0));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_holds_the_parts_of_the_set_that_lie_on_the_axis() {
        let outline = outline(&[0.5, 0.5, 0.999_999, 7.0], (0.0, 1.0), 4);
        let at = |bin: usize| outline[1 + 2 * bin].1;
        assert_eq!([at(0), at(1), at(2), at(3)], [0.0, 0.0, 0.5, 0.25]);
        assert_eq!((outline[0], outline[outline.len() - 1]), ((0.0, 0.0), (1.0, 0.0)));
    }

    #[test]
    fn a_figure_is_drawn_of_finite_energies_and_of_equal_ones_and_refused_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("energies.png");
        let sets = [("real".to_string(), vec![1.0, 2.0, f64::NAN]), ("one step".to_string(), vec![1.5])];
        energy_histograms("energies", &sets, &path).unwrap();
        energy_histograms("energies", &[("equal".to_string(), vec![3.0; 5])], &path).unwrap();
        assert!(path.metadata().unwrap().len() > 1000);
        let error =
            energy_histograms("energies", &[("none".into(), vec![f64::INFINITY])], &path).unwrap_err();
        assert!(error.to_string().contains("no finite energies"), "{error}");
    }
}
