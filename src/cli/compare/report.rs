//! The comparison as people read it: a table, `results.json`, `results.md` and a figure.

use std::collections::BTreeSet;
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
use super::spread::{Group, count, groups, number};
use super::trained::SETTING as TRAINED;
use super::{energy_report, image_report};
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

/// Collects the rows of all jobs and writes everything; rank 0 only.
///
/// # Errors
/// If a job's rows cannot be read, or a file cannot be written.
pub fn write(plan: &ComparePlan, jobs: &[Job], directory: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for job in jobs {
        rows.extend(Rows::any(&directory.join(job.slug(plan)))?);
    }
    for (target, recipe) in plan.file.targets.iter().zip(&plan.recipes) {
        if recipe.file.target.is_image() {
            energy_report::score(plan, target, &mut rows, directory);
        }
    }
    let json = serde_json::to_string_pretty(&rows).context("rows are plain data")?;
    save(&directory.join("results.json"), &json)?;
    let tables = tables(plan, &rows);
    for printed in &tables {
        println!("\n{}\n{}", printed.target, printed.table());
    }
    save(&directory.join("results.md"), &markdown(plan, &rows, &tables)?)?;
    draw_calibration(plan, &rows, directory)?;
    for (target, recipe) in plan.file.targets.iter().zip(&plan.recipes) {
        if recipe.file.target.is_image() {
            image_report::draw(plan, target, &recipe.file.evaluate, &rows, directory)?;
            energy_report::draw(plan, target, &rows, directory)?;
        }
    }
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

/// A target's table: its name, and lines of cells of which the first is the header.
struct Printed {
    target: String,
    lines: Vec<Vec<String>>,
}

impl Printed {
    fn new(target: &str, lines: Vec<Vec<String>>) -> Self {
        Printed { target: target.to_string(), lines }
    }

    /// For the terminal.
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(&self.lines[0]);
        for line in &self.lines[1..] {
            table.add_row(line);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// The table of each target.
fn tables(plan: &ComparePlan, rows: &[ResultRow]) -> Vec<Printed> {
    let mut tables = Vec::new();
    for (target, recipe) in plan.file.targets.iter().zip(&plan.recipes) {
        if recipe.file.target.is_image() {
            let lines = image_report::lines(plan, target, &recipe.file.evaluate, rows);
            tables.push(Printed::new(&target.name, lines));
            continue;
        }
        let groups = groups(plan, &target.name, rows, &["sliced_w2", "ksd"]);
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
        tables.push(Printed::new(&target.name, lines));
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
    cells.extend(metrics.iter().map(|(name, _)| group.cell(name)));
    cells
}

/// The different values of all rows.
fn distinct(rows: &[ResultRow], value: impl Fn(&ResultRow) -> String) -> String {
    let values: BTreeSet<String> = rows.iter().map(value).collect();
    values.into_iter().collect::<Vec<_>>().join(", ")
}

fn markdown(plan: &ComparePlan, rows: &[ResultRow], tables: &[Printed]) -> Result<String> {
    let file = &plan.file;
    let seeds: Vec<String> = file.run.seeds.iter().map(u64::to_string).collect();
    let mut text = String::new();
    let chains = match file.methods.iter().any(|method| method.mcmc.is_some()) {
        true => format!(
            " Chains get the evaluations and the seconds that `{}` was trained with, seed by seed; what it takes to choose \
             among several step sizes comes on top (`tuning_evaluations` in results.json).",
            file.run.budget_of
        ),
        false => String::new(),
    };
    writeln!(text, "# {}\n", file.run.name)?;
    writeln!(text, "`{}`\n", command_line())?;
    writeln!(
        text,
        "dft {}, libtorch {}; runs made at commit {} on {}, with {} threads each. Seeds {}; their {}. Scores are {} of {} samples{}; the \
         first line of each table is what {} samples score.{chains}",
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
        match file.score.sets {
            1 => "of one set".to_string(),
            sets => format!("means over {sets} sets"),
        },
        file.score.samples,
        if file.score.sets == 1 { "" } else { " where the setting says nothing else" },
        if plan.recipes.iter().all(|recipe| recipe.file.target.is_image()) { "real" } else { "exact" },
    )?;
    if file.targets.iter().any(|target| target.best_of.is_some()) {
        writeln!(
            text,
            "\n**best accuracy** is the best of several looks at the test rows along the way, as in much of the literature: \
             it is chosen on the rows it is measured on. Everything else is of the last iterate."
        )?;
    }
    for (Printed { target, lines }, recipe) in tables.iter().zip(&plan.recipes) {
        writeln!(text, "\n## {target}\n")?;
        if recipe.file.target.is_image() {
            writeln!(text, "{}\n", image_report::legend(file))?;
        }
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
        if matches!(recipe.file.target, TargetSection::Logistic(_)) || recipe.file.target.is_image() {
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
        let setting = if method.mcmc.is_some() { method.budgets()[0].setting() } else { TRAINED };
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
    let setting = (row.setting != TRAINED).then(|| row.setting.clone());
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
