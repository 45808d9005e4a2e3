//! Signals that ask long work to stop where it can go on later.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::session::FAILURE;
use crate::train::Stop;

/// Signals of one kind that come within this time are one request.
const SAME_SIGNAL: Duration = Duration::from_secs(5);

/// SIGTERM and SIGUSR1 ask for a checkpoint and an end; SIGINT, from a person, as well.
///
/// # Errors
/// If the system lets no one watch.
pub fn watch_signals() -> Result<Arc<Stop>> {
    let stop = Arc::new(Stop::new(false));
    // A file that outgrows `ulimit -f` shall be an error of the write, like a full disk, and not the end of the process.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot watch for signals")?;
    let mut signals = Signals::new([SIGTERM, SIGUSR1, SIGINT]).context("cannot watch for signals")?;
    let asked = Arc::clone(&stop);
    let watch = move || {
        let mut seen = HashMap::new();
        for signal in signals.forever() {
            asked.store(true, Ordering::Relaxed);
            // A second one of the same kind ends the process; but a scheduler that signals every process of a job, and a
            // launcher that hands on what it got itself, mean one and the same.
            let first: &Instant = seen.entry(signal).or_insert_with(Instant::now);
            if first.elapsed() > SAME_SIGNAL && emulate_default_handler(signal).is_err() {
                std::process::exit(i32::from(FAILURE));
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn(watch)
        .context("cannot start the thread that watches for signals")?;
    Ok(stop)
}
