//! `dft sample`: draws from a trained sampler into a file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};
use tracing::info;

use super::arguments::Sample;
use super::metrics::draw_samples;
use super::progress::Progress;
use super::session::{Exit, Session};
use crate::metric::chunks;
use crate::model::{COORDINATES, Parameters, SamplerNetwork, SamplerSpec, WeightsFile};
use crate::record::write_samples_file;

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
    /// Mean `[D]` and factor L `[D, D]` in f64, where its samples are y with x = mean + L y.
    coordinates: Option<[Tensor; 2]>,
}

impl Sampler {
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
    Ok(Sampler { network, parameters, output_sigma: file.described("output_sigma")?, coordinates })
}

/// Runs the command on this rank; sampling is one pass, so one rank does it.
pub fn run(arguments: &Sample) -> Result<(), Exit> {
    let session = Session::start_on(arguments.device)?;
    let device = session.world.device;
    let prepared = session.prepare_on_root(|| -> Result<Sampler> {
        check_output(&arguments.output, arguments.force)?;
        load_sampler(&weights_path(&arguments.run), device)
    })?;
    let Some(sampler) = prepared else { return Ok(()) };
    let began = Instant::now();
    let samples = draw(arguments, &sampler, device);
    let seconds = began.elapsed().as_secs_f64();
    session.work(
        write_samples_file(&arguments.output, &samples, arguments.force)
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

fn draw(arguments: &Sample, sampler: &Sampler, device: Device) -> Tensor {
    let sigma = if arguments.clean { 0.0 } else { sampler.output_sigma };
    let mut progress = Progress::new("sample", 0, arguments.number, arguments.number > MANY);
    let mut done = 0;
    let parts: Vec<Tensor> = chunks(arguments.number as i64)
        .map(|at| {
            let x = draw_samples(&sampler.network, &sampler.parameters, arguments.seed, at, sigma, device);
            done += at.1 as u64;
            progress.set(done, String::new);
            sampler.to_original(&x).to_device(Device::Cpu)
        })
        .collect();
    progress.finish();
    Tensor::cat(&parts, 0)
}
