//! A contiguous range of rows that are summed by themselves: all rows of a rank, or with exact sums one of the fixed
//! ranges that a rank has several of.

use tch::{Device, Tensor};

use super::batch::Sum;
use super::expansion::{Asked, Expansion};
use super::ranks::Ranks;
use super::rows::Rows;

pub(super) struct Block {
    /// Number of its first row among the rows of all ranks.
    pub(super) first_row: i64,
    /// Rows that every evaluation sums, without an anchor none.
    pub(super) heavy: Rows,
    /// The others.
    pub(super) light: Rows,
    /// Number of its first light row among the light rows of all ranks, in the order of row numbers.
    pub(super) first_light: i64,
}

impl Block {
    /// A block of light rows alone, from row number `first_row` on.
    pub(super) fn new(rows: Rows, first_row: i64) -> Self {
        let nothing = rows.range(0, 0);
        Block { first_row, heavy: nothing, light: rows, first_light: first_row }
    }

    /// This one, `[start, end)` of all ranks' rows, of which all are light.
    pub(super) fn part(&self, start: i64, end: i64) -> Self {
        Block::new(self.light.range(start - self.first_row, end - start), start)
    }

    /// The same rows with parameters that count from `origin` `[d]`, heavy where `is_heavy` `[N]`. All were light.
    pub(super) fn split(&self, is_heavy: &Tensor, origin: &Tensor) -> Self {
        let rows = self.light.with_origin(origin);
        let indices = |mask: &Tensor| mask.nonzero().squeeze_dim(1);
        Block {
            heavy: rows.select(&indices(is_heavy)),
            light: rows.select(&indices(&is_heavy.logical_not())),
            ..*self
        }
    }

    /// Of all its rows, at the parameters `at` `[d]`.
    pub(super) fn expansion(&self, at: &Tensor) -> Expansion {
        self.heavy.expansion(at).plus(1.0, &self.light.expansion(at))
    }

    /// What its rows answer to queries, of the light ones `sum`; see [`Asked`].
    pub(super) fn answer(&self, asked: Asked, sum: &Sum, queries: &Tensor) -> Tensor {
        self.heavy.answer(asked, queries) + sum.answer(asked, &self.light, queries)
    }
}

/// Numbers the light rows of all ranks in the order of row numbers, and returns how many there are. A rank's blocks are
/// in that order.
pub(super) fn number_light_rows(blocks: &mut [Block], ranks: &Ranks, device: Device) -> i64 {
    let first_row = blocks[0].first_row;
    let own: i64 = blocks.iter().map(|block| block.light.count()).sum();
    let all = ranks.gather_numbers([first_row, own], device);
    let mut next = all.iter().filter(|[first, _]| *first < first_row).map(|[_, rows]| rows).sum();
    for block in blocks {
        block.first_light = next;
        next += block.light.count();
    }
    all.iter().map(|[_, rows]| rows).sum()
}
