//! Score networks: s_phi(x, sigma), the score of the sampler's distribution with noise of level sigma.

use std::rc::Rc;

use tch::{Tensor, with_grad};

use super::kernels::{self, Affine};
use super::layers::{Linear, per_row};
use super::mlp::Mlp;
use super::parameters::{Layout, Weights};
use super::unet::UNet;
use crate::comm::memory::{elements, elements_mut, is_plain};
use crate::config::{ScoreBase, ScoreKind};

/// All that is needed to rebuild a score network around its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreSpec {
    /// Which network.
    pub kind: ScoreKind,
    /// Shape of one sample: `[D]` or `[C, H, W]`.
    pub shape: Vec<i64>,
    /// Units of a hidden layer, or channels at the finest level.
    pub width: i64,
    /// Hidden layers of an `mlp`.
    pub depth: usize,
    /// Length scale of the samples: an `mlp` sees x / scale and starts as the score of N(offset, scale² I); a
    /// `unet` that does not start from an energy's network passes x through in proportion to scale² / (scale²
    /// + sigma²).
    pub scale: f64,
    /// Mean of the samples at the start.
    pub offset: f64,
    /// What the output of an `mlp` is added to.
    pub base: ScoreBase,
    /// Whether the output of an `mlp` falls, and its loss is weighted, for heavy tails.
    pub tail_scaling: bool,
    /// Octaves of sine and cosine that an `mlp` sees besides.
    pub frequencies: i64,
    /// Whether a linear map of u is added to the output of an `mlp`.
    pub linear_skip: bool,
    /// Whether the output of an `mlp` is divided by sigma in place of `scale`.
    pub noise_scaling: bool,
    /// Whether the score of a `unet` is a gradient.
    pub conservative: bool,
    /// Whether D starts as a denoiser already (a copy of an energy's network), so that it needs no
    /// pass-through.
    pub starts_as_denoiser: bool,
}

/// What a score network's output is added to.
#[derive(Debug, Clone, Copy)]
pub enum Base<'t> {
    /// The score of N(offset, scale² I) with this weight.
    Start(f64),
    /// The target's score at the same points.
    Target(&'t Tensor),
}

/// A score network without its weights.
#[derive(Debug)]
pub struct ScoreNetwork {
    spec: ScoreSpec,
    layout: Rc<Layout>,
    trunk: Trunk,
}

#[derive(Debug)]
enum Trunk {
    Mlp {
        network: Mlp,
        /// `[D] -> [D]`.
        skip: Option<Linear>,
    },
    Unet(Box<UNet>),
}

/// A score network that [`kernels`](super::kernels) can evaluate.
pub(super) struct HostMlp<'n> {
    pub(super) spec: &'n ScoreSpec,
    pub(super) affine: Affine,
    pub(super) network: &'n Mlp,
}

impl ScoreNetwork {
    /// Builds the score network that `spec` describes.
    ///
    /// # Errors
    /// A sentence, if the kind does not fit the shape of the samples.
    pub fn new(spec: &ScoreSpec) -> Result<Self, String> {
        let mut layout = Layout::default();
        let trunk = match (spec.kind, spec.shape.as_slice()) {
            (ScoreKind::Mlp, &[d]) => {
                let inputs = 2 * d * (1 + spec.frequencies) + 1;
                let network = Mlp::new(&mut layout, "mlp", [inputs, d], (spec.width, spec.depth), 1.0);
                let skip = spec.linear_skip.then(|| Linear::zero(&mut layout, "skip", d, d));
                Trunk::Mlp { network, skip }
            }
            (ScoreKind::Unet, &[c, h, w]) if h % 4 == 0 && w % 4 == 0 => {
                Trunk::Unet(Box::new(UNet::new(&mut layout, [c, h, w], spec.width, true)))
            }
            (kind, shape) => {
                return Err(format!(
                    "score.kind = {kind:?} cannot score samples of shape {shape:?}; vectors want \"mlp\", images \
                     whose height and width are multiples of 4 want \"unet\""
                ));
            }
        };
        Ok(ScoreNetwork { spec: spec.clone(), layout: Rc::new(layout), trunk })
    }

    /// What this network was built from.
    pub fn spec(&self) -> &ScoreSpec {
        &self.spec
    }

    /// The parameters' layout.
    pub fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }

    /// What the output is added to, given the target's score at the same points and the weight of the target on
    /// its path.
    pub fn base<'t>(&self, target_score: &'t Tensor, target_weight: f64) -> Base<'t> {
        match self.spec.base {
            ScoreBase::Gaussian => Base::Start(1.0),
            ScoreBase::Fading => Base::Start(1.0 - target_weight),
            ScoreBase::Target => Base::Target(target_score),
        }
    }

    /// This network as one that the kernels for a CPU know: a perceptron without the rarer options.
    pub(super) fn host_mlp(&self) -> Option<HostMlp<'_>> {
        match &self.trunk {
            Trunk::Mlp { network, skip: None } if self.spec.frequencies == 0 && !self.spec.noise_scaling => {
                Some(HostMlp { spec: &self.spec, affine: self.affine(), network })
            }
            _ => None,
        }
    }

    /// How u comes from x.
    pub(super) fn affine(&self) -> Affine {
        Affine { offset: self.spec.offset as f32, scale: self.spec.scale as f32 }
    }

    /// u = (x − offset)/scale, the coordinates of an `mlp`.
    fn scaled(&self, x: &Tensor) -> Tensor {
        (x - self.spec.offset) / self.spec.scale
    }

    /// s_phi(x, sigma): `x` `[B, …]`, `sigma` `[B]`; returns the shape of `x`.
    ///
    /// - `mlp`: s = D·net(asinh u, asinh(5u)/3, log sigma)/scale + base with u = (x − offset)/scale; the inverse
    ///   hyperbolic sine keeps heavy tails within reach of the network. D is 1, or 1/sqrt(1 + u²) with tail
    ///   scaling. With frequencies the network also sees sin(2^k π u/2) and cos(2^k π u/2) (Tancik et al. 2020). With
    ///   linear skip A u + b is added to D·net. With noise scaling s = D·net(…)/sigma + base, and N(offset, scale² I) is N(offset, (scale² + sigma²) I).
    /// - `unet`: s = (D(x, log sigma) − x)/sigma² (Tweedie); it has no base. If conservative, D = x − ∇|x − f(x, log sigma)|²/2,
    ///   as the energies of ours denoise.
    pub fn score(&self, weights: &Weights, x: &Tensor, sigma: &Tensor, base: Base) -> Tensor {
        match &self.trunk {
            Trunk::Mlp { network, skip } => {
                let u = self.scaled(x);
                let mut inputs = vec![u.asinh(), (&u * 5.0).asinh() / 3.0, sigma.log().unsqueeze(1)];
                for octave in 0..self.spec.frequencies {
                    let angle = &u * (2f64.powi(octave as i32) * std::f64::consts::FRAC_PI_2);
                    inputs.extend([angle.sin(), angle.cos()]);
                }
                let mut output = network.forward(weights, &Tensor::cat(&inputs, 1));
                if self.spec.tail_scaling {
                    output *= (u.square() + 1.0).rsqrt();
                }
                if let Some(skip) = skip {
                    output += skip.forward(weights, &u);
                }
                if self.spec.noise_scaling {
                    let sigma = sigma.unsqueeze(1);
                    let output = output / &sigma;
                    let start = || &u * self.spec.scale / (sigma.square() + self.spec.scale.powi(2));
                    return match base {
                        Base::Start(0.0) => output,
                        Base::Start(weight) => output - start() * weight,
                        Base::Target(score) => output + score,
                    };
                }
                match base {
                    Base::Start(0.0) => output / self.spec.scale,
                    Base::Start(1.0) => (output - u) / self.spec.scale,
                    Base::Start(weight) => (output - u * weight) / self.spec.scale,
                    Base::Target(score) => output / self.spec.scale + score,
                }
            }
            Trunk::Unet(network) => {
                let sigma_rows = per_row(sigma, x);
                let log_sigma = sigma.log();
                if self.spec.conservative {
                    let step = gradient_of_residual(network, weights, x, &log_sigma);
                    return -step / sigma_rows.square();
                }
                let mut denoised = network.forward(weights, x, Some(&log_sigma));
                if !self.spec.starts_as_denoiser {
                    // Preconditioning of Karras et al. (2022), table 1, around the mean `offset`.
                    let data = self.spec.scale.powi(2);
                    let variance = sigma_rows.square() + data;
                    let skip = data / &variance;
                    let gain = &sigma_rows * self.spec.scale / variance.sqrt();
                    denoised = (x - self.spec.offset) * skip + denoised * gain + self.spec.offset;
                }
                (denoised - x) / sigma_rows.square()
            }
        }
    }

    /// Denoising score-matching loss Σ weight·|sigma·s + eps|² of scores `s` at `x`, both `[R, …]`, with a weight for each
    /// row `[R]`; with tail scaling each coordinate is weighted by 1 + u² besides. Returns the loss, a scalar, and its
    /// gradient at the scores, `[R, …]`.
    ///
    /// Any weight that depends on x alone leaves the optimum where it is.
    pub fn denoising_loss(
        &self,
        score: &Tensor,
        (x, eps, sigma): (&Tensor, &Tensor, &Tensor),
        row_weights: &Tensor,
    ) -> (Tensor, Tensor) {
        let all = [score, x, eps, sigma, row_weights];
        if all.into_iter().all(is_plain::<f32>) {
            let tail = self.spec.tail_scaling.then(|| self.affine());
            let [score, x, eps, sigma, row_weights] = all.map(elements::<f32>);
            let mut slope = all[0].empty_like();
            let rows = (sigma, row_weights);
            let loss = kernels::denoising_loss((score, x, eps), rows, tail, elements_mut(&mut slope));
            return (Tensor::from(loss as f32), slope);
        }
        let residual = (score * per_row(sigma, score) + eps).detach();
        let mut weighted = &residual * per_row(row_weights, score);
        if self.spec.tail_scaling {
            weighted *= self.scaled(&x.detach()).square() + 1.0;
        }
        let loss = (residual * &weighted).sum(None);
        (loss, weighted * per_row(&(sigma * 2.0), score))
    }
}

/// ∇|x − f(x, log sigma)|²/2, the shape of `x`; it can be differentiated where the weights or `x` are tracked.
fn gradient_of_residual(network: &UNet, weights: &Weights, x: &Tensor, log_sigma: &Tensor) -> Tensor {
    let is_tracked = weights.are_tracked() || x.requires_grad();
    let x = if x.requires_grad() { x.shallow_clone() } else { x.detach().set_requires_grad(true) };
    with_grad(|| {
        let residual = &x - network.forward(weights, &x, Some(log_sigma));
        let energy = residual.square().sum(None) * 0.5;
        Tensor::run_backward(&[energy], &[&x], is_tracked, is_tracked).remove(0)
    })
}
