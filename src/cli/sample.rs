//! `dft sample`: draws from a trained sampler into a file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};
use tracing::{info, warn};

use super::arguments::{CorrectionKernel, Sample};
use super::corrections::{CorrectionTarget, Corrections, Spent};
use super::metrics::{chunks_of_a_pass, draw_together};
use super::progress::Progress;
use super::session::{Exit, Session};
use crate::comm::World;
use crate::mcmc::McmcError;
use crate::metric::chunks;
use crate::model::{COORDINATES, Parameters, SamplerNetwork, SamplerSpec, WeightsFile};
use crate::record::{Attribute, write_described_samples};

/// Samples from which on drawing takes long enough for a progress bar.
const MANY: u64 = 10_000;

/// A trained sampler.
pub struct Sampler {
    /// The network.
    pub network: SamplerNetwork,
    /// Its averaged weights.
    pub parameters: Parameters,
    /// Noise that makes its samples exact; 0 if x0 itself is the sample.
    pub output_sigma: f64,
    /// Iterations that it was trained for.
    pub iteration: u64,
    /// Mean `[D]` and factor L `[D, D]` in f64, where its samples are y with x = mean + L y.
    coordinates: Option<[Tensor; 2]>,
}

impl Sampler {
    /// Mean `[D]` and factor L `[D, D]` of the coordinates that it was trained in, where those are not the user's.
    pub fn coordinates(&self) -> Option<&[Tensor; 2]> {
        self.coordinates.as_ref()
    }

    /// Samples `[B, …]` in the coordinates that a user knows.
    pub fn to_original(&self, x: &Tensor) -> Tensor {
        match &self.coordinates {
            Some([mean, factor]) => x.to_kind(Kind::Double).matmul(&factor.transpose(0, 1)) + mean,
            None => x.shallow_clone(),
        }
    }
}

/// Reads a sampler that `dft train` wrote.
///
/// # Errors
/// If its weights are missing, damaged, or not those of a sampler.
pub fn load_sampler(path: &Path, device: Device) -> Result<Sampler> {
    let file = WeightsFile::load(path)?;
    let spec: SamplerSpec = file.described("sampler")?;
    let network = SamplerNetwork::new(&spec).map_err(anyhow::Error::msg)?;
    let parameters = Parameters::from_file(network.layout(), &file, device)?;
    let coordinates = if file.names().any(|name| name == COORDINATES[0]) {
        let d: i64 = spec.shape.iter().product();
        let [mean, factor] = COORDINATES;
        let [mean, factor] = [file.tensor(mean, &[d])?, file.tensor(factor, &[d, d])?];
        Some([mean, factor].map(|t| t.to_device(device)))
    } else {
        None
    };
    Ok(Sampler {
        network,
        parameters,
        output_sigma: file.described("output_sigma")?,
        iteration: file.described("iteration")?,
        coordinates,
    })
}

/// Runs the command on this rank; sampling is one pass, so one rank does it.
pub fn run(arguments: &Sample) -> Result<(), Exit> {
    let session = Session::start_on(arguments.device)?;
    // The rank that draws works alone, also on targets whose data a training run spreads over ranks.
    let alone = World::solo(session.world.device);
    let prepared = session.prepare_on_root(|| -> Result<_> {
        check_output(&arguments.output, arguments.force)?;
        let weights = weights_path(&arguments.run);
        let sampler = load_sampler(&weights, alone.device)?;
        let steps = arguments.correct.unwrap_or(0);
        let directory = weights.parent().unwrap_or(Path::new(""));
        let target = (steps > 0).then(|| CorrectionTarget::load(directory, &sampler, &alone)).transpose()?;
        Ok((sampler, target))
    })?;
    let Some((sampler, target)) = prepared else { return Ok(()) };
    let tuned = target.as_ref().map(|target| {
        let Sample { correct_kernel, correct_step, seed, .. } = *arguments;
        Corrections::new(target, correct_kernel, correct_step, &sampler, (seed, &alone))
    });
    let corrections = session.work(tuned.transpose())?;
    let began = Instant::now();
    let (samples, spent) = session.work(draw(arguments, &sampler, corrections.as_ref(), &alone))?;
    let seconds = began.elapsed().as_secs_f64();
    let attributes = match &corrections {
        Some(corrections) => described(arguments, corrections, &spent, seconds),
        None => vec![],
    };
    session.work(
        write_described_samples(&arguments.output, &samples, &attributes, arguments.force)
            .with_context(|| format!("cannot write samples to {}", arguments.output.display())),
    )?;
    info!(
        "{} samples {:?} in {}, drawn in {seconds:.2} s",
        arguments.number,
        &samples.size()[1..],
        arguments.output.display()
    );
    Ok(())
}

/// Logs what corrections took, and gives it as attributes of the samples.
fn described(
    arguments: &Sample,
    corrections: &Corrections,
    spent: &Spent,
    seconds: f64,
) -> Vec<(&'static str, Attribute)> {
    let steps = arguments.correct.unwrap_or(0);
    let kernel = match arguments.correct_kernel {
        CorrectionKernel::Mala => "mala",
        CorrectionKernel::Ula => "ula",
    };
    let accepted = spent.acceptance().map_or(String::new(), |rate| {
        format!(", acceptance {rate:.3}, {:.1} % of the chains moved", 100.0 * spent.moved())
    });
    info!(
        "corrected by {steps} {kernel} steps of size {:.3e}{accepted}, {} evaluations of the target a sample; \
         {} to adapt the step size, in {:.2} s",
        corrections.step_size,
        spent.evaluations_per_sample(),
        corrections.tuning_evaluations,
        corrections.tuning_seconds
    );
    if spent.divergences() > 0 {
        warn!(
            "{} {} in all chains; a smaller --correct-step makes fewer",
            spent.divergences(),
            match arguments.correct_kernel {
                CorrectionKernel::Mala => "proposals were rejected for an error above 1000 in log-density",
                CorrectionKernel::Ula => "times a chain left for infinity and was put back to its start",
            }
        );
    }
    let mut attributes: Vec<(&'static str, Attribute)> = vec![
        ("correction_steps", steps.into()),
        ("correction_kernel", kernel.into()),
        ("correction_step_size", corrections.step_size.into()),
        ("correction_seed", arguments.seed.into()),
        ("correction_evaluations_per_sample", spent.evaluations_per_sample().into()),
        ("correction_tuning_evaluations", corrections.tuning_evaluations.into()),
        ("correction_moved_fraction", spent.moved().into()),
        ("correction_divergences", spent.divergences().into()),
        ("correction_tuning_seconds", corrections.tuning_seconds.into()),
        ("seconds_of_drawing", seconds.into()),
    ];
    attributes.extend(spent.acceptance().map(|rate| ("correction_acceptance", rate.into())));
    attributes
}

fn weights_path(run: &Path) -> PathBuf {
    if run.is_dir() { run.join("sampler.safetensors") } else { run.to_path_buf() }
}

fn check_output(path: &Path, force: bool) -> Result<()> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("h5" | "npy") => {}
        _ => bail!("--output {} should end in .h5 or .npy", path.display()),
    }
    if path.exists() && !force {
        bail!("{} exists; add --force to overwrite it", path.display());
    }
    Ok(())
}

fn draw(
    arguments: &Sample,
    sampler: &Sampler,
    corrections: Option<&Corrections>,
    world: &World,
) -> Result<(Tensor, Spent), McmcError> {
    let sigma = if arguments.clean { 0.0 } else { sampler.output_sigma };
    let steps = arguments.correct.unwrap_or(0);
    let is_long = arguments.number.saturating_mul(1 + steps) > MANY;
    let mut progress = Progress::new("sample", 0, arguments.number, is_long);
    let (mut parts, mut spent, mut done) = (vec![], Spent::default(), 0);
    let all: Vec<(u64, i64)> = chunks(arguments.number as i64).collect();
    // Chains belong to a chunk, as their noise does.
    let at_once = if corrections.is_some() { 1 } else { chunks_of_a_pass(&sampler.network) };
    for pass in all.chunks(at_once) {
        let (network, parameters) = (&sampler.network, &sampler.parameters);
        let mut x = draw_together(network, parameters, arguments.seed, pass, sigma, world.device);
        if let (Some(corrections), [(chunk, _)]) = (corrections, pass) {
            let corrected = corrections.apply(&x, steps, *chunk)?;
            spent.add(&corrected);
            x = corrected.samples;
        }
        done += pass.iter().map(|(_, rows)| *rows as u64).sum::<u64>();
        progress.set(done, String::new);
        parts.push(sampler.to_original(&x).to_device(Device::Cpu));
    }
    progress.finish();
    Ok((Tensor::cat(&parts, 0), spent))
}
