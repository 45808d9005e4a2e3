//! What goes into the run file, and under which names, units and descriptions.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tch::Tensor;

use super::metrics::Measure;
use super::summary::Score;
use crate::comm::World;
use crate::config::TargetSection;
use crate::metric::Moments;
use crate::model::write_atomically;
use crate::record::{Attribute, Cell, Column, RunFile, recover, start_after};
use crate::target::LogisticProblem;
use crate::train::Row;

/// Attributes of `/` in a run file.
pub fn run_attributes(world: &World, config: &str) -> Vec<(&'static str, Attribute)> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    vec![
        ("format_version", Attribute::Integer(1)),
        ("config", config.into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("commit", env!("DFT_COMMIT").into()),
        ("libtorch_version", env!("DFT_BUILD_LIBTORCH").into()),
        ("hdf5_version", hdf5_version().into()),
        ("world_size", Attribute::Integer(world.size as i64)),
        ("backend", world.backend.into()),
        ("device", device_name(world).into()),
        ("started_at_unix_seconds", Attribute::Integer(started as i64)),
    ]
}

/// Writes `config` into the run directory `path`, and opens the record of a run that has done `iteration` iterations: a new
/// one, or that of the run that goes on, without the rows that came later.
///
/// # Errors
/// If the directory cannot be written, or the record neither read nor made good.
pub fn start_record(path: &Path, world: &World, config: &str, iteration: u64) -> Result<RunFile> {
    let config_file = path.join("config.toml");
    write_atomically(&config_file, config.as_bytes())
        .with_context(|| format!("cannot write {}", config_file.display()))?;
    let file = path.join("run.h5");
    let attributes = run_attributes(world, config);
    // A new run finds nothing here. Rows after the checkpoint of a resumed one are dropped and made again.
    match recover(&file, "train", iteration)? {
        Some(mut record) => {
            for (name, value) in attributes {
                record.set_attribute("/", name, value)?;
            }
            Ok(record)
        }
        None => start_after(&file, iteration, &attributes),
    }
}

fn hdf5_version() -> String {
    let (major, minor, patch) = hdf5::library_version();
    format!("{major}.{minor}.{patch}")
}

/// The features that the weights of a regression belong to, and how they were scaled, as JSON.
pub fn features_attribute(problem: &LogisticProblem) -> Result<Attribute> {
    Ok(Attribute::Text(serde_json::to_string(problem.features())?))
}

/// `cpu` or `cuda`.
pub fn device_name(world: &World) -> &'static str {
    if world.device.is_cuda() { "cuda" } else { "cpu" }
}

/// The target in a word.
pub fn target_name(target: &TargetSection) -> &'static str {
    match target {
        TargetSection::Gaussian { .. } => "gaussian",
        TargetSection::Mog2 { .. } => "mog2",
        TargetSection::Rosenbrock {} => "rosenbrock",
        TargetSection::Donut {} => "donut",
        TargetSection::Funnel {} => "funnel",
        TargetSection::Squiggle {} => "squiggle",
        TargetSection::Gmm40 {} => "gmm40",
        TargetSection::Ring { .. } => "ring",
        TargetSection::Mixture { .. } => "mixture",
        TargetSection::Logistic(_) => "logistic",
        TargetSection::Energy { .. } => "energy",
        TargetSection::Torchscript { .. } => "torchscript",
    }
}

/// One iteration, in `/train`.
pub fn record_iteration(record: &mut RunFile, row: &Row) -> Result<()> {
    let row = [
        (Column::new("iteration", "1", "iterations done"), row.iteration.into()),
        (
            Column::new("wall_seconds", "s", "seconds of training, earlier parts of a resumed run included"),
            row.wall_seconds.into(),
        ),
        (
            Column::new("score_loss", "1", "mean weighted denoising loss of the score network, last update"),
            row.score_loss.into(),
        ),
        (
            Column::new(
                "sampler_loss",
                "1",
                "mean denoising Fisher loss of the samples, weighted like the field",
            ),
            row.sampler_loss.into(),
        ),
        (
            Column::new(
                "score_gradient_norm",
                "1",
                "norm of the score network's gradient before clipping, last update",
            ),
            row.score_gradient_norm.into(),
        ),
        (
            Column::new("sampler_gradient_norm", "1", "norm of the sampler's gradient before clipping"),
            row.sampler_gradient_norm.into(),
        ),
        (
            Column::new("sigma", "units of the target", "geometric mean of the band of noise levels"),
            row.sigma.into(),
        ),
        (
            Column::new(
                "target_evaluations",
                "1",
                "evaluations of the target's gradient so far, over all ranks",
            ),
            row.target_evaluations.into(),
        ),
    ];
    record.append("train", &row)
}

/// Column names live as long as the program: there is a handful of metrics.
fn leaked(name: String) -> &'static str {
    Box::leak(name.into_boxed_str())
}

/// One evaluation, in `/evaluation`: every metric beside its floor.
pub fn record_evaluation(
    record: &mut RunFile,
    iteration: u64,
    metrics: &BTreeMap<String, Score>,
) -> Result<()> {
    let mut row = vec![(Column::new("iteration", "1", "iterations done"), Cell::from(iteration))];
    for (name, score) in metrics {
        let (value, floor) = (leaked(name.clone()), leaked(format!("{name}_floor")));
        row.push((Column::new(value, "1", "score of the averaged sampler"), score.value.into()));
        row.push((
            Column::new(
                floor,
                "1",
                "the same score of as many perfect samples; for moments and fractions the truth",
            ),
            score.floor.unwrap_or(f64::NAN).into(),
        ));
    }
    if let Some(score) = metrics.values().next() {
        row.push((Column::new("samples", "1", "number of samples"), score.samples.into()));
    }
    record.append("evaluation", &row)
}

/// The Fréchet distance of one evaluation with the statistics it comes from, in `/fid`.
pub fn record_moments(
    record: &mut RunFile,
    iteration: u64,
    measure: &Measure,
    metrics: &BTreeMap<String, Score>,
    moments: &Moments,
) -> Result<()> {
    let extractor = measure.reference().extractor();
    let Some(score) = metrics.get(extractor.metric()) else { return Ok(()) };
    record.append(
        "fid",
        &[
            (Column::new("iteration", "1", "iterations done"), Cell::from(iteration)),
            (
                Column::new("value", "1", "Fréchet distance of the features to the reference"),
                score.value.into(),
            ),
            (
                Column::new("floor", "1", "the same distance for as many real samples"),
                score.floor.unwrap_or(f64::NAN).into(),
            ),
        ],
    )?;
    let (name, sha256) = extractor.identity();
    record.set_attribute("fid", "extractor", name.into())?;
    record.set_attribute("fid", "extractor_sha256", sha256.into())?;
    record.set_attribute("fid", "samples", Attribute::Integer(score.samples as i64))?;
    let values = |tensor: &Tensor| Vec::<f64>::try_from(tensor.reshape([-1]));
    let features = moments.mean().size()[0] as usize;
    record.append_array(
        "fid",
        Column::new("mu", "1", "mean of the features"),
        &values(&moments.mean())?,
        &[features],
    )?;
    record.append_array(
        "fid",
        Column::new("sigma", "1", "covariance of the features"),
        &values(&moments.covariance())?,
        &[features, features],
    )
}
