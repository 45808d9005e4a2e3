//! `dft evaluate`: a trained sampler beside its own draws with Markov corrections and annealed Langevin on the same energy,
//! same count, same floor.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use tch::{Device, Tensor};
use tracing::{info, warn};

use super::arguments::{CorrectionKernel, Evaluate};
use super::corrections::{CorrectedDraws, CorrectionTarget, Corrections};
use super::metrics::{Inputs, Measure, OF_IMAGES, Scores, draw_samples};
use super::progress::Progress;
use super::sample::{Sampler, load_sampler};
use super::session::{Exit, Session};
use super::summary::{ComparisonRow, Score, Summary};
use crate::comm::World;
use crate::config::{EvaluateSection, SamplerSection, TrainFile, load};
use crate::mcmc::AnnealedLangevin;
use crate::metric::chunks_of_rank;
use crate::plot::labelled_grids;
use crate::record::{Cell, Column, RunFile};
use crate::rng::{Generator, Stream};
use crate::target::TargetAtLevel;

/// Samples of each row of the picture.
const PICTURED: i64 = 12;

/// Runs the command on this rank.
pub fn run(arguments: &Evaluate) -> Result<(), Exit> {
    let file = load::<TrainFile>(&arguments.run.join("config.toml"), &arguments.set);
    let (session, mut file) = Session::start(file, |file| &file.compute)?;
    let world = &session.world;
    if let Some(samples) = arguments.samples {
        file.evaluate.samples = samples;
    }
    if let Some(steps) = &arguments.langevin {
        file.evaluate.langevin_steps.clone_from(steps);
    }
    let plan = session.prepare(file.check(world.size))?;
    let section = &plan.file.evaluate;
    let (seed, compute) = (plan.file.run.seed, &plan.file.compute);
    let target = session.prepare(TargetAtLevel::load(&plan.file.target, seed, compute, world))?;
    let sampler = session.prepare(load_sampler(&arguments.run.join("sampler.safetensors"), world.device))?;
    let mut summary = session.prepare(Summary::read(&arguments.run.join("summary.json")))?;
    let target = CorrectionTarget::new(target, &plan.file.method);
    let inputs = Inputs::load(section, "evaluate.samples", target.at_level().target(), world.device)
        .and_then(|inputs| {
            inputs.context(
                "the run has evaluate.features = \"none\", so there is nothing to measure; set it with --set",
            )
        });
    let inputs = session.prepare(inputs)?;
    let measure = session.work(inputs.measure(world))?;

    // One row of the table after the other; each draws the same number of samples.
    let mut rows = vec![row("real images", 0, 0, 0.0, measure.floors())];
    let mut pictures = vec![("real".to_string(), measure.real(PICTURED))];
    let drawn = timed_score(&measure, world, |chunk, rows| {
        let Sampler { network, parameters, output_sigma, .. } = &sampler;
        draw_samples(network, parameters, arguments.seed, (chunk, rows), *output_sigma, world.device)
    });
    let (scores, seconds) = session.work(drawn)?;
    let name = format!("one step, {}", summary.method);
    rows.push(row(&name, 0, 1, seconds, scores.metrics));
    pictures.push((name, scores.shown));
    if !section.corrections.is_empty() {
        let made = Corrections::new(&target, CorrectionKernel::Mala, None, &sampler, (arguments.seed, world));
        let mut corrections = session.work(made)?;
        // On every rank the one of rank 0: hosts may round differently.
        let step_size = world.broadcast_string(Some(format!("{:e}", corrections.step_size)));
        corrections.step_size = session.work(step_size.parse())?;
        for &steps in &section.corrections {
            let (row, shown) = session.work(corrected_row(&corrections, steps, &measure, &sampler, world))?;
            pictures.push((format!("+ {} MALA", steps), shown));
            rows.push(row);
        }
    }
    let target = target.at_level();
    let chains = langevin_plans(section, &plan.file.sampler, target);
    if world.is_root() && chains.is_empty() && !section.langevin_steps.is_empty() {
        warn!("annealed Langevin needs a tempered target (target.tempered = true): its rows are left out");
    }
    for chain in chains {
        let (row, shown) =
            session.work(langevin_row(&chain, &measure, section, target, world, arguments.seed))?;
        pictures.push((format!("Langevin, {} steps", chain.steps), shown));
        rows.push(row);
    }

    if world.is_root() {
        println!("{}", table(&rows));
        summary.comparison = rows;
        summary.extractor = Some(measure.extractor());
        let written = write(&arguments.run, &summary, &pictures);
        session.work(written)?;
    }
    session.work(world.collective().barrier())
}

fn row(
    name: &str,
    target_evaluations: u64,
    network_evaluations: u64,
    seconds: f64,
    metrics: BTreeMap<String, Score>,
) -> ComparisonRow {
    ComparisonRow {
        sampler: name.to_string(),
        target_evaluations_per_sample: target_evaluations,
        network_evaluations_per_sample: network_evaluations,
        seconds,
        acceptance: None,
        metrics,
    }
}

/// What `work` returns, and the seconds that it takes, on a GPU until it is done.
pub fn timed<T>(world: &World, work: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let done = work();
    if let Device::Cuda(ordinal) = world.device {
        tch::Cuda::synchronize(ordinal as i64);
    }
    (done, began.elapsed().as_secs_f64())
}

/// Scores what `draw` returns, and the seconds that drawing alone took on the slowest rank.
pub fn timed_score(
    measure: &Measure,
    world: &World,
    mut draw: impl FnMut(u64, i64) -> Tensor,
) -> Result<(Scores, f64)> {
    let mut seconds = 0.0;
    let scores = measure.score("", world, |chunk, rows| {
        let (samples, took) = timed(world, || draw(chunk, rows));
        seconds += took;
        samples
    })?;
    let all = world.gather_strings(&format!("{seconds:e}"));
    let slowest = all.iter().filter_map(|text| text.parse().ok()).fold(0.0, f64::max);
    Ok((scores, slowest))
}

/// Draws of the sampler after `steps` MALA steps.
fn corrected_row(
    corrections: &Corrections,
    steps: u64,
    measure: &Measure,
    sampler: &Sampler,
    world: &World,
) -> Result<(ComparisonRow, Tensor)> {
    let mut draws = CorrectedDraws::new(corrections, sampler, steps, world.device);
    let (Scores { metrics, shown, .. }, seconds) =
        timed_score(measure, world, |chunk, rows| draws.after(chunk, rows))?;
    let spent = draws.finish()?.over(world);
    let name = format!("one step + {steps} MALA step{}", if steps == 1 { "" } else { "s" });
    let row = row(&name, spent.evaluations_per_sample(), 1, seconds, metrics);
    Ok((ComparisonRow { acceptance: spent.acceptance(), ..row }, shown))
}

fn langevin_plans(
    section: &EvaluateSection,
    sampler: &SamplerSection,
    target: &TargetAtLevel,
) -> Vec<AnnealedLangevin> {
    let Some(sigma0) = target.tempered_from() else { return vec![] };
    let [sigma_first, sigma_last] = section.langevin_sigma;
    let plan = |&steps: &u64| AnnealedLangevin {
        steps,
        sigma_first,
        sigma_last,
        sigma0,
        step_size: section.langevin_step_size,
        start_mean: sampler.initial_offset,
    };
    section.langevin_steps.iter().map(plan).collect()
}

fn langevin_row(
    chain: &AnnealedLangevin,
    measure: &Measure,
    section: &EvaluateSection,
    target: &TargetAtLevel,
    world: &World,
    seed: u64,
) -> Result<(ComparisonRow, Tensor)> {
    let name = format!("annealed Langevin, {} steps", chain.steps);
    let chunks = chunks_of_rank(section.samples as i64, world).count() as u64;
    let mut progress = Progress::new("Langevin", 0, chunks * chain.steps, world.is_root());
    let mut steps_before = 0;
    let (Scores { metrics, shown, .. }, seconds) = timed_score(measure, world, |chunk, rows| {
        let mut generator = Generator::new(seed, Stream::Chains, chain.steps, chunk);
        let samples = chain.run(target.target(), &mut generator, rows, world.device, &mut |done| {
            progress.set(steps_before + done, || format!("{} steps", chain.steps));
        });
        steps_before += chain.steps;
        samples
    })?;
    progress.finish();
    Ok((row(&name, chain.evaluations_per_sample(), 0, seconds, metrics), shown))
}

fn table(rows: &[ComparisonRow]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let first = &rows[0].metrics;
    let samples = first.values().next().map_or(0, |score| score.samples);
    let mut header = vec![
        "sampler".to_string(),
        "energy gradients a sample".to_string(),
        format!("seconds for {samples}"),
    ];
    let shown: Vec<&(&str, &str)> = OF_IMAGES.iter().filter(|(name, _)| first.contains_key(*name)).collect();
    header.extend(shown.iter().map(|(_, heading)| heading.to_string()));
    let has_acceptance = rows.iter().any(|row| row.acceptance.is_some());
    header.extend(has_acceptance.then(|| "acceptance".to_string()));
    table.set_header(header);
    for row in rows {
        let mut cells = vec![row.sampler.clone(), row.target_evaluations_per_sample.to_string()];
        cells.push(if row.seconds > 0.0 { format!("{:.2}", row.seconds) } else { "–".to_string() });
        let value = |name: &str| row.metrics.get(name).map_or("–".into(), |s| format!("{:.3}", s.value));
        cells.extend(shown.iter().map(|(name, _)| value(name)));
        if has_acceptance {
            cells.push(row.acceptance.map_or("–".into(), |rate| format!("{rate:.3}")));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn write(run: &Path, summary: &Summary, pictures: &[(String, Tensor)]) -> Result<()> {
    summary.write(&run.join("summary.json"))?;
    record_comparison(run, summary)?;
    let is_image = pictures.iter().all(|(_, samples)| samples.dim() == 4);
    if is_image {
        let rows: Vec<(String, Tensor)> = pictures
            .iter()
            .map(|(name, samples)| (name.clone(), samples.narrow(0, 0, samples.size()[0].min(PICTURED))))
            .collect();
        let path = run.join("figures").join("comparison.png");
        std::fs::create_dir_all(run.join("figures"))?;
        labelled_grids(&rows, &path)?;
        info!("picture in {}", path.display());
    }
    Ok(())
}

/// The table as `/comparison` of the run file, in place of an earlier one; its rows are numbered from the top
/// by `row`.
fn record_comparison(run: &Path, summary: &Summary) -> Result<()> {
    let mut record = RunFile::resume(run.join("run.h5"), summary.iterations as i64)?;
    record.remove("comparison")?;
    let names: Vec<&str> = summary.comparison.iter().map(|row| row.sampler.as_str()).collect();
    for (number, row) in summary.comparison.iter().enumerate() {
        let mut cells = vec![
            (Column::new("iteration", "1", "iterations of the sampler"), Cell::from(summary.iterations)),
            (
                Column::new("row", "1", "row of the table, from 0; named in the attribute `rows`"),
                Cell::from(number as u64),
            ),
            (
                Column::new(
                    "target_evaluations_per_sample",
                    "1",
                    "evaluations of the target's gradient for one sample",
                ),
                Cell::from(row.target_evaluations_per_sample),
            ),
            (Column::new("seconds", "s", "time to draw all samples on all ranks"), Cell::from(row.seconds)),
            (
                Column::new("acceptance", "1", "mean acceptance probability of Markov steps; NaN without"),
                Cell::from(row.acceptance.unwrap_or(f64::NAN)),
            ),
        ];
        for (name, score) in &row.metrics {
            let [value, floor] = [name.clone(), format!("{name}_floor")].map(|name| &*name.leak());
            cells.push((Column::new(value, "1", "score of the samples"), score.value.into()));
            cells.push((
                Column::new(floor, "1", "the same score of as many real samples"),
                score.floor.unwrap_or(f64::NAN).into(),
            ));
        }
        record.append("comparison", &cells)?;
    }
    record.set_attribute("comparison", "rows", names.join("; ").into())?;
    if let Some(extractor) = &summary.extractor {
        record.set_attribute("comparison", "extractor_sha256", extractor.sha256.as_str().into())?;
    }
    record.flush()
}
