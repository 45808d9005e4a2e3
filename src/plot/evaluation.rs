//! `evaluation.png`: each metric against the iteration, with the floor below which it cannot tell anything.

use std::path::Path;

use anyhow::Result;

use super::panel::{Curve, Line, Panel};
use super::style::{BLUE, GREY, figure};
use crate::record::RunReader;

const PANEL: (u32, u32) = (520, 400);
const TITLE_HEIGHT: u32 = 50;
const MOST_COLUMNS: usize = 3;

/// Draws the figure; false when the run file has no metric with a floor.
pub fn draw(reader: &RunReader, name: &str, path: &Path) -> Result<bool> {
    let columns = reader.columns("evaluation")?;
    let mut panels = Vec::new();
    for metric in &columns {
        let floor = format!("{metric}_floor");
        if columns.contains(&floor) {
            panels.push(panel(reader, metric, &floor)?);
        }
    }
    if panels.iter().all(|panel| panel.curves[0].points.is_empty()) {
        return Ok(false);
    }
    // Four make a square rather than a row and a rest.
    let across = if panels.len() == 4 { 2 } else { panels.len().min(MOST_COLUMNS) };
    let down = panels.len().div_ceil(across);
    let size = (PANEL.0 * across as u32, PANEL.1 * down as u32 + TITLE_HEIGHT);
    figure(path, size, &format!("{name}: evaluation"), |area| {
        for (panel, area) in panels.iter().zip(area.split_evenly((down, across))) {
            panel.draw(&area)?;
        }
        Ok(())
    })?;
    Ok(true)
}

fn panel(reader: &RunReader, metric: &str, floor: &str) -> Result<Panel> {
    let iterations = reader.series("evaluation", "iteration")?;
    let points = |column: &str| -> Result<Vec<(f64, f64)>> {
        Ok(iterations.iter().copied().zip(reader.series("evaluation", column)?).collect())
    };
    let units = reader.units(&format!("evaluation/{metric}"))?;
    let label = metric.replace('_', " ");
    let axis = if units.is_empty() || units == "1" { label.clone() } else { format!("{label} [{units}]") };
    let curves = vec![
        Curve { label, points: points(metric)?, color: BLUE, line: Line::Marked },
        Curve { label: "floor".to_owned(), points: points(floor)?, color: GREY, line: Line::Dashed },
    ];
    Ok(Panel { axis, curves, logarithmic: false })
}
