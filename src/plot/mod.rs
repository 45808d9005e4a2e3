//! PNG figures of a run, made from its run file and nothing else.

mod calibration;
mod contour;
mod cost;
mod density;
mod evaluation;
mod histogram;
mod images;
mod losses;
mod panel;
mod scatter;
mod smooth;
mod style;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::Tensor;

use crate::record::RunReader;

pub use calibration::calibration;
pub use cost::{CostCurve, CostKind, costs};
pub use density::{DensityPanel, DensityRow, density_panels};
pub use histogram::energy_histograms;
pub use images::{image_grid, labelled_grids};

/// Images in a row of `samples.png`.
const SAMPLE_COLUMNS: usize = 10;

/// Draws `losses.png`, `evaluation.png` and `samples.png` into `figures/` of a run directory.
///
/// A figure whose data the run file does not have is left out. Returns the paths of those drawn.
pub fn figures(run_directory: &Path) -> Result<Vec<PathBuf>> {
    let reader = RunReader::open(run_directory.join("run.h5"))?;
    let name = run_name(run_directory);
    let directory = run_directory.join("figures");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut drawn = Vec::new();
    let mut keep = |file: &str, draw: &dyn Fn(&Path) -> Result<bool>| -> Result<()> {
        let path = directory.join(file);
        if draw(&path).with_context(|| format!("drawing {}", path.display()))? {
            drawn.push(path);
        }
        Ok(())
    };
    keep("losses.png", &|path| losses::draw(&reader, &name, path))?;
    keep("evaluation.png", &|path| evaluation::draw(&reader, &name, path))?;
    keep("samples.png", &|path| match reader.samples()? {
        Some((iteration, samples)) => draw_samples(iteration, &samples, &name, path),
        None => Ok(false),
    })?;
    Ok(drawn)
}

/// Images as a grid, points in the plane as a scatter plot; of points in more dimensions the first two.
fn draw_samples(iteration: u64, samples: &Tensor, name: &str, path: &Path) -> Result<bool> {
    match samples.size()[..] {
        [_, _, _, _] => image_grid(samples, SAMPLE_COLUMNS, path)?,
        [_, dimension] if dimension >= 2 => scatter::draw(iteration, samples, name, path)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn run_name(run_directory: &Path) -> String {
    let directory = run_directory.canonicalize().unwrap_or_else(|_| run_directory.to_path_buf());
    directory.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
}
