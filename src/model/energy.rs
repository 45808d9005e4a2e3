//! Energy networks on images: E(x) with exp(−E) the density, twice differentiable in x.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::parameters::{Layout, Weights};
use super::resnet::ResNet;
use super::unet::UNet;
use super::unet_product::Passes;
use crate::config::EnergyKind;

/// All that is needed to rebuild an energy network around its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergySpec {
    /// Which network.
    pub kind: EnergyKind,
    /// Channels of the first layer.
    pub width: i64,
    /// Image shape `[C, H, W]`.
    pub shape: [i64; 3],
    /// Noise level of the density that exp(−E) models, in units of pixels.
    pub sigma0: f64,
}

/// An energy and its derivatives at a batch of images.
#[derive(Debug)]
pub struct ByHand {
    /// `[B]`.
    pub energy: Tensor,
    /// `[B, C, H, W]`.
    pub gradient: Tensor,
    /// `[B, C, H, W]`, if a direction was given.
    pub product: Option<Tensor>,
}

/// An energy network without its weights.
#[derive(Debug)]
pub struct EnergyNetwork {
    spec: EnergySpec,
    layout: Rc<Layout>,
    trunk: Trunk,
}

#[derive(Debug)]
enum Trunk {
    Unet(Box<UNet>),
    Resnet(ResNet),
}

impl EnergyNetwork {
    /// Builds the network that `spec` describes.
    pub fn new(spec: &EnergySpec) -> Self {
        let mut layout = Layout::default();
        let trunk = match spec.kind {
            EnergyKind::Unet => Trunk::Unet(Box::new(UNet::new(&mut layout, spec.shape, spec.width, false))),
            EnergyKind::Resnet => Trunk::Resnet(ResNet::new(&mut layout, spec.shape, spec.width)),
        };
        EnergyNetwork { spec: spec.clone(), layout: Rc::new(layout), trunk }
    }

    /// What this network was built from.
    pub fn spec(&self) -> &EnergySpec {
        &self.spec
    }

    /// The parameters' layout.
    pub fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }

    /// Energy of each image, `[B, C, H, W] -> [B]`.
    pub fn energy(&self, weights: &Weights, x: &Tensor) -> Tensor {
        match &self.trunk {
            Trunk::Unet(f) => {
                let residual = (x - f.forward(weights, x, None)).flatten(1, -1);
                residual.square().sum_dim_intlist(1i64, false, None) * (0.5 / self.spec.sigma0.powi(2))
            }
            Trunk::Resnet(network) => network.forward(weights, x),
        }
    }

    /// Energy `[B]` and its gradient at `x` `[B, C, H, W]`, both constants; and if a `direction` is given, the product of the
    /// Hessian with what it makes of the gradient. `None` where that is autograd's business: other networks than the
    /// U-Net, other devices than a CPU.
    pub fn by_hand(
        &self,
        weights: &Weights,
        x: &Tensor,
        direction: Option<&mut dyn FnMut(&Tensor) -> Tensor>,
    ) -> Option<ByHand> {
        let Trunk::Unet(network) = &self.trunk else { return None };
        if !weights.are_on_host() || x.kind() != Kind::Float {
            return None;
        }
        // With r = x − f(x): E = |r|²/2, ∇E = r − J^T r, and its derivative along v with r moving by v − J v.
        let scale = self.spec.sigma0.powi(-2);
        let mut passes = Passes::new(network, weights);
        let residual = no_grad(|| x - passes.forward(x));
        let energy = residual.square().flatten(1, -1).sum_dim_intlist(1i64, false, None) * (0.5 * scale);
        let gradient = (&residual - passes.adjoint(&residual)) * scale;
        let product = direction.map(|direction| {
            let v = direction(&gradient).detach();
            let change = &v - passes.tangent(&v);
            (&change - passes.tangent_of_adjoint(&change)) * scale
        });
        Some(ByHand { energy, gradient, product })
    }

    /// Gradient of the energy with respect to `x` (a leaf that requires a gradient), same shape; with
    /// `differentiable` it can itself be differentiated.
    pub fn gradient(&self, weights: &Weights, x: &Tensor, differentiable: bool) -> Tensor {
        let energy = self.energy(weights, x).sum(None);
        Tensor::run_backward(&[energy], &[x], differentiable, differentiable).remove(0)
    }
}
