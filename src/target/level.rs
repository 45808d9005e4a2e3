//! A target as training sees it: at a noise level, optionally tempered.

use tch::{Device, Kind, Tensor};

use super::{EnergyTarget, Gaussian, Target, TargetError, TorchScriptTarget};
use crate::config::TargetSection;
use crate::model::per_row;

/// A target whose score may depend on the noise level of each row.
///
/// Tempered, the score at level sigma is (sigma0/sigma)² s_q: the density q^(1/T) with T = (sigma/sigma0)².
/// For an energy trained over many noise levels with target (x̃ − x)/sigma0² (Li, Chen and Sommer 2019) this
/// is close to the score of the data with noise sigma, so one energy serves every level.
pub struct TargetAtLevel {
    target: Box<dyn Target>,
    tempered_from: Option<f64>,
}

impl TargetAtLevel {
    /// `tempered_from` is sigma0, or `None` for the same density at every level.
    pub fn new(target: Box<dyn Target>, tempered_from: Option<f64>) -> Self {
        TargetAtLevel { target, tempered_from }
    }

    /// Loads the target that a configuration describes.
    ///
    /// # Errors
    /// If its file or its definition cannot be used.
    pub fn load(section: &TargetSection, device: Device) -> Result<Self, TargetError> {
        Ok(match section {
            TargetSection::Gaussian { mean, covariance } => {
                Self::new(Box::new(Gaussian::new(mean, covariance, Kind::Float, device)?), None)
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
        })
    }

    /// The target itself.
    pub fn target(&self) -> &dyn Target {
        self.target.as_ref()
    }

    /// sigma0, if the target is tempered.
    pub fn tempered_from(&self) -> Option<f64> {
        self.tempered_from
    }

    /// Score of `x` `[B, …]` at levels `sigma` `[B]`.
    pub fn score(&self, x: &Tensor, sigma: &Tensor) -> Tensor {
        match self.inverse_temperature(x, sigma) {
            Some(factor) => self.target.score(x) * factor,
            None => self.target.score(x),
        }
    }

    /// Score s and H·v with v = `direction`(s), both at levels `sigma` `[B]`; see
    /// [`Target::score_and_product`].
    pub fn score_and_product(
        &self,
        x: &Tensor,
        sigma: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        match self.inverse_temperature(x, sigma) {
            Some(factor) => {
                let (score, product) =
                    self.target.score_and_product(x, &mut |score| direction(&(score * &factor)));
                (score * &factor, product * factor)
            }
            None => self.target.score_and_product(x, direction),
        }
    }

    /// 1/T of each row, if tempered.
    fn inverse_temperature(&self, x: &Tensor, sigma: &Tensor) -> Option<Tensor> {
        self.tempered_from.map(|sigma0| per_row(&(sigma0 / sigma).square(), x))
    }
}
