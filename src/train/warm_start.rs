//! The warm start: the sampler learns where the probability flow of the target carries its latents.

use super::TrainError;
use super::build::Networks;
use super::reduce::Part;
use super::schedule::{learning_rate_factor, rise};
use super::state::State;
use super::updates::Trainer;
use crate::config::WarmStartSection;
use crate::method::ProbabilityFlow;
use crate::rng::Stream;

/// Updates over which the step size rises.
const RISE: u64 = 50;

/// What the step size falls to over the second half, as a fraction.
const LAST: f64 = 0.02;

/// Adam's decay rates: a regression is not the moving target that `train.sampler_betas` are for.
const BETAS: [f64; 2] = [0.9, 0.99];

/// The probability flow of the target from the sampler's latents, over `steps` steps from the first level to the last.
pub(super) fn flow_from(
    networks: &Networks,
    steps: u64,
    [sigma_first, sigma_last]: [f64; 2],
) -> ProbabilityFlow {
    let sigma0 = networks.target.tempered_from().expect("the networks were built for a tempered target");
    let start_mean = networks.sampler.spec().initial_offset;
    ProbabilityFlow { steps, sigma_first, sigma_last, sigma0, start_mean }
}

impl Trainer<'_> {
    /// One Adam update of the sampler on fresh chains; returns the mean squared distance of a sample to the end of its
    /// chain. After the last update the optimiser and the averaged weights start anew.
    pub(super) fn warm_start_update(
        &self,
        state: &mut State,
        section: &WarmStartSection,
    ) -> Result<f64, TrainError> {
        let flow = flow_from(self.networks, section.steps, section.sigma);
        let (network, target) = (&self.networks.sampler, self.networks.target.target());
        let (seed, batch) = (self.plan.file.run.seed, self.plan.file.train.batch);
        let update = state.warm_start_updates;
        let reduced = self.reduce(|piece| {
            let [z] = piece.draw((seed, Stream::WarmStart, update), self.world.device, |generator, rows| {
                [generator.normal(&network.latent_shape(rows.end - rows.start))]
            });
            let goal = flow.run(target, &network.latent_in_sample_space(&z));
            self.count(state, goal.size()[0] * flow.evaluations_per_sample() as i64);
            let sample = network.forward(state.sampler.tracked(), &z);
            let loss = (sample - goal).square().sum(None) / batch as f64;
            let (gradient, _) = state.sampler.tracked().gradient(&loss, &[]);
            Ok(Part { gradients: vec![gradient], statistics: vec![loss.detach()] })
        })?;
        let gradient = &reduced.gradients[0];
        // Before the optimiser moves, on all ranks alike: the sum has the non-finite value of any rank.
        if !(reduced.statistics[0].is_finite() && gradient.norm().double_value(&[]).is_finite()) {
            return Err(TrainError::WarmStart { update: update + 1 });
        }
        let fraction = update as f64 / section.updates as f64;
        let step = section.lr * rise(update, RISE) * learning_rate_factor(fraction, 0.5, LAST);
        state.sampler_adam.update_with(BETAS, state.sampler.flat(), gradient, step);
        state.warm_start_updates += 1;
        if state.warm_start_updates == section.updates {
            state.sampler_adam.clear();
            state.average.restart(&state.sampler);
        }
        Ok(reduced.statistics[0])
    }
}
