//! Small decisions that ranks take together, in host memory whatever the device.

use std::fmt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::watch::{Watch, What};

/// After so long at a barrier a rank sleeps between its looks at the others.
const SPIN_LIMIT: Duration = Duration::from_millis(10);

/// Length of that sleep.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Returns once all ranks have called it. MPI's own barrier keeps a core busy for as long as it takes, which may be another rank's
/// whole run.
pub(super) fn barrier_of(world: &SimpleCommunicator) {
    let started = Instant::now();
    let mut request = world.immediate_barrier();
    while let Err(unfinished) = request.test() {
        request = unfinished;
        if started.elapsed() > SPIN_LIMIT {
            sleep(POLL_INTERVAL);
        }
    }
}

/// Sent after each text, so that none of them is empty.
const END: u8 = 0;

/// The control channel of one rank: MPI where the job has it, nothing to do otherwise.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) host: String,
    /// Where the rank notes that it waits.
    pub(super) watch: Arc<Watch>,
}

impl Control {
    pub(super) fn new(rank: usize, size: usize, host: String) -> Self {
        Control { rank, size, host, watch: Arc::new(Watch::new()) }
    }

    /// The MPI world, or nothing when this rank is alone (MPI may then not be initialised at all).
    fn others(&self) -> Option<SimpleCommunicator> {
        (self.size > 1).then(SimpleCommunicator::world)
    }

    /// Whether `flag` is true on at least one rank.
    pub(super) fn any(&self, flag: bool) -> bool {
        let Some(world) = self.others() else { return flag };
        let _waiting = self.watch.enter(What::Decision);
        let mut raised = 0_i32;
        world.all_reduce_into(&i32::from(flag), &mut raised, SystemOperation::max());
        raised != 0
    }

    /// Returns once all ranks have called it.
    pub(super) fn barrier(&self) {
        self.meet(What::Barrier);
    }

    /// A barrier that goes by another name.
    pub(super) fn meet(&self, what: What) {
        if let Some(world) = self.others() {
            let _waiting = self.watch.enter(what);
            barrier_of(&world);
        }
    }

    /// The bytes of rank 0 on every rank; those of other ranks are ignored.
    pub(super) fn broadcast(&self, own: Vec<u8>) -> Vec<u8> {
        let Some(world) = self.others() else { return own };
        let _waiting = self.watch.enter(What::BroadcastText);
        let root = world.process_at_rank(0);
        let mut length = own.len() as u64;
        root.broadcast_into(&mut length);
        if length == 0 {
            // The address of an empty Rust slice of bytes is 1, which Open MPI takes for
            // MPI_IN_PLACE: no empty slice may reach it, here or below.
            return Vec::new();
        }
        let mut bytes = if self.rank == 0 { own } else { vec![0; length as usize] };
        root.broadcast_into(&mut bytes[..]);
        bytes
    }

    /// The texts of all ranks, in rank order, on every rank.
    pub(super) fn gather(&self, own: &str) -> Vec<String> {
        let Some(world) = self.others() else {
            return vec![own.to_string()];
        };
        let _waiting = self.watch.enter(What::GatherTexts);
        let own = [own.as_bytes(), &[END]].concat();
        let mut lengths = vec![0_i32; self.size];
        let length = i32::try_from(own.len()).expect("a message is shorter than 2 GiB");
        world.all_gather_into(&length, &mut lengths[..]);
        let starts: Vec<i32> = lengths
            .iter()
            .scan(0, |next, length| {
                let start = *next;
                *next += length;
                Some(start)
            })
            .collect();
        let mut bytes = vec![0_u8; lengths.iter().map(|length| *length as usize).sum()];
        let mut parts = PartitionMut::new(&mut bytes[..], &lengths[..], &starts[..]);
        world.all_gather_varcount_into(&own[..], &mut parts);
        let mut rest = &bytes[..];
        lengths
            .iter()
            .map(|length| {
                let (text, after) = rest.split_at(*length as usize);
                rest = after;
                String::from_utf8_lossy(text.strip_suffix(&[END]).unwrap_or(text)).into_owned()
            })
            .collect()
    }

    /// See [`super::World::agree`].
    pub(super) fn agree<T, E: fmt::Display>(&self, result: Result<T, E>) -> Result<T, Failure<E>> {
        if !self.any(result.is_err()) {
            return result.map_err(|_| unreachable!("no rank has failed"));
        }
        // `{:#}`: an `anyhow` error then gives its whole chain; others ignore the flag.
        let own = match &result {
            Ok(_) => String::new(),
            Err(error) => format!("{}\n{error:#}", self.host),
        };
        let reports = self.gather(&own);
        let mut failed = reports.iter().enumerate().filter(|(_, report)| !report.is_empty());
        let (rank, first) = failed.next().expect("a rank has failed");
        let failure = match (result, rank == self.rank) {
            (Err(error), true) => Some(error),
            _ => None,
        };
        let (host, message) = first.split_once('\n').expect("a report begins with its host");
        let (host, message, also) = (host.to_string(), message.to_string(), failed.count());
        Err(Failure { rank, host, message, also, size: self.size, error: failure })
    }
}

/// A failure that all ranks know of: on at least one of them a step went wrong.
///
/// Every rank holds the same `Failure` but for `error`. Exactly one rank, the lowest that failed,
/// [reports](Failure::is_reported_here); all others leave quietly with the same exit code.
#[derive(Debug)]
pub struct Failure<E> {
    /// Lowest rank that failed.
    pub rank: usize,
    /// Its host.
    pub host: String,
    /// What it said.
    pub message: String,
    /// How many other ranks failed too.
    pub also: usize,
    /// The world size.
    pub size: usize,
    /// The error itself, on the rank that reports.
    pub error: Option<E>,
}

impl<E> Failure<E> {
    /// Whether this rank is the one to print the message.
    pub fn is_reported_here(&self) -> bool {
        self.error.is_some()
    }
}

impl<E> fmt::Display for Failure<E> {
    /// The message alone if all ranks failed; otherwise with the rank and host it comes from.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.also {
            also if also + 1 == self.size => write!(formatter, "{}", self.message),
            0 => write!(formatter, "rank {} on {}: {}", self.rank, self.host, self.message),
            also => {
                let (rank, host, message) = (self.rank, &self.host, &self.message);
                write!(formatter, "rank {rank} on {host} ({also} other ranks fail too): {message}")
            }
        }
    }
}

impl<E: fmt::Debug> std::error::Error for Failure<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> Control {
        Control::new(0, 1, "here".to_string())
    }

    #[test]
    fn a_rank_alone_agrees_with_itself() {
        let control = alone();
        assert_eq!(control.agree(Ok::<_, String>(7)).unwrap(), 7);
        let failure = control.agree(Err::<(), _>("no such file")).unwrap_err();
        assert!(failure.is_reported_here());
        assert_eq!(failure.to_string(), "no such file");
        assert!(control.any(true) && !control.any(false));
        assert_eq!(control.gather("a"), ["a"]);
        assert_eq!(control.broadcast(b"b".to_vec()), b"b");
    }

    #[test]
    fn a_failure_of_some_ranks_names_the_first_and_counts_the_others() {
        let text = |also, size| {
            let (host, message) = ("node7".to_string(), "disk full".to_string());
            Failure::<()> { rank: 3, host, message, also, size, error: None }.to_string()
        };
        assert_eq!(text(0, 4), "rank 3 on node7: disk full");
        assert_eq!(text(2, 8), "rank 3 on node7 (2 other ranks fail too): disk full");
        assert_eq!(text(3, 4), "disk full");
    }
}
