//! First and second derivatives of the reconstruction energy |x − f(x)|²/2 of a U-Net f by hand, on a CPU.
//!
//! What autograd does in some hundred operations, with a graph of the graph, are four passes through the layers: the
//! network, its adjoint along the residual r = x − f(x), and the derivatives of both in a direction (Pearlmutter 1994, "Fast
//! exact multiplication by the Hessian"). A layer is linear, so its derivative is the layer itself; each activation leaves
//! three numbers a unit, and each pass is one sweep over them.

use tch::{Tensor, no_grad};

use super::kernels;
use super::layers::{Conv, Linear};
use super::parameters::Weights;
use super::unet::{UNet, channels_last};
use crate::comm::memory::{elements, elements_mut};

/// What an activation leaves: its derivative, and its second derivative times what the passes since have met there.
struct Site {
    slope: Tensor,
    curvature: Tensor,
}

/// The passes through an unconditional U-Net at one batch of images.
pub(super) struct Passes<'n> {
    network: &'n UNet,
    weights: &'n Weights,
    sites: [Option<Site>; 9],
}

/// A tensor `[B, C, H, W]` or `[B, F]` as plain memory, channels last: a view where it lies so.
fn dense(t: &Tensor) -> Tensor {
    if t.dim() == 4 { t.permute([0i64, 2, 3, 1]).contiguous() } else { t.contiguous() }
}

/// What [`dense`] made plain, in its own shape.
fn shaped(t: Tensor) -> Tensor {
    if t.dim() == 4 { t.permute([0i64, 3, 1, 2]) } else { t }
}

impl<'n> Passes<'n> {
    pub(super) fn new(network: &'n UNet, weights: &'n Weights) -> Self {
        Passes { network, weights, sites: Default::default() }
    }

    /// f(x), `[B, C, H, W]`.
    pub(super) fn forward(&mut self, x: &Tensor) -> Tensor {
        no_grad(|| self.through(x, true, activate))
    }

    /// J^T `along`, J the Jacobian of f at x.
    pub(super) fn adjoint(&mut self, along: &Tensor) -> Tensor {
        no_grad(|| self.back(along, meet))
    }

    /// J `v`, after [`adjoint`](Self::adjoint).
    pub(super) fn tangent(&mut self, v: &Tensor) -> Tensor {
        no_grad(|| self.through(v, false, meet))
    }

    /// The derivative of J^T `along` in the direction of the tangent, `along` moving by `change`.
    pub(super) fn tangent_of_adjoint(&mut self, change: &Tensor) -> Tensor {
        no_grad(|| self.back(change, bend))
    }

    /// The layers from x to f(x), with biases where the pass is of values and not of changes.
    fn through(
        &mut self,
        x: &Tensor,
        has_bias: bool,
        activation: fn(&mut [Option<Site>; 9], usize, &Tensor) -> Tensor,
    ) -> Tensor {
        let (f, w, sites) = (self.network, self.weights, &mut self.sites);
        let conv = |layer: &Conv, x: &Tensor| layer.apply(w, x, has_bias);
        let linear = |layer: &Linear, x: &Tensor| layer.apply(w, x, has_bias);
        let half = activation(sites, 0, &channels_last(&conv(&f.enter, x)));
        let half = &half + activation(sites, 1, &conv(&f.outer, &half));
        let quarter = activation(sites, 2, &conv(&f.down, &half));
        let code = activation(sites, 3, &linear(&f.squeeze, &quarter.flatten(1, -1)));
        let code = activation(sites, 4, &linear(&f.middle, &code));
        let expanded = linear(&f.expand, &code).view_as(&quarter);
        let quarter = activation(sites, 5, &(quarter + channels_last(&expanded)));
        let quarter = activation(sites, 6, &conv(&f.inner, &quarter));
        let merged = activation(sites, 7, &(conv(&f.up, &quarter) + &half));
        let merged = &merged + activation(sites, 8, &conv(&f.merge, &merged));
        conv(&f.leave, &merged)
    }

    /// The adjoints of the layers from f(x) to x.
    fn back(
        &mut self,
        along: &Tensor,
        activation: fn(&mut [Option<Site>; 9], usize, &Tensor) -> Tensor,
    ) -> Tensor {
        let (f, w, sites) = (self.network, self.weights, &mut self.sites);
        let merged = channels_last(&f.leave.adjoint(w, along));
        let merged = &merged + f.merge.adjoint(w, &activation(sites, 8, &merged));
        let half = activation(sites, 7, &merged);
        let quarter = activation(sites, 6, &f.up.adjoint(w, &half));
        let quarter = activation(sites, 5, &f.inner.adjoint(w, &quarter));
        let code = activation(sites, 4, &f.expand.adjoint(w, &quarter.flatten(1, -1)));
        let code = activation(sites, 3, &f.middle.adjoint(w, &code));
        let squeezed = f.squeeze.adjoint(w, &code).view_as(&quarter);
        let quarter = activation(sites, 2, &(quarter + channels_last(&squeezed)));
        let half = half + f.down.adjoint(w, &quarter);
        let half = &half + f.outer.adjoint(w, &activation(sites, 1, &half));
        f.enter.adjoint(w, &activation(sites, 0, &half))
    }
}

/// SiLU(z), leaving both derivatives.
fn activate(sites: &mut [Option<Site>; 9], at: usize, z: &Tensor) -> Tensor {
    let z = dense(z);
    let [mut value, mut slope, mut curvature] = [(); 3].map(|()| z.empty_like());
    let derivatives = (elements_mut(&mut slope), elements_mut(&mut curvature));
    kernels::silu_with_derivatives(elements(&z), elements_mut(&mut value), derivatives);
    sites[at] = Some(Site { slope, curvature });
    shaped(value)
}

/// Adjoint or tangent of an activation met by `u`: u·slope, leaving curvature·u.
fn meet(sites: &mut [Option<Site>; 9], at: usize, u: &Tensor) -> Tensor {
    let Site { slope, curvature } = site(sites, at);
    let u = dense(u);
    let mut product = u.empty_like();
    kernels::two_products(elements(&u), elements(slope), elements_mut(curvature), elements_mut(&mut product));
    shaped(product)
}

/// Derivative of the adjoint: u·slope + curvature, which has met adjoint and tangent.
fn bend(sites: &mut [Option<Site>; 9], at: usize, u: &Tensor) -> Tensor {
    let Site { slope, curvature } = site(sites, at);
    let u = dense(u);
    let mut sum = u.empty_like();
    kernels::multiply_add(elements(&u), elements(slope), elements(curvature), elements_mut(&mut sum));
    shaped(sum)
}

fn site(sites: &mut [Option<Site>; 9], at: usize) -> &mut Site {
    sites[at].as_mut().expect("the forward pass comes first")
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::config::EnergyKind;
    use crate::model::check::assert_near;
    use crate::model::{EnergyNetwork, EnergySpec, Parameters};
    use crate::rng::{Generator, Stream};

    #[test]
    fn energy_gradient_and_product_are_those_of_autograd() {
        let spec = EnergySpec { kind: EnergyKind::Unet, width: 6, shape: [1, 12, 8], sigma0: 0.3 };
        let network = EnergyNetwork::new(&spec);
        let parameters = Parameters::initialise(network.layout(), 1, Stream::Parameters, Device::Cpu);
        let mut generator = Generator::new(2, Stream::Data, 0, 0);
        let (x, v) = (generator.normal(&[5, 1, 12, 8]), generator.normal(&[5, 1, 12, 8]));
        let weights = parameters.frozen();

        let leaf = x.detach().set_requires_grad(true);
        let gradient = network.gradient(weights, &leaf, true);
        let along = (&gradient * (&v + gradient.detach())).sum(None);
        let product = Tensor::run_backward(&[along], &[&leaf], false, false).remove(0);

        let found = network.by_hand(weights, &x, Some(&mut |gradient: &Tensor| &v + gradient)).unwrap();
        // f32 rounding through ten layers.
        let near = |found: &Tensor, expected: &Tensor, what: &str| assert_near(found, expected, 3e-6, what);
        near(&found.energy, &network.energy(weights, &x), "energy");
        near(&found.gradient, &gradient.detach(), "gradient");
        near(&found.product.unwrap(), &product, "product");
        assert!(network.by_hand(weights, &x, None).unwrap().product.is_none());
        assert!(network.by_hand(weights, &x.to_kind(Kind::Double), None).is_none());
    }
}
