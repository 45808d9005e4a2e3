//! Reliability curves of classifiers: how often label 1 is seen against its predicted probability, and below how
//! many data each point is the mean of.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::style::{Area, COLORS, GREY, draw_legend, figure, px, style_mesh, tick};
use crate::metric::CalibrationBin;

const SIZE: (u32, u32) = (720, 900);
/// Height of the counts, of which the names below the axis take a third.
const COUNTS: u32 = 210;

/// Curves of a figure at most: more cannot be told apart where they coincide.
const MOST_CURVES: usize = 6;

/// Saves the curves of up to six classifiers, by name, as a PNG; all have the same number of bins of equal width.
///
/// Bars through the points are two binomial standard errors of the observed frequency to either side. An empty bin
/// has no point.
///
/// # Errors
/// If there is no curve or more than six, their bins differ in number, or the file cannot be written.
pub fn calibration(curves: &[(String, &[CalibrationBin])], path: &Path) -> Result<()> {
    ensure!(
        (1..=MOST_CURVES).contains(&curves.len()),
        "a figure of calibration holds 1 to {} curves, found {}",
        MOST_CURVES,
        curves.len()
    );
    let bins = curves[0].1.len();
    ensure!(
        bins > 0 && curves.iter().all(|(_, curve)| curve.len() == bins),
        "curves of one figure need the same number of bins, one or more"
    );
    figure(path, SIZE, "calibration on held-out data", |area| {
        let (above, below) = area.split_vertically(area.dim_in_pixel().1 - px(COUNTS));
        draw_frequencies(&above, curves)?;
        draw_counts(&below, curves)
    })
}

fn draw_frequencies(area: &Area, curves: &[(String, &[CalibrationBin])]) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .margin(px(14))
        .margin_bottom(0)
        .x_label_area_size(px(30))
        .y_label_area_size(px(74))
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    let mut mesh = chart.configure_mesh();
    style_mesh(&mut mesh);
    mesh.x_labels(6)
        .y_labels(6)
        .y_desc("observed frequency")
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .draw()?;
    let grey = ShapeStyle::from(GREY).stroke_width(px(2));
    let diagonal = DashedLineSeries::new([(0.0, 0.0), (1.0, 1.0)], px(7), px(5), grey);
    legend(chart.draw_series(diagonal)?.label("calibrated"), grey, px(6));
    for (index, ((name, bins), color)) in curves.iter().zip(COLORS).enumerate() {
        let style = ShapeStyle::from(color).stroke_width(px(2));
        // Good classifiers coincide: the marks of earlier curves are larger, so that they show below later ones.
        let radius = px(7 + 3 * (curves.len() - 1 - index) as u32) / 2;
        let filled = || bins.iter().filter(|bin| bin.count > 0);
        let points: Vec<(f64, f64)> = filled().map(|bin| (bin.predicted, bin.observed)).collect();
        let bars = filled().map(|bin| {
            let variance = bin.observed * (1.0 - bin.observed) / bin.count as f64;
            let ends = [-2.0, 2.0].map(|times| (bin.observed + times * variance.sqrt()).clamp(0.0, 1.0));
            PathElement::new(ends.map(|end| (bin.predicted, end)), style)
        });
        chart.draw_series(bars)?;
        chart.draw_series(points.iter().map(|&point| Circle::new(point, radius, color.filled())))?;
        legend(chart.draw_series(LineSeries::new(points, style))?.label(name), style, px(24));
    }
    draw_legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// A piece of line beside the name of a series; a dash as long as the piece is a whole line.
fn legend<'a>(series: &mut plotters::chart::SeriesAnno<'a, BitMapBackend<'a>>, style: ShapeStyle, dash: u32) {
    series.legend(move |(x, y)| {
        DashedPathElement::new(vec![(x, y), (x + px(24) as i32, y)], dash, px(4), style)
    });
}

/// Bars side by side in each bin, on a logarithmic axis.
fn draw_counts(area: &Area, curves: &[(String, &[CalibrationBin])]) -> Result<()> {
    let counts = curves.iter().flat_map(|(_, bins)| bins.iter().map(|bin| bin.count));
    let highest = counts.max().unwrap_or(0).max(10) as f64 * 1.5;
    // A bar of a single datum still has some height.
    let lowest = 0.5;
    let mut chart = ChartBuilder::on(area)
        .margin(px(14))
        .margin_top(px(4))
        .x_label_area_size(px(54))
        .y_label_area_size(px(74))
        .build_cartesian_2d(0.0..1.0, (lowest..highest).log_scale())?;
    let mut mesh = chart.configure_mesh();
    style_mesh(&mut mesh);
    mesh.x_labels(6)
        .y_labels(4)
        .x_desc("predicted probability")
        .y_desc("data")
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .draw()?;
    for (index, ((_, bins), color)) in curves.iter().zip(COLORS).enumerate() {
        let width = 1.0 / bins.len() as f64;
        // A tenth of each bin stays free on either side.
        let bar = 0.8 * width / curves.len() as f64;
        let rectangle = |(number, bin): (usize, &CalibrationBin)| {
            let left = (number as f64 + 0.1) * width + index as f64 * bar;
            Rectangle::new([(left, lowest), (left + bar, bin.count as f64)], color.filled())
        };
        chart.draw_series(bins.iter().enumerate().filter(|(_, bin)| bin.count > 0).map(rectangle))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of an even spread and of one that leaves the first bins empty.
    fn bins(count: impl Fn(u64) -> u64, slope: f64) -> Vec<CalibrationBin> {
        let bin = |number: u64| {
            let predicted = (number as f64 + 0.5) / 10.0;
            let observed = 0.5 + slope * (predicted - 0.5);
            match count(number) {
                0 => CalibrationBin { count: 0, predicted: f64::NAN, observed: f64::NAN },
                count => CalibrationBin { count, predicted, observed },
            }
        };
        (0..10).map(bin).collect()
    }

    #[test]
    fn figure_holds_curves_with_empty_bins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("calibration.png");
        let (even, late) = (bins(|_| 11_600, 0.97), bins(|number| number.saturating_sub(2).pow(4) * 20, 1.1));
        let few = bins(|number| 1 + number, 0.7);
        let curves =
            [("DFT".to_string(), &even[..]), ("NUTS".to_string(), &late[..]), ("SGLD".to_string(), &few[..])];
        calibration(&curves, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // PNG: width and height are big-endian at bytes 16 and 20.
        let size = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((size(16), size(20)), SIZE);
    }

    #[test]
    fn curves_that_do_not_fit_one_figure_are_refused() {
        let path = std::env::temp_dir().join("never-written.png");
        let (ten, none) = (bins(|_| 10, 1.0), Vec::new());
        let error = calibration(&[], &path).unwrap_err();
        assert!(error.to_string().contains("found 0"), "{error}");
        let error = calibration(&[("a".into(), &ten), ("b".into(), &none)], &path).unwrap_err();
        assert!(error.to_string().contains("same number of bins"), "{error}");
    }
}
