//! One pass of a score network through given points, and the products with its Jacobians that training asks for.

use tch::{Kind, Tensor};

use super::kernels::{self, ScoreHead};
use super::mlp::MlpRecord;
use super::parameters::Weights;
use super::score::{Base, HostMlp, ScoreNetwork};
use crate::comm::memory::{elements, elements_mut};

/// A score network at `x` `[R, …]`: the score there, and what its backward pass needs.
///
/// Perceptrons on a CPU make both passes in a few sweeps over memory; other networks, and other devices, leave them to
/// autograd. Either way it is the derivative of the same function.
pub struct ScorePass<'w> {
    /// s_phi(x, sigma), `[R, …]`, a constant.
    pub score: Tensor,
    weights: &'w Weights,
    /// Where the score was taken; follows autograd where that makes the backward pass.
    x: Tensor,
    how: How<'w>,
}

enum How<'w> {
    /// The score with its graph.
    Autograd(Tensor),
    /// With the score but for the target's part.
    Host { host: HostMlp<'w>, head: ScoreHead, own: Tensor, record: MlpRecord },
}

impl ScoreNetwork {
    /// Evaluates the network at `x` `[R, …]`, `sigma` `[R]`, as [`score`](Self::score). `wants_input` says whether
    /// the gradient at x will be asked for. The base is a constant to it where it is the target's score.
    pub fn pass<'w>(
        &'w self,
        weights: &'w Weights,
        x: &Tensor,
        sigma: &Tensor,
        base: Base,
        wants_input: bool,
    ) -> ScorePass<'w> {
        let x = x.detach();
        if let (Some(host), true) = (self.host_mlp(), weights.are_on_host() && x.kind() == Kind::Float) {
            let x = x.contiguous();
            let head = host.head(base);
            let (mut own, record) = host.network.record(weights, &host.features(&x, sigma));
            head.score(elements(&x), elements_mut(&mut own));
            let score = match base {
                Base::Start(_) => own.shallow_clone(),
                Base::Target(target) => &own + target,
            };
            return ScorePass { score, weights, x, how: How::Host { host, head, own, record } };
        }
        let x = x.set_requires_grad(wants_input);
        let score = self.score(weights, &x, sigma, base);
        ScorePass { score: score.detach(), weights, x, how: How::Autograd(score) }
    }
}

impl ScorePass<'_> {
    /// J^T `along`, `along` `[R, …]`, with J the Jacobian with respect to the weights, flat `[P]`, and if
    /// `wants_input` that with respect to x, `[R, …]`. The weights must be tracked, or plain numbers of the host.
    pub fn gradient(self, along: &Tensor, wants_input: bool) -> (Tensor, Option<Tensor>) {
        match self.how {
            How::Autograd(score) => {
                let wanted = if wants_input { vec![&self.x] } else { vec![] };
                let (gradient, mut inputs) = self.weights.gradient(&(score * along).sum(None), &wanted);
                (gradient, inputs.pop())
            }
            How::Host { host, head, own, record } => {
                let (flat, views) = self.weights.gradient_buffer();
                let at = (&self.x, &own, wants_input);
                (flat, host.back(self.weights, (head, record), at, along, Some(&views)))
            }
        }
    }

    /// J^T `along`, both `[R, …]`, with J the Jacobian with respect to x, which the pass was told of.
    pub fn product(self, along: &Tensor) -> Tensor {
        match self.how {
            How::Autograd(score) => {
                Tensor::run_backward(&[(score * along).sum(None)], &[&self.x], false, false).remove(0)
            }
            How::Host { host, head, own, record } => {
                let input = host.back(self.weights, (head, record), (&self.x, &own, true), along, None);
                input.expect("the gradient at the input was asked for")
            }
        }
    }
}

impl HostMlp<'_> {
    fn head(&self, base: Base) -> ScoreHead {
        let base = match base {
            Base::Start(weight) => weight as f32,
            Base::Target(_) => 0.0,
        };
        ScoreHead { affine: self.affine, tail_scaling: self.spec.tail_scaling, base }
    }

    /// `[R, D] -> [R, 2D + 1]`.
    fn features(&self, x: &Tensor, sigma: &Tensor) -> Tensor {
        let (rows, d) = x.size2().expect("an mlp scores vectors");
        let mut features = Tensor::empty([rows, 2 * d + 1], (Kind::Float, x.device()));
        let sigma = sigma.contiguous();
        kernels::score_features(elements(x), elements(&sigma), self.affine, elements_mut(&mut features));
        features
    }

    /// Gradients of a scalar whose gradient is `along` at the `score` at `x`, all `[R, D]`: those at the weights to
    /// `gradient`, if it is given, and returned that at x, if wanted.
    fn back(
        &self,
        weights: &Weights,
        (head, record): (ScoreHead, MlpRecord),
        (x, score, wants_input): (&Tensor, &Tensor, bool),
        along: &Tensor,
        gradient: Option<&Weights>,
    ) -> Option<Tensor> {
        let along = along.contiguous();
        let mut at_output = along.copy();
        head.back(elements(x), elements_mut(&mut at_output));
        let at_features = self.network.backward(weights, record, &at_output, gradient, wants_input)?;
        let mut input = x.empty_like();
        head.direct(elements(x), elements(score), elements(&along), elements_mut(&mut input));
        let d = x.size()[1] as usize;
        let places = elements_mut(&mut input);
        kernels::add_through_features(elements(x), elements(&at_features), d, head.affine, places);
        Some(input)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::config::{EnergyKind, ScoreBase, ScoreKind};
    use crate::model::check::{assert_near, shift};
    use crate::model::{EnergyNetwork, EnergySpec, Parameters, ScoreSpec, per_row};
    use crate::rng::{Generator, Stream};

    fn network(tail_scaling: bool, frequencies: i64) -> ScoreNetwork {
        let spec = ScoreSpec {
            kind: ScoreKind::Mlp,
            shape: vec![3],
            width: 16,
            depth: 2,
            scale: 2.5,
            offset: -0.7,
            base: ScoreBase::Gaussian,
            tail_scaling,
            frequencies,
            linear_skip: false,
            noise_scaling: false,
            conservative: false,
            starts_as_denoiser: false,
        };
        ScoreNetwork::new(&spec).unwrap()
    }

    fn weights_of(network: &ScoreNetwork) -> Parameters {
        let parameters = Parameters::initialise(network.layout(), 1, Stream::Parameters, Device::Cpu);
        let by = Generator::new(3, Stream::Data, 0, 0).normal(&[parameters.count()]) * 0.2;
        shift(&parameters, &by);
        parameters
    }

    /// f32 rounding of sums over 40 rows and 16 units.
    fn near(found: &Tensor, expected: &Tensor, what: &str) {
        assert_near(found, expected, 3e-6, what);
    }

    #[test]
    fn conservative_score_starts_as_the_energys_own_and_its_jacobian_is_symmetric() {
        let (shape, sigma0) = ([1, 8, 8], 0.2);
        let energy = EnergyNetwork::new(&EnergySpec { kind: EnergyKind::Unet, width: 4, shape, sigma0 });
        let of_energy = Parameters::initialise(energy.layout(), 5, Stream::Parameters, Device::Cpu);
        let mut spec = network(false, 0).spec().clone();
        spec = ScoreSpec { kind: ScoreKind::Unet, shape: shape.to_vec(), width: 4, ..spec };
        let network =
            ScoreNetwork::new(&ScoreSpec { conservative: true, starts_as_denoiser: true, ..spec }).unwrap();
        let parameters = Parameters::initialise(network.layout(), 6, Stream::Parameters, Device::Cpu);
        parameters.copy_shared_from(&of_energy);

        let mut generator = Generator::new(2, Stream::Data, 0, 0);
        let [x, v, w] = [(), (), ()].map(|()| generator.normal(&[5, 1, 8, 8]));
        let sigma = generator.uniform(&[5]) + 0.1;
        let leaf = x.detach().set_requires_grad(true);
        // The score of the tempered target: -(sigma0/sigma)² ∇E.
        let scale = per_row(&(sigma.reciprocal() * sigma0).square(), &x);
        let expected = -(energy.gradient(of_energy.frozen(), &leaf, false) * scale);
        let base = Base::Start(1.0);
        let found = network.score(parameters.frozen(), &x, &sigma, base);
        assert!(!found.requires_grad(), "of constants");
        assert_near(&found, &expected, 1e-5, "score");

        // As a Hessian's is; that of a denoiser is not.
        let by = Generator::new(3, Stream::Data, 0, 0).normal(&[parameters.count()]) * 0.1;
        shift(&parameters, &by);
        let product =
            |along: &Tensor| network.pass(parameters.frozen(), &x, &sigma, base, true).product(along);
        let dot = |a: &Tensor, b: &Tensor| (a * b).flatten(1, -1).sum_dim_intlist(1i64, false, None);
        assert_near(&dot(&product(&v), &w), &dot(&product(&w), &v), 1e-4, "symmetry");
        let (score, tracked) =
            (|| network.score(parameters.tracked(), &x, &sigma, base), parameters.tracked());
        let (expected, _) = tracked.gradient(&(score() * &v).sum(None), &[]);
        let (gradient, _) = network.pass(tracked, &x, &sigma, base, false).gradient(&v, false);
        assert_near(&gradient, &expected, 1e-5, "gradient");
        assert!(expected.norm().double_value(&[]) > 1.0, "a gradient of nothing would show nothing");
    }

    #[test]
    fn score_gradient_and_product_are_those_of_autograd_for_every_head_and_base() {
        let mut generator = Generator::new(2, Stream::Data, 0, 0);
        let x = generator.normal(&[40, 3]) * 6.0;
        let sigma = (generator.uniform(&[40]) + 0.05) * 2.0;
        let (along, target) = (generator.normal(&[40, 3]), generator.normal(&[40, 3]));
        // With frequencies a pass is autograd's own.
        for (tail_scaling, frequencies) in [(false, 0), (true, 0), (true, 2)] {
            let network = network(tail_scaling, frequencies);
            assert_eq!(network.host_mlp().is_some(), frequencies == 0);
            let parameters = weights_of(&network);
            let weights = parameters.tracked();
            for base in [Base::Start(1.0), Base::Start(0.3), Base::Start(0.0), Base::Target(&target)] {
                let what = |part: &str| format!("{part}, tail {tail_scaling}, {base:?}");
                let leaf = x.detach().set_requires_grad(true);
                let score = network.score(weights, &leaf, &sigma, base);
                let (gradient, inputs) = weights.gradient(&(&score * &along).sum(None), &[&leaf]);
                let pass = network.pass(weights, &x, &sigma, base, true);
                near(&pass.score, &score.detach(), &what("score"));
                let (found, input) = pass.gradient(&along, true);
                near(&found, &gradient, &what("gradient"));
                near(&input.unwrap(), &inputs[0], &what("gradient at x"));
                let product = network.pass(parameters.frozen(), &x, &sigma, base, true).product(&along);
                near(&product, &inputs[0], &what("product"));
            }
        }
    }

    #[test]
    fn gradient_of_the_denoising_loss_at_the_scores_is_that_of_autograd() {
        let mut generator = Generator::new(4, Stream::Data, 0, 0);
        let [x, eps, score] = [(); 3].map(|()| generator.normal(&[40, 3]));
        let (sigma, row_weights) = (generator.uniform(&[40]) + 0.05, generator.uniform(&[40]));
        for tail_scaling in [false, true] {
            let network = network(tail_scaling, 0);
            let leaf = score.detach().set_requires_grad(true);
            let weight = per_row(&row_weights, &x);
            let coordinates = if tail_scaling { ((&x + 0.7) / 2.5).square() + 1.0 } else { x.ones_like() }; // 1 + u²
            let weight = weight * coordinates;
            let expected = ((&leaf * per_row(&sigma, &x) + &eps).square() * weight).sum(None);
            let slope = Tensor::run_backward(&[&expected], &[&leaf], false, false).remove(0);
            // Doubles take the operations on tensors, f32 the loop over memory.
            for kind in [Kind::Float, Kind::Double] {
                let [score, x, eps, sigma, row_weights] =
                    [&score, &x, &eps, &sigma, &row_weights].map(|t| t.to_kind(kind));
                let (loss, found) = network.denoising_loss(&score, (&x, &eps, &sigma), &row_weights);
                near(&loss, &expected.detach(), "loss");
                near(&found, &slope, "slope");
            }
        }
    }
}
