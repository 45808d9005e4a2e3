//! Where this rank is among its collectives: written by the rank, read by its [watchdog](super::watchdog).

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

/// What ranks do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Sum,
    Maximum,
    Gather,
    Broadcast,
    Barrier,
    Decision,
    BroadcastText,
    GatherTexts,
    End,
}

impl What {
    const ALL: [What; 9] = [
        What::Sum,
        What::Maximum,
        What::Gather,
        What::Broadcast,
        What::Barrier,
        What::Decision,
        What::BroadcastText,
        What::GatherTexts,
        What::End,
    ];

    fn words(self) -> &'static str {
        match self {
            What::Sum => "all-reduce",
            What::Maximum => "maximum",
            What::Gather => "gather",
            What::Broadcast => "broadcast",
            What::Barrier => "barrier",
            What::Decision => "decision",
            What::BroadcastText => "broadcast of a text",
            What::GatherTexts => "gather of texts",
            What::End => "end of the job",
        }
    }
}

/// Names of the element types of buffers; the first stands for no buffer.
const KINDS: [&str; 4] = ["", "f32", "f64", "i64"];

/// One collective: what, and over which buffer. Equal on all ranks, if they are in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    what: What,
    kind: u8,
    count: u64,
}

impl Call {
    /// A collective over a tensor that has been checked.
    pub(super) fn over(what: What, buffer: &Tensor) -> Self {
        let kind = match buffer.kind() {
            Kind::Float => 1,
            Kind::Double => 2,
            _ => 3,
        };
        Call { what, kind, count: buffer.numel() as u64 }
    }
}

/// A collective without a buffer, or with one whose size only some ranks know.
impl From<What> for Call {
    fn from(what: What) -> Self {
        Call { what, kind: 0, count: 0 }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            0 => formatter.write_str(self.what.words()),
            kind => write!(formatter, "{} of {} {}", self.what.words(), self.count, KINDS[kind as usize]),
        }
    }
}

/// What the rank's own thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Something of its own.
    Outside,
    /// It waits in a collective.
    Inside(Call),
    /// A collective waits on the GPU. The host may have gone on, or may wait for the result: nobody can tell.
    Queued(Call),
}

/// Where a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// How many collectives it has entered: the number of the one that it is in or was in last.
    pub(super) entered: u64,
    pub(super) phase: Phase,
    /// For how long, without the time for which the process was stopped.
    pub(super) age: Duration,
}

impl Position {
    /// Length of an encoded position.
    pub(super) const WORDS: usize = 6;

    /// As plain numbers, for the journey.
    pub(super) fn encode(&self) -> [u64; Self::WORDS] {
        let (phase, call) = match self.phase {
            Phase::Outside => (0, Call::from(What::Barrier)),
            Phase::Inside(call) => (1, call),
            Phase::Queued(call) => (2, call),
        };
        let age = self.age.as_millis() as u64;
        [self.entered, phase, age, call.what as u64, u64::from(call.kind), call.count]
    }

    /// The inverse of [`encode`](Self::encode), which rounds the age to milliseconds.
    pub(super) fn decode([entered, phase, age, what, kind, count]: [u64; Self::WORDS]) -> Self {
        let call = Call { what: What::ALL[what as usize], kind: kind as u8, count };
        let phase = match phase {
            0 => Phase::Outside,
            1 => Phase::Inside(call),
            _ => Phase::Queued(call),
        };
        Position { entered, phase, age: Duration::from_millis(age) }
    }
}

/// The place where a rank notes its position. To enter and to leave costs a lock nobody holds and a
/// look at the clock each: 0.1 microseconds, beside 1 or more of the smallest all-reduce.
pub(super) struct Watch {
    state: Mutex<State>,
    stopped: Condvar,
}

struct State {
    entered: u64,
    phase: Phase,
    since: Instant,
    is_over: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        let state = State { entered: 0, phase: Phase::Outside, since: Instant::now(), is_over: false };
        Watch { state: Mutex::new(state), stopped: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    /// Notes that the rank begins to wait; it ends when the guard is dropped.
    #[must_use]
    pub(super) fn enter(&self, call: impl Into<Call>) -> Inside<'_> {
        let call = call.into();
        let mut state = self.state();
        let before = state.phase;
        state.entered += 1;
        state.phase = Phase::Inside(call);
        state.since = Instant::now();
        // A barrier of the GPUs holds one of the hosts: leaving the inner is not leaving the outer.
        let after = if matches!(before, Phase::Inside(_)) { before } else { Phase::Outside };
        Inside { watch: self, after }
    }

    /// As [`enter`](Self::enter), for a collective that is queued on the GPU: when the guard is dropped it is
    /// on its way, not over.
    #[must_use]
    pub(super) fn enter_queued(&self, call: Call) -> Inside<'_> {
        let mut inside = self.enter(call);
        inside.after = Phase::Queued(call);
        inside
    }

    /// Where the rank is now.
    pub(super) fn position(&self) -> Position {
        let state = self.state();
        Position { entered: state.entered, phase: state.phase, age: state.since.elapsed() }
    }

    /// Leaves `gap` out of the present age: this process did not run.
    pub(super) fn forgive(&self, gap: Duration) {
        let mut state = self.state();
        state.since = (state.since + gap).min(Instant::now());
    }

    /// Ends the [waiting](Self::wait) of the watchdog, for good.
    pub(super) fn stop(&self) {
        self.state().is_over = true;
        self.stopped.notify_all();
    }

    /// Waits for `time` or the end, and says whether it was the end.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let waited = self.stopped.wait_timeout_while(self.state(), time, |state| !state.is_over);
        waited.expect("nothing panics while it holds the lock").0.is_over
    }
}

/// The rank is in a collective as long as this lives.
pub(super) struct Inside<'a> {
    watch: &'a Watch,
    after: Phase,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.watch.state();
        state.phase = self.after;
        state.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_journey() {
        let buffer = Tensor::zeros([12, 5], (Kind::Double, tch::Device::Cpu));
        for what in What::ALL {
            let call = Call::over(what, &buffer);
            for phase in [Phase::Outside, Phase::Inside(call), Phase::Queued(call)] {
                let position = Position { entered: 1 << 40, phase, age: Duration::from_millis(61_003) };
                assert_eq!(Position::decode(position.encode()), position);
            }
        }
        assert_eq!(Call::over(What::Sum, &buffer).to_string(), "all-reduce of 60 f64");
    }

    #[test]
    fn inner_collectives_count_and_end_in_the_outer_one() {
        let watch = Watch::new();
        let (outer, inner) = (Call::from(What::Barrier), Call::from(What::Decision));
        let _outer = watch.enter(outer);
        drop(watch.enter(inner));
        let position = watch.position();
        assert_eq!((position.entered, position.phase), (2, Phase::Inside(outer)));
    }

    #[test]
    fn a_queued_collective_lasts_until_the_hosts_meet() {
        let watch = Watch::new();
        let queued = Call::from(What::Sum);
        drop(watch.enter_queued(queued));
        assert_eq!(watch.position().phase, Phase::Queued(queued));
        drop(watch.enter(What::Barrier));
        assert_eq!(watch.position().phase, Phase::Outside);
    }

    #[test]
    fn forgiven_time_does_not_count_and_is_never_negative() {
        let watch = Watch::new();
        watch.forgive(Duration::from_secs(1000));
        assert!(watch.position().age < Duration::from_secs(1));
    }
}
