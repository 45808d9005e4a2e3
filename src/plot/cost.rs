//! Distances of samplers against what one of their samples costs, both on logarithmic axes.

use std::path::Path;

use anyhow::{Result, bail};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::smooth::{Point, extent};
use super::style::{COLORS, FONT, GREY, draw_legend, figure, px, small_text, style_mesh, tick, use_font};

const SIZE: (u32, u32) = (960, 660);

/// Width of the vertical axis with its labels, and the space that the plot leaves around it, in pixels of the figure.
const AXIS_WIDTH: u32 = 74;
const MARGIN: u32 = 14;

/// Least distance between the names of samplers, and between their marks, in pixels of the figure.
const NAME_SPACING: f64 = 21.0;
const MARK_SPACING: f64 = 12.0;

/// From a mark to its name, in pixels of the figure.
const NAME_OFFSET: u32 = 20;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CostKind {
    /// Points joined by a line, in the legend.
    Chains,
    /// A single mark with its name beside it.
    Sampler,
    /// Marks joined by a thin line that starts at a sampler, in the legend.
    Corrected,
}

/// A sampler, at one cost or several.
#[derive(Debug, Clone)]
pub struct CostCurve {
    /// Its name.
    pub name: String,
    /// How it is drawn.
    pub kind: CostKind,
    /// Number of its colour; a corrected sampler has that of the sampler.
    pub color: usize,
    /// Evaluations for one sample, 1 or more, and the distance; those that are not positive numbers are left out.
    pub points: Vec<Point>,
}

impl CostCurve {
    fn style(&self) -> ShapeStyle {
        ShapeStyle::from(COLORS[self.color % COLORS.len()])
            .stroke_width(px(if self.kind == CostKind::Corrected { 1 } else { 2 }))
    }
}

/// Saves the curves as a PNG with the `floor` of the distance as a dashed line; `axis` says what the distance is.
///
/// # Errors
/// If no point can be drawn, or the file cannot be written.
pub fn costs(
    (title, axis): (&str, &str),
    curves: &[CostCurve],
    floor: Option<f64>,
    path: &Path,
) -> Result<()> {
    let mut curves = curves.to_vec();
    for curve in &mut curves {
        curve.points.retain(|(x, y)| *x >= 1.0 && *y > 0.0 && x.is_finite() && y.is_finite());
    }
    curves.retain(|curve| !curve.points.is_empty());
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let floor = floor.filter(|floor| *floor > 0.0 && floor.is_finite());
    let costs = extent(points().map(|(x, _)| x));
    let distances = extent(points().map(|(_, y)| y).chain(floor));
    let (Some((_, most)), Some((low, high))) = (costs, distances) else {
        bail!("no distance that could be drawn against its cost");
    };
    use_font()?;
    let mut name_width = 0;
    let font = (FONT, px(16)).into_font();
    for curve in curves.iter().filter(|curve| curve.kind == CostKind::Sampler) {
        let (width, _) = font.box_size(&curve.name).map_err(|error| anyhow::anyhow!("{error}"))?;
        name_width = name_width.max(width);
    }
    // Nothing costs less than one evaluation: left of 1 there is room for the names.
    let right = (most.max(10.0) * 1.4).log10();
    let part = f64::from(name_width + px(NAME_OFFSET + 14)) / f64::from(px(SIZE.0 - AXIS_WIDTH - 2 * MARGIN));
    let left = right * (part / (1.0 - part)).min(1.0);
    let x = 10f64.powf(-left)..10f64.powf(right);
    let stretch = (10f64.powf(0.35) / (high / low).sqrt()).max((high / low).powf(0.08));
    let y = low / stretch..high * stretch;
    figure(path, SIZE, title, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(px(MARGIN))
            .x_label_area_size(px(54))
            .y_label_area_size(px(AXIS_WIDTH))
            .build_cartesian_2d(
                x.clone().log_scale().with_key_points(ticks(1.0, x.end)),
                y.clone().log_scale().with_key_points(ticks(y.start, y.end)),
            )?;
        let mut mesh = chart.configure_mesh();
        style_mesh(&mut mesh);
        mesh.x_desc("evaluations of a network or of the energy's gradient for one sample")
            .y_desc(axis)
            .x_label_formatter(&|value| tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .draw()?;
        if let Some(floor) = floor {
            let grey = ShapeStyle::from(GREY).stroke_width(px(2));
            let line = DashedLineSeries::new([(x.start, floor), (x.end, floor)], px(7), px(5), grey);
            chart.draw_series(line)?.label("real images").legend(move |(x, y)| {
                DashedPathElement::new(vec![(x, y), (x + px(24) as i32, y)], px(6), px(4), grey)
            });
        }
        for curve in curves.iter().filter(|curve| curve.kind != CostKind::Sampler) {
            let style = curve.style();
            let is_corrected = curve.kind == CostKind::Corrected;
            let radius = if is_corrected { px(3) } else { px(4) };
            // The first mark of a corrected sampler is the sampler's own.
            let marked = curve.points.iter().skip(usize::from(is_corrected));
            chart.draw_series(marked.map(|&point| Circle::new(point, radius, style.color.filled())))?;
            let line = LineSeries::new(curve.points.clone(), style);
            chart.draw_series(line)?.label(&curve.name).legend(move |(x, y)| {
                let end = px(24) as i32;
                EmptyElement::at((x, y))
                    + PathElement::new(vec![(0, 0), (end, 0)], style)
                    + Circle::new((end / 2, 0), radius, style.color.filled())
            });
        }
        let mut samplers: Vec<&CostCurve> =
            curves.iter().filter(|curve| curve.kind == CostKind::Sampler).collect();
        samplers.sort_by(|a, b| b.points[0].1.total_cmp(&a.points[0].1));
        let heights: Vec<f64> = samplers
            .iter()
            .map(|curve| f64::from(chart.backend_coord(&curve.points[0]).1) / f64::from(px(1)))
            .collect();
        let names = spaced(&heights, NAME_SPACING);
        let shifts = side_by_side(&heights, MARK_SPACING);
        for (((curve, height), name), shift) in samplers.iter().zip(&heights).zip(names).zip(shifts) {
            let color = COLORS[curve.color % COLORS.len()];
            let at = |offset: f64| (offset * f64::from(px(1))) as i32;
            let (mark, down) = (at(shift), at(name - height));
            let text = small_text().color(&color).pos(Pos::new(HPos::Right, VPos::Center));
            let thin = ShapeStyle::from(color.mix(0.6)).stroke_width(px(1));
            let side = -(px(NAME_OFFSET) as i32);
            let leader = vec![(side + px(4) as i32, down), (mark, 0)];
            chart.draw_series([EmptyElement::at(curve.points[0])
                + PathElement::new(leader, thin)
                + Circle::new((mark, 0), px(6), color.filled())
                + Text::new(curve.name.clone(), (side, down), text)])?;
        }
        draw_legend(&mut chart, SeriesLabelPosition::UpperRight)
    })
}

/// Ticks of a logarithmic axis: 1, 2 and 5 times the powers of ten, over many decades those alone.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().floor() as i32;
    let factors: &[f64] = if (high / low).log10() > 4.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = decades.flat_map(|decade| factors.iter().map(move |factor| factor * 10f64.powi(decade)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// Positions in the order of `wanted`, which rises, at least `spacing` apart and otherwise where they are wanted.
fn spaced(wanted: &[f64], spacing: f64) -> Vec<f64> {
    // Neighbours that are too close become a block around the mean of what its members want.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &position in wanted {
        blocks.push((position, 1));
        while let [.., (above, many), (below, few)] = blocks[..] {
            let needed = spacing * (many + few) as f64 / 2.0;
            if below - above >= needed {
                break;
            }
            let centre = (above * many as f64 + below * few as f64) / (many + few) as f64;
            blocks.truncate(blocks.len() - 2);
            blocks.push((centre, many + few));
        }
    }
    let members = |(centre, count): (f64, usize)| {
        (0..count).map(move |i| centre + (i as f64 - (count as f64 - 1.0) / 2.0) * spacing)
    };
    blocks.into_iter().flat_map(members).collect()
}

/// Shifts to the right, so that marks at the heights `at`, which rise, do not cover each other.
fn side_by_side(at: &[f64], spacing: f64) -> Vec<f64> {
    let mut shifts: Vec<f64> = Vec::new();
    for (number, height) in at.iter().enumerate() {
        let taken =
            |shift: f64| (0..number).any(|other| height - at[other] < spacing && shifts[other] == shift);
        let free = (0..).map(|place| place as f64 * spacing).find(|&shift| !taken(shift));
        shifts.push(free.unwrap_or(0.0));
    }
    shifts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_inside_the_axis() {
        assert_eq!(ticks(1.1, 34.0), [2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(0.5, 2e5), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]);
    }

    #[test]
    fn names_move_apart_as_far_as_they_must_and_no_further() {
        assert_eq!(spaced(&[10.0, 50.0], 20.0), [10.0, 50.0]);
        // Two at 10 need 20 between them; the third, at 25, then belongs to their block around 15.
        assert_eq!(spaced(&[10.0, 10.0], 20.0), [0.0, 20.0]);
        assert_eq!(spaced(&[10.0, 10.0, 25.0], 20.0), [-5.0, 15.0, 35.0]);
    }

    #[test]
    fn marks_at_one_height_stand_side_by_side() {
        assert_eq!(side_by_side(&[0.0, 4.0, 14.0, 17.0], 12.0), [0.0, 12.0, 0.0, 12.0]);
    }

    #[test]
    fn a_figure_without_a_distance_is_refused() {
        let curve = CostCurve {
            name: "chains".into(),
            kind: CostKind::Chains,
            color: 0,
            points: vec![(2.0, f64::NAN), (3.0, 0.0)],
        };
        let path = std::env::temp_dir().join("never-written.png");
        let error = costs(("a", "b"), &[curve], Some(1.0), &path).unwrap_err();
        assert!(error.to_string().contains("no distance"), "{error}");
    }
}
