//! The multilayer perceptron of the low-dimensional experiments.

use tch::{Tensor, no_grad};

use super::kernels;
use super::layers::Linear;
use super::parameters::{Layout, Weights};
use crate::comm::memory::{elements, elements_mut};

/// `depth` hidden SiLU layers of `width` units; the last layer starts at zero, so the network starts as
/// the zero function and the caller's residual form decides where training begins.
#[derive(Debug)]
pub struct Mlp {
    hidden: Vec<Linear>,
    last: Linear,
}

/// What [`Mlp::record`] leaves for [`Mlp::backward`].
#[derive(Debug)]
pub struct MlpRecord {
    /// What each layer saw: the features `[B, inputs]`, then outputs of hidden layers `[B, width]`.
    inputs: Vec<Tensor>,
    /// Derivatives of the hidden layers' activations, `[B, width]`.
    slopes: Vec<Tensor>,
}

impl Mlp {
    /// A network from `inputs` to `outputs` features; the hidden layers start from PyTorch's default times `gain`.
    pub fn new(
        layout: &mut Layout,
        name: &str,
        [inputs, outputs]: [i64; 2],
        (width, depth): (i64, usize),
        gain: f64,
    ) -> Self {
        let hidden = (0..depth)
            .map(|layer| {
                let from = if layer == 0 { inputs } else { width };
                Linear::scaled(layout, &format!("{name}.{layer}"), from, width, gain)
            })
            .collect();
        let from = if depth == 0 { inputs } else { width };
        Mlp { hidden, last: Linear::zero(layout, &format!("{name}.last"), from, outputs) }
    }

    /// `[B, inputs] -> [B, outputs]`, on any device, and autograd can follow it.
    pub fn forward(&self, weights: &Weights, x: &Tensor) -> Tensor {
        let mut h = x.shallow_clone();
        for layer in &self.hidden {
            h = layer.forward(weights, &h).silu();
        }
        self.last.forward(weights, &h)
    }

    /// As [`forward`](Self::forward), of constants on the host: no graph, and no more memory than two layers'.
    pub fn answer(&self, weights: &Weights, x: &Tensor) -> Tensor {
        no_grad(|| {
            let mut h = x.shallow_clone();
            for layer in &self.hidden {
                let (weight, bias) = layer.slots();
                h = h.mm(&weights[weight].tr());
                kernels::silu(elements_mut(&mut h), elements(&weights[bias]));
            }
            self.last.forward(weights, &h)
        })
    }

    /// As [`answer`](Self::answer), with what the backward pass needs. In place of autograd's graph: the activations'
    /// derivatives come with the activations, and nothing is computed twice.
    pub fn record(&self, weights: &Weights, x: &Tensor) -> (Tensor, MlpRecord) {
        no_grad(|| {
            let mut record = MlpRecord { inputs: vec![x.shallow_clone()], slopes: Vec::new() };
            for layer in &self.hidden {
                let (weight, bias) = layer.slots();
                let mut z = record.inputs[record.slopes.len()].mm(&weights[weight].tr());
                let mut output = z.empty_like();
                kernels::silu_with_slope(
                    elements_mut(&mut z),
                    elements(&weights[bias]),
                    elements_mut(&mut output),
                );
                record.slopes.push(z);
                record.inputs.push(output);
            }
            let output = self.last.forward(weights, &record.inputs[self.hidden.len()]);
            (output, record)
        })
    }

    /// The gradients of a scalar whose gradient at the output of the recorded pass is `along` `[B, outputs]`: writes
    /// those at the weights to `gradient`, if it is given, and returns that at the features `[B, inputs]`, if
    /// `wants_features`.
    pub fn backward(
        &self,
        weights: &Weights,
        record: MlpRecord,
        along: &Tensor,
        gradient: Option<&Weights>,
        wants_features: bool,
    ) -> Option<Tensor> {
        no_grad(|| {
            let mut along = along.shallow_clone();
            for index in (0..=self.hidden.len()).rev() {
                let layer = self.hidden.get(index).unwrap_or(&self.last);
                let (weight, bias) = layer.slots();
                if let Some(slope) = record.slopes.get(index) {
                    kernels::multiply(elements_mut(&mut along), elements(slope));
                }
                if let Some(gradient) = gradient {
                    let _ = along.tr().mm_out(&gradient[weight], &record.inputs[index]);
                    let _ = along.sum_intlist_out(&gradient[bias], 0i64, false, None);
                }
                if index > 0 || wants_features {
                    along = along.mm(&weights[weight]);
                }
            }
            wants_features.then_some(along)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tch::{Device, Kind};

    use super::*;
    use crate::model::Parameters;
    use crate::model::check::{assert_near, shift};
    use crate::rng::{Generator, Stream};

    #[test]
    fn passes_without_autograd_give_its_values_and_gradients() {
        for depth in [0, 1, 3] {
            let mut layout = Layout::default();
            let network = Mlp::new(&mut layout, "f", [5, 3], (24, depth), 1.5);
            let parameters = Parameters::initialise(&Rc::new(layout), 1, Stream::Parameters, Device::Cpu);
            let mut generator = Generator::new(0, Stream::Data, 0, 0);
            shift(&parameters, &(generator.normal(&[parameters.count()]) * 0.1));
            let x = (generator.normal(&[37, 5]) * 2.0).set_requires_grad(true);
            let along = generator.normal(&[37, 3]);

            let weights = parameters.tracked();
            let expected = network.forward(weights, &x);
            let (gradient, inputs) = weights.gradient(&(&expected * &along).sum(None), &[&x]);

            let weights = parameters.frozen();
            let near = |found: &Tensor, expected: &Tensor, what: &str| {
                // f32 rounding of sums over 37 rows and 24 units.
                assert_near(found, expected, 2e-6, &format!("{what} at depth {depth}"));
            };
            near(&network.answer(weights, &x.detach()), &expected.detach(), "answer");
            let (found, record) = network.record(weights, &x.detach());
            near(&found, &expected.detach(), "recorded answer");
            let (flat, views) = weights.gradient_buffer();
            let at_features = network.backward(weights, record, &along, Some(&views), true).unwrap();
            assert_eq!(flat.kind(), Kind::Float);
            near(&flat, &gradient, "gradient");
            near(&at_features, &inputs[0], "gradient at the features");
        }
    }
}
