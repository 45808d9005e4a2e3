//! Who is missing from a collective: a decision over the positions of all ranks, without any waiting.

use std::time::Duration;

use super::watch::{Call, Phase, Position};

/// Collectives at the start that get [`FIRST_FACTOR`] times the limit: before and between them ranks read
/// files and fill caches.
const FIRST: u64 = 40;

/// See [`FIRST`].
const FIRST_FACTOR: u32 = 3;

/// Ranks enter a collective at nearly the same time. One whose limit ends within this counts as over it.
const SLACK: Duration = Duration::from_secs(1);

/// When a wait is too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// How long a rank may wait; zero is for ever.
    pub(super) limit: Duration,
    /// Whether ranks have long work of their own between collectives. Then one that answers is never late.
    pub(super) work_apart: bool,
}

impl Rules {
    /// The limit for the collective with this number.
    fn limit_of(&self, entered: u64) -> Duration {
        if entered <= FIRST { self.limit.saturating_mul(FIRST_FACTOR) } else { self.limit }
    }

    /// Whether a rank has been there for longer than it may.
    pub(super) fn is_over(&self, position: &Position) -> bool {
        !self.limit.is_zero() && position.age >= self.limit_of(position.entered)
    }

    fn is_nearly_over(&self, position: &Position) -> bool {
        !self.limit.is_zero() && position.age + SLACK >= self.limit_of(position.entered)
    }
}

/// What the positions of all ranks say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// All is well, or may be.
    Fine,
    /// The job is stuck.
    Stuck {
        /// Why, and what to do.
        message: String,
        /// The rank that is to say so: of those that wait, the lowest that will have found the same.
        speaker: usize,
    },
}

/// What `own` rank, which waits in `call`, concludes; none is a rank that has not answered.
///
/// Blamed are, in this order: ranks that do not answer; ranks outside of collectives; ranks in another
/// collective, which in turn wait for those before. If there is none of them, and for the whole limit no rank has
/// moved, the collective itself is stuck.
pub(super) fn find(
    rules: &Rules,
    own: usize,
    call: Call,
    positions: &[Option<Position>],
    hosts: &[String],
) -> Finding {
    let mine = positions[own].expect("a rank knows where it is");
    let known = || positions.iter().enumerate().filter_map(|(rank, at)| at.map(|at| (rank, at)));
    let silent: Vec<usize> = (0..positions.len()).filter(|rank| positions[*rank].is_none()).collect();
    let behind: Vec<(usize, Position)> = known().filter(|(_, at)| at.entered < mine.entered).collect();
    let outside = behind.iter().filter(|(_, at)| !matches!(at.phase, Phase::Inside(_)));
    let late: Vec<(usize, Position)> = outside
        .clone()
        .filter(|(_, at)| rules.is_nearly_over(&Position { entered: mine.entered, ..*at }))
        .copied()
        .collect();

    let speaks =
        |at: &Position| at.phase != Phase::Outside && at.entered >= mine.entered && rules.is_nearly_over(at);
    let speaker = known().find(|(_, at)| speaks(at)).map_or(own, |(rank, _)| rank.min(own));
    let stuck = |message| Finding::Stuck { message, speaker };

    let (missing, others, verb, reason) = if let Some(first) = silent.first() {
        // It may have been stopped inside of the collective: nobody knows.
        let reason =
            "it does not answer: its process is stopped or its host is out of reach; look at that host";
        (*first, silent.len() - 1, "holds up", reason.to_string())
    } else if outside.clone().next().is_some() {
        let Some((rank, at)) = late.first().filter(|_| !rules.work_apart) else { return Finding::Fine };
        (*rank, late.len() - 1, "has not reached", describe_late(at, rules))
    } else {
        // A rank that came a moment ago lets the others go in the next.
        if !known().all(|(_, at)| rules.is_nearly_over(&at)) {
            return Finding::Fine;
        }
        let is_elsewhere = |at: &Position| match at.phase {
            Phase::Inside(other) | Phase::Queued(other) if at.entered == mine.entered => other != call,
            _ => at.entered < mine.entered,
        };
        match known().find(|(_, at)| is_elsewhere(at)) {
            Some((rank, at)) => (rank, 0, "has not reached", describe_astray(&at)),
            None if known().all(|(_, at)| matches!(at.phase, Phase::Inside(_))) => {
                return stuck(format!(
                    "collective {} ({call}) does not end: all {} ranks have been in it for {} s; look for what \
                     holds up MPI or the network between the hosts",
                    mine.entered,
                    positions.len(),
                    mine.age.as_secs()
                ));
            }
            None => return Finding::Fine,
        }
    };
    let also = match others {
        0 => String::new(),
        others => format!(" (and so for {others} other ranks)"),
    };
    stuck(format!(
        "rank {missing} on {} {verb} collective {} ({call}), which rank {own} on {} entered {} s ago: {reason}{also}",
        hosts[missing],
        mine.entered,
        hosts[own],
        mine.age.as_secs()
    ))
}

fn describe_late(at: &Position, rules: &Rules) -> String {
    let seconds = at.age.as_secs();
    let place = match at.phase {
        Phase::Queued(call) => {
            format!("it queued collective {} ({call}) {seconds} s ago and has not come back", at.entered)
        }
        _ => format!("it has been outside of collectives for {seconds} s"),
    };
    format!(
        "{place}; if its work takes that long, raise compute.stall_seconds = {}, else look at what it does",
        rules.limit.as_secs()
    )
}

fn describe_astray(at: &Position) -> String {
    let (Phase::Inside(call) | Phase::Queued(call)) = at.phase else {
        unreachable!("ranks outside were blamed before")
    };
    format!(
        "it waits in collective {} ({call}) since {} s; the ranks are out of step, which is an error in this program",
        at.entered,
        at.age.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::super::watch::What;
    use super::*;

    const RULES: Rules = Rules { limit: Duration::from_secs(60), work_apart: false };

    fn at(entered: u64, phase: Phase, seconds: u64) -> Option<Position> {
        Some(Position { entered, phase, age: Duration::from_secs(seconds) })
    }

    fn inside(entered: u64, seconds: u64) -> Option<Position> {
        at(entered, Phase::Inside(What::Sum.into()), seconds)
    }

    fn outside(entered: u64, seconds: u64) -> Option<Position> {
        at(entered, Phase::Outside, seconds)
    }

    fn found(rules: &Rules, own: usize, positions: &[Option<Position>]) -> Finding {
        let hosts: Vec<String> = (0..positions.len()).map(|rank| format!("node{rank}")).collect();
        find(rules, own, What::Sum.into(), positions, &hosts)
    }

    #[track_caller]
    fn is_stuck(finding: Finding, words: &[&str]) {
        let Finding::Stuck { message, .. } = finding else { panic!("{finding:?}") };
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn a_rank_outside_is_named_with_its_host_the_collective_and_both_times() {
        let positions = [inside(100, 60), inside(100, 61), outside(99, 62)];
        is_stuck(
            found(&RULES, 0, &positions),
            &[
                "rank 2 on node2 has not reached collective 100 (all-reduce)",
                "rank 0 on node0 entered 60 s ago",
                "outside of collectives for 62 s",
                "raise compute.stall_seconds = 60",
            ],
        );
        let Finding::Stuck { speaker: 0, .. } = found(&RULES, 1, &positions) else { panic!("rank 0 speaks") };
    }

    #[test]
    fn a_silent_rank_is_blamed_before_one_outside() {
        is_stuck(
            found(&RULES, 1, &[outside(99, 70), inside(100, 60), None, None]),
            &["rank 2 on node2", "it does not answer", "so for 1 other ranks"],
        );
    }

    #[test]
    fn a_rank_that_waits_for_the_late_one_is_not_blamed() {
        is_stuck(found(&RULES, 2, &[inside(99, 61), outside(98, 61), inside(100, 60)]), &["rank 1 on node1"]);
    }

    #[test]
    fn a_rank_that_has_just_left_a_collective_gets_its_time() {
        assert_eq!(found(&RULES, 0, &[inside(100, 60), outside(99, 3)]), Finding::Fine);
    }

    #[test]
    fn ranks_out_of_step_are_named_with_both_collectives() {
        let other = at(100, Phase::Inside(What::Barrier.into()), 60);
        is_stuck(
            found(&RULES, 0, &[inside(100, 60), other]),
            &[
                "rank 1 on node1 has not reached collective 100 (all-reduce)",
                "waits in collective 100 (barrier)",
                "out of step",
            ],
        );
        is_stuck(found(&RULES, 0, &[inside(100, 60), inside(99, 61)]), &["rank 1", "waits in collective 99"]);
    }

    #[test]
    fn a_collective_that_all_have_reached_is_stuck_only_after_the_limit() {
        is_stuck(found(&RULES, 0, &[inside(100, 60), inside(100, 60)]), &["does not end: all 2 ranks"]);
        assert_eq!(found(&RULES, 0, &[inside(100, 60), inside(100, 2)]), Finding::Fine);
    }

    #[test]
    fn queued_collectives_wait_for_ranks_behind_and_for_nothing_else() {
        let queued = |entered| at(entered, Phase::Queued(What::Sum.into()), 60);
        assert_eq!(found(&RULES, 0, &[queued(100), queued(100)]), Finding::Fine);
        assert_eq!(found(&RULES, 0, &[queued(100), outside(101, 60)]), Finding::Fine);
        is_stuck(found(&RULES, 0, &[queued(100), queued(99)]), &["rank 1", "it queued collective 99"]);
    }

    #[test]
    fn ranks_with_work_of_their_own_are_missing_only_if_silent() {
        let rules = Rules { work_apart: true, ..RULES };
        assert_eq!(found(&rules, 0, &[inside(100, 900), outside(99, 901)]), Finding::Fine);
        is_stuck(found(&rules, 0, &[inside(100, 900), None]), &["rank 1", "does not answer"]);
    }

    #[test]
    fn the_first_collectives_get_three_times_the_limit_and_zero_is_for_ever() {
        let over = |entered, seconds| RULES.is_over(&inside(entered, seconds).unwrap());
        assert!(!over(40, 179) && over(40, 180) && !over(41, 59) && over(41, 60));
        let never = Rules { limit: Duration::ZERO, ..RULES };
        assert!(!never.is_over(&inside(100, 1 << 30).unwrap()));
    }
}
