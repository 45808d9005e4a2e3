//! Targets of a comparison that make images: what their samples are scored against, and how.

use std::cell::{OnceCell, RefCell};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use super::annealed::steps_home;
use super::bench::{Bench, samples_file};
use super::job::Job;
use super::results::{FILE as ROWS, ResultRow};
use crate::cli::corrections::CorrectionTarget;
use crate::cli::energies::EnergyGauge;
use crate::cli::evaluate::{Drawn, draw_and_score};
use crate::cli::metrics::{Inputs, Measure, NotFinite};
use crate::comm::World;
use crate::config::{ComparePlan, Features, Work};
use crate::data::file_sha256;
use crate::record::write_samples_file;
use crate::target::{TargetAtLevel, TargetError};

/// Images of each row of the grid.
pub const PICTURED: i64 = 12;

/// File of the real ones, beside those of a trained method.
pub const REAL: &str = "real.npy";

/// The setting whose energies are those of the real images.
pub const REAL_SETTING: &str = "real";

/// A target that makes images, with its yardstick.
pub struct ImageTarget {
    /// As corrections move towards it.
    pub target: CorrectionTarget,
    /// Features and data that its samples are scored on.
    pub scoring: String,
    inputs: RefCell<Option<Inputs>>,
    measure: OnceCell<Measure>,
}

impl ImageTarget {
    /// Loads target `number` and what scores its samples; the reference is measured when the first are.
    ///
    /// # Errors
    /// If target, data or extractor cannot be used, or the extractor has so many features that samples of this number, or
    /// those that step sizes are chosen with, are too few.
    pub fn load(plan: &ComparePlan, number: usize, world: &World) -> Result<Self> {
        let (file, entry) = (&plan.recipes[number].file, &plan.file.targets[number]);
        let target = TargetAtLevel::load(&file.target, file.run.seed, &file.compute, world)?;
        if target.target().shape().len() != 3 {
            return Err(TargetError::Invalid(format!(
                "target {:?} makes samples {:?}, wanted images [C, H, W]",
                entry.name,
                target.target().shape()
            ))
            .into());
        }
        let evaluate = &file.evaluate;
        let inputs = Inputs::load(evaluate, "score.samples", target.target(), world.device)?;
        let inputs = inputs.context("the plan has checked that there are features")?;
        for method in plan.file.methods.iter().filter(|method| method.runs_on(entry)) {
            let Work::Annealed(annealed) = method.work() else { continue };
            if annealed.tuning_chains() > 0 {
                let key = format!("method {:?}: annealed.tuning_samples", method.name);
                inputs.require_enough(&key, annealed.tuning_samples)?;
            }
        }
        let weights = match &evaluate.features {
            Features::TorchScript(file) => Some(file),
            _ => evaluate.features_file.as_ref(),
        };
        let weights = match weights {
            Some(file) => file_sha256(file).with_context(|| format!("cannot read {}", file.display()))?,
            None => String::new(),
        };
        Ok(ImageTarget {
            target: CorrectionTarget::new(target, &file.method),
            scoring: format!("{} {weights}", serde_json::to_string(evaluate)?),
            inputs: RefCell::new(Some(inputs)),
            measure: OnceCell::new(),
        })
    }

    /// The reference with its floors.
    ///
    /// # Errors
    /// If features of real samples are not finite.
    pub fn measure(&self, world: &World) -> Result<&Measure> {
        if let Some(measure) = self.measure.get() {
            return Ok(measure);
        }
        let inputs = self.inputs.take().context("a reference that could not be measured ends the job")?;
        let measure = inputs.measure(world)?;
        Ok(self.measure.get_or_init(|| measure))
    }
}

impl Bench<'_> {
    /// Scores what `draw`(chunk, rows) returns into the row, with the seconds that drawing took, and keeps the first images
    /// as those of `setting`.
    ///
    /// # Errors
    /// If they cannot be scored for another reason than that they are not finite, which is a result.
    pub(super) fn score_images(
        &self,
        row: &mut ResultRow,
        (job, home): (&Job, &Path),
        draw: impl FnMut(u64, i64) -> Tensor,
    ) -> Result<()> {
        let images = self.images(job)?;
        let gauge = EnergyGauge::new(images.target.at_level());
        let yardstick = (images.measure(self.world)?, gauge.as_ref(), self.world);
        match draw_and_score(yardstick, draw) {
            Ok(Drawn { scores, seconds, energies }) => {
                // Rows of another key do not belong to the files that are written now.
                let _ = std::fs::remove_file(home.join(ROWS));
                row.sets = 1;
                row.metrics.extend(scores.metrics);
                row.seconds_per_sample = Some(seconds / self.plan.file.score.samples as f64);
                let shown = scores.shown;
                self.keep_samples(home, &row.setting, &shown.narrow(0, 0, PICTURED.min(shown.size()[0])))?;
                energies.map_or(Ok(()), |energies| keep_energies(home, &row.setting, &energies))
            }
            Err(error) if error.is::<NotFinite>() => {
                row.failure = Some(error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps real images for the figure, and the energies of as many as are scored.
    pub(super) fn keep_real(&self, job: &Job, home: &Path) -> Result<()> {
        let images = self.images(job)?;
        let measure = images.measure(self.world)?;
        write_samples_file(home.join(REAL).as_path(), &measure.real(PICTURED).to_device(Device::Cpu), true)?;
        let Some(gauge) = EnergyGauge::new(images.target.at_level()) else { return Ok(()) };
        let energies = gauge.of(&measure.real(measure.samples()), self.world.device);
        keep_energies(home, REAL_SETTING, &energies)
    }
}

/// Keeps energies `[rows]` for the report, which compares them with those of the longest chains.
fn keep_energies(home: &Path, setting: &str, energies: &Tensor) -> Result<()> {
    write_samples_file(home.join(energies_file(setting)).as_path(), energies, true)
}

/// Name of the file that holds the energies of a setting's samples.
pub fn energies_file(setting: &str) -> String {
    samples_file(&format!("{setting}-energies"))
}

/// Directory of the files of a row's samples.
pub fn home(plan: &ComparePlan, row: &ResultRow, directory: &Path) -> PathBuf {
    let home = directory.join(&row.target).join(&row.method).join(format!("seed-{}", row.seed));
    let method = plan.file.methods.iter().find(|method| method.name == row.method);
    match method.map(|method| method.work()) {
        Some(Work::Annealed(_)) => steps_home(&home, &row.setting),
        _ => home,
    }
}
