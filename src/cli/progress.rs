//! What a person sees while a command works: log lines, and a progress bar on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::arguments::LogFormat;

/// Time between log lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The same of a job of a comparison, of which every rank has one.
const JOB_LINE_EVERY: Duration = Duration::from_secs(30);

/// The format that this process logs in; set once, by [`start_log`].
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The bar on the terminal, known to the log so that its lines do not run into it.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Standard error, with the bar taken away for the moment of writing.
struct AboveTheBar;

impl Write for AboveTheBar {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Starts logging to standard error. `DFT_LOG` can ask for more than the default level, e.g. `DFT_LOG=debug`.
pub fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("DFT_LOG").unwrap_or_else(|_| EnvFilter::new("dft=info"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AboveTheBar).with_target(false);
    match FORMAT.get_or_init(|| format) {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.without_time().with_ansi(io::stderr().is_terminal()).init(),
    }
}

/// Progress of one long piece of work: a bar on a terminal, a line every few seconds elsewhere. What all ranks work at is
/// shown by one of them.
pub struct Progress {
    what: String,
    total: u64,
    display: Display,
    started: Instant,
    is_job: bool,
    last_line: Option<Instant>,
    first: u64,
}

enum Display {
    Silent,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// Starts at `done` of `total` steps. Of what all ranks work at, `is_shown` on one only.
    pub fn new(what: impl Into<String>, done: u64, total: u64, is_shown: bool) -> Self {
        let what = what.into();
        let is_for_people = FORMAT.get() == Some(&LogFormat::Text) && io::stderr().is_terminal();
        let display = match (is_shown, is_for_people) {
            (false, _) => Display::Silent,
            (true, false) => Display::Lines,
            (true, true) => {
                let style = ProgressStyle::with_template(
                    "{prefix} {wide_bar:.cyan/dim} {pos}/{len} · {per_sec} · {eta} left · {msg}",
                );
                let bar = BARS.add(ProgressBar::new(total)).with_prefix(what.clone()).with_position(done);
                if let Ok(style) = style {
                    bar.set_style(style.progress_chars("━━─"));
                }
                // Its rate forgets the time until now, and the steps that it has been told of.
                bar.set_position(done);
                bar.reset_eta();
                Display::Bar(bar)
            }
        };
        Progress {
            what,
            total,
            display,
            started: Instant::now(),
            is_job: false,
            last_line: None,
            first: done,
        }
    }

    /// Progress of one job of many, on the rank that does it: of one that takes less than half a minute there are no lines,
    /// and the last step, which the result follows, has none of its own.
    pub fn of_job(what: impl Into<String>, done: u64, total: u64) -> Self {
        let last_line = Some(Instant::now());
        Progress { is_job: true, last_line, ..Self::new(what, done, total, true) }
    }

    /// Shows that `done` steps are done; `message` is made only when it is shown.
    pub fn set(&mut self, done: u64, message: impl FnOnce() -> String) {
        match &self.display {
            Display::Silent => {}
            Display::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(message());
            }
            Display::Lines => {
                let now = Instant::now();
                let every = if self.is_job { JOB_LINE_EVERY } else { LINE_EVERY };
                let is_due = self.last_line.is_none_or(|last| now - last >= every);
                let is_last = done == self.total && !self.is_job;
                if is_due || is_last {
                    self.last_line = Some(now);
                    let seconds = (now - self.started).as_secs_f64();
                    let rate = done.saturating_sub(self.first) as f64 / seconds.max(1e-9);
                    // Nothing is known before the first step.
                    let rate = Some(rate).filter(|rate| *rate > 0.0);
                    self.line(done, rate, &message());
                }
            }
        }
    }

    /// Of `done` steps so many took no time, because an earlier command did them: they are no part of the rate.
    pub fn leave_out(&mut self, steps: u64, done: u64) {
        if steps > self.first {
            self.first = steps;
            if let Display::Bar(bar) = &self.display {
                bar.set_position(done);
                bar.reset_eta();
            }
        }
    }

    fn line(&self, done: u64, rate: Option<f64>, message: &str) {
        let (what, total) = (self.what.as_str(), self.total);
        let left = rate.map(|rate| (total - done) as f64 / rate);
        if FORMAT.get() == Some(&LogFormat::Json) {
            info!(task = what, done, total, per_second = rate, seconds_left = left, "{message}");
        } else {
            let width = total.to_string().len();
            let speed =
                rate.zip(left).map(|(rate, left)| format!("{rate:.3} a second · {left:.0} s left · "));
            info!("{what} {done:>width$}/{total} · {}{message}", speed.unwrap_or_default());
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.finish_and_clear();
        }
    }
}
