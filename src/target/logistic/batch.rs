//! Which rows an evaluation sums: the heavy ones, and all light ones or a mini-batch of them.

use tch::{Device, Kind, Tensor};

use super::expansion::Expansion;
use super::ranks::Ranks;
use super::rows::Rows;
use crate::rng::Generator;

/// What is summed over this rank's light rows.
pub(super) struct Sum {
    /// A mini-batch; all light rows if there is none.
    drawn: Option<Rows>,
    /// Weight of each row.
    scale: f64,
    /// What stands for the rows that were not drawn, with an offset that makes the log-likelihood 0 at the anchor.
    rest: Option<Expansion>,
    offset: Option<Tensor>,
}

impl Sum {
    /// All rows, once each.
    pub(super) fn all(offset: Option<Tensor>) -> Self {
        Sum { drawn: None, scale: 1.0, rest: None, offset }
    }

    /// The rows `drawn`, `scale` times each; with an anchor, its offset and the expansion of all light rows are given,
    /// and what is summed over the drawn rows is their deviation from their expansion.
    pub(super) fn estimate(drawn: Rows, scale: f64, anchor: Option<(Tensor, &Expansion)>) -> Self {
        let (rest, offset) = match anchor {
            None => (None, None),
            Some((offset, light)) => {
                let of_drawn = drawn.expansion(&light.gradient.zeros_like());
                (Some(light.plus(-scale, &of_drawn)), Some(offset))
            }
        };
        Sum { drawn: Some(drawn), scale, rest, offset }
    }

    /// Log-likelihood `[B]` at `p` `[B, d]`.
    pub(super) fn log_likelihood(&self, light: &Rows, p: &Tensor) -> Tensor {
        let sum = self.rows(light).log_likelihood(p) * self.scale;
        self.with_rest(sum, |rest| rest.values(p)) + self.offset.as_ref().unwrap_or(&Tensor::from(0.0))
    }

    /// Its gradient `[B, d]`.
    pub(super) fn score(&self, light: &Rows, p: &Tensor) -> Tensor {
        self.with_rest(self.rows(light).score(p) * self.scale, |rest| rest.scores(p))
    }

    /// Both, `[B, 1 + d]`.
    pub(super) fn log_likelihood_and_score(&self, light: &Rows, p: &Tensor) -> Tensor {
        let sum = self.rows(light).log_likelihood_and_score(p) * self.scale;
        let sum = self.with_rest(sum, |rest| Tensor::cat(&[rest.values(p).unsqueeze(1), rest.scores(p)], 1));
        if let Some(offset) = &self.offset {
            let _ = sum.select(1, 0).g_add_(offset);
        }
        sum
    }

    /// Products of its Hessian at `p` with `v`, `[B, d]`.
    pub(super) fn product(&self, light: &Rows, p: &Tensor, v: &Tensor) -> Tensor {
        self.with_rest(self.rows(light).product(p, v) * self.scale, |rest| rest.products(v))
    }

    fn rows<'a>(&'a self, light: &'a Rows) -> &'a Rows {
        self.drawn.as_ref().unwrap_or(light)
    }

    fn with_rest(&self, sum: Tensor, of: impl Fn(&Expansion) -> Tensor) -> Tensor {
        match &self.rest {
            Some(rest) => sum + of(rest),
            None => sum,
        }
    }
}

/// Where this rank's light rows stand among the light rows of all ranks, in the order of row numbers.
pub(super) struct Numbering {
    /// Number of this rank's first.
    pub(super) first: i64,
    /// Light rows of all ranks.
    pub(super) count: i64,
}

impl Numbering {
    /// Agrees on the numbers of the rows `light`; `first_row` orders the ranks.
    pub(super) fn of(light: &Rows, first_row: i64, ranks: &Ranks, device: Device) -> Self {
        let all = ranks.gather_numbers([first_row, light.count()], device);
        let before = all.iter().filter(|[first, _]| *first < first_row).map(|[_, rows]| rows);
        Numbering { first: before.sum(), count: all.iter().map(|[_, rows]| rows).sum() }
    }

    /// Weight of each of `rows` drawn rows.
    pub(super) fn scale(&self, rows: i64) -> f64 {
        if rows == 0 { 0.0 } else { self.count as f64 / rows as f64 }
    }

    /// Draws `rows` numbers with replacement, the same on every rank, and returns those of `light` that are here.
    pub(super) fn draw(&self, generator: &mut Generator, rows: usize, light: &Rows, device: Device) -> Rows {
        let numbers = if self.count > 0 { generator.indices(rows, self.count) } else { Vec::new() };
        let own = self.first..self.first + light.count();
        let here: Vec<i64> = numbers
            .into_iter()
            .filter(|number| own.contains(number))
            .map(|number| number - own.start)
            .collect();
        light.select(&Tensor::from_slice(&here).to_device(device))
    }
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
