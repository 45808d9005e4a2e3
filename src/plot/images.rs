//! Grids of images: pixels magnified without smoothing, clamped to `[0, 1]`.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tch::{Device, Kind, Tensor};

use super::style::{FONT, INK, save, use_font};

/// Height of a magnified image, to the nearest whole factor: 3 for the 28 pixels of MNIST.
const IMAGE_HEIGHT: f64 = 84.0;
/// Between images, in pixels of the figure.
const GAP: usize = 4;
/// Around and between the images of a grid.
const BACKGROUND: [u8; 3] = [0x1c, 0x1f, 0x26];

/// Saves images f32 `[n, C, H, W]` with `C` 1 or 3, values in `[0, 1]`, as a grid of `columns` columns.
///
/// # Errors
/// For other shapes, and when the file cannot be written.
pub fn image_grid(images: &Tensor, columns: usize, path: &Path) -> Result<()> {
    ensure!(columns > 0, "a grid has at least one column");
    let grid = Raster::grid(images, columns)?;
    save(path, (grid.width as u32, grid.height as u32), &grid.pixels)
}

/// Images of a strip before it goes on in a second line.
const STRIP_COLUMNS: usize = 16;
const LABEL_SIZE: u32 = 22;
const MARGIN: usize = 16;

/// Saves strips of images `[n, C, H, W]` one above another on white, each with its label on the left.
pub fn labelled_grids(rows: &[(String, Tensor)], path: &Path) -> Result<()> {
    ensure!(!rows.is_empty(), "no rows of images to draw");
    use_font()?;
    let strips = rows
        .iter()
        .map(|(_, images)| Raster::grid(images, STRIP_COLUMNS.min(images.size()[0].max(1) as usize)))
        .collect::<Result<Vec<_>>>()?;
    let font = (FONT, LABEL_SIZE).into_font();
    let mut label_width = 0;
    for (label, _) in rows {
        let (width, _) = font.box_size(label).map_err(|error| anyhow::anyhow!("{error}"))?;
        label_width = label_width.max(width as usize);
    }
    let left = MARGIN + label_width + MARGIN;
    let width = left + strips.iter().map(|strip| strip.width).max().unwrap_or(0) + MARGIN;
    let height = strips.iter().map(|strip| strip.height + MARGIN).sum::<usize>() + MARGIN;
    let mut picture = Raster::filled(width, height, [0xff; 3]);
    let mut top = MARGIN;
    let mut label_positions = Vec::new();
    for strip in &strips {
        picture.paste(strip, left, top);
        label_positions.push((left as i32 - MARGIN as i32, (top + strip.height / 2) as i32));
        top += strip.height + MARGIN;
    }
    let size = (width as u32, height as u32);
    {
        let area = BitMapBackend::with_buffer(&mut picture.pixels, size).into_drawing_area();
        let style = font.color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
        for ((label, _), position) in rows.iter().zip(label_positions) {
            area.draw_text(label, &style, position)?;
        }
        area.present()?;
    }
    save(path, size, &picture.pixels)
}

/// RGB pixels, row by row from the top.
struct Raster {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Raster {
    fn filled(width: usize, height: usize, color: [u8; 3]) -> Self {
        Self { width, height, pixels: color.repeat(width * height) }
    }

    fn grid(images: &Tensor, columns: usize) -> Result<Self> {
        let [count, channels, height, width] = images.size()[..] else {
            bail!("images have the shape {:?}, wanted [n, C, H, W]", images.size());
        };
        ensure!(matches!(channels, 1 | 3), "images have {channels} channels, wanted 1 or 3");
        ensure!(count > 0 && height > 0 && width > 0, "no images to draw: shape {:?}", images.size());
        let bytes = images.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_nan_to_num(0.0, 1.0, 0.0)?;
        let bytes = (bytes.f_clamp(0.0, 1.0)? * 255.0).f_round()?.f_to_kind(Kind::Uint8)?;
        let bytes = bytes.f_expand([count, 3, height, width], false)?.f_permute([0, 2, 3, 1])?;
        let bytes: Vec<u8> = Vec::try_from(bytes.f_contiguous()?.f_reshape(-1)?)?;

        let (count, height, width) = (count as usize, height as usize, width as usize);
        let zoom = (IMAGE_HEIGHT / height as f64).round().max(1.0) as usize;
        let (down, step_x, step_y) = (count.div_ceil(columns), width * zoom + GAP, height * zoom + GAP);
        let mut raster = Self::filled(columns * step_x + GAP, down * step_y + GAP, BACKGROUND);
        for (index, image) in bytes.chunks_exact(height * width * 3).enumerate() {
            let (left, top) = (GAP + index % columns * step_x, GAP + index / columns * step_y);
            for y in 0..height * zoom {
                for x in 0..width * zoom {
                    let source = (y / zoom * width + x / zoom) * 3;
                    raster.set(left + x, top + y, &image[source..source + 3]);
                }
            }
        }
        Ok(raster)
    }

    fn set(&mut self, x: usize, y: usize, color: &[u8]) {
        let at = (y * self.width + x) * 3;
        self.pixels[at..at + 3].copy_from_slice(color);
    }

    fn paste(&mut self, other: &Self, left: usize, top: usize) {
        for (y, row) in other.pixels.chunks_exact(other.width * 3).enumerate() {
            let at = ((top + y) * self.width + left) * 3;
            self.pixels[at..at + row.len()].copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One white and one black image of 28 × 28: the sizes follow from zoom 3 and gaps of 4.
    #[test]
    fn grid_places_magnified_images_between_gaps() {
        let cpu = (Kind::Float, Device::Cpu);
        let images =
            Tensor::cat(&[Tensor::ones([1, 1, 28, 28], cpu) * 7.0, Tensor::zeros([1, 1, 28, 28], cpu)], 0);
        let grid = Raster::grid(&images, 2).unwrap();
        assert_eq!((grid.width, grid.height), (2 * 84 + 3 * 4, 84 + 2 * 4));
        let at = |x: usize, y: usize| &grid.pixels[(y * grid.width + x) * 3..][..3];
        assert_eq!(at(0, 0), BACKGROUND);
        assert_eq!(at(4, 4), [255; 3]);
        assert_eq!(at(87, 87), [255; 3]);
        assert_eq!(at(88, 50), BACKGROUND);
        assert_eq!(at(92, 50), [0; 3]);
    }

    #[test]
    fn images_of_two_channels_are_refused() {
        let images = Tensor::zeros([1, 2, 4, 4], (Kind::Float, Device::Cpu));
        let error = image_grid(&images, 10, Path::new("never-written.png")).unwrap_err().to_string();
        assert!(error.contains("2 channels"), "{error}");
    }
}
