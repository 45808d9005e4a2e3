//! `dft compare`: methods on targets with several seeds, each beside its floor and beside MCMC at equal cost.
//!
//! A run of one method on one target with one seed is a job, and one rank does it alone: ranks take the next job
//! that nobody has claimed. What a job found stays in its directory under a key of all that it depends on, so a
//! comparison that was interrupted, or whose configuration has changed in part, does only what is missing.

mod annealed;
mod bench;
mod chains;
mod corrected;
mod energy_report;
mod fitted;
mod image_report;
mod images;
mod job;
mod report;
mod results;
mod spread;
mod trained;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow, bail};
use tracing::{info, warn};

use super::arguments::Compare;
use super::progress::Progress;
use super::run_directory::RunDirectory;
use super::session::{Exit, STOPPED, Session};
use super::signals::watch_signals;
use crate::comm::World;
use crate::config::{CompareFile, ComparePlan, load};
use crate::model::write_atomically;
use crate::train::Stop;

use bench::Bench;
use job::Job;

/// Runs the command on this rank.
pub fn run(arguments: &Compare) -> Result<(), Exit> {
    let watched = watch_signals();
    let file = load::<CompareFile>(&arguments.config, &arguments.set);
    let (session, mut file) = Session::start_apart(file, |file| &file.compute)?;
    file.run.directory = arguments.run.clone().or(file.run.directory);
    let world = &session.world;
    let plan = session.prepare(file.check())?;
    // A job runs in a world of its own: this rank alone.
    let alone = World::solo(world.device);
    let targets = session.prepare(bench::load_targets(&plan, &alone))?;
    session.prepare(bench::try_networks(&plan, world))?;
    let stop = session.prepare(watched)?;
    let directory = plan.file.directory();
    // Held to the end: no second comparison in the same directory.
    let _lock = session.prepare_on_root(|| open(&directory, &plan))?;
    session.work(world.collective().barrier())?;

    let bench = Bench::new(&plan, &targets, &alone);
    let jobs = job::list(&plan);
    let referenced = session.work(make_references(&session, &bench, &jobs, &directory, &stop))?;
    let (trained, chains): (Vec<&Job>, Vec<&Job>) =
        jobs.iter().filter(|_| referenced).partition(|job| job.is_trained(&plan));
    // Chains get the budgets that training has spent, and corrections its draws, so they come second.
    for part in [trained, chains] {
        let done = work(&session, &bench, &directory, &part, &stop);
        session.work(done)?;
        if world.any(stop.load(Ordering::Relaxed)) {
            if world.is_root() {
                warn!("stopped by a signal; the same command goes on from there");
            }
            session.work(world.collective().barrier())?;
            return Err(Exit(STOPPED));
        }
    }
    if world.is_root() {
        session.work(report::write(&plan, &jobs, &directory))?;
    }
    session.work(world.collective().barrier())
}

/// Makes the directory, takes its lock, and forgets the claims of a command before.
fn open(directory: &Path, plan: &ComparePlan) -> Result<RunDirectory> {
    let config = directory.join("config.toml");
    let is_other = config.exists() && load::<CompareFile>(&config, &[]).is_err();
    if is_other || directory.join("run.h5").exists() {
        bail!(
            "{} holds something other than a comparison; choose another directory with --run",
            directory.display()
        );
    }
    let claims = directory.join("claims");
    fs::create_dir_all(&claims).with_context(|| format!("cannot make {}", claims.display()))?;
    let lock = RunDirectory::open(directory)?;
    for entry in fs::read_dir(&claims)? {
        fs::remove_file(entry?.path())?;
    }
    let text = toml::to_string(&plan.file).context("a configuration is a table of plain values")?;
    write_atomically(&config, text.as_bytes())?;
    Ok(lock)
}

/// Makes the reference draws of all posteriors, each by one rank; says whether it was not stopped.
fn make_references(
    session: &Session,
    bench: &Bench,
    jobs: &[Job],
    directory: &Path,
    stop: &Arc<Stop>,
) -> Result<bool> {
    let mut seen = BTreeSet::new();
    for job in jobs {
        let Some(path) = bench.reference_path(job).map_err(|error| anyhow!("{error:#}"))? else { continue };
        // Targets that differ in how they are computed share a reference.
        if !seen.insert(path.clone()) || path.exists() || stop.load(Ordering::Relaxed) {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if claim(directory, &format!("reference+{name}"))? {
            let target = &bench.plan.file.targets[job.target].name;
            info!("{target} · making the reference draws of seed {}", job.seed);
            bench.posterior(job).map_err(|error| anyhow!("{error:#}"))?;
        }
    }
    // Reference draws take long, and at a barrier ranks wait without keeping their cores busy.
    session.world.collective().barrier()?;
    Ok(!session.world.any(stop.load(Ordering::Relaxed)))
}

/// Claims a piece of work for this rank; another may have it.
fn claim(directory: &Path, name: &str) -> Result<bool> {
    let claim = directory.join("claims").join(name);
    match OpenOptions::new().write(true).create_new(true).open(&claim) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", claim.display())),
    }
}

/// Does jobs until none is left unclaimed.
fn work(session: &Session, bench: &Bench, directory: &Path, jobs: &[&Job], stop: &Arc<Stop>) -> Result<()> {
    let world = &session.world;
    let mut progress = Progress::new("compare", 0, jobs.len() as u64, world.is_root());
    // A signal may reach one rank only; its file tells the others.
    let stopped = directory.join("claims").join("stopped");
    for job in jobs {
        if stop.load(Ordering::Relaxed) || stopped.exists() {
            fs::write(&stopped, "")?;
            break;
        }
        if !claim(directory, &job.slug(bench.plan).replace('/', "+"))? {
            continue;
        }
        show_progress(&mut progress, bench, directory, jobs, || format!("{} begins", job.slug(bench.plan)));
        let home = directory.join(job.slug(bench.plan));
        // What fails here fails on this rank alone, whatever it means where all ranks train together.
        let rows = bench.run(job, &home, directory, stop).map_err(|error| anyhow!("{error:#}"))?;
        if let Some(rows) = rows {
            let mark = if rows.is_fresh() { MADE } else { FOUND };
            mark_job(directory, job, bench.plan, mark)?;
            for row in rows.iter().filter(|_| rows.is_fresh()) {
                info!("{}", row.line());
            }
        }
        show_progress(&mut progress, bench, directory, jobs, || job.slug(bench.plan));
    }
    progress.finish();
    Ok(session.world.collective().barrier()?)
}

/// Shows how many jobs all ranks together have done.
fn show_progress(
    progress: &mut Progress,
    bench: &Bench,
    directory: &Path,
    jobs: &[&Job],
    message: impl FnOnce() -> String,
) {
    let [made, found] = [MADE, FOUND].map(|mark| marked(directory, jobs, bench.plan, mark));
    progress.leave_out(found, made + found);
    progress.set(made + found, message);
}

/// Marks of jobs that are done: this command made the result, or found that of an earlier one.
const MADE: &str = "made";
const FOUND: &str = "found";

fn mark_of(directory: &Path, job: &Job, plan: &ComparePlan, mark: &str) -> PathBuf {
    directory.join("claims").join(format!("{}+{mark}", job.slug(plan).replace('/', "+")))
}

fn mark_job(directory: &Path, job: &Job, plan: &ComparePlan, mark: &str) -> Result<()> {
    let path = mark_of(directory, job, plan, mark);
    fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))
}

/// How many of the jobs have this mark.
fn marked(directory: &Path, jobs: &[&Job], plan: &ComparePlan, mark: &str) -> u64 {
    jobs.iter().filter(|job| mark_of(directory, job, plan, mark).exists()).count() as u64
}
