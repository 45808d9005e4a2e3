//! Scores of draws from the posterior of a regression: predictions on held-out rows, and errors against reference
//! draws.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Result, anyhow};
use tch::{Kind, Tensor};

use super::metrics::NotFinite;
use super::reference::ReferenceDraws;
use super::summary::Score;
use crate::metric::{PosteriorError, PosteriorReference, Prediction, predict};
use crate::target::LogisticProblem;

/// Draws that a predictive probability is the mean over, at most: more change no digit of its scores.
const PREDICTING: i64 = 2000;

/// How draws of one posterior are scored.
pub struct PosteriorMeasure {
    problem: Rc<LogisticProblem>,
    reference: Option<(PosteriorReference, Prediction)>,
    samples: usize,
    sets: usize,
}

impl PosteriorMeasure {
    /// Scores of `sets` sets of `samples` draws; without reference draws predictions alone.
    ///
    /// # Errors
    /// If the reference has too few draws, or they make no predictions.
    pub fn new(
        problem: Rc<LogisticProblem>,
        (samples, sets): (usize, usize),
        reference: Option<&ReferenceDraws>,
    ) -> Result<Self> {
        let reference = reference.map(|found| {
            // As many as are effective: floors count them as independent.
            let stride = (found.draws.size()[0] as f64 / found.ess).ceil().max(1.0) as i64;
            let thinned = found.draws.slice(0, None, None, stride);
            let measure = PosteriorReference::new(&problem.to_whitened(&thinned), samples, sets)?;
            // Rows in the order of chains, so equally spaced ones are of all chains.
            let rows = PREDICTING.min((samples * sets) as i64).min(found.draws.size()[0]);
            let spaced = Tensor::arange(rows, (Kind::Int64, found.draws.device()));
            let spaced = spaced * found.draws.size()[0] / rows;
            let spaced = spaced.to_kind(Kind::Int64);
            anyhow::Ok((measure, prediction(&problem, &found.draws.index_select(0, &spaced))?))
        });
        Ok(PosteriorMeasure { reference: reference.transpose()?, problem, samples, sets })
    }

    /// Draws that are scored at once.
    pub fn rows(&self) -> i64 {
        (self.samples * self.sets) as i64
    }

    /// What the reference predicts.
    pub fn reference_prediction(&self) -> Option<&Prediction> {
        self.reference.as_ref().map(|(_, prediction)| prediction)
    }

    /// Scores of parameters `x` `[samples · sets, D]`, the names ending in `suffix`, and what they predict.
    ///
    /// # Errors
    /// [`NotFinite`] if draws are not finite.
    pub fn scores(&self, x: &Tensor, suffix: &str) -> Result<(BTreeMap<String, Score>, Prediction)> {
        let made = prediction(&self.problem, &x.narrow(0, 0, x.size()[0].min(PREDICTING)))?;
        let floors = self.reference_prediction();
        let mut scores = BTreeMap::new();
        let samples = x.size()[0].min(PREDICTING) as u64;
        let mut add = |name: &str, value, floor| {
            let score = Score { value, deviation: None, floor, floor_deviation: None, samples };
            scores.insert(format!("{name}{suffix}"), score);
        };
        add("accuracy", made.accuracy, floors.map(|floor| floor.accuracy));
        add("log_predictive", made.log_predictive, floors.map(|floor| floor.log_predictive));
        if let Some((reference, _)) = &self.reference {
            let measured = reference.scores(&self.problem.to_whitened(x)).map_err(not_finite)?;
            scores.extend(
                measured.into_iter().map(|(name, measured)| (format!("{name}{suffix}"), measured.into())),
            );
        }
        Ok((scores, made))
    }
}

fn prediction(problem: &LogisticProblem, x: &Tensor) -> Result<Prediction> {
    let (test_x, test_y) = problem.test();
    let w = x.narrow(1, 0, x.size()[1] - 1).to_kind(Kind::Float).contiguous();
    predict(&w, test_x, test_y).map_err(not_finite)
}

fn not_finite(error: PosteriorError) -> anyhow::Error {
    match error {
        PosteriorError::NotFinite { .. } => NotFinite::new(&error).into(),
        other => anyhow!(other),
    }
}
