//! Bayesian logistic regression: the posterior of the weights and of their precision, given a design matrix.
//!
//! Unknowns are one vector (w, a) of D = d + 1 numbers, a = log α, and with labels y in {0, 1}
//!
//! log q(w, a) = Σᵢ log Bernoulli(yᵢ | sigmoid(xᵢ·w)) + log prior(w, a)
//!
//! up to a constant. Three forms of the sum are to be had:
//! - **plain**: over all rows;
//! - **anchored** at w0, usually the mode ([`Logistic::with_anchor`]): relative to its value at w0, in terms of w − w0.
//!   It is the same sum; its numbers are small, which Metropolis ratios in f32 need, and rows can be left out of it
//!   for little: what is left out is replaced by its second-order expansion at w0;
//! - **estimated** from a mini-batch ([`Logistic::with_batch`]).
//!
//! Rows may be spread over ranks. Then every evaluation is collective: all ranks call with equally many vectors. Sums
//! over ranks are of floats, or exact ([`Logistic::with_exact_sums`]).

mod batch;
mod block;
mod expansion;
mod laplace;
mod load;
mod prior;
mod ranks;
mod rows;

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

pub use laplace::Laplace;
pub use load::LogisticProblem;
pub use prior::LogisticPrior;

use self::batch::{Batch, Sum};
use self::block::Block;
use self::expansion::{Asked, Expansion};
use self::ranks::Ranks;
use self::rows::Rows;
use super::{Target, TargetError};
use crate::comm::SharedCollective;
use crate::rng::{Generator, Stream};

/// The posterior of a logistic regression on `[D]`, D = d + 1.
///
/// Vectors may be f32 or f64: prior, anchor and the sums over rows are f64, a row's own numbers are of the kind given to
/// [`new`](Logistic::new), and results have the kind of the vectors.
pub struct Logistic {
    shape: [i64; 1],
    prior: LogisticPrior,
    device: Device,
    ranks: Ranks,
    /// Rows of all ranks.
    row_count: i64,
    /// The rows of this rank in the order of their numbers: one block, or with exact sums several.
    blocks: Vec<Block>,
    /// Light rows of all ranks.
    light_count: i64,
    anchor: Option<Anchor>,
    /// Rows of a mini-batch, if evaluations estimate.
    batch_rows: Option<i64>,
    /// What evaluations sum: the first for log-density and score, the second for products.
    batches: RefCell<[Batch; 2]>,
}

/// The origin of the anchored form, with what stands there for the rows of this rank, or with exact sums of all ranks.
struct Anchor {
    weights: Tensor,
    /// Expansion of the light rows.
    light: Expansion,
    /// Minus the log-likelihood of all rows at the origin.
    offset: Tensor,
}

impl Logistic {
    /// The plain form over all rows, computing in `kind` on `device`.
    ///
    /// `x` `[N, d]` are this rank's rows with a column of ones if there is to be an intercept, and `y` `[N]` their
    /// labels 0 or 1; `first_row` is the number of the first of them among the rows of all ranks, which are
    /// contiguous ranges. Without `ranks` they are all there are.
    ///
    /// # Errors
    /// If the sizes differ, a label is neither 0 nor 1, the prior is no density, or the ranges leave gaps. What is
    /// wrong on one rank only must be agreed on by the caller before: the others wait for it here.
    pub fn new(
        x: &Tensor,
        y: &Tensor,
        first_row: i64,
        prior: LogisticPrior,
        kind: Kind,
        device: Device,
        ranks: Option<SharedCollective>,
    ) -> Result<Self, TargetError> {
        let (&[rows, d], &[labels]) = (&x.size()[..], &y.size()[..]) else {
            return invalid(format!("rows [N, d] and labels [N] were wanted, found {x:?} and {y:?}"));
        };
        if rows != labels || d == 0 {
            return invalid(format!("{rows} rows of {d} features have {labels} labels; one label a row"));
        }
        let is_label = y.eq(0).logical_or(&y.eq(1));
        if rows > 0 && is_label.all().int64_value(&[]) == 0 {
            return invalid("labels should be 0 or 1, and others were found".to_string());
        }
        if !(prior.shape > 0.0 && prior.rate > 0.0 && prior.shape.is_finite() && prior.rate.is_finite()) {
            return invalid(format!("shape and rate of the prior should be above 0, found {prior:?}"));
        }
        let ranks = Ranks::new(ranks);
        let row_count = check_ranges(ranks.gather_numbers([first_row, rows], device))?;
        let rows = Rows::new(&x.to_kind(kind).to_device(device), y);
        let logistic = Logistic {
            shape: [d + 1],
            prior,
            device,
            ranks,
            row_count,
            blocks: vec![Block::new(rows, first_row)],
            light_count: row_count,
            anchor: None,
            batch_rows: None,
            batches: RefCell::new([(), ()].map(|()| Batch { of_blocks: Vec::new(), rest: None })),
        };
        logistic.start_batches();
        Ok(logistic)
    }

    /// Sums with the same bits on any number of ranks: the N rows of all ranks are cut into `blocks` blocks
    /// [N·b/blocks, N·(b + 1)/blocks), each is summed by itself, and blocks are added as integers
    /// ([`sum_exactly`](crate::comm::sum_exactly)). A rank holds whole blocks. Redraws are then collective too.
    ///
    /// # Errors
    /// Without collectives, which one rank needs as well; if a block is spread over ranks; after an anchor was given.
    pub fn with_exact_sums(mut self, blocks: usize) -> Result<Self, TargetError> {
        if self.anchor.is_some() || self.ranks.is_exact() {
            return invalid("exact sums come before the anchor, and once".to_string());
        }
        let own = &self.blocks[0];
        let (first, end) = (own.first_row, own.first_row + own.light.count());
        let bound = |block: usize| self.row_count * block as i64 / blocks as i64;
        let is_bound = |row: i64| (0..=blocks).any(|block| bound(block) == row);
        if blocks == 0 || !is_bound(first) || !is_bound(end) {
            return invalid(format!(
                "rows {first}..{end} of {} are not whole ones of {blocks} blocks; deal out whole blocks",
                self.row_count
            ));
        }
        let ranges = (0..blocks).map(|block| (bound(block), bound(block + 1)));
        let here = ranges.filter(|(start, stop)| start < stop && first <= *start && *stop <= end);
        let mut cut: Vec<Block> = here.map(|(start, stop)| own.part(start, stop)).collect();
        if cut.is_empty() {
            cut.push(own.part(first, first)); // fewer rows than blocks; every rank adds something
        }
        let Some(ranks) = self.ranks.exactly(blocks) else {
            return invalid(
                "exact sums need the collectives of a world, on one rank too; give its shared_collective()"
                    .to_string(),
            );
        };
        self.ranks = ranks;
        self.blocks = cut;
        self.start_batches();
        Ok(self)
    }

    /// The form relative to the weights `w0` `[d]` (f64), whose log-likelihood becomes 0.
    ///
    /// `covariance` `[d, d]` (f64) is roughly the posterior covariance C of w. The `heavy_rows` rows of all ranks
    /// with the largest variance x·C x of their logit are summed in every evaluation, mini-batch or not: an
    /// expansion serves them worst. Ties may make them a few more.
    ///
    /// # Errors
    /// If the shapes do not fit, the covariance is not positive definite, or there are not that many rows.
    pub fn with_anchor(
        mut self,
        w0: &Tensor,
        covariance: &Tensor,
        heavy_rows: usize,
    ) -> Result<Self, TargetError> {
        let d = self.shape[0] - 1;
        if w0.size() != [d] || covariance.size() != [d, d] {
            return invalid(format!(
                "an anchor [{d}] and a covariance [{d}, {d}] were wanted, found {w0:?} and {covariance:?}"
            ));
        }
        if self.anchor.is_some() {
            return invalid("this posterior has an anchor already; give one".to_string());
        }
        if heavy_rows as i64 > self.row_count {
            return invalid(format!(
                "{heavy_rows} heavy rows of {} were asked for; ask for at most all",
                self.row_count
            ));
        }
        let on_device = |t: &Tensor| t.to_kind(Kind::Double).to_device(self.device);
        let (weights, covariance) = (on_device(w0), on_device(covariance));
        let Ok(factor) = covariance.f_linalg_cholesky(false) else {
            return invalid(
                "the covariance of an anchor should be positive definite, and is not".to_string(),
            );
        };
        let variances: Vec<Tensor> = self.blocks.iter().map(|block| block.light.variances(&factor)).collect();
        let lengths: Vec<i64> = self.blocks.iter().map(|block| block.light.count()).collect();
        let is_heavy = batch::largest(&Tensor::cat(&variances, 0), heavy_rows as i64, &self.ranks);
        let is_heavy = is_heavy.split_with_sizes(lengths, 0);
        for (block, is_heavy) in self.blocks.iter_mut().zip(&is_heavy) {
            *block = block.split(is_heavy, &weights);
        }
        self.light_count = block::number_light_rows(&mut self.blocks, &self.ranks, self.device);
        let origin = weights.zeros_like();
        let of_block = |block: &Block| [block.heavy.expansion(&origin), block.light.expansion(&origin)];
        let [heavy, light] = self.left_out(self.blocks.iter().map(of_block).collect());
        let offset = -(&heavy.value + &light.value);
        self.anchor = Some(Anchor { weights, light, offset });
        self.start_batches();
        Ok(self)
    }

    /// Estimates from mini-batches of `rows` rows over all ranks, drawn uniformly with replacement; `None` for exact
    /// sums.
    ///
    /// Without an anchor the estimate of the sum is N/B times that of the batch. With one it is the sum over the
    /// heavy rows, plus the expansion of all light rows, plus N_light/B times what the expansion of the batch leaves
    /// out of the batch: unbiased as well, and exact but for terms of third order. With `Some(0)` those are dropped: a surrogate
    /// without randomness. The rows drawn do not depend on the number of ranks.
    ///
    /// # Errors
    /// `Some(0)` without an anchor.
    pub fn with_batch(mut self, rows: Option<usize>) -> Result<Self, TargetError> {
        if rows == Some(0) && self.anchor.is_none() {
            return invalid(
                "a batch of 0 rows leaves nothing of a sum without an anchor; give an anchor, or 1 row or more"
                    .to_string(),
            );
        }
        self.batch_rows = rows.map(|rows| rows as i64);
        self.start_batches();
        Ok(self)
    }

    /// Rows of all ranks.
    pub fn row_count(&self) -> i64 {
        self.row_count
    }

    /// Rows that one evaluation sums on all ranks together: all, or the heavy ones and those of a mini-batch.
    pub fn rows_per_evaluation(&self) -> i64 {
        match self.batch_rows {
            None => self.row_count,
            Some(_) if self.light_count == 0 => self.row_count,
            Some(rows) => self.row_count - self.light_count + rows,
        }
    }

    /// Sums before the first [`redraw`](Target::redraw): of a generator that no iteration of a run uses.
    fn start_batches(&self) {
        self.redraw(&mut Generator::new(0, Stream::MiniBatch, u64::MAX, 0));
    }

    /// Unknowns in f64, and their weights relative to the anchor `[B, d]`.
    fn relative(&self, x: &Tensor) -> (Tensor, Tensor) {
        let x = x.to_kind(Kind::Double);
        let w = x.narrow(1, 0, self.shape[0] - 1);
        let p = match &self.anchor {
            Some(anchor) => w - &anchor.weights,
            None => w,
        };
        (x, p)
    }

    /// What the rows of all ranks answer to this rank's queries, by the mini-batch `of`.
    fn summed(&self, queries: &Tensor, of: usize, asked: Asked) -> Tensor {
        let batch = &self.batches.borrow()[of];
        let blocks: Vec<(&Block, &Sum)> = self.blocks.iter().zip(&batch.of_blocks).collect();
        let sum =
            self.ranks.answer(queries, &blocks, |(block, sum), queries| block.answer(asked, sum, queries));
        match &batch.rest {
            Some(rest) => sum + rest.answer(asked, queries),
            None => sum,
        }
    }

    /// What stands for rows that evaluations leave out, from the expansions of this rank's blocks: of this rank's rows,
    /// or with exact sums of all ranks', so that it is evaluated once and not for each block.
    fn left_out<const N: usize>(&self, mut of_blocks: Vec<[Expansion; N]>) -> [Expansion; N] {
        if self.ranks.is_exact() { self.ranks.sum(of_blocks) } else { of_blocks.pop().expect("one block") }
    }

    /// What evaluations sum over the rows `drawn` of each block, `scale` times each, or over all rows; `left_out`
    /// stands for those that were not drawn.
    fn batch(&self, drawn: Option<Vec<Rows>>, scale: f64, left_out: Option<Expansion>) -> Batch {
        let mut of_blocks: Vec<Sum> = match drawn {
            Some(drawn) => drawn.into_iter().map(|rows| Sum::of(Some(rows), scale)).collect(),
            None => self.blocks.iter().map(|_| Sum::of(None, 1.0)).collect(),
        };
        let Some(anchor) = &self.anchor else { return Batch { of_blocks, rest: None } };
        if !self.ranks.is_exact() {
            let own = &mut of_blocks[0];
            (own.rest, own.offset) = (left_out, Some(anchor.offset.shallow_clone()));
            return Batch { of_blocks, rest: None };
        }
        let left_out = left_out.unwrap_or_else(|| Expansion::zero(self.shape[0] - 1, self.device));
        let rest = Expansion { value: left_out.value + &anchor.offset, ..left_out };
        Batch { of_blocks, rest: Some(rest) }
    }

    /// Score of the prior at `x` plus that of the likelihood `[B, d]`, which has none in a.
    fn posterior(&self, of_prior: Tensor, of_likelihood: &Tensor) -> Tensor {
        of_prior + of_likelihood.constant_pad_nd([0, 1])
    }
}

/// Which mini-batch an evaluation uses.
const FIRST: usize = 0;
const SECOND: usize = 1;

/// Log-density and score are of the first mini-batch. [`score_and_product`](Target::score_and_product) takes its score
/// from the first and its product from the second, which is independent of it: over the draws, the product with a
/// direction that is a function of the score is then, on average, the product of the exact Jacobian with the average
/// direction.
impl Target for Logistic {
    fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// # Panics
    /// If autograd is to follow it and the rows are spread over ranks or their sums exact.
    fn log_density(&self, x: &Tensor) -> Tensor {
        let (unknowns, p) = self.relative(x);
        let likelihood = self.summed(&p, FIRST, Asked::Value);
        (self.prior.log_density(&unknowns) + likelihood.squeeze_dim(1)).to_kind(x.kind())
    }

    fn score(&self, x: &Tensor) -> Tensor {
        let x = &x.detach();
        let (unknowns, p) = self.relative(x);
        let likelihood = self.summed(&p, FIRST, Asked::Score);
        self.posterior(self.prior.score(&unknowns), &likelihood).to_kind(x.kind())
    }

    fn log_density_and_score(&self, x: &Tensor) -> (Tensor, Tensor) {
        let x = &x.detach();
        let (unknowns, p) = self.relative(x);
        let likelihood = self.summed(&p, FIRST, Asked::ValueAndScore);
        let value = self.prior.log_density(&unknowns) + likelihood.select(1, 0);
        let slope = likelihood.narrow(1, 1, self.shape[0] - 1);
        let score = self.posterior(self.prior.score(&unknowns), &slope);
        (value.to_kind(x.kind()), score.to_kind(x.kind()))
    }

    fn score_and_product(
        &self,
        x: &Tensor,
        direction: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> (Tensor, Tensor) {
        let x = &x.detach();
        let score = self.score(x);
        let v = direction(&score).detach().to_kind(Kind::Double);
        let (unknowns, p) = self.relative(x);
        let d = self.shape[0] - 1;
        let queries = Tensor::cat(&[&p, &v.narrow(1, 0, d)], 1);
        let likelihood = self.summed(&queries, SECOND, Asked::Product);
        let product = self.posterior(self.prior.product(&unknowns, &v), &likelihood);
        (score, product.to_kind(x.kind()))
    }

    /// Not with mini-batches, which lie somewhere else each time, nor with sums over ranks or exact ones, which the host takes
    /// part in.
    fn is_recordable(&self) -> bool {
        self.batch_rows.is_none() && self.ranks.is_alone()
    }

    fn redraw(&self, generator: &mut Generator) {
        let Some(rows) = self.batch_rows else {
            *self.batches.borrow_mut() = [(), ()].map(|()| self.batch(None, 1.0, None));
            return;
        };
        let [first, second] = [(), ()]
            .map(|()| batch::draw(generator, rows as usize, self.light_count, &self.blocks, self.device));
        let scale = batch::scale(rows, self.light_count);
        let left_out = match &self.anchor {
            None => [None, None],
            Some(anchor) => {
                let origin = anchor.weights.zeros_like();
                let of_drawn = first.iter().zip(&second);
                let of_drawn = of_drawn.map(|drawn| [drawn.0.expansion(&origin), drawn.1.expansion(&origin)]);
                self.left_out(of_drawn.collect()).map(|of_drawn| Some(anchor.light.plus(-scale, &of_drawn)))
            }
        };
        let [of_first, of_second] = left_out;
        *self.batches.borrow_mut() =
            [self.batch(Some(first), scale, of_first), self.batch(Some(second), scale, of_second)];
    }
}

fn invalid<T>(message: String) -> Result<T, TargetError> {
    Err(TargetError::Invalid(message))
}

/// Number of rows of all ranks, from the first row and the number of rows of each.
fn check_ranges(mut ranges: Vec<[i64; 2]>) -> Result<i64, TargetError> {
    ranges.sort_unstable();
    let mut next = 0;
    for [first, rows] in &ranges {
        if *first != next {
            return invalid(format!(
                "ranges of rows should follow each other from 0, found (first, number) {ranges:?}"
            ));
        }
        next += rows;
    }
    if next == 0 {
        return invalid("a logistic regression needs rows, and there are none".to_string());
    }
    Ok(next)
}
