//! One panel: curves against the iteration, on a linear or a logarithmic axis.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::smooth::{MOST_COLUMNS, Point, band, extent, smoothed};
use super::style::{Area, axis_text, draw_legend, iteration_tick, px, style_mesh, tick};

/// A curve and how it is drawn.
pub struct Curve {
    /// Name in the legend.
    pub label: String,
    /// Iterations and values; values that are not finite are left out.
    pub points: Vec<Point>,
    /// Colour of the line.
    pub color: RGBColor,
    /// How the points become lines.
    pub line: Line,
}

/// The kinds of line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The values, or their range where they are many, in a light tint, and a smooth curve through them.
    Smoothed,
    /// The values joined, with a mark at each.
    Marked,
    /// The values joined by dashes.
    Dashed,
}

/// A panel with its axis.
pub struct Panel {
    /// Along the vertical axis, with units where there are some.
    pub axis: String,
    /// What is drawn.
    pub curves: Vec<Curve>,
    /// Logarithmic even if the values would fit a linear axis.
    pub logarithmic: bool,
}

impl Panel {
    /// Draws the panel; one without finite values says so.
    pub fn draw(&self, area: &Area) -> Result<()> {
        let all = self.curves.iter().flat_map(|curve| curve.points.iter());
        let finite: Vec<Point> = all.copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        let Some(iterations) = extent(finite.iter().map(|point| point.0)) else {
            let text = format!("{}: no finite values yet", self.axis);
            return Ok(area.draw(&Text::new(text, (px(20) as i32, px(20) as i32), axis_text()))?);
        };
        let mut values: Vec<f64> = finite.iter().map(|point| point.1).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = central(&values);
        let x = padded(iterations, 0.02);
        if low > 0.0 && (self.logarithmic || high / low > LINEAR_UP_TO) {
            // At least most of a decade, so that the axis of a flat curve still has a labelled tick.
            let stretch = (10f64.powf(0.35) / (high / low).sqrt()).max((high / low).powf(0.06));
            let y = low / stretch..high * stretch;
            let legend = self.free_corner(&x, &(y.start.ln()..y.end.ln()), f64::ln);
            self.draw_on(area, x, y.clone().log_scale(), y, legend)
        } else {
            let y = padded((low, high), 0.08);
            let legend = self.free_corner(&x, &y, |value| value);
            self.draw_on(area, x, y.clone(), y, legend)
        }
    }

    fn draw_on<'a, Y>(
        &self,
        area: &Area<'a>,
        x: Range<f64>,
        axis: Y,
        y: Range<f64>,
        legend: SeriesLabelPosition,
    ) -> Result<()>
    where
        Y: AsRangedCoord<Value = f64> + 'a,
        Y::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(px(14))
            .x_label_area_size(px(54))
            .y_label_area_size(px(74))
            .build_cartesian_2d(x, axis)?;
        let mut mesh = chart.configure_mesh();
        style_mesh(&mut mesh);
        mesh.x_labels(6)
            .y_labels(6)
            .x_desc("iteration")
            .y_desc(&self.axis)
            .x_label_formatter(&|value| iteration_tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .draw()?;
        let inside = |(x, value): (f64, f64)| (x, value.clamp(y.start, y.end));
        for curve in &self.curves {
            let points: Vec<Point> =
                curve.points.iter().copied().filter(|point| point.1.is_finite()).collect();
            let thick = ShapeStyle::from(curve.color).stroke_width(px(2));
            let drawn = match curve.line {
                Line::Smoothed => {
                    if points.len() > MOST_COLUMNS {
                        let (lows, highs) = band(&points);
                        let outline: Vec<_> =
                            lows.into_iter().chain(highs.into_iter().rev()).map(inside).collect();
                        chart.draw_series([Polygon::new(outline, curve.color.mix(0.22))])?;
                    } else {
                        // Piece by piece: at the sharp corners of one line its joints would stick far out.
                        let light = ShapeStyle::from(curve.color.mix(0.35)).stroke_width(px(1));
                        let pieces = points.windows(2).map(|pair| vec![inside(pair[0]), inside(pair[1])]);
                        chart.draw_series(pieces.map(|piece| PathElement::new(piece, light)))?;
                    }
                    let smooth = smoothed(&points).into_iter().map(inside);
                    chart.draw_series(LineSeries::new(smooth, thick))?
                }
                Line::Marked => {
                    let points: Vec<_> = points.into_iter().map(inside).collect();
                    let marks = points.iter().map(|&point| Circle::new(point, px(3), curve.color.filled()));
                    chart.draw_series(marks)?;
                    chart.draw_series(LineSeries::new(points, thick))?
                }
                Line::Dashed => {
                    let points = points.into_iter().map(inside);
                    chart.draw_series(DashedLineSeries::new(points, px(7), px(5), thick))?
                }
            };
            // A dash as long as the sample in the legend is a whole line.
            let dash = if curve.line == Line::Dashed { px(6) } else { px(24) };
            drawn.label(&curve.label).legend(move |(x, y)| {
                DashedPathElement::new(vec![(x, y), (x + px(24) as i32, y)], dash, px(4), thick)
            });
        }
        if self.curves.len() > 1 {
            draw_legend(&mut chart, legend)?;
        }
        Ok(())
    }

    /// The corner with the fewest points, for the legend; `scale` maps values to the units of `y`.
    fn free_corner(&self, x: &Range<f64>, y: &Range<f64>, scale: fn(f64) -> f64) -> SeriesLabelPosition {
        let place = |value: f64, range: &Range<f64>| (value - range.start) / (range.end - range.start);
        let points = || self.curves.iter().flat_map(|curve| curve.points.iter());
        let count = |left: bool, low: bool| {
            let in_corner = |point: &&(f64, f64)| {
                let (across, up) = (place(point.0, x), place(scale(point.1), y));
                (if left { across < 0.5 } else { across > 0.5 }) && (if low { up < 0.3 } else { up > 0.7 })
            };
            points().filter(in_corner).count()
        };
        // In order of preference where several are equally free.
        let corners = [
            (count(false, false), SeriesLabelPosition::UpperRight),
            (count(true, false), SeriesLabelPosition::UpperLeft),
            (count(false, true), SeriesLabelPosition::LowerRight),
            (count(true, true), SeriesLabelPosition::LowerLeft),
        ];
        let freest = corners.into_iter().min_by_key(|(points, _)| *points);
        freest.map_or(SeriesLabelPosition::UpperRight, |(_, corner)| corner)
    }
}

/// Ratio of the values from which on an axis is logarithmic.
const LINEAR_UP_TO: f64 = 30.0;

/// The range in which nearly all values lie, so that a spike of the first iterations does not flatten the
/// rest.
fn central(sorted: &[f64]) -> (f64, f64) {
    let at = |fraction: f64| sorted[((sorted.len() - 1) as f64 * fraction).round() as usize];
    (at(0.005), at(0.995))
}

/// A range with some space on both sides, also when it is a single point.
fn padded((low, high): (f64, f64), fraction: f64) -> Range<f64> {
    let width = high - low;
    let space = if width > 0.0 { width * fraction } else { low.abs().max(1.0) * 0.5 };
    low - space..high + space
}
