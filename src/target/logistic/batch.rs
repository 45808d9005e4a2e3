//! Which rows an evaluation sums: the heavy ones, and all light ones or a mini-batch of them.

use tch::{Device, Kind, Tensor};

use super::block::Block;
use super::expansion::{Asked, Expansion};
use super::ranks::Ranks;
use super::rows::Rows;
use crate::rng::Generator;

/// A mini-batch, or all rows: what evaluations sum until the next one is drawn.
pub(super) struct Batch {
    /// Over the light rows of each of this rank's blocks.
    pub(super) of_blocks: Vec<Sum>,
    /// What is added once to the sums over the blocks of all ranks.
    pub(super) rest: Option<Expansion>,
}

/// What is summed over the light rows of a block.
pub(super) struct Sum {
    /// A mini-batch; all light rows if there is none.
    pub(super) drawn: Option<Rows>,
    /// Weight of each row.
    pub(super) scale: f64,
    /// What stands for the rows that were not drawn.
    pub(super) rest: Option<Expansion>,
    /// Makes the log-likelihood 0 at the anchor.
    pub(super) offset: Option<Tensor>,
}

impl Sum {
    /// The rows `drawn`, `scale` times each, or all light ones.
    pub(super) fn of(drawn: Option<Rows>, scale: f64) -> Self {
        Sum { drawn, scale, rest: None, offset: None }
    }

    /// What is answered to queries, where the light rows are `light`; see [`Asked`].
    pub(super) fn answer(&self, asked: Asked, light: &Rows, queries: &Tensor) -> Tensor {
        let mut sum = self.drawn.as_ref().unwrap_or(light).answer(asked, queries) * self.scale;
        if let Some(rest) = &self.rest {
            sum += rest.answer(asked, queries);
        }
        match (&self.offset, asked) {
            (Some(offset), Asked::Value) => sum + offset,
            (Some(offset), Asked::ValueAndScore) => {
                let _ = sum.select(1, 0).g_add_(offset);
                sum
            }
            _ => sum,
        }
    }
}

/// Weight of each of `rows` drawn rows of `count`.
pub(super) fn scale(rows: i64, count: i64) -> f64 {
    if rows == 0 { 0.0 } else { count as f64 / rows as f64 }
}

/// Draws `rows` of the `count` light rows of all ranks with replacement, the same on every rank, and returns those that
/// are in each block.
pub(super) fn draw(
    generator: &mut Generator,
    rows: usize,
    count: i64,
    blocks: &[Block],
    device: Device,
) -> Vec<Rows> {
    let numbers = if count > 0 { generator.indices(rows, count) } else { Vec::new() };
    let of_block = |block: &Block| {
        let own = block.first_light..block.first_light + block.light.count();
        let here: Vec<i64> =
            numbers.iter().filter(|number| own.contains(number)).map(|number| number - own.start).collect();
        block.light.select(&Tensor::from_slice(&here).to_device(device))
    };
    blocks.iter().map(of_block).collect()
}

/// A mask `[N]` of this rank's rows that are among the `count` largest `values` `[N]` of all ranks.
///
/// Values are compared in f32: copies of a row, on different ranks or in different chunks, are then nearly always equal
/// whatever the rounding of their sums in f64, and are chosen or not together.
pub(super) fn largest(values: &Tensor, count: i64, ranks: &Ranks) -> Tensor {
    if count == 0 {
        return values.zeros_like().to_kind(Kind::Bool);
    }
    let values = values.to_kind(Kind::Float);
    let here = count.min(values.size()[0]);
    let (own, _) = values.topk(here, 0, true, false);
    let own = own.constant_pad_nd([0, count - here]);
    // Variances are not negative, so the zeros of the padding come last.
    let all = Tensor::cat(&ranks.gather(&own), 0);
    let (all, _) = all.topk(count, 0, true, true);
    values.ge_tensor(&all.get(count - 1))
}
