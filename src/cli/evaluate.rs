//! `dft evaluate`: a trained sampler beside its own draws with Markov corrections and annealed Langevin on the same energy,
//! same count, same floor.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use tch::{Device, Tensor};
use tracing::{info, warn};

use super::arguments::{CorrectionKernel, Evaluate};
use super::corrections::{CorrectedDraws, CorrectionTarget, Corrections};
use super::energies::{DrawnEnergies, EnergyGauge, METRIC as ENERGY_W1, energy_score};
use super::metrics::{FRESH_CHUNKS, Inputs, Measure, OF_IMAGES, Scores, draw_samples};
use super::progress::Progress;
use super::run_directory::BEST_SAMPLER;
use super::sample::{Sampler, load_sampler};
use super::session::{Exit, Session};
use super::summary::{ComparisonRow, Summary};
use crate::comm::World;
use crate::config::{AnnealedSchedule, EvaluateSection, SamplerSection, TrainFile, load};
use crate::mcmc::AnnealedLangevin;
use crate::metric::chunks_of_rank;
use crate::plot::{energy_histograms, labelled_grids};
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
    let sampler = session.prepare(trained(arguments, world))?;
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
    let chains = langevin_plans(section, &plan.file.sampler, target.at_level());
    // Energies are compared with those of chains.
    let gauge = EnergyGauge::new(target.at_level()).filter(|_| !chains.is_empty());
    let yardstick = (&measure, gauge.as_ref(), world);
    let mut table = Comparison::new(&measure, gauge.as_ref(), world);
    let first_chunk = if arguments.best { FRESH_CHUNKS } else { 0 };
    let drawn = draw_and_score(yardstick, |chunk, rows| {
        let Sampler { network, parameters, output_sigma, .. } = &sampler;
        let chunk = (first_chunk + chunk, rows);
        draw_samples(network, parameters, arguments.seed, chunk, *output_sigma, world.device)
    });
    let drawn = session.work(drawn)?;
    let name = format!("one step, {}{}", summary.method, if arguments.best { ", best look" } else { "" });
    table.add(&name, row(&name, (0, 1), &drawn), drawn);
    if !section.corrections.is_empty() {
        let made = Corrections::new(&target, CorrectionKernel::Mala, None, &sampler, (arguments.seed, world));
        let mut corrections = session.work(made)?;
        // On every rank the one of rank 0: hosts may round differently.
        let step_size = world.broadcast_string(Some(format!("{:e}", corrections.step_size)));
        corrections.step_size = session.work(step_size.parse())?;
        for &steps in &section.corrections {
            let (row, drawn) =
                session.work(corrected_row(&corrections, steps, yardstick, (&sampler, first_chunk)))?;
            table.add(&format!("+ {steps} MALA"), row, drawn);
        }
    }
    let target = target.at_level();
    if world.is_root() && chains.is_empty() && !section.langevin_steps.is_empty() {
        warn!("annealed Langevin needs a tempered target (target.tempered = true): its rows are left out");
    }
    for chain in chains {
        let drawn = langevin_row(&chain, yardstick, section, target, arguments.seed);
        let (row, drawn) = session.work(drawn)?;
        table.add(&format!("Langevin, {} steps", chain.steps), row, drawn);
    }

    if world.is_root() {
        let has_chains = table.score_energies();
        println!("{}", printed(&table.rows));
        summary.comparison = std::mem::take(&mut table.rows);
        summary.extractor = Some(measure.extractor());
        let written = write(&arguments.run, &summary, sampler.iteration, &table, has_chains);
        session.work(written)?;
    }
    session.work(world.collective().barrier())
}

/// The run's last sampler, or its best.
fn trained(arguments: &Evaluate, world: &World) -> Result<Sampler> {
    let file = |name| load_sampler(&arguments.run.join(name), world.device);
    if !arguments.best {
        return file("sampler.safetensors");
    }
    file(BEST_SAMPLER).context(
        "--best wants the weights that a run with evaluate.every keeps where it measures Fréchet distances; leave it out for the last ones",
    )
}

/// The table as it grows, with what is drawn of its rows.
struct Comparison {
    rows: Vec<ComparisonRow>,
    /// Name and some samples of each row.
    pictures: Vec<(String, Tensor)>,
    /// Energies of each row's samples, if the target is tempered.
    energies: Vec<(String, Vec<f64>)>,
}

impl Comparison {
    /// With the row of the real images.
    fn new(measure: &Measure, gauge: Option<&EnergyGauge>, world: &World) -> Self {
        let real = ComparisonRow {
            sampler: "real images".into(),
            target_evaluations_per_sample: 0,
            network_evaluations_per_sample: 0,
            seconds: 0.0,
            acceptance: None,
            metrics: measure.floors(),
        };
        let energies = gauge.map(|gauge| gauge.of(&measure.real(measure.samples()), world.device));
        Comparison {
            rows: vec![real],
            pictures: vec![("real".to_string(), measure.real(PICTURED))],
            energies: energies.iter().map(|energies| ("real".to_string(), numbers(energies))).collect(),
        }
    }

    /// `name` is the short one of figures.
    fn add(&mut self, name: &str, row: ComparisonRow, drawn: Drawn) {
        self.rows.push(row);
        self.pictures.push((name.to_string(), drawn.scores.shown));
        self.energies.extend(drawn.energies.map(|energies| (name.to_string(), numbers(&energies))));
    }

    /// Scores the energies of all rows against those of the longest chain, which is not scored against itself; says whether
    /// there is such a chain.
    fn score_energies(&mut self) -> bool {
        let chains = self.rows.iter().enumerate().filter(|(_, row)| row.network_evaluations_per_sample == 0);
        let longest =
            chains.max_by_key(|(_, row)| row.target_evaluations_per_sample).map(|(number, _)| number);
        let Some(longest) = longest.filter(|&number| number > 0 && number < self.energies.len()) else {
            return false;
        };
        let (real, chains) = (&self.energies[0].1, &self.energies[longest].1);
        for (number, (row, (_, energies))) in self.rows.iter_mut().zip(&self.energies).enumerate() {
            let score = energy_score(energies, real, chains).filter(|_| number != longest);
            row.metrics.extend(score.map(|score| (ENERGY_W1.to_string(), score)));
        }
        true
    }
}

/// Of a tensor `[rows]`.
fn numbers(energies: &Tensor) -> Vec<f64> {
    Vec::try_from(energies).expect("energies are f64 on the CPU")
}

/// A row of the table: evaluations of the target and of the sampler's network for one sample, and what was drawn.
fn row(name: &str, (of_target, of_network): (u64, u64), drawn: &Drawn) -> ComparisonRow {
    ComparisonRow {
        sampler: name.to_string(),
        target_evaluations_per_sample: of_target,
        network_evaluations_per_sample: of_network,
        seconds: drawn.seconds,
        acceptance: None,
        metrics: drawn.scores.metrics.clone(),
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

/// Samples that were drawn and scored.
pub struct Drawn {
    /// Their scores.
    pub scores: Scores,
    /// Seconds that drawing alone took, on the slowest rank.
    pub seconds: f64,
    /// Their energies `[rows]`, f64 on the CPU of every rank, if the target is tempered.
    pub energies: Option<Tensor>,
}

/// What samples are scored with, and where.
pub type Yardstick<'a> = (&'a Measure, Option<&'a EnergyGauge<'a>>, &'a World);

/// Draws with `draw`(chunk, rows) and scores what it returns.
///
/// # Errors
/// If a collective fails, or samples are not finite.
pub fn draw_and_score(
    (measure, gauge, world): Yardstick,
    mut draw: impl FnMut(u64, i64) -> Tensor,
) -> Result<Drawn> {
    let (mut seconds, mut energies) = (0.0, DrawnEnergies::default());
    let scores = measure.score("", world, |chunk, rows| {
        let (samples, took) = timed(world, || draw(chunk, rows));
        seconds += took;
        if let Some(gauge) = gauge {
            energies.read(gauge, chunk, &samples);
        }
        samples
    })?;
    let energies = gauge.map(|_| energies.gathered(measure.samples(), world)).transpose()?;
    let all = world.gather_strings(&format!("{seconds:e}"));
    let slowest = all.iter().filter_map(|text| text.parse().ok()).fold(0.0, f64::max);
    Ok(Drawn { scores, seconds: slowest, energies })
}

/// Draws of the sampler, from a chunk on, after `steps` MALA steps.
fn corrected_row(
    corrections: &Corrections,
    steps: u64,
    yardstick: Yardstick,
    (sampler, first_chunk): (&Sampler, u64),
) -> Result<(ComparisonRow, Drawn)> {
    let (.., world) = yardstick;
    let mut draws = CorrectedDraws::new(corrections, sampler, steps, world.device);
    let drawn = draw_and_score(yardstick, |chunk, rows| draws.after(first_chunk + chunk, rows))?;
    let spent = draws.finish()?.over(world);
    let name = format!("one step + {steps} MALA step{}", if steps == 1 { "" } else { "s" });
    let row = row(&name, (spent.evaluations_per_sample(), 1), &drawn);
    Ok((ComparisonRow { acceptance: spent.acceptance(), ..row }, drawn))
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
        schedule: AnnealedSchedule::Geometric,
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
    yardstick: Yardstick,
    section: &EvaluateSection,
    target: &TargetAtLevel,
    seed: u64,
) -> Result<(ComparisonRow, Drawn)> {
    let (.., world) = yardstick;
    let name = format!("annealed Langevin, {} steps", chain.steps);
    let chunks = chunks_of_rank(section.samples as i64, world).count() as u64;
    let mut progress = Progress::new("Langevin", 0, chunks * chain.steps, world.is_root());
    let mut steps_before = 0;
    let drawn = draw_and_score(yardstick, |chunk, rows| {
        let mut generator = Generator::new(seed, Stream::Chains, chain.steps, chunk);
        let samples = chain.run(target.target(), &mut generator, rows, world.device, &mut |done| {
            progress.set(steps_before + done, || format!("{} steps", chain.steps));
        });
        steps_before += chain.steps;
        samples
    })?;
    progress.finish();
    Ok((row(&name, (chain.evaluations_per_sample(), 0), &drawn), drawn))
}

fn printed(rows: &[ComparisonRow]) -> Table {
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

fn write(run: &Path, summary: &Summary, iteration: u64, table: &Comparison, has_chains: bool) -> Result<()> {
    summary.write(&run.join("summary.json"))?;
    record_comparison(run, summary, iteration)?;
    let figures = run.join("figures");
    std::fs::create_dir_all(&figures).with_context(|| format!("cannot make {}", figures.display()))?;
    if has_chains {
        let path = figures.join("energies.png");
        energy_histograms("energies of samples", &table.energies, &path)?;
        info!("histogram of energies in {}", path.display());
    }
    let pictures = &table.pictures;
    let is_image = pictures.iter().all(|(_, samples)| samples.dim() == 4);
    if is_image {
        let rows: Vec<(String, Tensor)> = pictures
            .iter()
            .map(|(name, samples)| (name.clone(), samples.narrow(0, 0, samples.size()[0].min(PICTURED))))
            .collect();
        let path = figures.join("comparison.png");
        labelled_grids(&rows, &path)?;
        info!("picture in {}", path.display());
    }
    Ok(())
}

/// The table as `/comparison` of the run file, in place of an earlier one; its rows are numbered from the top
/// by `row`; `iteration` is that of the sampler.
fn record_comparison(run: &Path, summary: &Summary, iteration: u64) -> Result<()> {
    let mut record = RunFile::resume(run.join("run.h5"), summary.iterations as i64)?;
    record.remove("comparison")?;
    let names: Vec<&str> = summary.comparison.iter().map(|row| row.sampler.as_str()).collect();
    // Not every row has every score.
    let metrics: BTreeSet<&String> = summary.comparison.iter().flat_map(|row| row.metrics.keys()).collect();
    let columns: Vec<(&String, [&'static str; 2])> = metrics
        .into_iter()
        .map(|name| (name, [name.clone(), format!("{name}_floor")].map(|name| &*name.leak())))
        .collect();
    for (number, row) in summary.comparison.iter().enumerate() {
        let mut cells = vec![
            (Column::new("iteration", "1", "iterations of the sampler"), Cell::from(iteration)),
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
        for (name, [of_value, of_floor]) in &columns {
            let score = row.metrics.get(*name);
            let value = score.map_or(f64::NAN, |score| score.value);
            let floor = score.and_then(|score| score.floor).unwrap_or(f64::NAN);
            cells.push((Column::new(of_value, "1", "score of the samples; NaN without"), value.into()));
            cells.push((Column::new(of_floor, "1", "the same score of as many real samples"), floor.into()));
        }
        record.append("comparison", &cells)?;
    }
    record.set_attribute("comparison", "rows", names.join("; ").into())?;
    if let Some(extractor) = &summary.extractor {
        record.set_attribute("comparison", "extractor_sha256", extractor.sha256.as_str().into())?;
    }
    record.flush()
}
