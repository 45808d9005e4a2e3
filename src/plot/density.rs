//! Grids of small panels: samples over the contours of their target's density, targets down, methods across.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tch::{Kind, Tensor};

use super::contour::{Field, mass_levels};
use super::style::{AXIS, Area, BLUE, FONT, GREY, INK, figure, px, use_font};

/// Side of a panel, in pixels of the figure.
const PANEL: u32 = 220;
/// Between panels.
const GAP: u32 = 14;
/// A line of a caption.
const CAPTION_LINE: u32 = 22;
/// Sizes of the text: large enough to be read when a wide grid is shown at half its size.
const CAPTION_SIZE: u32 = 17;
const HEADER_SIZE: u32 = 21;
const LABEL_SIZE: u32 = 22;
/// Around the grid, and the line of the names of columns.
const MARGIN: u32 = 20;
const HEADER: u32 = 40;
/// What `style::figure` takes for its margin and title.
const TITLE: u32 = 46;

/// Points of the grid of a density along each side.
const GRID_POINTS: i64 = 161;
/// Parts of the mass that the contours hold, and the tints of the regions between them.
const MASSES: [f64; 3] = [0.99, 0.90, 0.50];
const TINTS: [RGBColor; 4] =
    [WHITE, RGBColor(0xf3, 0xf1, 0xec), RGBColor(0xe6, 0xe2, 0xd8), RGBColor(0xd6, 0xcf, 0xc0)];
const CONTOUR: RGBColor = RGBColor(0x8a, 0x80, 0x6c);
/// More samples than this hide the density.
const MOST_SAMPLES: usize = 2000;

/// A target: the square of the plane that all panels of its row show, and its density there.
pub struct DensityRow {
    label: String,
    low: (f64, f64),
    side: f64,
    field: Field,
}

impl DensityRow {
    /// From the square's centre and half side; `log_density` maps points f64 `[n, 2]` to log q `[n]`, up to a
    /// constant.
    ///
    /// # Errors
    /// If the values have another shape or none is finite.
    pub fn new(
        label: impl Into<String>,
        center: (f64, f64),
        half: f64,
        log_density: impl FnOnce(&Tensor) -> Tensor,
    ) -> Result<Self> {
        let axis = |center: f64| {
            Tensor::linspace(center - half, center + half, GRID_POINTS, (Kind::Double, tch::Device::Cpu))
        };
        let (x, y) = (axis(center.0), axis(center.1));
        let size = [GRID_POINTS, GRID_POINTS];
        let points = [x.unsqueeze(0).expand(size, false), y.unsqueeze(1).expand(size, false)];
        let points = Tensor::stack(&points.map(|grid| grid.reshape([-1])), 1);
        let values = log_density(&points).f_to_kind(Kind::Double)?.f_to_device(tch::Device::Cpu)?;
        let values: Vec<f64> = Vec::try_from(values.f_reshape([-1])?.f_contiguous()?)?;
        let field = Field::new(values, GRID_POINTS as usize)?;
        Ok(DensityRow {
            label: label.into(),
            low: (center.0 - half, center.1 - half),
            side: 2.0 * half,
            field,
        })
    }
}

/// A method's samples of a target.
pub struct DensityPanel {
    /// `[n, 2]`; the first 2000 are drawn, those outside the square left out.
    pub samples: Tensor,
    /// Below the panel; may have several lines.
    pub caption: String,
}

/// Saves a grid with a row for each target and a column for each method; `panel`(row, column) is what stands there,
/// and without one the place says that there is none.
///
/// The contours hold 50, 90 and 99 % of the mass that the target has in the square. Ten columns are 2,500 pixels wide.
///
/// # Errors
/// If samples are not `[n, 2]`, or the file cannot be written.
pub fn density_panels(
    path: &Path,
    title: &str,
    rows: &[DensityRow],
    columns: &[String],
    panel: impl Fn(usize, usize) -> Option<DensityPanel>,
) -> Result<()> {
    ensure!(!rows.is_empty() && !columns.is_empty(), "a figure of densities needs a row and a column");
    use_font()?;
    let panels: Vec<Vec<_>> =
        (0..rows.len()).map(|row| (0..columns.len()).map(|column| panel(row, column)).collect()).collect();
    let captions = panels.iter().flatten().flatten().map(|panel| panel.caption.lines().count());
    let step = (PANEL + GAP, PANEL + GAP + 8 + captions.max().unwrap_or(0) as u32 * CAPTION_LINE);
    let mut label_width = 0;
    for row in rows {
        let size = (FONT, LABEL_SIZE).into_font().box_size(&row.label);
        label_width = label_width.max(size.map_err(|error| anyhow::anyhow!("{error}"))?.0);
    }
    let left = MARGIN + label_width + GAP + GAP / 2;
    let width = left + columns.len() as u32 * step.0 + MARGIN - GAP;
    let height = TITLE + HEADER + rows.len() as u32 * step.1 + MARGIN - GAP;
    figure(path, (width, height), title, |area| {
        for (column, name) in columns.iter().enumerate() {
            let at = (left + column as u32 * step.0 + PANEL / 2, HEADER - 10);
            write(area, name, HEADER_SIZE, &INK, at, (HPos::Center, VPos::Bottom))?;
        }
        for (index, (row, panels)) in rows.iter().zip(&panels).enumerate() {
            let y = HEADER + index as u32 * step.1;
            let label_at = (left - GAP - GAP / 2, y + PANEL / 2);
            write(area, &row.label, LABEL_SIZE, &INK, label_at, (HPos::Right, VPos::Center))?;
            let levels = mass_levels(&row.field, &MASSES);
            let background = tinted(&row.field, &levels);
            for (column, panel) in panels.iter().enumerate() {
                let corner = (left + column as u32 * step.0, y);
                let place = area.clone().shrink((px(corner.0), px(corner.1)), (px(PANEL), px(PANEL)));
                let Some(panel) = panel else {
                    let at = (corner.0 + PANEL / 2, corner.1 + PANEL / 2);
                    write(area, "no run", CAPTION_SIZE, &GREY, at, (HPos::Center, VPos::Center))?;
                    frame(&place)?;
                    continue;
                };
                draw_panel(&place, row, panel, &levels, &background)?;
                for (line, text) in panel.caption.lines().enumerate() {
                    let at = (corner.0 + PANEL / 2, corner.1 + PANEL + 7 + line as u32 * CAPTION_LINE);
                    write(area, text, CAPTION_SIZE, &INK, at, (HPos::Center, VPos::Top))?;
                }
            }
        }
        Ok(())
    })
}

fn write(
    area: &Area,
    text: &str,
    size: u32,
    color: &RGBColor,
    at: (u32, u32),
    (h, v): (HPos, VPos),
) -> Result<()> {
    let style = (FONT, px(size)).into_font().color(color).pos(Pos::new(h, v));
    Ok(area.draw_text(text, &style, (px(at.0) as i32, px(at.1) as i32))?)
}

fn frame(place: &Area) -> Result<()> {
    let end = px(PANEL) as i32;
    let style = ShapeStyle::from(AXIS.mix(0.7)).stroke_width(px(1));
    let corners = vec![(0, 0), (end, 0), (end, end), (0, end), (0, 0)];
    Ok(place.draw(&PathElement::new(corners, style))?)
}

/// Regions between the contours as pixels of the drawing, RGB.
fn tinted(field: &Field, levels: &[f64]) -> Vec<u8> {
    let size = px(PANEL) as usize;
    let mut pixels = Vec::with_capacity(size * size * 3);
    for row in 0..size {
        for column in 0..size {
            let at = |pixel: usize| (pixel as f64 + 0.5) / size as f64;
            let value = field.at(at(column), 1.0 - at(row));
            let RGBColor(r, g, b) = TINTS[levels.iter().filter(|&&level| value > level).count()];
            pixels.extend([r, g, b]);
        }
    }
    pixels
}

fn draw_panel(
    place: &Area,
    row: &DensityRow,
    panel: &DensityPanel,
    levels: &[f64],
    background: &[u8],
) -> Result<()> {
    let size = (px(PANEL), px(PANEL));
    let bitmap = BitMapElement::with_ref((0, 0), size, background);
    place.draw(&bitmap.expect("as many pixels as the panel has"))?;
    let side = f64::from(px(PANEL));
    let pixel = |(x, y): (f64, f64)| ((x * side) as i32, ((1.0 - y) * side) as i32);
    ensure!(
        panel.samples.dim() == 2 && panel.samples.size()[1] == 2,
        "samples for a panel have the shape {:?}, wanted [n, 2]",
        panel.samples.size()
    );
    let samples = panel.samples.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?;
    let samples: Vec<f64> = Vec::try_from(samples.f_reshape([-1])?.f_contiguous()?)?;
    let count = (samples.len() / 2).min(MOST_SAMPLES);
    // Fewer points are drawn larger and darker.
    let (radius, opacity) = if count <= 500 { (1.7, 0.6) } else { (1.15, 0.42) };
    let radius = (radius * f64::from(px(1))).round() as i32;
    // A whole point inside, or it would stick out of the panel.
    let edge = f64::from(radius) / side;
    for point in samples.chunks_exact(2).take(count) {
        let (x, y) = ((point[0] - row.low.0) / row.side, (point[1] - row.low.1) / row.side);
        if x > edge && x < 1.0 - edge && y > edge && y < 1.0 - edge {
            place.draw(&Circle::new(pixel((x, y)), radius, BLUE.mix(opacity).filled()))?;
        }
    }
    // Over the samples: they are densest where the contours matter.
    let line = ShapeStyle::from(CONTOUR).stroke_width(px(1) * 2 / 3);
    for &level in levels {
        for (from, to) in row.field.contour(level) {
            place.draw(&PathElement::new(vec![pixel(from), pixel(to)], line))?;
        }
    }
    frame(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Generator, Stream};

    #[test]
    fn figure_has_a_panel_for_each_run_and_a_note_for_none() {
        let normal = |k| Generator::new(0, Stream::Exact, 1, k).normal(&[2000, 2]);
        let gaussian = |x: &Tensor| x.square().sum_dim_intlist(1i64, false, None) * -0.5;
        let ring = |x: &Tensor| (x.square().sum_dim_intlist(1i64, false, None).sqrt() - 2.5).square() * -2.0;
        let rows = [
            DensityRow::new("gaussian", (0.0, 0.0), 4.0, gaussian).unwrap(),
            DensityRow::new("donut", (0.0, 0.0), 4.5, ring).unwrap(),
        ];
        let columns = ["DFT".to_string(), "HMC".to_string(), "SVGD".to_string()];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("densities.png");
        let panel = |row: usize, column: usize| {
            let x = normal(column as u64);
            let radius = x.square().sum_dim_intlist(1i64, true, None).sqrt();
            let x = if row == 0 { x } else { &x / &radius * (normal(9).narrow(1, 0, 1) * 0.5 + 2.5) };
            (row + column != 3).then(|| DensityPanel { samples: x, caption: "KSD .061 (.055)".into() })
        };
        density_panels(&path, "a test", &rows, &columns, panel).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // PNG: width and height are big-endian at bytes 16 and 20.
        let size = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert!(
            size(16) > 3 * PANEL
                && size(20) == TITLE + HEADER + 2 * (PANEL + GAP + 8 + CAPTION_LINE) + MARGIN - GAP
        );
    }

    #[test]
    fn samples_that_are_no_points_of_the_plane_are_refused() {
        let row = DensityRow::new("line", (0.0, 0.0), 1.0, |x| x.select(1, 0)).unwrap();
        let panel = |_, _| {
            let samples = Tensor::zeros([5, 3], (Kind::Float, tch::Device::Cpu));
            Some(DensityPanel { samples, caption: String::new() })
        };
        let path = std::env::temp_dir().join("never-written.png");
        let error = density_panels(&path, "a test", &[row], &["DFT".into()], panel).unwrap_err();
        assert!(error.to_string().contains("[5, 3]"), "{error}");
    }
}
