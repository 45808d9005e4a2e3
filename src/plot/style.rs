//! How all figures look: palette, font, sizes, and lines smoothed by drawing at twice the size.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use plotters::chart::MeshStyle;
use plotters::coord::ranged1d::Ranged;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

/// The name of the only font.
pub const FONT: &str = "sans-serif";
/// Text and ticks.
pub const INK: RGBColor = RGBColor(0x1f, 0x24, 0x2b);
/// Axes.
pub const AXIS: RGBColor = RGBColor(0x9a, 0xa1, 0xab);
/// Gridlines.
pub const GRID: RGBColor = RGBColor(0xe9, 0xec, 0xef);
/// The first curve of a panel.
pub const BLUE: RGBColor = RGBColor(0x2f, 0x6c, 0x9e);
/// The second curve of a panel.
pub const ORANGE: RGBColor = RGBColor(0xd0, 0x6f, 0x2f);
/// Curves in their order; the first two are those of the other figures.
pub const COLORS: [RGBColor; 9] = [
    BLUE,
    ORANGE,
    RGBColor(0x3f, 0x8a, 0x5c),
    RGBColor(0x8a, 0x5a, 0x9e),
    RGBColor(0xb0, 0x3a, 0x48),
    RGBColor(0x8f, 0x7a, 0x1f),
    RGBColor(0x2f, 0x9a, 0x9e),
    RGBColor(0xc4, 0x5a, 0x9a),
    RGBColor(0x4a, 0x4f, 0xb0),
];
/// What a result is compared with: floors.
pub const GREY: RGBColor = RGBColor(0x6b, 0x72, 0x7c);

/// Everything is drawn this many times larger and averaged down: lines have no other smoothing.
const OVERSAMPLING: u32 = 3;

/// Pixels of the drawing for a length in pixels of the figure.
pub fn px(length: u32) -> u32 {
    length * OVERSAMPLING
}

/// Grid, axes and text of a chart as all figures have them; ticks and descriptions are the chart's own.
pub fn style_mesh<'a, X: Ranged, Y: Ranged>(mesh: &mut MeshStyle<'a, '_, X, Y, BitMapBackend<'a>>) {
    mesh.bold_line_style(ShapeStyle::from(GRID).stroke_width(px(1)))
        .light_line_style(TRANSPARENT)
        .axis_style(ShapeStyle::from(AXIS).stroke_width(px(1)))
        .label_style(small_text())
        .axis_desc_style(axis_text());
}

/// Draws the names of a chart's series in this corner.
pub fn draw_legend<'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, BitMapBackend<'a>, C>,
    corner: SeriesLabelPosition,
) -> Result<()> {
    chart
        .configure_series_labels()
        .position(corner)
        .margin(px(8))
        .legend_area_size(px(32))
        .background_style(WHITE.mix(0.8))
        .label_font(small_text())
        .draw()?;
    Ok(())
}

/// Makes the font known to plotters; the program carries it, because machines of a cluster may have none.
pub fn use_font() -> Result<()> {
    static FONT_IS_VALID: OnceLock<bool> = OnceLock::new();
    let register = || register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok();
    if !*FONT_IS_VALID.get_or_init(register) {
        bail!("the built-in font cannot be read");
    }
    Ok(())
}

/// A part of a drawing.
pub type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws a figure of `size` pixels on white below its title, and saves it as PNG.
pub fn figure(
    path: &Path,
    size: (u32, u32),
    title: &str,
    draw: impl FnOnce(&Area) -> Result<()>,
) -> Result<()> {
    use_font()?;
    let large = (px(size.0), px(size.1));
    let mut pixels = vec![0u8; (large.0 * large.1 * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, large).into_drawing_area();
        area.fill(&WHITE)?;
        let style = (FONT, px(23)).into_font().color(&INK);
        draw(&area.margin(px(12), 0, 0, 0).titled(title, style)?)?;
        area.present()?;
    }
    save(path, size, &average_down(&pixels, size))
}

/// Saves RGB pixels, row by row from the top, as PNG.
pub fn save(path: &Path, size: (u32, u32), pixels: &[u8]) -> Result<()> {
    let area = BitMapBackend::new(path, size).into_drawing_area();
    let Some(bitmap) = BitMapElement::with_ref((0, 0), size, pixels) else {
        bail!("{} bytes do not make an image of {size:?} pixels", pixels.len());
    };
    area.draw(&bitmap)?;
    area.present()?;
    Ok(())
}

/// Mean of the squares of `OVERSAMPLING`² pixels.
fn average_down(pixels: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let (factor, width, height) = (OVERSAMPLING as usize, width as usize, height as usize);
    let mut small = Vec::with_capacity(width * height * 3);
    for row in 0..height {
        for column in 0..width {
            for channel in 0..3 {
                let mut sum = 0u32;
                for y in row * factor..(row + 1) * factor {
                    for x in column * factor..(column + 1) * factor {
                        sum += u32::from(pixels[(y * width * factor + x) * 3 + channel]);
                    }
                }
                small.push((sum / (OVERSAMPLING * OVERSAMPLING)) as u8);
            }
        }
    }
    small
}

/// Text style of ticks and legends.
pub fn small_text() -> TextStyle<'static> {
    (FONT, px(16)).into_font().color(&INK)
}

/// Text style of the names of axes.
pub fn axis_text() -> TextStyle<'static> {
    (FONT, px(18)).into_font().color(&INK)
}

/// An iteration for a tick: `500`, `20k`; nothing for half an iteration.
pub fn iteration_tick(value: f64) -> String {
    if value.fract() != 0.0 {
        String::new()
    } else if value.abs() >= 1e3 {
        format!("{}k", trimmed(value / 1e3))
    } else {
        trimmed(value)
    }
}

/// A value for a tick: `0.05`, `20`, `3e-6`.
pub fn tick(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        let exponent = (size.log10() + 1e-9).floor() as i32;
        format!("{}e{exponent}", trimmed(value / 10f64.powi(exponent)))
    } else {
        trimmed(value)
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short_and_keep_their_value() {
        let texts: Vec<String> = [0.0, 20_000.0, 0.05, -1.5, 3e-6, 1e-4, 2.5e7, 500.0].map(tick).into();
        assert_eq!(texts, ["0", "20000", "0.05", "-1.5", "3e-6", "1e-4", "2.5e7", "500"]);
        let texts: Vec<String> = [0.0, 0.5, 500.0, 2_500.0, 20_000.0].map(iteration_tick).into();
        assert_eq!(texts, ["0", "", "500", "2.5k", "20k"]);
    }
}
