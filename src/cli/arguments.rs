//! What can be written after `dft`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::DeviceRequest;
use crate::data::Dataset;

/// One-step samplers of unnormalised densities by Denoising Fisher Training.
///
/// Give it an energy, get a network that draws a sample in one forward pass. Several ranks share the work
/// when started by an MPI launcher: mpirun -n 4 dft train CONFIG.
#[derive(Debug, Parser)]
#[command(
    name = "dft",
    version,
    after_help = "A first run:\n  dft data mnist\n  mpirun -n 2 dft train configs/mnist.toml\n  mpirun -n 2 dft evaluate \
                  runs/mnist\n\nExit codes: 0 done · 1 failure · 2 wrong usage or configuration, before any work · 3 \
                  training diverged · 75 stopped by SIGTERM, SIGINT or SIGUSR1 after writing a checkpoint (through Open MPI's \
                  mpirun send SIGUSR1: it follows up SIGTERM with SIGKILL)"
)]
pub struct Arguments {
    /// How log lines are written to standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a one-step sampler of the target that a configuration names.
    Train(Train),
    /// Fit an energy-based model to images by multi-scale denoising score matching.
    ///
    /// Stopped by a signal it exits with 75, and goes on with --resume.
    FitEnergy(Fit),
    /// Fit the small classifier whose features FD-LeNet is measured on.
    ///
    /// Stopped by a signal it exits with 75, and goes on with --resume.
    FitFeatures(Fit),
    /// Draw samples from a trained sampler into a file.
    Sample(Sample),
    /// Score a trained sampler beside annealed Langevin on the same energy.
    Evaluate(Evaluate),
    /// Draw reference samples of a posterior: long chains, run until they agree.
    ///
    /// They are kept in a file that the posterior names, for `dft train` and `dft compare` to measure against, and open
    /// in ArviZ. A posterior that has its reference already is not sampled again.
    Reference(Reference),
    /// Compare methods on targets: trained samplers and Markov chains at equal cost, each beside its floor.
    ///
    /// Ranks share the runs among them. The command can be stopped and given again: it does what is missing, and
    /// what has changed in the configuration. Writes results.json, results.md and figures/samples.png.
    ///
    /// Images of an energy are compared by their Fréchet distance: one-step samplers, annealed chains of several lengths, and
    /// draws moved on by Markov steps, with the evaluations that one sample costs. See configs/benchmarks/mnist.toml;
    /// figures/evaluations-TARGET.png and figures/grids-TARGET.png come besides.
    Compare(Compare),
    /// Draw the figures of a run.
    Plot(Plot),
    /// Show ranks, devices, threads and library versions, and check an all-reduce.
    Doctor(Doctor),
    /// Bring a data set to data/ and verify it.
    Data(Data),
}

/// `dft train`.
#[derive(Debug, Args)]
pub struct Train {
    /// Configuration, e.g. configs/quick.toml.
    pub config: PathBuf,
    /// Run directory [default: run.directory, or runs/<run.name>].
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Continue the run in the run directory from its newest checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// Train nothing: do an iteration of a job of this many ranks in one process, and say what it would take.
    ///
    /// Checks that batch and shards divide, and prints memory a rank, bytes of each all-reduce and the predicted time. The
    /// model: ranks compute side by side, then wait for each other's all-reduce, of 2 log2(n) messages with 2 (n - 1)/n of the
    /// bytes. Under mpirun the link between its ranks is measured; otherwise two usual ones are assumed.
    #[arg(long, value_name = "RANKS", conflicts_with_all = ["run", "resume"], value_parser = clap::value_parser!(u32).range(1..))]
    pub rehearse: Option<u32>,
    /// Set a key of the configuration, e.g. --set train.iterations=200. Can be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `dft fit-energy` and `dft fit-features`.
#[derive(Debug, Args)]
pub struct Fit {
    /// Configuration, e.g. configs/mnist-energy.toml.
    pub config: PathBuf,
    /// Overwrite the weights that are there.
    #[arg(long)]
    pub force: bool,
    /// Where the weights go [default: weights.safetensors in the run directory].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Run directory [default: run.directory, or runs/<run.name>].
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Continue the fit in the run directory from its newest checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// Set a key of the configuration, e.g. --set train.iterations=200. Can be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `dft sample`.
#[derive(Debug, Args)]
pub struct Sample {
    /// A run directory, or a sampler.safetensors.
    pub run: PathBuf,
    /// Number of samples.
    #[arg(short = 'n', long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    pub number: u64,
    /// File to write: .h5 (opens in ArviZ) or .npy.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Seed of the latents.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Leave out the noise sigma·eps that makes samples of a run at a single noise level exact.
    #[arg(long)]
    pub clean: bool,
    /// Move each sample on by this many Markov steps on the run's own target.
    ///
    /// The target is rebuilt from the run's config.toml. Samples of a tempered energy are clean: they get noise sigma0, the lowest
    /// level that the energy models, step there, and are denoised by one more gradient, as annealed Langevin ends. Those of any
    /// other target step from where they are, posteriors over all rows and in the coordinates they were trained in.
    #[arg(long, value_name = "STEPS", conflicts_with = "clean", value_parser = clap::value_parser!(u64).range(..1 << 20))]
    pub correct: Option<u64>,
    /// Kernel of these steps.
    #[arg(long, value_enum, requires = "correct", default_value_t = CorrectionKernel::Mala)]
    pub correct_kernel: CorrectionKernel,
    /// Step size h of x + h·s(x) + sqrt(2h)·n [default: mala: adapted to an acceptance of 0.574 by 100 steps of 100 other
    /// chains; ula: half of sigma², sigma0 of a tempered energy or else the lowest noise level at the end of training].
    ///
    /// With mala, a sample where the density is steep may reject every step of a size that suits the others; what is printed says
    /// how many moved.
    #[arg(long, value_name = "SIZE", requires = "correct", allow_negative_numbers = true, value_parser = step_size)]
    pub correct_step: Option<f64>,
    /// Overwrite the file.
    #[arg(long)]
    pub force: bool,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceRequest::Auto)]
    pub device: DeviceRequest,
}

/// How a Markov step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CorrectionKernel {
    /// Metropolis-adjusted Langevin: proposals are accepted or rejected, so the target's density is kept.
    Mala,
    /// Unadjusted Langevin: every proposal is taken, at the price of an error that grows with the step size.
    Ula,
}

fn step_size(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(size) if size > 0.0 && size.is_finite() => Ok(size),
        _ => Err("wanted a number above 0".to_string()),
    }
}

/// `dft reference`.
#[derive(Debug, Args)]
pub struct Reference {
    /// Configuration of `dft train` with target.kind = "logistic", e.g. configs/covertype.toml.
    pub config: PathBuf,
    /// Set a key of the configuration, e.g. --set target.split=3. Can be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `dft evaluate`.
#[derive(Debug, Args)]
pub struct Evaluate {
    /// Run directory of a trained sampler.
    pub run: PathBuf,
    /// Evaluate sampler-best.safetensors, the weights of the evaluation with the least Fréchet distance along the run, on other
    /// draws than those that chose it, and not the last ones.
    #[arg(long)]
    pub best: bool,
    /// Samples of every row of the table [default: evaluate.samples of the run].
    #[arg(long)]
    pub samples: Option<usize>,
    /// Numbers of annealed Langevin steps [default: evaluate.langevin_steps of the run].
    #[arg(long, value_delimiter = ',', value_name = "STEPS,...")]
    pub langevin: Option<Vec<u64>>,
    /// Seed of latents and chains.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Set a key of the run's configuration, e.g. --set evaluate.langevin_step_size=0.3. Can be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `dft compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Configuration, e.g. configs/benchmarks/planar.toml.
    pub config: PathBuf,
    /// Directory of the comparison [default: run.directory, or runs/<run.name>].
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Set a key of the configuration, e.g. --set run.seeds=[0]. Can be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `dft plot`.
#[derive(Debug, Args)]
pub struct Plot {
    /// Run directory.
    pub run: PathBuf,
}

/// `dft doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Device to check.
    #[arg(long, value_enum, default_value_t = DeviceRequest::Auto)]
    pub device: DeviceRequest,
    /// Threads of a rank [default: cores over local ranks].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Let several ranks of one host share a GPU.
    #[arg(long)]
    pub share_gpus: bool,
}

/// `dft data`.
#[derive(Debug, Args)]
pub struct Data {
    /// Which data set.
    #[arg(value_enum)]
    pub dataset: Dataset,
    /// Where it goes [default: data/<dataset>].
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}
