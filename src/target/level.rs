//! A target as training sees it: at a noise level, optionally tempered.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::smoothed::smoothed_score;
use super::{EnergyTarget, LogisticProblem, Target, TargetError, TorchScriptTarget, load_exact};
use crate::comm::World;
use crate::config::{ComputeSection, TargetSection};
use crate::model::per_row;

/// A target whose score may depend on the noise level of each row.
///
/// Tempered, the score at level sigma is (sigma0/sigma)² s_q: the density q^(1/T) with T = (sigma/sigma0)².
/// For an energy trained over many noise levels with target (x̃ − x)/sigma0² (Li, Chen and Sommer 2019) this
/// is close to the score of the data with noise sigma, so one energy serves every level.
pub struct TargetAtLevel {
    target: Box<dyn Target>,
    tempered_from: Option<f64>,
    problem: Option<Rc<LogisticProblem>>,
}

impl TargetAtLevel {
    /// `tempered_from` is sigma0, or `None` for the same density at every level.
    pub fn new(target: Box<dyn Target>, tempered_from: Option<f64>) -> Self {
        TargetAtLevel { target, tempered_from, problem: None }
    }

    /// Loads the target that a configuration describes, for the ranks of `world`; `seed` is that of the run, for data
    /// that are split by it, and `compute` says how sums over data are added.
    ///
    /// # Errors
    /// If its file, its data or its definition cannot be used.
    pub fn load(
        section: &TargetSection,
        seed: u64,
        compute: &ComputeSection,
        world: &World,
    ) -> Result<Self, TargetError> {
        let device = world.device;
        Ok(match section {
            TargetSection::Logistic(section) => {
                Self::of_problem(Rc::new(LogisticProblem::load(section, seed, compute, world)?))?
            }
            TargetSection::Energy { file, tempered } => {
                let energy = EnergyTarget::load(file, device)?;
                let level = tempered.then(|| energy.sigma0());
                Self::new(Box::new(energy), level)
            }
            TargetSection::Torchscript { file, shape, tempered, sigma0 } => {
                let level = sigma0.filter(|_| *tempered);
                Self::new(Box::new(TorchScriptTarget::load(file, shape, device)?), level)
            }
            closed_form => Self::new(load_exact(closed_form, Kind::Float, device)?, None),
        })
    }

    /// The posterior of a regression, as its section has it.
    ///
    /// # Errors
    /// If its rows cannot be used in that form.
    pub fn of_problem(problem: Rc<LogisticProblem>) -> Result<Self, TargetError> {
        Ok(TargetAtLevel { target: problem.target()?, tempered_from: None, problem: Some(problem) })
    }

    /// The regression whose posterior this is, if it is one.
    pub fn problem(&self) -> Option<&Rc<LogisticProblem>> {
        self.problem.as_ref()
    }

    /// What one evaluation costs: 1, or less where it is estimated from a part of the data.
    pub fn cost(&self) -> f64 {
        self.problem.as_ref().map_or(1.0, |problem| problem.cost())
    }

    /// The target itself.
    pub fn target(&self) -> &dyn Target {
        self.target.as_ref()
    }

    /// sigma0, if the target is tempered.
    pub fn tempered_from(&self) -> Option<f64> {
        self.tempered_from
    }

    /// The target with weight `weight` on the geometric path from `start`; at 1 the target itself.
    pub fn on_path(&self, start: StartingGaussian, weight: f64) -> TargetOnPath<'_> {
        TargetOnPath { target: self, start, weight }
    }

    /// What tempering makes of a score of the target at `x`.
    fn tempered(&self, x: &Tensor, sigma: &Tensor, score: Tensor) -> Tensor {
        match self.inverse_temperature(x, sigma) {
            Some(factor) => score * factor,
            None => score,
        }
    }

    /// 1/T of each row, if tempered.
    fn inverse_temperature(&self, x: &Tensor, sigma: &Tensor) -> Option<Tensor> {
        self.tempered_from.map(|sigma0| per_row(&(sigma0 / sigma).square(), x))
    }
}

/// The sampler's first distribution, N(offset, scale² I): where the path to the target begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StartingGaussian {
    /// Mean of every coordinate.
    pub offset: f64,
    /// Standard deviation of every coordinate.
    pub scale: f64,
}

/// A target on its path: the density N(offset, scale² I)^(1−w) · q^w up to a constant, so the score
/// w·s_q(x) − (1−w)·(x − offset)/scale².
#[derive(Clone, Copy)]
pub struct TargetOnPath<'a> {
    target: &'a TargetAtLevel,
    start: StartingGaussian,
    weight: f64,
}

impl TargetOnPath<'_> {
    /// Whether the target itself is evaluated: not at the very start of the path.
    pub fn is_evaluated(&self) -> bool {
        self.weight > 0.0
    }

    /// Weight of the target on the path, 0 to 1.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    fn start_score(&self, x: &Tensor) -> Tensor {
        (x - self.start.offset) * (-1.0 / self.start.scale.powi(2))
    }

    /// What the path does to a score of the target at `x`.
    fn blend(&self, x: &Tensor, score: Tensor) -> Tensor {
        if self.weight == 1.0 {
            return score;
        }
        score * self.weight + self.start_score(x) * (1.0 - self.weight)
    }

    /// Score of `x` `[B, …]` at levels `sigma` `[B]`.
    pub fn score(&self, x: &Tensor, sigma: &Tensor) -> Tensor {
        if !self.is_evaluated() {
            return self.start_score(x);
        }
        self.blend(x, self.target.tempered(x, sigma, self.target.target.score(x)))
    }

    /// Score of the target with noise of levels `sigma` `[B]` at `x` `[B, D]`, estimated from `probes` `[B, n, D]`,
    /// standard normal: n evaluations a row. For a target that is neither tempered nor on a path.
    pub fn smoothed_score(&self, x: &Tensor, sigma: &Tensor, probes: &Tensor) -> Tensor {
        smoothed_score(self.target.target(), x, sigma, probes)
    }

    /// As [`score`](Self::score), with a graph to `x`, which requires gradients: by autograd through the
    /// log-density.
    pub fn differentiable_score(&self, x: &Tensor, sigma: &Tensor) -> Tensor {
        if !self.is_evaluated() {
            return self.start_score(x);
        }
        let total = self.target.target.log_density(x).sum(None);
        let score = Tensor::run_backward(&[total], &[x], true, true).remove(0);
        self.blend(x, self.target.tempered(x, sigma, score))
    }

    /// Score s and J·v with v = `direction`(s), J the Jacobian of the score; see
    /// [`Target::score_and_product`].
    pub fn score_and_product(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let of_start = (1.0 - self.weight) / self.start.scale.powi(2);
        if !self.is_evaluated() {
            let score = self.start_score(x);
            let product = direction(&score) * -of_start;
            return (score, product);
        }
        if self.weight == 1.0 && self.target.tempered_from.is_none() {
            return self.target.target.score_and_product(x, direction);
        }
        let factor = self.target.inverse_temperature(x, sigma);
        let scaled = |value: &Tensor| factor.as_ref().map_or_else(|| value.shallow_clone(), |f| value * f);
        let mut along = None;
        let (score, product) = self.target.target.score_and_product(x, &mut |score| {
            let v = direction(&self.blend(x, scaled(score)));
            along = Some(v.shallow_clone());
            v
        });
        let product = scaled(&product);
        let score = self.blend(x, scaled(&score));
        match along {
            Some(v) if self.weight != 1.0 => (score, product * self.weight - v * of_start),
            _ => (score, product),
        }
    }
}
