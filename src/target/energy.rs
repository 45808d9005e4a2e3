//! An energy network as a target: q = exp(−E).

use std::path::Path;

use tch::{Device, Tensor, no_grad};

use super::{Target, TargetError, score_and_product_by_autograd, score_by_autograd};
use crate::model::{ByHand, EnergyNetwork, EnergySpec, Parameters, WeightsFile};

/// The density exp(−E) of an energy network with fixed weights.
#[derive(Debug)]
pub struct EnergyTarget {
    network: EnergyNetwork,
    parameters: Parameters,
}

impl EnergyTarget {
    /// Reads weights written by `dft fit-energy`.
    ///
    /// # Errors
    /// If they are missing, damaged, or not those of an energy network.
    pub fn load(path: &Path, device: Device) -> Result<Self, TargetError> {
        let file = WeightsFile::load(path)?;
        let spec: EnergySpec = file.described("energy")?;
        let network = EnergyNetwork::new(&spec);
        let parameters = Parameters::from_file(network.layout(), &file, device)?;
        Ok(EnergyTarget { network, parameters })
    }

    /// Noise level of the density that exp(−E) models.
    pub fn sigma0(&self) -> f64 {
        self.network.spec().sigma0
    }

    /// What the network was built from.
    pub fn spec(&self) -> &EnergySpec {
        self.network.spec()
    }

    /// The network's weights: where a sampler and a score network can start.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl Target for EnergyTarget {
    fn shape(&self) -> &[i64] {
        &self.network.spec().shape
    }

    fn is_recordable(&self) -> bool {
        true
    }

    fn log_density(&self, x: &Tensor) -> Tensor {
        -self.network.energy(self.parameters.frozen(), x)
    }

    fn score(&self, x: &Tensor) -> Tensor {
        match self.network.by_hand(self.parameters.frozen(), &x.detach(), None) {
            Some(by_hand) => -by_hand.gradient,
            None => score_by_autograd(self, x),
        }
    }

    fn log_density_and_score(&self, x: &Tensor) -> (Tensor, Tensor) {
        match self.network.by_hand(self.parameters.frozen(), &x.detach(), None) {
            Some(by_hand) => (-by_hand.energy, -by_hand.gradient),
            None => (no_grad(|| self.log_density(x)), score_by_autograd(self, x)),
        }
    }

    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let mut along = |gradient: &Tensor| direction(&-gradient);
        match self.network.by_hand(self.parameters.frozen(), &x.detach(), Some(&mut along)) {
            Some(ByHand { gradient, product, .. }) => {
                (-gradient, -product.expect("the product was asked for"))
            }
            None => score_and_product_by_autograd(self, x, direction),
        }
    }
}
