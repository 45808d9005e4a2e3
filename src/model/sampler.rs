//! Samplers: networks that turn a latent z ~ N(0, I) into a sample x0 in one pass.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::generator::Generator;
use super::kernels::{self, Affine};
use super::layers::Init;
use super::mlp::{Mlp, MlpRecord};
use super::parameters::{Layout, Slot, Weights};
use super::unet::UNet;
use crate::comm::memory::{elements, elements_mut};
use crate::config::{SamplerKind, SamplerOutput};

/// All that is needed to rebuild a sampler around its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerSpec {
    /// Which network.
    pub kind: SamplerKind,
    /// Shape of one sample: `[D]` or `[C, H, W]`.
    pub shape: Vec<i64>,
    /// Latent dimension Z of `mlp` and `generator`; a `unet` has an image-shaped latent.
    pub latent: i64,
    /// Units of a hidden layer, or channels at the finest level.
    pub width: i64,
    /// Hidden layers of an `mlp`.
    pub depth: usize,
    /// U-Nets of a `unet` one behind the other.
    #[serde(default = "one_stage")]
    pub stages: usize,
    /// What comes after the last layer of a `unet`.
    #[serde(default, skip_serializing_if = "SamplerOutput::is_linear")]
    pub output: SamplerOutput,
    /// Scale of the latent at the start: the standard deviation of the first samples (`mlp`, `generator`) or
    /// of the U-Net's input.
    pub initial_scale: f64,
    /// Mean of the first samples (`mlp`, `generator`) or of the U-Net's input.
    pub initial_offset: f64,
    /// Factor on the first weights of an `mlp`'s hidden layers.
    #[serde(default = "one")]
    pub initial_gain: f64,
}

fn one() -> f64 {
    1.0
}

fn one_stage() -> usize {
    1
}

/// A sampler's pass through given latents, and what its backward pass needs.
pub struct SamplerPass<'w> {
    /// x0, `[B, …shape]`, a constant.
    pub x0: Tensor,
    weights: &'w Weights,
    how: How<'w>,
}

enum How<'w> {
    /// The samples with their graph.
    Autograd(Tensor),
    /// A perceptron on a CPU, in a few sweeps over memory.
    Host { sampler: HostMlp<'w>, z: Tensor, output: Tensor, record: MlpRecord },
}

/// A sampler that the kernels for a CPU can evaluate.
struct HostMlp<'n> {
    network: &'n Mlp,
    dimension: i64,
    affine: Affine,
}

/// A sampler without its weights.
#[derive(Debug)]
pub struct SamplerNetwork {
    spec: SamplerSpec,
    layout: Rc<Layout>,
    trunk: Trunk,
}

#[derive(Debug)]
enum Trunk {
    Mlp(Mlp),
    /// Each works on what the one before it made.
    Unet(Vec<UNet>),
    Generator {
        generator: Box<Generator>,
        log_scale: Slot,
    },
}

impl SamplerNetwork {
    /// Builds the sampler that `spec` describes.
    ///
    /// # Errors
    /// A sentence, if the kind does not fit the shape of the samples.
    pub fn new(spec: &SamplerSpec) -> Result<Self, String> {
        let mut layout = Layout::default();
        let trunk = match (spec.kind, spec.shape.as_slice()) {
            (SamplerKind::Mlp, &[dimension]) => {
                if spec.latent < dimension {
                    return Err(format!(
                        "sampler.latent = {} is below the target's dimension {dimension}: samples would lie on a \
                         surface; set sampler.latent = {dimension} or more",
                        spec.latent
                    ));
                }
                Trunk::Mlp(Mlp::new(
                    &mut layout,
                    "mlp",
                    [spec.latent, 2 * dimension],
                    (spec.width, spec.depth),
                    spec.initial_gain,
                ))
            }
            (SamplerKind::Unet, &[c, h, w]) if h % 4 == 0 && w % 4 == 0 => {
                let stage = |number: usize| {
                    // The first has the names that it has alone.
                    let part = if number == 1 { String::new() } else { format!("stage{number}.") };
                    layout.part(&part, |layout| UNet::new(layout, [c, h, w], spec.width, false))
                };
                Trunk::Unet((1..=spec.stages).map(stage).collect())
            }
            (SamplerKind::Generator, &[c, h, w]) if h % 4 == 0 && w % 4 == 0 => {
                let generator = Box::new(Generator::new(&mut layout, [c, h, w], spec.latent, spec.width));
                Trunk::Generator {
                    generator,
                    log_scale: layout.add("log_scale".into(), &[c, h, w], Init::Zero),
                }
            }
            (kind, shape) => {
                let fitting = if shape.len() == 1 { "\"mlp\"" } else { "\"unet\" or \"generator\"" };
                return Err(format!(
                    "sampler.kind = {kind:?} cannot make samples of shape {shape:?}; vectors want \"mlp\", images \
                     whose height and width are multiples of 4 want \"unet\" or \"generator\": try {fitting}"
                ));
            }
        };
        Ok(SamplerNetwork { spec: spec.clone(), layout: Rc::new(layout), trunk })
    }

    /// What this sampler was built from.
    pub fn spec(&self) -> &SamplerSpec {
        &self.spec
    }

    /// The parameters' layout.
    pub fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }

    /// Shape of the latents of `rows` samples.
    pub fn latent_shape(&self, rows: i64) -> Vec<i64> {
        let dimension: i64 = self.spec.shape.iter().product();
        match self.trunk {
            Trunk::Mlp(_) => vec![rows, self.spec.latent],
            Trunk::Unet(_) => [&[rows], self.spec.shape.as_slice()].concat(),
            Trunk::Generator { .. } => vec![rows, self.spec.latent + dimension],
        }
    }

    /// The part `[B, …shape]` of latents that has the shape of a sample and decides it: all of it (`unet`), or the first D
    /// numbers (`mlp`).
    ///
    /// # Panics
    /// For a `generator`, whose latent has no such part.
    pub fn latent_in_sample_space(&self, z: &Tensor) -> Tensor {
        match self.trunk {
            Trunk::Mlp(_) => z.narrow(1, 0, self.spec.shape[0]),
            Trunk::Unet(_) => z.shallow_clone(),
            Trunk::Generator { .. } => panic!("a generator's latent has no part in the shape of a sample"),
        }
    }

    /// This sampler as one that the kernels for a CPU know, for these weights and latents.
    fn host_mlp(&self, weights: &Weights, z: &Tensor) -> Option<HostMlp<'_>> {
        let is_constant = weights.are_on_host() && z.kind() == Kind::Float && !z.requires_grad();
        match &self.trunk {
            Trunk::Mlp(network) if is_constant => {
                let affine =
                    Affine { offset: self.spec.initial_offset as f32, scale: self.spec.initial_scale as f32 };
                Some(HostMlp { network, dimension: self.spec.shape[0], affine })
            }
            _ => None,
        }
    }

    /// As [`forward`](Self::forward), for a backward pass with respect to the weights, which are tracked.
    pub fn pass<'w>(&'w self, weights: &'w Weights, z: &Tensor) -> SamplerPass<'w> {
        if let Some(sampler) = self.host_mlp(weights, z) {
            let z = z.contiguous();
            let (output, record) = sampler.network.record(weights, &z);
            let x0 = sampler.samples(&z, &output);
            return SamplerPass { x0, weights, how: How::Host { sampler, z, output, record } };
        }
        let x0 = self.forward(weights, z);
        SamplerPass { x0: x0.detach(), weights, how: How::Autograd(x0) }
    }

    /// One sample per latent: `z` of [`latent_shape`](Self::latent_shape) to x0 `[B, …shape]`.
    ///
    /// - `mlp`: x0 = offset + scale·(z·exp(gate(z)) + shift(z)); gate and shift start at zero, so the first
    ///   samples are exactly N(offset, scale² I).
    /// - `unet`: x0 = f(offset + scale·z), f the stages one after the other, and a sigmoid if the spec has one.
    /// - `generator`: x0 = offset + G(z₁) + scale·exp(log_scale)·z₂ with G = 0 and log_scale = 0 at the
    ///   start.
    pub fn forward(&self, weights: &Weights, z: &Tensor) -> Tensor {
        if let (Some(sampler), false) = (self.host_mlp(weights, z), weights.are_tracked()) {
            let z = z.contiguous();
            return sampler.samples(&z, &sampler.network.answer(weights, &z));
        }
        let (scale, offset) = (self.spec.initial_scale, self.spec.initial_offset);
        match &self.trunk {
            Trunk::Mlp(mlp) => {
                let dimension = self.spec.shape[0];
                let output = mlp.forward(weights, z);
                let (shift, gate) = (output.narrow(1, 0, dimension), output.narrow(1, dimension, dimension));
                (z.narrow(1, 0, dimension) * gate.exp() + shift) * scale + offset
            }
            Trunk::Unet(stages) => {
                let x = stages.iter().fold(z * scale + offset, |x, stage| stage.forward(weights, &x, None));
                match self.spec.output {
                    SamplerOutput::Linear => x,
                    SamplerOutput::Sigmoid => ((x - 0.5) * 8.0).sigmoid(),
                }
            }
            Trunk::Generator { generator, log_scale } => {
                let image = generator.forward(weights, &z.narrow(1, 0, self.spec.latent));
                let noise = z.narrow(1, self.spec.latent, z.size()[1] - self.spec.latent).view_as(&image);
                image + noise * weights[*log_scale].exp() * scale + offset
            }
        }
    }
}

impl SamplerPass<'_> {
    /// J^T `along`, flat `[P]`: `along` `[B, …shape]`, J the Jacobian of the samples with respect to the weights.
    pub fn gradient(self, along: &Tensor) -> Tensor {
        match self.how {
            How::Autograd(x0) => self.weights.gradient(&(x0 * along).sum(None), &[]).0,
            How::Host { sampler, z, mut output, record } => {
                let latent = z.size()[1] as usize;
                let along = along.contiguous();
                let at_output = elements_mut(&mut output);
                kernels::samples_back(sampler.affine, elements(&z), latent, elements(&along), at_output);
                let (flat, views) = self.weights.gradient_buffer();
                sampler.network.backward(self.weights, record, &output, Some(&views), false);
                flat
            }
        }
    }
}

impl HostMlp<'_> {
    /// x0 `[B, D]` from latents `[B, Z]` and the perceptron's output there `[B, 2D]`.
    fn samples(&self, z: &Tensor, output: &Tensor) -> Tensor {
        let (rows, latent) = z.size2().expect("an mlp's latents are vectors");
        let mut x0 = Tensor::empty([rows, self.dimension], (Kind::Float, z.device()));
        let places = elements_mut(&mut x0);
        kernels::samples(self.affine, elements(z), latent as usize, elements(output), places);
        x0
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::config::EnergyKind;
    use crate::model::check::{assert_near, shift};
    use crate::model::{EnergyNetwork, EnergySpec, Parameters};
    use crate::rng::{Generator as Numbers, Stream};

    #[test]
    fn stages_work_on_what_the_one_before_made_and_each_starts_as_a_copy_of_the_energys_network() {
        let shape = [1, 8, 8];
        let energy = EnergySpec { kind: EnergyKind::Unet, width: 4, shape, sigma0: 0.1 };
        let energy = EnergyNetwork::new(&energy);
        let of_energy = Parameters::initialise(energy.layout(), 5, Stream::Parameters, Device::Cpu);
        let sampler = |stages, scale, offset| {
            let spec = SamplerSpec {
                kind: SamplerKind::Unet,
                shape: shape.to_vec(),
                latent: 1,
                width: 4,
                depth: 1,
                stages,
                output: SamplerOutput::Linear,
                initial_scale: scale,
                initial_offset: offset,
                initial_gain: 1.0,
            };
            let network = SamplerNetwork::new(&spec).unwrap();
            let parameters = Parameters::initialise(network.layout(), 6, Stream::Parameters, Device::Cpu);
            parameters.copy_shared_from(&of_energy);
            (network, parameters)
        };
        let (three, weights_of_three) = sampler(3, 2.0, 0.3);
        let (first, weights) = sampler(1, 2.0, 0.3);
        let (other, _) = sampler(1, 1.0, 0.0); // the same network, on its input as it is
        assert_eq!(weights_of_three.count(), 3 * weights.count());
        let z = Numbers::new(2, Stream::Data, 0, 0).normal(&[5, 1, 8, 8]);
        let again = |x: Tensor| other.forward(weights.frozen(), &x);
        let expected = again(again(first.forward(weights.frozen(), &z)));
        assert_near(&three.forward(weights_of_three.frozen(), &z), &expected, 1e-6, "samples");
    }

    #[test]
    fn samples_of_a_pass_and_their_gradient_are_those_of_autograd() {
        let spec = SamplerSpec {
            kind: SamplerKind::Mlp,
            shape: vec![3],
            latent: 5,
            width: 16,
            depth: 2,
            stages: 1,
            output: SamplerOutput::Linear,
            initial_scale: 2.5,
            initial_offset: -0.7,
            initial_gain: 1.0,
        };
        let network = SamplerNetwork::new(&spec).unwrap();
        let parameters = Parameters::initialise(network.layout(), 1, Stream::Parameters, Device::Cpu);
        let mut numbers = Numbers::new(2, Stream::Data, 0, 0);
        shift(&parameters, &(numbers.normal(&[parameters.count()]) * 0.2));
        let (z, along) = (numbers.normal(&[40, 5]), numbers.normal(&[40, 3]));
        // f32 rounding of sums over 40 rows and 16 units.
        let near = |found: &Tensor, expected: &Tensor, what: &str| assert_near(found, expected, 3e-6, what);
        let weights = parameters.tracked();
        let expected = network.forward(weights, &z);
        assert!(expected.requires_grad(), "tracked weights are autograd's business");
        let (gradient, _) = weights.gradient(&(&expected * &along).sum(None), &[]);
        let pass = network.pass(weights, &z);
        near(&pass.x0, &expected.detach(), "samples");
        near(&network.forward(parameters.frozen(), &z), &expected.detach(), "samples of frozen weights");
        near(&pass.gradient(&along), &gradient, "gradient");
    }
}
