//! `dft train --rehearse N`: what a job of N ranks would take, from one process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};
use tch::{Device, Kind, Tensor};
use tracing::error;

use super::run_record::device_name;
use super::session::{DIVERGED, Exit, Session};
use crate::comm::{CommError, World};
use crate::config::{Plan, Reduction, Schedule, TrainFile, load};
use crate::train::{Networks, Rehearsal, State, rehearse};

/// Rounds of a timed all-reduce; the fastest counts, after one that only warms up.
const ROUNDS: usize = 10;

/// Networks to assume where none can be measured: latency of a message in seconds, bytes a second.
const ASSUMED: [(&str, Link); 2] = [
    ("10 Gbit/s Ethernet (20 µs, 1 GB/s)", Link { latency: 20e-6, rate: 1e9 }),
    ("100 Gbit/s InfiniBand (2 µs, 10 GB/s)", Link { latency: 2e-6, rate: 1e10 }),
];

/// The two numbers of the model of an all-reduce.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Link {
    /// Seconds that a message takes, however short.
    latency: f64,
    /// Bytes a second, with their addition.
    rate: f64,
}

impl Link {
    /// Seconds of an all-reduce of `bytes` over `ranks`: by halving and doubling, 2 log₂ n messages, which carry 2 (n − 1)/n
    /// of the bytes (Thakur, Rabenseifner and Gropp 2005).
    fn all_reduce(&self, ranks: usize, bytes: usize) -> f64 {
        let n = ranks as f64;
        2.0 * n.log2() * self.latency + 2.0 * (n - 1.0) / n * bytes as f64 / self.rate
    }

    /// The link that explains the seconds of an all-reduce of next to nothing and of one of `bytes` over `ranks` ≥ 2.
    fn explain(ranks: usize, (short, long): (f64, f64), bytes: usize) -> Self {
        let n = ranks as f64;
        let moved = 2.0 * (n - 1.0) / n * bytes as f64;
        Link { latency: short / (2.0 * n.log2()), rate: moved / (long - short).max(f64::MIN_POSITIVE) }
    }
}

/// Rehearses the job of `ranks` ranks that `file` describes, on rank 0; under a launcher the ranks that are there measure
/// their all-reduce.
pub fn run(config: &Path, settings: &[String], ranks: usize) -> Result<(), Exit> {
    let file = load::<TrainFile>(config, settings);
    // Rank 0 does the work of all, and the others wait for it.
    let (session, file) = Session::start_apart(file, |file| &file.compute)?;
    let world = &session.world;
    // What does not fit many ranks is found here.
    let plan = session.prepare(file.check(ranks))?;
    let alone = World::solo(world.device);
    let prepared = session.prepare_on_root(|| Networks::build(&plan, &alone))?;
    let mut rehearsed = None;
    if let Some(networks) = &prepared {
        let mut state = State::initial(&plan, networks, world.device);
        rehearsed = Some((rehearse(&plan, &alone, networks, &mut state, ranks), state));
    }
    // What went wrong on rank 0 ends all.
    let failed = rehearsed.as_ref().and_then(|(took, _)| took.as_ref().err());
    let failed =
        world.broadcast_string(world.is_root().then(|| failed.map_or(String::new(), ToString::to_string)));
    if !failed.is_empty() {
        if world.is_root() {
            error!("{failed}");
        }
        return Err(Exit(DIVERGED));
    }
    let rehearsed = rehearsed.map(|(took, state)| (took.expect("no rank has failed"), state));
    let bytes = rehearsed.as_ref().map_or(0, |(took, _)| took.reductions.iter().copied().max().unwrap_or(0));
    // Rank 0 knows how much is sent.
    let bytes = world.broadcast_string(world.is_root().then(|| bytes.to_string()));
    let bytes: usize = bytes.parse().expect("rank 0 sent a number");
    let measured = session.work(measure(world, bytes))?;
    if let Some((took, state)) = rehearsed {
        println!("{}", report(world, &plan, &took, &state, measured));
    }
    session.work(world.collective().barrier())
}

/// The link between the ranks that are there, if there are several.
fn measure(world: &World, bytes: usize) -> Result<Option<Link>, CommError> {
    if world.size == 1 {
        return Ok(None);
    }
    let timed = |numbers: i64| {
        let mut buffer = Tensor::zeros([numbers], (Kind::Float, world.device));
        let mut fastest = f64::INFINITY;
        for round in 0..=ROUNDS {
            let seconds = world.time_all_reduce(&mut buffer)?;
            if round > 0 {
                fastest = fastest.min(seconds);
            }
        }
        Ok::<f64, CommError>(fastest)
    };
    let seconds = (timed(1)?, timed((bytes / size_of::<f32>()) as i64)?);
    Ok(Some(Link::explain(world.size, seconds, bytes)))
}

fn report(world: &World, plan: &Plan, took: &Rehearsal, state: &State, measured: Option<Link>) -> Table {
    let file = &plan.file;
    let Rehearsal { ranks, computing, updating, reductions } = took;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_string(), value]);
    };
    let (shards, batch) = (file.compute.shards, file.train.batch);
    row(
        "job",
        format!(
            "{ranks} ranks, batch {batch} in {shards} shards: {} of {} rows a rank, {} reduction",
            shards / ranks,
            batch / shards,
            format!("{:?}", file.compute.reduction).to_lowercase()
        ),
    );
    row("rehearsed on", format!("{}, {} threads", device_name(world), world.threads));
    let memory = Memory::of(plan, state, *ranks);
    row(
        "memory a rank",
        format!("{} for weights, gradients, Adam, the average and sums", size(memory.lasting)),
    );
    if let (Device::Cpu, Some(peak)) = (world.device, peak_memory()) {
        // Here the gradients of all ranks were held at once.
        row("", format!("{} in all, by this process's peak", size(peak.saturating_sub(memory.others))));
    }
    let list = reductions.iter().map(|bytes| size(*bytes)).collect::<Vec<_>>().join(", ");
    row("all-reduces", format!("{} an iteration: {list}", reductions.len()));
    row("computing", format!("{} an iteration and rank", time(*computing)));
    row("updating", format!("{} an iteration, on every rank", time(*updating)));
    let links: Vec<(String, Link)> = match measured {
        Some(link) => vec![(
            format!(
                "the link of these {} ranks ({:.0} µs, {:.2} GB/s)",
                world.size,
                link.latency * 1e6,
                link.rate / 1e9
            ),
            link,
        )],
        None => ASSUMED.map(|(name, link)| (format!("assumed {name}"), link)).to_vec(),
    };
    for (name, link) in links {
        let (sending, iteration) = predict(took, file.compute.reduction, &link);
        let alone = *computing * *ranks as u32 + *updating;
        row(
            "iteration",
            format!(
                "{} predicted, {} of it in all-reduces over {name}: {:.1} times as fast as one rank",
                time(iteration),
                time(sending),
                alone.as_secs_f64() / iteration.as_secs_f64()
            ),
        );
        let total = iteration.mul_f64(file.train.iterations as f64);
        row(
            "",
            format!(
                "{} for {} iterations, without warm start, warm-up and evaluations",
                time(total),
                file.train.iterations
            ),
        );
    }
    if measured.is_none() {
        row("", "start it with mpirun on hosts of the job to measure their all-reduce".to_string());
    }
    table
}

/// Bytes of networks.
struct Memory {
    /// What a rank holds all the time, and while it adds up its gradients.
    lasting: usize,
    /// Gradients of other ranks that only a rehearsal holds.
    others: usize,
}

impl Memory {
    fn of(plan: &Plan, state: &State, ranks: usize) -> Self {
        let (sampler, score) = (state.sampler.count() as usize, state.score.count() as usize);
        // Weights, two moments and, of the sampler, the average.
        let always = 4 * sampler + 3 * score;
        // Gradients that are alive together.
        let gradients = match plan.file.train.schedule {
            Schedule::Alternating => sampler.max(score),
            Schedule::Simultaneous => sampler + score,
        };
        let (pieces, sums) = match plan.file.compute.reduction {
            Reduction::Fast => (1, 0),
            Reduction::Exact => (plan.file.compute.shards / ranks, gradients * size_of::<i64>()),
        };
        let float = size_of::<f32>();
        Memory {
            lasting: (always + pieces * gradients) * float + sums,
            others: (ranks - 1) * pieces * gradients * float,
        }
    }
}

/// Time in all-reduces, and of the whole iteration: one after the other, nothing overlaps.
fn predict(took: &Rehearsal, reduction: Reduction, link: &Link) -> (Duration, Duration) {
    let one = |bytes: &usize| {
        // An exact sum agrees on its units first, in a few numbers.
        let exponents = if reduction == Reduction::Exact { link.all_reduce(took.ranks, 0) } else { 0.0 };
        exponents + link.all_reduce(took.ranks, *bytes)
    };
    let sending = Duration::from_secs_f64(took.reductions.iter().map(one).sum());
    (sending, took.computing + took.updating + sending)
}

/// The most memory this process has held, in bytes, where the system says.
fn peak_memory() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_explains_what_it_was_fitted_to() {
        let link = Link { latency: 5e-6, rate: 2e9 };
        let found = Link::explain(4, (link.all_reduce(4, 0), link.all_reduce(4, 1 << 20)), 1 << 20);
        assert!((found.latency / link.latency - 1.0).abs() < 1e-9);
        assert!((found.rate / link.rate - 1.0).abs() < 1e-9);
        // Two ranks: each sends half and gets half, twice; one message each way, twice.
        assert!((link.all_reduce(2, 1000) - (2.0 * 5e-6 + 1000.0 / 2e9)).abs() < 1e-15);
    }

    #[test]
    fn prediction_adds_what_does_not_overlap() {
        let took = Rehearsal {
            ranks: 2,
            computing: Duration::from_millis(10),
            updating: Duration::from_millis(1),
            reductions: vec![1000, 1000],
        };
        let link = Link { latency: 1e-3, rate: 1e6 };
        // Each: 2 messages of 1 ms and 1,000 bytes at 1 MB/s; exact sums send 2 more messages each.
        assert_eq!(predict(&took, Reduction::Fast, &link).0, Duration::from_millis(6));
        assert_eq!(predict(&took, Reduction::Exact, &link).0, Duration::from_millis(10));
        assert_eq!(predict(&took, Reduction::Exact, &link).1, Duration::from_millis(21));
    }

    #[test]
    fn numbers_are_written_in_units_that_people_read() {
        assert_eq!([size(10), size(2048), size(3 << 20)], ["10 B", "2.0 KiB", "3.0 MiB"]);
        let times = [50, 50_000, 50_000_000, 600_000_000].map(|us| time(Duration::from_micros(us)));
        assert_eq!(times, ["50 µs", "50.0 ms", "50.0 s", "10 min"]);
    }
}
