//! `losses.png`: both losses and the gradient norms against the iteration.

use std::path::Path;

use anyhow::Result;
use plotters::style::RGBColor;

use super::panel::{Curve, Line, Panel};
use super::style::{BLUE, ORANGE, figure};
use crate::record::RunReader;

const SIZE: (u32, u32) = (1560, 500);

/// Draws the figure; false when the run file has no training rows.
pub fn draw(reader: &RunReader, name: &str, path: &Path) -> Result<bool> {
    let columns = reader.columns("train")?;
    let curve = |column: &str, label: &str, color: RGBColor| -> Result<Option<Curve>> {
        if !columns.iter().any(|existing| existing == column) {
            return Ok(None);
        }
        let iterations = reader.series("train", "iteration")?;
        let points = iterations.into_iter().zip(reader.series("train", column)?).collect();
        Ok(Some(Curve { label: label.to_owned(), points, color, line: Line::Smoothed }))
    };
    // One panel a loss: they have different units of measure and would flatten each other on one axis.
    let panels = [
        ("score loss", false, vec![curve("score_loss", "score network", BLUE)?]),
        ("sampler loss", false, vec![curve("sampler_loss", "sampler", ORANGE)?]),
        (
            "gradient norm",
            true,
            vec![
                curve("score_gradient_norm", "score network", BLUE)?,
                curve("sampler_gradient_norm", "sampler", ORANGE)?,
            ],
        ),
    ];
    let panels: Vec<Panel> = panels
        .into_iter()
        .map(|(axis, logarithmic, curves)| Panel {
            axis: axis.to_owned(),
            curves: curves.into_iter().flatten().collect(),
            logarithmic,
        })
        .filter(|panel| !panel.curves.is_empty())
        .collect();
    if panels.iter().all(|panel| panel.curves.iter().all(|curve| curve.points.is_empty())) {
        return Ok(false);
    }
    figure(path, SIZE, &format!("{name}: training"), |area| {
        for (panel, area) in panels.iter().zip(area.split_evenly((1, panels.len()))) {
            panel.draw(&area)?;
        }
        Ok(())
    })?;
    Ok(true)
}
