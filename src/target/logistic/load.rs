//! From a configuration to a posterior with its data.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{Laplace, Logistic, LogisticPrior};
use crate::comm::{SharedCollective, World};
use crate::config::{ComputeSection, LogisticSection, Reduction};
use crate::data::{Design, ScaledFeature, load_covertype, load_csv};
use crate::target::{Target, TargetError, Whitened};

/// The posterior of a logistic regression with what belongs to it: rows to test on, and its Laplace approximation.
///
/// Every rank has the rows of its own part of the training split.
pub struct LogisticProblem {
    section: LogisticSection,
    plain: Rows,
    test: Rows,
    features: Vec<ScaledFeature>,
    device: Device,
    /// Training rows of all ranks.
    row_count: i64,
    laplace: Laplace,
    laplace_seconds: f64,
    spread: Spread,
}

/// A part of the data: `x` `[N, d]`, `y` `[N]`, and the number of its first row.
struct Rows {
    x: Tensor,
    y: Tensor,
    first: i64,
}

/// Over whom the training rows are spread, and in how many blocks they are summed if sums are exact.
#[derive(Clone)]
struct Spread {
    ranks: Option<SharedCollective>,
    blocks: Option<usize>,
}

/// How the likelihood of a problem is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As the section says.
    Configured,
    /// Over all rows.
    Exact,
    /// Over the heavy rows, the others expanded to second order.
    Surrogate,
}

impl LogisticProblem {
    /// Reads the data, splits them by the seed `split` unless the section has one of its own, and finds the mode, over
    /// all ranks of `world`. With the exact reduction of `compute`, sums over rows have the same bits on any number of
    /// ranks that divides its shards.
    ///
    /// # Errors
    /// If the data cannot be used, or Newton's method does not find a mode.
    pub fn load(
        section: &LogisticSection,
        split: u64,
        compute: &ComputeSection,
        world: &World,
    ) -> Result<Self, TargetError> {
        // A rank that cannot read the data says so before others wait for it.
        let design = world.agree(design(section, split));
        let design = design.map_err(|failure| TargetError::Invalid(failure.to_string()))?;
        let rows = design.train_x.size()[0];
        let bound = |rank: usize| rows * rank as i64 / world.size as i64;
        let (first, end) = (bound(world.rank), bound(world.rank + 1));
        let own = |t: &Tensor| {
            let own = t.narrow(0, first, end - first);
            // A copy where others hold the rest, so that this rank lets go of it.
            if world.size == 1 { own } else { own.copy() }
        };
        let plain = Rows { x: own(&design.train_x), y: own(&design.train_y), first };
        let test = Rows { x: design.test_x, y: design.test_y, first: 0 };
        let blocks = (compute.reduction == Reduction::Exact).then_some(compute.shards);
        let ranks = (world.size > 1 || blocks.is_some()).then(|| world.shared_collective());
        let spread = Spread { ranks, blocks };
        let likelihood = of_rows(&plain, section, world.device, spread.clone())?;
        let began = Instant::now();
        let laplace = likelihood.laplace()?;
        let laplace_seconds = began.elapsed().as_secs_f64();
        Ok(LogisticProblem {
            section: section.clone(),
            plain,
            test,
            features: design.features,
            device: world.device,
            row_count: rows,
            laplace,
            laplace_seconds,
            spread,
        })
    }

    /// The target as the configuration has it: whitened or not, over all rows or mini-batches.
    ///
    /// # Errors
    /// If the rows cannot be used in this form.
    pub fn target(&self) -> Result<Box<dyn Target>, TargetError> {
        let likelihood = self.likelihood(Form::Configured)?;
        Ok(if self.section.whiten { Box::new(self.whitened(likelihood)?) } else { Box::new(likelihood) })
    }

    /// As [`target`](Self::target), in the coordinates (w, log alpha) whatever the section says.
    ///
    /// # Errors
    /// If the rows cannot be used in this form.
    pub fn unwhitened(&self) -> Result<Box<dyn Target>, TargetError> {
        Ok(Box::new(self.likelihood(Form::Configured)?))
    }

    /// The target over all rows, whitened.
    ///
    /// # Errors
    /// If the rows cannot be used in this form.
    pub fn exact(&self) -> Result<Whitened<Logistic>, TargetError> {
        self.whitened(self.likelihood(Form::Exact)?)
    }

    /// The whitened target with all but the heavy rows expanded to second order around the mode: close to
    /// [`exact`](Self::exact), and cheap.
    ///
    /// # Errors
    /// If the rows cannot be used in this form.
    pub fn surrogate(&self) -> Result<Whitened<Logistic>, TargetError> {
        self.whitened(self.likelihood(Form::Surrogate)?)
    }

    fn likelihood(&self, form: Form) -> Result<Logistic, TargetError> {
        let plain = of_rows(&self.plain, &self.section, self.device, self.spread.clone())?;
        if form == Form::Configured && !self.section.control_variate {
            return plain.with_batch(self.section.batch);
        }
        let heavy = match form {
            Form::Surrogate => self.surrogate_rows(),
            _ => (self.section.heavy_rows as i64).min(self.row_count),
        } as usize;
        let anchored =
            plain.with_anchor(&self.laplace.weights(), &self.laplace.weights_covariance(), heavy)?;
        anchored.with_batch(match form {
            Form::Configured => self.section.batch,
            Form::Exact => None,
            Form::Surrogate => Some(0),
        })
    }

    fn whitened(&self, target: Logistic) -> Result<Whitened<Logistic>, TargetError> {
        Whitened::new(target, &self.laplace.mode, &self.laplace.factor)
    }

    /// The Laplace approximation of (w, log alpha).
    pub fn laplace(&self) -> &Laplace {
        &self.laplace
    }

    /// Seconds that finding it took.
    pub fn laplace_seconds(&self) -> f64 {
        self.laplace_seconds
    }

    /// y = L⁻¹ (x − mode) `[B, D]` of parameters `x` `[B, D]`, in f64: in units of the Laplace approximation.
    pub fn to_whitened(&self, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Double).to_device(self.device);
        let centred = (x - &self.laplace.mode).transpose(0, 1);
        let y = self.laplace.factor.linalg_solve_triangular(&centred, false, true, false);
        y.transpose(0, 1).contiguous()
    }

    /// x = mode + L y `[B, D]` of whitened `y` `[B, D]`, in f64.
    pub fn to_original(&self, y: &Tensor) -> Tensor {
        let y = y.to_kind(Kind::Double).to_device(self.device);
        y.matmul(&self.laplace.factor.transpose(0, 1)) + &self.laplace.mode
    }

    /// Mode and factor of the coordinates that samples of [`target`](Self::target) are in, if it is whitened.
    pub fn coordinates(&self) -> Option<(&Tensor, &Tensor)> {
        self.section.whiten.then_some((&self.laplace.mode, &self.laplace.factor))
    }

    /// Held-out rows `[N, d]`, the last column of ones, and their labels `[N]`, 0 or 1, on the CPU.
    pub fn test(&self) -> (&Tensor, &Tensor) {
        (&self.test.x, &self.test.y)
    }

    /// How the features of the data became the columns that all weights but the last belong to.
    pub fn features(&self) -> &[ScaledFeature] {
        &self.features
    }

    /// What an evaluation of [`target`](Self::target) costs, in evaluations over all rows: rows over rows.
    pub fn cost(&self) -> f64 {
        let Some(batch) = self.section.batch else { return 1.0 };
        let heavy = if self.section.control_variate { self.section.heavy_rows as i64 } else { 0 };
        if heavy >= self.row_count {
            return 1.0; // no row is left to draw from
        }
        (heavy + batch as i64) as f64 / self.row_count as f64
    }

    /// What an evaluation of [`surrogate`](Self::surrogate) costs, in evaluations over all rows.
    pub fn surrogate_cost(&self) -> f64 {
        self.surrogate_rows() as f64 / self.row_count as f64
    }

    /// Heavy rows of the surrogate: not those of the configuration, for references do not depend on it.
    fn surrogate_rows(&self) -> i64 {
        (LogisticSection::default().heavy_rows as i64).min(self.row_count)
    }
}

/// The plain form over the rows of all ranks.
fn of_rows(
    rows: &Rows,
    section: &LogisticSection,
    device: Device,
    spread: Spread,
) -> Result<Logistic, TargetError> {
    let Rows { x, y, first } = rows;
    let plain = Logistic::new(x, y, *first, prior(section), Kind::Float, device, spread.ranks)?;
    match spread.blocks {
        Some(blocks) => plain.with_exact_sums(blocks),
        None => Ok(plain),
    }
}

fn prior(section: &LogisticSection) -> LogisticPrior {
    LogisticPrior { shape: section.prior_shape, rate: section.prior_rate }
}

fn design(section: &LogisticSection, split: u64) -> anyhow::Result<Design> {
    let table = match (section.csv(), &section.label) {
        (Some(path), Some(label)) => load_csv(path, label, section.positive.as_deref())?,
        _ => load_covertype(&section.data)?,
    };
    Design::new(&table, section.scaling, section.test_fraction, section.split.unwrap_or(split))
}
