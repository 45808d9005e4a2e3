//! The comparison as people read it: a table, `results.json`, `results.md` and a figure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use tch::{Device, Kind, Tensor};
use tracing::info;

use super::bench::samples_file;
use super::job::Job;
use super::results::{ResultRow, Rows};
use crate::cli::summary::command_line;
use crate::config::{ComparePlan, Statistic, TargetSection};
use crate::metric::CalibrationBin;
use crate::model::write_atomically;
use crate::plot::{DensityPanel, DensityRow, calibration, density_panels};
use crate::rng::{Generator, Stream};
use crate::target::load_exact;

/// Metrics of the table, as columns, where any row has them.
const SHOWN: [(&str, &str); 11] = [
    ("ksd", "KSD"),
    ("sliced_w2", "sliced W2"),
    ("w2", "W2"),
    ("mmd", "MMD"),
    ("mode_error", "mode error"),
    ("modes_hit", "modes hit"),
    ("mean_error_rms", "mean error"),
    ("deviation_error_max", "deviation error"),
    ("accuracy", "accuracy"),
    ("accuracy_best", "best accuracy"),
    ("log_predictive", "log predictive"),
];

/// Calibration curves in a figure, those of the first methods.
const MOST_CURVES: usize = 6;

/// Exact samples of the figure: their purpose, as the iteration of their stream.
const FIGURE: u64 = 5;

/// Rows of one target, method and setting, one for each seed.
struct Group<'r> {
    rows: Vec<&'r ResultRow>,
    statistic: Statistic,
}

/// What a table says of the values of several seeds.
struct Spread {
    /// The median, or the mean.
    middle: f64,
    /// In brackets or after ±: nothing where all values are one.
    around: Option<Around>,
}

impl Spread {
    /// As a table has it for a metric.
    fn shown(&self, metric: &str) -> String {
        let show = |value| shown(metric, value);
        match &self.around {
            Some(Around::Range(least, greatest)) => {
                format!("{} [{}, {}]", show(self.middle), show(*least), show(*greatest))
            }
            Some(Around::Error(error)) => format!("{} ± {}", show(self.middle), show(*error)),
            None => show(self.middle),
        }
    }
}

enum Around {
    /// Least and greatest.
    Range(f64, f64),
    /// Standard error of the mean.
    Error(f64),
}

impl Group<'_> {
    fn spread(&self, value: impl Fn(&ResultRow) -> Option<f64>) -> Option<Spread> {
        let mut values: Vec<f64> = self.rows.iter().filter_map(|row| value(row)).collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let n = values.len() as f64;
        Some(match self.statistic {
            Statistic::Median => Spread {
                middle: (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0,
                around: (least != greatest).then_some(Around::Range(least, greatest)),
            },
            Statistic::Mean => {
                let mean = values.iter().sum::<f64>() / n;
                let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                let error = (squares / (n - 1.0) / n).sqrt();
                Spread { middle: mean, around: (least != greatest).then_some(Around::Error(error)) }
            }
        })
    }

    fn metric(&self, name: &str) -> Option<Spread> {
        self.spread(|row| row.metrics.get(name).map(|score| score.value))
    }

    /// One value for targets in closed form; for posteriors every seed has a split, and a floor, of its own.
    fn floor(&self, name: &str) -> Option<Spread> {
        self.spread(|row| row.metrics.get(name)?.floor)
    }

    /// Sets that the scores are means over.
    fn sets(&self) -> usize {
        self.rows.iter().map(|row| row.sets).max().unwrap_or(0)
    }

    fn failures(&self) -> usize {
        self.rows.iter().filter(|row| row.failure.is_some()).count()
    }

    /// Sorting key: samples that exist before those that do not, then the distance that sees most.
    fn rank(&self) -> (bool, f64) {
        let distance = self.metric("sliced_w2").or_else(|| self.metric("ksd"));
        (distance.is_none(), distance.map_or(f64::INFINITY, |spread| spread.middle))
    }

    fn name(&self) -> (&str, &str) {
        (&self.rows[0].method, &self.rows[0].setting)
    }
}

/// Collects the rows of all jobs and writes everything; rank 0 only.
///
/// # Errors
/// If a job's rows cannot be read, or a file cannot be written.
pub fn write(plan: &ComparePlan, jobs: &[Job], directory: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for job in jobs {
        rows.extend(Rows::any(&directory.join(job.slug(plan)))?);
    }
    let json = serde_json::to_string_pretty(&rows).context("rows are plain data")?;
    save(&directory.join("results.json"), &json)?;
    let tables = tables(plan, &rows);
    for (target, table, _) in &tables {
        println!("\n{target}\n{table}");
    }
    save(&directory.join("results.md"), &markdown(plan, &rows, &tables)?)?;
    draw_calibration(plan, &rows, directory)?;
    let figure = directory.join("figures").join("samples.png");
    if draw(plan, &rows, directory, &figure)? {
        info!("results in {} and the figure in {}", directory.display(), figure.display());
    } else {
        info!("results in {}", directory.display());
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn groups<'r>(plan: &ComparePlan, target: &str, rows: &'r [ResultRow]) -> Vec<Group<'r>> {
    let statistic = plan.file.run.statistic;
    let mut by_name: BTreeMap<(&str, &str), Vec<&ResultRow>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.target == target) {
        by_name.entry((&row.method, &row.setting)).or_default().push(row);
    }
    let mut groups: Vec<Group> = by_name.into_values().map(|rows| Group { rows, statistic }).collect();
    groups.sort_by(|a, b| a.rank().partial_cmp(&b.rank()).unwrap_or(std::cmp::Ordering::Equal));
    groups
}

/// Name of each target with its table, for the terminal and as lines of cells.
fn tables(plan: &ComparePlan, rows: &[ResultRow]) -> Vec<(String, Table, Vec<Vec<String>>)> {
    let mut tables = Vec::new();
    for target in &plan.file.targets {
        let groups = groups(plan, &target.name, rows);
        let metrics: Vec<&(&str, &str)> = SHOWN
            .iter()
            .filter(|(name, _)| groups.iter().any(|group| group.metric(name).is_some()))
            .collect();
        let mut header: Vec<String> =
            ["method", "setting", "evaluations", "seconds"].map(String::from).to_vec();
        header.extend(metrics.iter().map(|(_, label)| label.to_string()));
        let mut lines = vec![header];
        let mut floors = vec!["exact samples".to_string(), "floor".into(), "–".into(), "–".into()];
        for (name, _) in &metrics {
            // Of scores over the most sets, as the floor of one set is another draw of the same, and of most seeds.
            let most = groups
                .iter()
                .filter(|group| group.floor(name).is_some())
                .max_by_key(|group| (group.sets(), group.rows.len() - group.failures()));
            let floor = most.and_then(|group| group.floor(name));
            floors.push(floor.map_or("–".into(), |floor| floor.shown(name)));
        }
        lines.push(floors);
        lines.extend(groups.iter().map(|group| line(group, &metrics, plan.file.score.sets)));
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(&lines[0]);
        for line in &lines[1..] {
            table.add_row(line);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        tables.push((target.name.clone(), table, lines));
    }
    tables
}

fn line(group: &Group, metrics: &[&(&str, &str)], wanted_sets: usize) -> Vec<String> {
    let (method, setting) = group.name();
    let setting = match group.sets() {
        sets if sets == wanted_sets || sets == 0 => setting.to_string(),
        1 => format!("{setting}, one set"),
        sets => format!("{setting}, {sets} sets"),
    };
    let evaluations = group.spread(|row| Some(row.target_evaluations as f64));
    let seconds = group.spread(|row| Some(row.seconds));
    let mut cells = vec![method.to_string(), setting];
    cells.push(evaluations.map_or("–".into(), |spread| count(spread.middle)));
    cells.push(seconds.map_or("–".into(), |spread| format!("{:.1}", spread.middle)));
    for (name, _) in metrics {
        let failed = match group.failures() {
            0 => String::new(),
            n => format!(" ({n} of {} failed)", group.rows.len()),
        };
        cells.push(match (group.metric(name), group.failures()) {
            (None, 0) => "–".into(),
            (None, n) => format!("{n} of {} failed", group.rows.len()),
            (Some(spread), _) => format!("{}{failed}", spread.shown(name)),
        });
    }
    cells
}

/// A number of evaluations.
fn count(value: f64) -> String {
    if value >= 1e5 { format!("{:.2} M", value / 1e6) } else { format!("{value:.0}") }
}

/// A value of a metric: in percent for accuracies, with four decimals for log predictive densities, whose differences
/// are small.
fn shown(metric: &str, value: f64) -> String {
    match metric {
        "accuracy" | "accuracy_best" => format!("{:.2} %", 100.0 * value),
        "log_predictive" => format!("{value:.4}"),
        _ => number(value),
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{value:.1e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The different values of all rows.
fn distinct(rows: &[ResultRow], value: impl Fn(&ResultRow) -> String) -> String {
    let values: BTreeSet<String> = rows.iter().map(value).collect();
    values.into_iter().collect::<Vec<_>>().join(", ")
}

fn markdown(
    plan: &ComparePlan,
    rows: &[ResultRow],
    tables: &[(String, Table, Vec<Vec<String>>)],
) -> Result<String> {
    let file = &plan.file;
    let seeds: Vec<String> = file.run.seeds.iter().map(u64::to_string).collect();
    let mut text = String::new();
    writeln!(text, "# {}\n", file.run.name)?;
    writeln!(text, "`{}`\n", command_line())?;
    writeln!(
        text,
        "dft {}, libtorch {}; runs made at commit {} on {}, with {} threads each. Seeds {}; their {}. Scores are means over {} sets of {} samples where the setting says nothing else; the \
         first line of each table is what exact samples score. Chains get the evaluations and the seconds that `{}` was \
         trained with, seed by seed; what it takes to choose among several step sizes comes on top (`tuning_evaluations` \
         in results.json).",
        env!("CARGO_PKG_VERSION"),
        env!("DFT_BUILD_LIBTORCH"),
        distinct(rows, |row| row.commit.clone()),
        distinct(rows, |row| row.device.clone()),
        distinct(rows, |row| row.threads.to_string()),
        seeds.join(", "),
        match file.run.statistic {
            Statistic::Median => "median, and in brackets the least and the greatest",
            Statistic::Mean => "mean ± its standard error",
        },
        file.score.sets,
        file.score.samples,
        file.run.budget_of
    )?;
    if file.targets.iter().any(|target| target.best_of.is_some()) {
        writeln!(
            text,
            "\n**best accuracy** is the best of several looks at the test rows along the way, as in much of the literature: \
             it is chosen on the rows it is measured on. Everything else is of the last iterate."
        )?;
    }
    for (target, _, lines) in tables {
        writeln!(text, "\n## {target}\n")?;
        for (number, line) in lines.iter().enumerate() {
            writeln!(text, "| {} |", line.join(" | "))?;
            if number == 0 {
                let right = line.iter().enumerate().map(|(i, _)| if i < 2 { "---" } else { "---:" });
                writeln!(text, "| {} |", right.collect::<Vec<_>>().join(" | "))?;
            }
        }
    }
    Ok(text)
}

/// What each method predicts on the test rows against what is there, with the first seed, for every posterior.
fn draw_calibration(plan: &ComparePlan, rows: &[ResultRow], directory: &Path) -> Result<()> {
    let file = &plan.file;
    for target in &file.targets {
        let mut curves: Vec<(String, Vec<CalibrationBin>)> = Vec::new();
        for row in rows.iter().filter(|row| row.target == target.name && row.seed == file.run.seeds[0]) {
            let is_new = !curves.iter().any(|(name, _)| *name == row.method);
            if let (Some(bins), true) = (&row.calibration, is_new && curves.len() < MOST_CURVES) {
                curves.push((row.method.clone(), bins.iter().map(Into::into).collect()));
            }
        }
        if !curves.is_empty() {
            let path = directory.join("figures").join(format!("calibration-{}.png", target.name));
            fs::create_dir_all(path.parent().context("a figure has a directory")?)?;
            let curves: Vec<(String, &[CalibrationBin])> =
                curves.iter().map(|(name, bins)| (name.clone(), bins.as_slice())).collect();
            calibration(&curves, &path)?;
        }
    }
    Ok(())
}

/// Samples of the first seed over the contours of each target in the plane: exact ones, then each method; chains at
/// the first of their budgets. Says whether there is such a target.
fn draw(plan: &ComparePlan, rows: &[ResultRow], directory: &Path, path: &Path) -> Result<bool> {
    let file = &plan.file;
    let seed = file.run.seeds[0];
    let mut shown = Vec::new();
    for (number, recipe) in plan.recipes.iter().enumerate() {
        // Contours are computed on the host, wherever the runs were.
        if let TargetSection::Logistic(_) = recipe.file.target {
            continue;
        }
        let target = load_exact(&recipe.file.target, Kind::Double, Device::Cpu)?;
        if target.shape() == [2] {
            let mut generator = Generator::new(0, Stream::Exact, FIGURE, 0);
            let exact = target.exact_samples(&mut generator, file.score.samples as i64);
            shown.push((number, target, exact));
        }
    }
    if shown.is_empty() {
        return Ok(false);
    }
    let panel = |target: usize, method: usize| -> Option<DensityPanel> {
        let (target, method) = (&file.targets[target], &file.methods[method]);
        let setting = if method.mcmc.is_some() { method.budgets()[0].setting() } else { "trained" };
        let found = rows.iter().find(|row| {
            row.target == target.name
                && row.method == method.name
                && row.setting == setting
                && row.seed == seed
        })?;
        let home = directory.join(&target.name).join(&method.name).join(format!("seed-{seed}"));
        let samples = Tensor::read_npy(home.join(samples_file(setting))).ok();
        Some(match samples.filter(|_| found.failure.is_none()) {
            Some(samples) => DensityPanel { samples, caption: caption(found) },
            None => DensityPanel {
                samples: Tensor::zeros([0, 2], (Kind::Float, Device::Cpu)),
                caption: "failed".into(),
            },
        })
    };
    let mut contours = Vec::new();
    for (number, target, exact) in &shown {
        let any =
            || (0..file.methods.len()).find_map(|method| panel(*number, method)).map(|panel| panel.samples);
        let samples = exact.as_ref().map(Tensor::shallow_clone).or_else(any);
        let (center, half) = match samples.filter(|samples| samples.size()[0] > 0) {
            Some(samples) => square(&samples),
            None => ((0.0, 0.0), 5.0),
        };
        let label = &file.targets[*number].name;
        contours.push(DensityRow::new(label, center, half, |x| target.log_density(x))?);
    }
    let has_exact = shown.iter().any(|(.., exact)| exact.is_some());
    let mut columns: Vec<String> = if has_exact { vec!["exact".into()] } else { vec![] };
    columns.extend(file.methods.iter().map(|method| method.name.clone()));
    fs::create_dir_all(path.parent().context("a figure has a directory")?)?;
    density_panels(path, &file.run.name, &contours, &columns, |row, column| {
        let (number, _, exact) = &shown[row];
        match (has_exact, column) {
            (true, 0) => {
                Some(DensityPanel { samples: exact.as_ref()?.shallow_clone(), caption: String::new() })
            }
            _ => panel(*number, column - usize::from(has_exact)),
        }
    })?;
    Ok(true)
}

/// The setting of chains, and the two distances as multiples of their floors.
fn caption(row: &ResultRow) -> String {
    let ratio = |name: &str, label: &str| {
        let score = row.metrics.get(name)?;
        Some(match score.floor {
            Some(floor) => format!("{label} {} × floor", number(score.value / floor)),
            None => format!("{label} {}", number(score.value)),
        })
    };
    let setting = (row.setting != "trained").then(|| row.setting.clone());
    let lines = [ratio("ksd", "KSD"), ratio("sliced_w2", "SW2"), setting];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// Centre and half side of the square of a target: 99 % of the samples in each coordinate; of one with a heavy tail
/// no more than three times what 80 % of them take, nor two and a half times the other, so that the tail does not
/// shrink the rest to a line.
fn square(samples: &Tensor) -> ((f64, f64), f64) {
    let span = |coordinate: i64| {
        let values = samples.select(1, coordinate).to_kind(Kind::Double);
        let at = |q: f64| values.quantile_scalar(q, None::<i64>, false, "linear").double_value(&[]);
        let (low, high) = (at(0.1), at(0.9));
        let most = 3.0 * (high - low);
        let (first, last) = (at(0.005), at(0.995));
        if last - first <= most {
            ((first + last) / 2.0, (last - first) / 2.0, false)
        } else {
            ((low + high) / 2.0, most / 2.0, true)
        }
    };
    let ((x, half_x, is_x_heavy), (y, half_y, is_y_heavy)) = (span(0), span(1));
    let limited = |half: f64, other: f64, is_heavy: bool| if is_heavy { half.min(2.5 * other) } else { half };
    let half = limited(half_x, half_y, is_x_heavy).max(limited(half_y, half_x, is_y_heavy));
    ((x, y), (half * 1.1).max(1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_that_count() {
        for (value, text) in
            [(0.05312, "0.053"), (1.234, "1.23"), (12.34, "12.3"), (1234.0, "1234"), (2.5e7, "2.5e7")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn square_of_a_heavy_tail_shows_its_middle() {
        // A Cauchy sample by its quantile function: 80 % lie within ±tan(0.4π) = ±3.08, so that the tail would take
        // 9.2; beside a uniform one on [−c, c] it gets at most 2.5 times 0.99 c, and the square a margin of a tenth.
        let u = Tensor::linspace(0.0005, 0.9995, 1000, (Kind::Double, Device::Cpu));
        let cauchy = ((&u - 0.5) * std::f64::consts::PI).tan();
        for (c, expected) in [(1.0, 2.5 * 0.99), (5.0, 3.0 * 3.0777)] {
            let samples = Tensor::stack(&[cauchy.shallow_clone(), (&u * 2.0 - 1.0) * c], 1);
            let ((x, y), half) = square(&samples);
            assert!(x.abs() < 1e-6 && y.abs() < 1e-6);
            assert!((half / (expected * 1.1) - 1.0).abs() < 0.01, "{half} for {expected}");
        }
    }
}
