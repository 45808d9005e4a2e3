//! The updates of a training iteration: what each network learns from a batch, piece by piece.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tch::{Device, Tensor, no_grad};

use super::TrainError;
use super::build::Networks;
use super::recorded::{Computed, Recordings, UpdateKind, Work};
use super::reduce::{Part, Reduced, reduce};
use super::regression::Pairs;
use super::run::Stop;
use super::schedule::learning_rate_factor;
use super::state::State;
use crate::comm::World;
use crate::config::{Plan, Schedule, ScoreBase};
use crate::method::{FieldValue, Perturbed, ScoreAt, sampler_field, score_loss, score_loss_and_products};
use crate::model::{Base, SamplerPass};
use crate::rng::{Generator, Shards, Stream};
use crate::target::{StartingGaussian, TargetOnPath};

/// What a score update or a sampler update did, equal on all ranks.
pub(super) struct Update {
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
}

/// What a round of updates did, equal on all ranks.
pub(super) struct Round {
    /// The last update of the score network.
    pub(super) score: Update,
    /// The update of the sampler.
    pub(super) sampler: Update,
    /// Whether a rank was asked to stop.
    pub(super) is_stop_asked: bool,
}

/// Updates that draw rows of data, as the shard of their stream.
const OF_SAMPLER: u64 = 0;
const OF_SCORE: u64 = 1;

/// Everything an update needs that does not change.
pub(super) struct Trainer<'a> {
    pub(super) plan: &'a Plan,
    pub(super) world: &'a World,
    pub(super) networks: &'a Networks,
    /// What this rank computes at once, one after the other.
    pieces: Vec<Shards>,
    /// Time spent on pieces and on adding them up so far: what more ranks share, but for the wait for each other.
    computing: Cell<Duration>,
    /// Where work is recorded as CUDA graphs.
    recordings: Option<Recordings>,
    /// Of each piece, where the sampler is held by a regression.
    pairs: Vec<Pairs>,
}

/// The random numbers of one update, for the rows of a piece.
pub(super) struct Draw {
    z: Tensor,
    eps: Tensor,
    sigma: Tensor,
    /// For a sampler update where the target's score with noise is estimated.
    probes: Option<Tensor>,
}

impl Draw {
    /// Takes over the numbers of `other`, in place.
    pub(super) fn copy_from(&self, other: &Draw) {
        let tensors = |draw: &Draw| {
            let fixed = [&draw.z, &draw.eps, &draw.sigma].map(Tensor::shallow_clone);
            fixed.into_iter().chain(draw.probes.as_ref().map(Tensor::shallow_clone)).collect::<Vec<_>>()
        };
        for (mut to, from) in tensors(self).into_iter().zip(tensors(other)) {
            to.copy_(&from);
        }
    }
}

impl<'a> Trainer<'a> {
    pub(super) fn new(plan: &'a Plan, world: &'a World, networks: &'a Networks) -> Self {
        Self::with_pieces(plan, world, networks, pieces_of(plan, world.rank, world.size))
    }

    /// For a world of one rank that does the work of `ranks` ranks, each with pieces of its own, without CUDA graphs.
    pub(super) fn rehearsing(plan: &'a Plan, world: &'a World, networks: &'a Networks, ranks: usize) -> Self {
        let pieces = (0..ranks).flat_map(|rank| pieces_of(plan, rank, ranks)).collect();
        // A few iterations would measure the recording of graphs and none of their replays.
        let mut trainer = Trainer { recordings: None, ..Self::with_pieces(plan, world, networks, pieces) };
        if let Some(section) = &plan.file.regression {
            let pairs = |piece: &Shards| {
                Pairs::rehearsed(networks, section, plan.file.compute.shards, piece.count, world.device)
            };
            trainer.pairs = trainer.pieces.iter().map(pairs).collect();
        }
        trainer
    }

    fn with_pieces(plan: &'a Plan, world: &'a World, networks: &'a Networks, pieces: Vec<Shards>) -> Self {
        let recordings = match world.device {
            Device::Cuda(ordinal) if plan.file.compute.cuda_graphs => Some(Recordings::new(ordinal)),
            _ => None,
        };
        Trainer { plan, world, networks, pieces, computing: Cell::default(), recordings, pairs: Vec::new() }
    }

    /// Time spent on pieces and on adding them up so far.
    pub(super) fn computing(&self) -> Duration {
        self.computing.get()
    }

    /// Makes the pairs that the sampler is held by; `after_shard` is told how many of this rank's shards are done, and of how
    /// many, and whether to go on.
    ///
    /// A resumed run makes them again, and counts their evaluations once.
    pub(super) fn make_pairs(
        &mut self,
        state: &mut State,
        after_shard: &mut dyn FnMut(u64, u64) -> Result<bool, TrainError>,
    ) -> Result<bool, TrainError> {
        let Some(section) = &self.plan.file.regression else { return Ok(true) };
        let is_first = state.iteration == 0 && state.score_updates == 0;
        let of_shards = (self.plan.file.run.seed, self.plan.file.compute.shards);
        let total = self.pieces.iter().map(|piece| piece.count as u64).sum();
        let (mut done, mut spent) = (0, 0);
        for piece in &self.pieces {
            let mut parts = Vec::with_capacity(piece.count);
            for shard in piece.first..piece.first + piece.count {
                let key = (of_shards.0, shard, of_shards.1);
                let (pairs, evaluations) = Pairs::of_shard(self.networks, section, key, self.world.device);
                parts.push(pairs);
                (done, spent) = (done + 1, spent + evaluations);
                if !after_shard(done, total)? {
                    return Ok(false);
                }
            }
            self.pairs.push(Pairs::joined(&parts));
        }
        if is_first {
            self.count(state, spent as i64);
        }
        Ok(true)
    }

    /// Adds the regression's gradient to that of the sampler, the last of `part`, where there is one.
    fn hold(&self, part: &mut Part, state: &State, piece: &Shards) {
        let Some(section) = &self.plan.file.regression else { return };
        let pairs = &self.pairs[self.place_of(piece)];
        let key = (self.plan.file.run.seed, state.iteration, self.plan.file.compute.shards);
        let gradient = pairs.gradient(self.networks, &state.sampler, section, piece, key);
        let of_sampler = part.gradients.last_mut().expect("a sampler update has a gradient");
        *of_sampler = &*of_sampler + gradient; // not in place: it may be the memory of a graph
    }

    /// Which of this rank's pieces.
    fn place_of(&self, piece: &Shards) -> usize {
        let place = self.pieces.iter().position(|other| std::ptr::eq(other, piece));
        place.expect("one of this rank's")
    }

    /// One iteration: K − 1 score updates, then one of each network, in turn or from the same samples.
    pub(super) fn round(&self, state: &mut State, fraction: f64, stop: &Stop) -> Result<Round, TrainError> {
        let settings = &self.plan.file.train;
        for _ in 1..settings.score_updates() {
            self.score_update(state, fraction)?;
        }
        let round = match settings.schedule {
            Schedule::Alternating => {
                let score = self.score_update(state, fraction)?;
                let (sampler, is_stop_asked) = self.sampler_update(state, fraction, stop)?;
                Round { score, sampler, is_stop_asked }
            }
            Schedule::Simultaneous => self.simultaneous_update(state, fraction, stop)?,
        };
        state.iteration += 1;
        let batch = settings.batch as f64;
        state.average.update(&state.sampler, batch, state.iteration as f64 * batch);
        Ok(round)
    }

    /// Computes the pieces of this rank, and sums what they give over all ranks.
    pub(super) fn reduce(
        &self,
        compute: impl FnMut(&Shards) -> Result<Part, TrainError>,
    ) -> Result<Reduced, TrainError> {
        let started = Instant::now();
        let parts = self.pieces.iter().map(compute).collect::<Result<_, _>>()?;
        let reduced = reduce(self.world, self.plan.file.compute.reduction, parts)?;
        self.computing.set(self.computing.get() + started.elapsed());
        Ok(reduced)
    }

    /// Latents, noise, and noise levels log-uniform in the band and stratified over the global batch.
    fn draw(&self, piece: &Shards, stream: Stream, update: u64, fraction: f64) -> Draw {
        let band = self.plan.file.method.sigma.band(fraction);
        let batch = self.plan.file.train.batch;
        let shape = &self.networks.sampler.spec().shape;
        let key = (self.plan.file.run.seed, stream, update);
        let [z, eps, sigma] = piece.draw(key, self.world.device, |generator, rows| {
            let count = rows.end - rows.start;
            let z = generator.normal(&self.networks.sampler.latent_shape(count));
            let eps = generator.normal(&[&[count], shape.as_slice()].concat());
            [z, eps, generator.stratified_levels(band, rows, batch)]
        });
        Draw { z, eps, sigma, probes: None }
    }

    /// As [`draw`](Self::draw), for a sampler update: with probes where the target's score with noise is estimated.
    fn draw_for_field(&self, piece: &Shards, update: u64, fraction: f64) -> Draw {
        let draw = self.draw(piece, Stream::SamplerUpdate, update, fraction);
        let count = self.plan.file.method.smoothing as i64;
        if count == 0 {
            return draw;
        }
        let dimension = self.networks.sampler.spec().shape[0];
        let key = (self.plan.file.run.seed, Stream::Probes, update);
        let [probes] = piece.draw(key, self.world.device, |generator, rows| {
            [generator.normal(&[rows.end - rows.start, count, dimension])]
        });
        Draw { probes: Some(probes), ..draw }
    }

    fn perturb(&self, x0: &Tensor, draw: &Draw) -> Perturbed {
        let at = Perturbed::new(x0, &draw.eps, &draw.sigma, self.plan.file.method.variance);
        match &draw.probes {
            Some(probes) => at.with_probes(probes),
            None => at,
        }
    }

    /// What `compute` makes of `draw`, from a CUDA graph where that was asked for and can be: not while the target moves along
    /// its path, if the work depends on it, for then each iteration is work of its own.
    fn compute(
        &self,
        (update, piece): (UpdateKind, &Shards),
        fraction: f64,
        draw: Draw,
        compute: impl Fn(&Draw) -> Computed,
    ) -> Result<Computed, TrainError> {
        let Some(recordings) = &self.recordings else { return Ok(compute(&draw)) };
        let method = &self.plan.file.method;
        let depends_on_target =
            update != UpdateKind::Score || self.networks.score.spec().base != ScoreBase::Gaussian;
        let is_fixed = method.is_target_at_rest(fraction) && self.networks.target.target().is_recordable();
        if depends_on_target && !is_fixed {
            return Ok(compute(&draw));
        }
        let piece = self.place_of(piece);
        let of_target =
            depends_on_target.then(|| (method.kind_at(fraction), method.target_weight(fraction).to_bits()));
        recordings.compute(Work { update, piece, of_target }, draw, compute)
    }

    /// Perturbed rows of all ranks.
    fn global_rows(&self, at: &Perturbed) -> i64 {
        self.plan.file.train.batch as i64 * at.copies()
    }

    /// Step sizes of the score network and of the sampler.
    fn step_sizes(&self, fraction: f64) -> (f64, f64) {
        let settings = &self.plan.file.train;
        let factor = |last| learning_rate_factor(fraction, settings.cosine_from, last);
        let score_last = settings.score_final_lr_fraction.unwrap_or(settings.final_lr_fraction);
        (settings.score_lr * factor(score_last), settings.sampler_lr * factor(settings.final_lr_fraction))
    }

    /// The target as it stands after `fraction` of training.
    fn target(&self, fraction: f64) -> TargetOnPath<'a> {
        let spec = self.networks.sampler.spec();
        let start = StartingGaussian { offset: spec.initial_offset, scale: spec.initial_scale };
        self.networks.target.on_path(start, self.plan.file.method.target_weight(fraction))
    }

    /// Draws the rows of data that the target is estimated from, the same on all ranks.
    fn redraw(&self, update: u64, purpose: u64) {
        let mut generator = Generator::new(self.plan.file.run.seed, Stream::MiniBatch, update, purpose);
        self.networks.target.target().redraw(&mut generator);
    }

    /// Every rank has as many rows, so the evaluations of all ranks are known without asking.
    pub(super) fn count(&self, state: &mut State, evaluations: i64) {
        state.target_evaluations += evaluations as u64 * self.world.size as u64;
    }

    /// Algorithm 1, step 1: one Adam update of the score network on fresh samples.
    pub(super) fn score_update(&self, state: &mut State, fraction: f64) -> Result<Update, TrainError> {
        let section = &self.plan.file.method;
        let target = self.target(fraction);
        let is_base = self.networks.score.spec().base == ScoreBase::Target;
        if is_base {
            self.redraw(state.score_updates, OF_SCORE);
        }
        let mut evaluations = 0;
        let reduced = self.reduce(|piece| {
            let draw = self.draw(piece, Stream::ScoreUpdate, state.score_updates, fraction);
            let (part, of_piece) = self.compute((UpdateKind::Score, piece), fraction, draw, |draw| {
                let x0 = no_grad(|| self.networks.sampler.forward(state.sampler.frozen(), &draw.z));
                let at = self.perturb(&x0, draw);
                let network = (&self.networks.score, state.score.tracked());
                let of_target = is_base.then(|| target.score(&at.x, &at.sigma));
                let base = match &of_target {
                    Some(score) => Base::Target(score),
                    None => network.0.base(&at.x, target.weight()), // which does not use the scores it is given
                };
                let loss = score_loss(section, network, &at, base, self.global_rows(&at));
                let evaluations = if is_base && target.is_evaluated() { at.rows() } else { 0 };
                (Part { gradients: vec![loss.gradient], statistics: vec![loss.value] }, evaluations)
            })?;
            evaluations += of_piece;
            Ok(part)
        })?;
        self.count(state, evaluations);
        let gradient_norm = self.clip_score(state, &reduced.gradients[0]);
        finite(state.iteration, "score network's loss or gradient", &[reduced.statistics[0], gradient_norm])?;
        let (step, _) = self.step_sizes(fraction);
        state.score_adam.update(state.score.flat(), &reduced.gradients[0], step);
        state.score_updates += 1;
        Ok(Update { loss: reduced.statistics[0], gradient_norm })
    }

    /// Algorithm 1, step 2: one Adam update of the sampler down the field, the score network fixed.
    fn sampler_update(
        &self,
        state: &mut State,
        fraction: f64,
        stop: &Stop,
    ) -> Result<(Update, bool), TrainError> {
        self.redraw(state.iteration, OF_SAMPLER);
        let mut evaluations = 0;
        let reduced = self.reduce(|piece| {
            let draw = self.draw_for_field(piece, state.iteration, fraction);
            let (mut part, of_piece) =
                self.compute((UpdateKind::Sampler, piece), fraction, draw, |draw| {
                    let pass = self.networks.sampler.pass(state.sampler.tracked(), &draw.z);
                    let at = self.perturb(&pass.x0, draw);
                    let network = (&self.networks.score, state.score.frozen());
                    let value = self.field(state, fraction, &pass.x0, &at, &mut |base, wants| {
                        ScoreAt::evaluate(network, &at, base, wants)
                    });
                    let evaluations = value.evaluations;
                    let (gradient, loss) = self.pull_back(pass, value);
                    (Part { gradients: vec![gradient], statistics: vec![loss] }, evaluations)
                })?;
            evaluations += of_piece;
            self.hold(&mut part, state, piece);
            part.statistics.push(stop_flag(stop, self.world.device));
            Ok(part)
        })?;
        self.count(state, evaluations);
        let gradient_norm = self.clip_sampler(state, &reduced.gradients[0]);
        finite(state.iteration, "sampler's loss or gradient", &[reduced.statistics[0], gradient_norm])?;
        let (_, step) = self.step_sizes(fraction);
        state.sampler_adam.update(state.sampler.flat(), &reduced.gradients[0], step);
        Ok((Update { loss: reduced.statistics[0], gradient_norm }, reduced.statistics[1] > 0.0))
    }

    /// Both updates from the same samples: one forward and backward pass of each network, one all-reduce.
    fn simultaneous_update(
        &self,
        state: &mut State,
        fraction: f64,
        stop: &Stop,
    ) -> Result<Round, TrainError> {
        let section = &self.plan.file.method;
        self.redraw(state.iteration, OF_SAMPLER);
        let mut evaluations = 0;
        let reduced = self.reduce(|piece| {
            let draw = self.draw_for_field(piece, state.iteration, fraction);
            let (mut part, of_piece) = self.compute((UpdateKind::Both, piece), fraction, draw, |draw| {
                let pass = self.networks.sampler.pass(state.sampler.tracked(), &draw.z);
                let at = self.perturb(&pass.x0, draw);
                let rows = self.global_rows(&at);
                let network = (&self.networks.score, state.score.tracked());
                let mut score_loss = None;
                let value = self.field(state, fraction, &pass.x0, &at, &mut |base, wants_product| {
                    let (loss, score) =
                        score_loss_and_products(section, network, &at, base, rows, wants_product);
                    score_loss = Some(loss);
                    score
                });
                let score_loss = score_loss.expect("every field asks for the score network");
                let evaluations = value.evaluations;
                let (gradient, loss) = self.pull_back(pass, value);
                let gradients = vec![score_loss.gradient, gradient];
                (Part { gradients, statistics: vec![score_loss.value, loss] }, evaluations)
            })?;
            evaluations += of_piece;
            self.hold(&mut part, state, piece);
            part.statistics.push(stop_flag(stop, self.world.device));
            Ok(part)
        })?;
        self.count(state, evaluations);
        let score_norm = self.clip_score(state, &reduced.gradients[0]);
        let sampler_norm = self.clip_sampler(state, &reduced.gradients[1]);
        finite(state.iteration, "score network's loss or gradient", &[reduced.statistics[0], score_norm])?;
        finite(state.iteration, "sampler's loss or gradient", &[reduced.statistics[1], sampler_norm])?;
        let (score_step, sampler_step) = self.step_sizes(fraction);
        state.score_adam.update(state.score.flat(), &reduced.gradients[0], score_step);
        state.sampler_adam.update(state.sampler.flat(), &reduced.gradients[1], sampler_step);
        state.score_updates += 1;
        let score = Update { loss: reduced.statistics[0], gradient_norm: score_norm };
        let sampler = Update { loss: reduced.statistics[1], gradient_norm: sampler_norm };
        Ok(Round { score, sampler, is_stop_asked: reduced.statistics[2] > 0.0 })
    }

    /// The field of this point of training at `x0` `[B, …]`, with the score network as `score_at` evaluates it.
    fn field(
        &self,
        state: &State,
        fraction: f64,
        x0: &Tensor,
        at: &Perturbed,
        score_at: &mut dyn FnMut(Base, bool) -> ScoreAt,
    ) -> FieldValue {
        let section = &self.plan.file.method;
        let network = (&self.networks.score, state.score.frozen());
        let method = (section, section.kind_at(fraction));
        sampler_field(method, &self.target(fraction), network, x0, at, score_at)
    }

    /// Pulls a field at the samples of a pass back through the sampler: the flat gradient `[P]` and the loss of these
    /// rows, both divided by the global batch.
    fn pull_back(&self, pass: SamplerPass, value: FieldValue) -> (Tensor, Tensor) {
        let batch = self.plan.file.train.batch as f64;
        let gradient = pass.gradient(&(value.gradient / batch));
        (gradient, value.loss.sum(None) / batch)
    }

    fn clip_score(&self, state: &mut State, gradient: &Tensor) -> f64 {
        let settings = &self.plan.file.train;
        state.score_norm.clip(gradient, settings.score_clip_norm, settings.clip_factor)
    }

    fn clip_sampler(&self, state: &mut State, gradient: &Tensor) -> f64 {
        let settings = &self.plan.file.train;
        state.sampler_norm.clip(gradient, settings.sampler_clip_norm, settings.clip_factor)
    }
}

/// What rank `rank` of `size` computes at once.
fn pieces_of(plan: &Plan, rank: usize, size: usize) -> Vec<Shards> {
    let compute = &plan.file.compute;
    Shards::of_rank(plan.file.train.batch, compute.shards, rank, size).pieces(compute.reduction)
}

/// 1 if this rank was asked to stop, else 0: so the wish travels with the gradient.
pub(super) fn stop_flag(stop: &Stop, device: Device) -> Tensor {
    Tensor::from(if stop.load(Ordering::Relaxed) { 1f32 } else { 0f32 }).to_device(device)
}

/// A non-finite value on one rank is one on all ranks after the sum, so all stop here together, before the
/// optimiser moves.
fn finite(iteration: u64, what: &'static str, values: &[f64]) -> Result<(), TrainError> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(TrainError::Diverged { iteration: iteration + 1, what })
    }
}
