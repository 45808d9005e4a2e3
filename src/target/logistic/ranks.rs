//! Sums over rows that are spread over ranks.

use tch::{Device, Kind, Tensor};

use crate::comm::{CommError, SharedCollective};

/// The other ranks, if there are any. A collective that fails panics: the ranks are out of step, and the panic ends
/// the job with the rank's name.
pub(super) struct Ranks(Option<SharedCollective>);

impl Ranks {
    /// One rank of a world of one needs nobody.
    pub(super) fn new(shared: Option<SharedCollective>) -> Self {
        Ranks(shared.filter(|shared| shared.size > 1))
    }

    /// The elementwise sum of `own` over all ranks.
    pub(super) fn sum(&self, own: Tensor) -> Tensor {
        let Some(shared) = &self.0 else { return own };
        let mut buffer = own.contiguous();
        done(shared.with(|all| all.all_reduce_sum(&mut buffer)));
        buffer
    }

    /// The tensors of all ranks in rank order, all of the shape of `own`.
    pub(super) fn gather(&self, own: &Tensor) -> Vec<Tensor> {
        match &self.0 {
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

    /// `sum` of the queries `own` `[B, k]` over the rows of all ranks, `[B, m]`, where `sum` goes over this rank's
    /// rows only: queries are gathered, answers to all of them summed over the ranks, and each takes its own. Every
    /// rank has equally many queries.
    ///
    /// # Panics
    /// If autograd is to follow it over several ranks.
    pub(super) fn answer(&self, own: &Tensor, sum: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        let Some(shared) = &self.0 else { return sum(own) };
        assert!(
            !own.requires_grad(),
            "autograd does not follow a sum over {} ranks; use the closed forms of score and product, or one rank",
            shared.size
        );
        let rows = own.size()[0];
        let answers = self.sum(sum(&Tensor::cat(&self.gather(own), 0)).to_kind(Kind::Double));
        answers.narrow(0, shared.rank as i64 * rows, rows)
    }
}

fn done<T>(result: Result<T, CommError>) -> T {
    result.unwrap_or_else(|error| panic!("the sum over the data of all ranks failed: {error}"))
}
