//! A thread of each rank that notices when a collective waits too long, and asks the others who is missing.
//!
//! Watchdogs talk by MPI messages of their own, on a communicator of their own, while the ranks compute or wait;
//! that takes `MPI_THREAD_MULTIPLE`. Where MPI gives less they cannot talk, and the message names the rank that
//! waits instead of the one that is missing.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mpi::environment::Threading;
use mpi::point_to_point::{Destination, Source};
use mpi::topology::{Rank, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::control::Control;
use super::launch;
use super::stall::{Finding, Rules, find};
use super::watch::{Phase, Position, Watch, What};

/// How often a watchdog looks for questions, and at its own rank.
const TICK: Duration = Duration::from_millis(250);

/// The same while it waits for answers.
const SHORT_TICK: Duration = Duration::from_millis(20);

/// A rank that has not answered for so long is silent. The other watchdog looks every [`TICK`]; the rest is for
/// hosts with more work than cores.
const ANSWERS_TAKE: Duration = Duration::from_secs(3);

/// The same where ranks wait for each other's work for hours, and ask all the while: a host that is frozen for a
/// moment shall not end that.
const ANSWERS_TAKE_APART: Duration = Duration::from_secs(60);

/// Until the next question after one that led to nothing.
const RETRY: Duration = Duration::from_secs(1);

/// How long another rank may take to report in our place: its limit ends up to a second later, then it asks.
const GRACE: Duration = Duration::from_secs(8);

/// A tick that took so much longer than it should says that this process was stopped.
const STOPPED: Duration = Duration::from_secs(2);

/// Bytes of MPI's buffer for messages under way, for each rank: more than fifty of the messages below.
/// A rank that does not take its messages ends the job long before that.
pub(super) const BUFFER_BYTES: usize = 16 << 10;

/// Question or answer, the question's number, and a position (of answers).
type Message = [u64; 2 + Position::WORDS];

/// In the place of the first word.
const QUESTION: u64 = 0;
/// In the place of the first word.
const ANSWER: u64 = 1;

/// The watchdog of one rank. Dropping it waits for those of all ranks, and still watches that.
pub(super) struct Watchdog {
    control: Control,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the watchdogs of all ranks, which must call it together.
    pub(super) fn start(control: &Control, provided: Threading, rules: Rules, abort_code: i32) -> Self {
        let hosts = control.gather(&control.host);
        let can_talk = !control.any(provided != Threading::Multiple);
        let (rank, watch) = (control.rank, control.watch.clone());
        let (ready, is_ready) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            let talk = can_talk.then(Talk::new);
            let _ = ready.send(());
            let patrol = Patrol::new(rank, hosts, rules, watch);
            let message = match talk {
                Some(talk) => patrol.together(talk),
                None => patrol.alone(),
            };
            if let Some(message) = message {
                eprintln!("error: {message}");
                launch::abort_job(abort_code)
            }
        });
        // The communicator is made by all ranks in step, so nothing else may be done together meanwhile.
        let _ = is_ready.recv();
        Watchdog { control: control.clone(), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // After this all ranks are there, so the watchdogs can be sure of each other.
        self.control.meet(What::End);
        self.control.watch.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has ended the job
        }
    }
}

/// What one watchdog knows.
struct Patrol {
    rank: usize,
    hosts: Vec<String>,
    rules: Rules,
    watch: Arc<Watch>,
    /// How many questions it has asked: the number of the one that is open or was last.
    questions: u64,
    inquiry: Option<Inquiry>,
    /// When it may ask again.
    not_before: Instant,
    /// The collective about which another rank was going to report.
    left_to_another: u64,
}

/// A question that is open.
struct Inquiry {
    /// The collective in question.
    entered: u64,
    asked: Instant,
    /// The answers so far.
    positions: Vec<Option<Position>>,
}

impl Patrol {
    fn new(rank: usize, hosts: Vec<String>, rules: Rules, watch: Arc<Watch>) -> Self {
        let (questions, inquiry, not_before) = (0, None, Instant::now());
        Patrol { rank, hosts, rules, watch, questions, inquiry, not_before, left_to_another: 0 }
    }

    /// Watches until the end of the job, or until it is stuck: then says why.
    fn together(mut self, mut talk: Talk) -> Option<String> {
        while !self.rest() {
            while let Some((source, message)) = talk.receive() {
                self.take(&mut talk, source, &message);
            }
            let own = self.watch.position();
            if let Some(message) = self.consider(&mut talk, own) {
                return Some(message);
            }
        }
        talk.finish();
        None
    }

    /// The same without a word to others.
    fn alone(mut self) -> Option<String> {
        // One message is enough: lower ranks get half a second to end the job before the next speaks.
        let patience = Duration::from_millis(500) * self.rank.min(20) as u32;
        while !self.rest() {
            let own = self.watch.position();
            let Phase::Inside(call) = own.phase else { continue };
            let waited = Position { age: own.age.saturating_sub(patience), ..own };
            if !self.rules.work_apart && self.rules.is_over(&waited) {
                return Some(format!(
                    "rank {} on {} has waited {} s in collective {} ({call}) for a rank that is not known, because \
                     this MPI lacks MPI_THREAD_MULTIPLE; see which host is silent or busy, and if that is its work, \
                     raise compute.stall_seconds = {}",
                    self.rank,
                    self.hosts[self.rank],
                    own.age.as_secs(),
                    own.entered,
                    self.rules.limit.as_secs()
                ));
            }
        }
        None
    }

    /// Waits for the next tick, and says whether the job is over.
    fn rest(&mut self) -> bool {
        let tick = if self.inquiry.is_some() { SHORT_TICK } else { TICK };
        let start = Instant::now();
        let is_over = self.watch.wait(tick);
        let gap = start.elapsed().saturating_sub(tick);
        if gap > STOPPED {
            // Suspended by a scheduler or a terminal, perhaps the whole job: nobody was late in that time.
            self.watch.forgive(gap);
            // An open question was not answered in that time either.
            self.inquiry = None;
            self.not_before = Instant::now() + RETRY;
        }
        is_over
    }

    /// Answers a question, or notes an answer to its own.
    fn take(&mut self, talk: &mut Talk, source: usize, message: &Message) {
        let [kind, number, position @ ..] = *message;
        if kind == QUESTION {
            talk.send(source, ANSWER, number, &self.watch.position());
        } else if let Some(inquiry) = self.inquiry.as_mut().filter(|_| number == self.questions) {
            inquiry.positions[source] = Some(Position::decode(position));
        }
    }

    /// Asks the others if its rank has waited too long; says what has become clear from all answers.
    fn consider(&mut self, talk: &mut Talk, own: Position) -> Option<String> {
        let call = match own.phase {
            Phase::Inside(call) | Phase::Queued(call) if self.rules.is_over(&own) => call,
            _ => {
                self.inquiry = None;
                return None;
            }
        };
        let Some(inquiry) = self.inquiry.as_mut().filter(|inquiry| inquiry.entered == own.entered) else {
            if Instant::now() >= self.not_before {
                self.ask(talk, &own);
            }
            return None;
        };
        inquiry.positions[self.rank] = Some(own);
        let answers_take = if self.rules.work_apart { ANSWERS_TAKE_APART } else { ANSWERS_TAKE };
        if inquiry.positions.contains(&None) && inquiry.asked.elapsed() < answers_take {
            return None;
        }
        let finding = find(&self.rules, self.rank, call, &inquiry.positions, &self.hosts);
        self.inquiry = None;
        match finding {
            Finding::Stuck { message, speaker }
                if speaker == self.rank || self.left_to_another == own.entered =>
            {
                return Some(message);
            }
            Finding::Stuck { .. } => {
                self.left_to_another = own.entered;
                self.not_before = Instant::now() + GRACE;
            }
            Finding::Fine => self.not_before = Instant::now() + RETRY,
        }
        None
    }

    fn ask(&mut self, talk: &mut Talk, own: &Position) {
        self.questions += 1;
        let size = self.hosts.len();
        for other in (0..size).filter(|other| *other != self.rank) {
            talk.send(other, QUESTION, self.questions, own);
        }
        let positions = vec![None; size];
        self.inquiry = Some(Inquiry { entered: own.entered, asked: Instant::now(), positions });
    }
}

/// Messages between watchdogs.
struct Talk {
    everyone: SimpleCommunicator,
    /// How many messages went to each rank, and came from it.
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Talk {
    /// To be made by all ranks together.
    fn new() -> Self {
        let everyone = SimpleCommunicator::world().duplicate();
        let size = everyone.size() as usize;
        Talk { everyone, sent: vec![0; size], received: vec![0; size] }
    }

    /// Never waits: MPI keeps a copy in the buffer that the world has given it.
    fn send(&mut self, to: usize, kind: u64, number: u64, position: &Position) {
        let mut message: Message = [kind, number, 0, 0, 0, 0, 0, 0];
        message[2..].copy_from_slice(&position.encode());
        self.everyone.process_at_rank(to as Rank).buffered_send(&message[..]);
        self.sent[to] += 1;
    }

    /// The next message, if one has come, and the rank it is from.
    fn receive(&mut self) -> Option<(usize, Message)> {
        let source = self.everyone.any_process().immediate_probe()?.source_rank();
        Some((source as usize, self.receive_from(source)))
    }

    fn receive_from(&mut self, source: Rank) -> Message {
        let mut message: Message = [0; 8];
        self.everyone.process_at_rank(source).receive_into(&mut message[..]);
        self.received[source as usize] += 1;
        message
    }

    /// Takes what is still under way, so that MPI ends without messages nobody wanted. All ranks must call it.
    fn finish(mut self) {
        let mut coming = vec![0_u64; self.sent.len()];
        self.everyone.all_to_all_into(&self.sent[..], &mut coming[..]);
        for (source, count) in coming.iter().enumerate() {
            while self.received[source] < *count {
                self.receive_from(source as Rank);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_that_cannot_ask_names_its_own_rank_and_the_collective() {
        let watch = Arc::new(Watch::new());
        for _ in 0..40 {
            drop(watch.enter(What::Decision)); // the first forty have a longer limit
        }
        let _inside = watch.enter(What::Barrier);
        let rules = Rules { limit: Duration::from_millis(10), work_apart: false };
        let hosts = vec!["node0".to_string(), "node1".to_string()];
        let message = Patrol::new(1, hosts, rules, watch.clone()).alone().expect("it has waited too long");
        assert!(
            message.starts_with("rank 1 on node1 has waited ")
                && message.contains(" s in collective 41 (barrier)"),
            "{message}"
        );
    }

    #[test]
    fn a_watchdog_ends_at_once_with_its_rank() {
        let watch = Arc::new(Watch::new());
        watch.stop();
        let rules = Rules { limit: Duration::from_secs(600), work_apart: false };
        assert_eq!(Patrol::new(0, vec!["here".to_string()], rules, watch).alone(), None);
    }
}
