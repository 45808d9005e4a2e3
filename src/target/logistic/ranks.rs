//! Sums over rows that are spread over ranks.

use tch::{Device, Kind, Tensor};

use super::expansion::Expansion;
use crate::comm::{CommError, SharedCollective, sum_exactly};

/// All ranks, and how sums over their rows are added. A collective that fails panics: the ranks are out of step, and
/// the panic ends the job with the rank's name.
pub(super) struct Ranks {
    shared: Option<SharedCollective>,
    /// Blocks of all ranks, if sums over them are exact.
    exact: Option<usize>,
}

impl Ranks {
    /// Floats are summed, one block a rank. One rank of a world of one needs nobody.
    pub(super) fn new(shared: Option<SharedCollective>) -> Self {
        Ranks { shared, exact: None }
    }

    /// Sums over the blocks of all ranks, `blocks` in number, are exact: a world of one goes the same way, so that it
    /// comes to the same bits. `None` without collectives.
    pub(super) fn exactly(self, blocks: usize) -> Option<Self> {
        self.shared.is_some().then_some(Ranks { exact: Some(blocks), ..self })
    }

    pub(super) fn is_exact(&self) -> bool {
        self.exact.is_some()
    }

    /// Whether no sum leaves this rank, nor its device.
    pub(super) fn is_alone(&self) -> bool {
        self.others().is_none() && !self.is_exact()
    }

    /// The collectives, if there are others to talk to.
    fn others(&self) -> Option<&SharedCollective> {
        self.shared.as_ref().filter(|shared| shared.size > 1)
    }

    fn add_exactly(&self, parts: &[Vec<Tensor>], count: usize) -> Vec<Tensor> {
        let shared = self.shared.as_ref().expect("exact sums have collectives");
        done(shared.with(|all| sum_exactly(all, parts, count)))
    }

    /// Sums of the expansions of this rank's blocks and of those of all ranks; of each block several, for as few
    /// collectives as one.
    pub(super) fn sum<const N: usize>(&self, mut of_blocks: Vec<[Expansion; N]>) -> [Expansion; N] {
        if let Some(count) = self.exact {
            let parts = of_blocks
                .into_iter()
                .map(|of_block| of_block.into_iter().flat_map(Expansion::into_parts).collect());
            let mut sums = self.add_exactly(&parts.collect::<Vec<_>>(), count).into_iter();
            let mut next = || sums.next().expect("as many tensors as a block has");
            return std::array::from_fn(|_| Expansion::from_parts([next(), next(), next()]));
        }
        let own = of_blocks.pop().expect("one block a rank");
        if self.others().is_none() {
            return own;
        }
        own.map(|own| Expansion::from_flat(&self.reduced(own.to_flat()), own.gradient.size()[0]))
    }

    fn reduced(&self, own: Tensor) -> Tensor {
        let mut buffer = own.contiguous();
        if let Some(shared) = self.others() {
            done(shared.with(|all| all.all_reduce_sum(&mut buffer)));
        }
        buffer
    }

    /// The tensors of all ranks in rank order, all of the shape of `own`.
    pub(super) fn gather(&self, own: &Tensor) -> Vec<Tensor> {
        match self.others() {
            Some(shared) => done(shared.with(|all| all.all_gather(&own.contiguous()))),
            None => vec![own.shallow_clone()],
        }
    }

    /// The integers of all ranks in rank order.
    pub(super) fn gather_numbers<const N: usize>(&self, own: [i64; N], device: Device) -> Vec<[i64; N]> {
        let own = Tensor::from_slice(&own).to_device(device);
        let numbers = |t: &Tensor| Vec::<i64>::try_from(t.to_device(Device::Cpu)).expect("a vector of i64");
        self.gather(&own).iter().map(|t| numbers(t).try_into().expect("N numbers of every rank")).collect()
    }

    /// `sum` of the queries `own` `[B, k]` over the rows of all ranks, `[B, m]`, where `sum` goes over one of this
    /// rank's `blocks`: queries are gathered, answers to all of them summed over the blocks and the ranks, and each
    /// takes its own. Every rank has equally many queries.
    ///
    /// # Panics
    /// If autograd is to follow it over several ranks, or an exact sum.
    pub(super) fn answer<B>(
        &self,
        own: &Tensor,
        blocks: &[B],
        sum: impl Fn(&B, &Tensor) -> Tensor,
    ) -> Tensor {
        if let Some(count) = self.exact {
            return self.answer_exactly(own, blocks, count, sum);
        }
        let [block] = blocks else { panic!("{} blocks, and one a rank is wanted", blocks.len()) };
        let Some(shared) = self.others() else { return sum(block, own) };
        assert!(
            !own.requires_grad(),
            "autograd does not follow a sum over {} ranks; use the closed forms of score and product, or one rank",
            shared.size
        );
        let rows = own.size()[0];
        let answers = self.reduced(sum(block, &Tensor::cat(&self.gather(own), 0)).to_kind(Kind::Double));
        answers.narrow(0, shared.rank as i64 * rows, rows)
    }

    /// The queries of each rank are answered by themselves, block by block: the shapes, on which the rounding of a
    /// product of matrices depends, are then the same however many ranks there are.
    fn answer_exactly<B>(
        &self,
        own: &Tensor,
        blocks: &[B],
        count: usize,
        sum: impl Fn(&B, &Tensor) -> Tensor,
    ) -> Tensor {
        assert!(
            !own.requires_grad(),
            "autograd does not follow an exact sum; use the closed forms of score and product, or \
             compute.reduction = \"fast\""
        );
        // Copies: what a gather returns may lie at any address, and a product may round by its alignment.
        let queries: Vec<Tensor> = self.gather(&own.contiguous()).iter().map(Tensor::copy).collect();
        let of_block = |block| queries.iter().map(|queries| sum(block, queries)).collect();
        let parts: Vec<Vec<Tensor>> = blocks.iter().map(of_block).collect();
        let rank = self.shared.as_ref().map_or(0, |shared| shared.rank);
        self.add_exactly(&parts, count).swap_remove(rank)
    }
}

fn done<T>(result: Result<T, CommError>) -> T {
    result.unwrap_or_else(|error| panic!("the sum over the data of all ranks failed: {error}"))
}
