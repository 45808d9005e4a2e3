//! `samples.png` of a target in the plane: its points, with equal scales on both axes.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use tch::{Kind, Tensor};

use super::style::{BLUE, figure, px, style_mesh, tick};

const SIZE: (u32, u32) = (720, 740);

/// Draws the first two coordinates of `samples` `[n, D]`, `D ≥ 2`.
pub fn draw(iteration: u64, samples: &Tensor, name: &str, path: &Path) -> Result<()> {
    let coordinate = |index: i64| -> Result<Vec<f64>> {
        Ok(Vec::try_from(samples.f_select(1, index)?.f_to_kind(Kind::Double)?.f_contiguous()?)?)
    };
    let points: Vec<(f64, f64)> = coordinate(0)?
        .into_iter()
        .zip(coordinate(1)?)
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .collect();
    let dimension = samples.size()[1];
    let part = if dimension > 2 { format!(", 2 of {dimension} coordinates") } else { String::new() };
    let text = format!("{name}: {} samples at iteration {iteration}{part}", points.len());
    let (center, half) = square(&points);
    figure(path, SIZE, &text, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(px(16))
            .x_label_area_size(px(50))
            .y_label_area_size(px(70))
            .build_cartesian_2d(center.0 - half..center.0 + half, center.1 - half..center.1 + half)?;
        let mut mesh = chart.configure_mesh();
        style_mesh(&mut mesh);
        mesh.x_labels(7)
            .y_labels(7)
            .x_desc("x0")
            .y_desc("x1")
            .x_label_formatter(&|value| tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .draw()?;
        // Fewer points are drawn larger and darker, so that ten show as well as ten thousand.
        let (radius, opacity) = match points.len() {
            0..=300 => (3.5, 0.7),
            301..=3000 => (2.4, 0.5),
            _ => (1.7, 0.35),
        };
        let radius = (radius * f64::from(px(1))).round() as i32;
        let style = BLUE.mix(opacity).filled();
        let shown = |&&(x, y): &&(f64, f64)| (x - center.0).abs() <= half && (y - center.1).abs() <= half;
        let marks = points.iter().filter(shown).map(|&point| Circle::new(point, radius, style));
        chart.draw_series(marks)?;
        Ok(())
    })
}

/// Centre and half side of the square that holds all but the outermost points, with a margin.
///
/// One sample in a thousand may lie outside: a heavy tail would otherwise shrink everything else to a dot.
fn square(points: &[(f64, f64)]) -> ((f64, f64), f64) {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let at = |fraction: f64| values[((values.len() - 1) as f64 * fraction).round() as usize];
        let (low, high) = (at(0.0005), at(0.9995));
        ((low + high) / 2.0, (high - low) / 2.0)
    };
    if points.is_empty() {
        return ((0.0, 0.0), 1.0);
    }
    let (x, half_x) = middle(points.iter().map(|point| point.0).collect());
    let (y, half_y) = middle(points.iter().map(|point| point.1).collect());
    ((x, y), (half_x.max(half_y) * 1.08).max(1e-6))
}
