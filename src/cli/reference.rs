//! Reference draws of a posterior: long chains, run until they agree, and kept in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use tracing::warn;

use super::arguments::Reference;
use super::progress::Progress;
use super::run_record::features_attribute;
use super::session::{Exit, Session};
use crate::config::{
    ComputeSection, HmcSettings, LogisticSection, McmcSection, TargetSection, TrainFile, load,
};
use crate::data::{Dataset, file_sha256};
use crate::mcmc::{McmcRun, Surrogate};
use crate::metric::diagnose;
use crate::record::{Attribute, RunFile, RunReader};
use crate::rng::{Generator, Stream};
use crate::target::LogisticProblem;

/// Chains, all moved at once.
const CHAINS: i64 = 64;
/// Steps in which the step size is found, and as many again that nothing is taken from.
const ADAPTATION: u64 = 150;
/// Draws of each chain between two looks at their diagnostics.
const BLOCK: usize = 150;
/// Blocks after which chains that do not agree are handed out with a warning.
const MOST_BLOCKS: usize = 8;
/// Leapfrog steps of a trajectory: about a quarter of a turn at the step size that posteriors with near separated
/// columns allow.
const LEAPFROG: u64 = 32;
/// R-hat that chains have to be below (Vehtari et al. 2021).
const WANTED_R_HAT: f64 = 1.01;
/// Effective draws of every coordinate that are wanted.
const WANTED_ESS: f64 = 4000.0;
/// Seed of the chains: they belong to the posterior, not to a run.
const SEED: u64 = 0;
/// Changes when something above does.
const VERSION: &str = "surrogate-hmc-1";

/// Reference draws and how they came about.
pub struct ReferenceDraws {
    /// (w, log alpha) `[chains · draws, D]`, f64.
    pub draws: Tensor,
    /// The worst R-hat of a coordinate.
    pub r_hat: f64,
    /// The least effective number of draws of a coordinate.
    pub ess: f64,
    /// Seconds that the chains took.
    pub seconds: f64,
    /// Evaluations that they took, in gradients over all rows; a log-density counts as half of one.
    pub evaluations: f64,
    /// Where they are kept.
    pub path: PathBuf,
}

/// The reference draws of a posterior from the directory `home`, made and kept there if they are not.
///
/// Hamiltonian Monte Carlo on the surrogate, accepted by the exact density, from draws of the Laplace approximation
/// twice as wide; 64 chains go on until R-hat is below 1.01 and 4,000 draws are effective for every coordinate.
///
/// # Errors
/// If the data or the file cannot be read, the file not be written, or the chains cannot run.
pub fn reference(
    section: &LogisticSection,
    split: u64,
    problem: &LogisticProblem,
    home: &Path,
    is_shown: bool,
) -> Result<ReferenceDraws> {
    let (posterior, path) = place(section, split, home)?;
    if let Some(found) = read(&path)? {
        return Ok(found);
    }
    let made = sample(problem, &path, is_shown)?;
    write(&made, &posterior, problem)?;
    if made.summary.r_hat >= WANTED_R_HAT || made.summary.ess < WANTED_ESS {
        warn_of(&made.summary);
    }
    Ok(made.summary)
}

/// The reference draws of a posterior, if they are in `home`.
///
/// # Errors
/// If the data cannot be read.
pub fn find(section: &LogisticSection, split: u64, home: &Path) -> Result<Option<ReferenceDraws>> {
    read(&place(section, split, home)?.1)
}

/// A posterior with its split, and where its draws are kept.
///
/// # Errors
/// If its data cannot be read.
pub fn place(section: &LogisticSection, split: u64, home: &Path) -> Result<(LogisticSection, PathBuf)> {
    let posterior = LogisticSection { split: Some(section.split.unwrap_or(split)), ..section.posterior() };
    let path = home.join(format!("{}.h5", &key(&posterior)?[..16]));
    Ok((posterior, path))
}

/// What the draws depend on: the posterior, the content of its data, and how chains are run.
fn key(posterior: &LogisticSection) -> Result<String> {
    let mut digest = Sha256::new();
    // Where the data lie does not matter, what they are does.
    let described = LogisticSection { data: PathBuf::new(), ..posterior.clone() };
    digest.update(serde_json::to_string(&described).context("a section is plain data")?);
    digest.update(VERSION);
    match posterior.csv() {
        None => digest.update(Dataset::Covertype.files()[0].sha256),
        Some(path) => {
            digest.update(file_sha256(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
    }
    Ok(format!("{:x}", digest.finalize()))
}

/// Runs `dft reference`.
pub fn run(arguments: &Reference) -> Result<(), Exit> {
    let file = load::<TrainFile>(&arguments.config, &arguments.set);
    let (session, file) = Session::start(file, |file| &file.compute)?;
    let world = &session.world;
    let plan = session.prepare(file.check(1))?;
    let TargetSection::Logistic(section) = &plan.file.target else {
        return session
            .prepare(Err("a reference is for target.kind = \"logistic\"; other targets have exact samples"));
    };
    session.prepare(match world.size {
        1 => Ok(()),
        size => Err(format!(
            "{size} ranks, and one is wanted: its threads have all cores; start it without a launcher"
        )),
    })?;
    let seed = plan.file.run.seed;
    // On one rank, so nothing is gained by exact sums.
    let compute = ComputeSection::default();
    let problem = session.prepare(LogisticProblem::load(section, seed, &compute, world))?;
    let found = session.work(reference(section, seed, &problem, &plan.file.evaluate.references, true))?;
    println!(
        "{}: {} draws, R-hat {:.4}, {:.0} effective; they took {:.0} s and {:.0} evaluations over all rows",
        found.path.display(),
        found.draws.size()[0],
        found.r_hat,
        found.ess,
        found.seconds,
        found.evaluations
    );
    Ok(())
}

/// Chains as they ended.
struct Made {
    summary: ReferenceDraws,
    /// `[chains, draws, D]`.
    chains: Tensor,
    acceptance: f64,
    step_size: f64,
}

fn sample(problem: &LogisticProblem, path: &Path, is_shown: bool) -> Result<Made> {
    let began = Instant::now();
    let (exact, cheap) = (problem.exact()?, problem.surrogate()?);
    let target = Surrogate::new(&exact, &cheap);
    let dimension = problem.laplace().mode.size()[0];
    let device = problem.laplace().mode.device();
    let mut starts = Generator::new(SEED, Stream::Chains, 0, 0);
    let start = starts.normal(&[CHAINS, dimension]).to_device(device) * 2.0;
    let section = McmcSection::Hmc(HmcSettings {
        step_size: 0.05,
        leapfrog: LEAPFROG,
        jitter: 0.3,
        adaptation_steps: ADAPTATION,
        target_acceptance: 0.8,
    });
    let mut chains = McmcRun::new(&section, &target, &start, Generator::new(SEED, Stream::Chains, 1, 0))?;
    let each = CHAINS as u64 * LEAPFROG;
    let most = 2 * ADAPTATION + (BLOCK * MOST_BLOCKS) as u64;
    let mut progress = Progress::new("reference", 0, most, is_shown);
    let mut step = |chains: &mut McmcRun| -> Result<Tensor> {
        chains.run_until(Some(chains.evaluations() + each), None, &mut |_, _| {})?;
        let acceptance = chains.acceptance().unwrap_or(0.0);
        progress.set(chains.steps(), || {
            format!("step size {:.4} · acceptance {acceptance:.2}", chains.step_size())
        });
        Ok(problem.to_original(&chains.positions()))
    };
    for _ in 0..2 * ADAPTATION {
        drop(step(&mut chains)?);
    }
    let mut draws: Vec<Tensor> = Vec::new();
    let (mut r_hat, mut ess) = (f64::INFINITY, 0.0);
    for _ in 0..MOST_BLOCKS {
        for _ in 0..BLOCK {
            draws.push(step(&mut chains)?);
        }
        let found = diagnose(&Tensor::stack(&draws, 1));
        (r_hat, ess) = (found.worst_r_hat(), found.least_ess_bulk().min(found.least_ess_tail()));
        if r_hat < WANTED_R_HAT && ess >= WANTED_ESS {
            break;
        }
    }
    progress.finish();
    let seconds = began.elapsed().as_secs_f64();
    let steps = chains.steps() as f64;
    let surrogate = chains.evaluations() as f64 * problem.surrogate_cost();
    let chains_of_draws = Tensor::stack(&draws, 1);
    Ok(Made {
        acceptance: chains.acceptance().unwrap_or(f64::NAN),
        step_size: chains.step_size(),
        summary: ReferenceDraws {
            draws: chains_of_draws.flatten(0, 1),
            r_hat,
            ess,
            seconds,
            evaluations: surrogate + 0.5 * CHAINS as f64 * steps,
            path: path.to_path_buf(),
        },
        chains: chains_of_draws,
    })
}

fn write(made: &Made, posterior: &LogisticSection, problem: &LogisticProblem) -> Result<()> {
    let ReferenceDraws { path, r_hat, ess, seconds, evaluations, .. } = &made.summary;
    let home = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
    let described = serde_json::to_string(posterior).context("a section is plain data")?;
    let attributes: [(&str, Attribute); 10] = [
        ("format_version", Attribute::Integer(1)),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("commit", env!("DFT_COMMIT").into()),
        ("posterior", described.as_str().into()),
        ("chains", VERSION.into()),
        ("r_hat", Attribute::Float(*r_hat)),
        ("effective_draws", Attribute::Float(*ess)),
        ("seconds", Attribute::Float(*seconds)),
        ("evaluations", Attribute::Float(*evaluations)),
        ("acceptance", Attribute::Float(made.acceptance)),
    ];
    // Under another name first: a reader never meets half a file.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let mut file = RunFile::create(&partial, &attributes)?;
    file.set_attribute("/", "step_size", Attribute::Float(made.step_size))?;
    file.set_attribute("/", "features", features_attribute(problem)?)?;
    file.write_posterior(&made.chains)?;
    file.flush()?;
    drop(file);
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Draws that are kept in a file, if it is there.
fn read(path: &Path) -> Result<Option<ReferenceDraws>> {
    if !path.exists() {
        return Ok(None);
    }
    let found = read_draws(path).with_context(|| {
        format!("{} holds no reference draws; remove it to make them again", path.display())
    })?;
    if found.r_hat >= WANTED_R_HAT || found.ess < WANTED_ESS {
        warn_of(&found);
    }
    Ok(Some(found))
}

fn warn_of(found: &ReferenceDraws) {
    warn!(
        "the reference draws in {} have R-hat {:.3} and {:.0} effective draws, where {WANTED_R_HAT} and {WANTED_ESS} \
         were wanted: errors measured against them include their own",
        found.path.display(),
        found.r_hat,
        found.ess
    );
}

fn read_draws(path: &Path) -> Result<ReferenceDraws> {
    let file = RunReader::open(path)?;
    let attributes = file.attributes()?;
    let number = |name: &str| match attributes.get(name) {
        Some(Attribute::Float(value)) => Ok(*value),
        found => anyhow::bail!("{} of {} is {found:?}", name, path.display()),
    };
    Ok(ReferenceDraws {
        draws: file.array("posterior/x")?.to_kind(Kind::Double).flatten(0, 1),
        r_hat: number("r_hat")?,
        ess: number("effective_draws")?,
        seconds: number("seconds")?,
        evaluations: number("evaluations")?,
        path: path.to_path_buf(),
    })
}
