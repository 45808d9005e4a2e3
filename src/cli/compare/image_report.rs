//! Images of a comparison as people read them: a table by Fréchet distance, a figure of costs, and the images.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;
use tracing::warn;

use super::annealed::steps_setting;
use super::bench::samples_file;
use super::images::{REAL, home};
use super::results::ResultRow;
use super::spread::{Group, groups, number};
use super::trained::{SETTING as TRAINED, TIMED};
use crate::cli::metrics::OF_IMAGES;
use crate::config::{CompareFile, ComparePlan, EvaluateSection, Features, MethodEntry, TargetEntry, Work};
use crate::plot::{CostCurve, CostKind, costs, labelled_grids};

/// Lengths of chains whose images are shown, where there are such.
const SHOWN_STEPS: [u64; 3] = [10, 50, 200];

/// Name of the distance, and of its column.
fn distance(evaluate: &EvaluateSection) -> (&'static str, &'static str) {
    match evaluate.features {
        Features::Lenet => ("fd_lenet", "FD-LeNet"),
        _ => ("fd", "FD"),
    }
}

/// Lines of cells: header, floor, then the methods by their distance.
pub fn lines(
    plan: &ComparePlan,
    target: &TargetEntry,
    evaluate: &EvaluateSection,
    rows: &[ResultRow],
) -> Vec<Vec<String>> {
    let (distance, _) = distance(evaluate);
    let groups = groups(plan, &target.name, rows, &[distance]);
    let found: BTreeSet<&str> = rows
        .iter()
        .filter(|row| row.target == target.name)
        .flat_map(|row| row.metrics.keys().map(String::as_str))
        .collect();
    let shown = OF_IMAGES.iter().filter(|(name, _)| found.contains(name));
    let (metrics, headings): (Vec<&str>, Vec<&str>) = shown.copied().unzip();
    let seconds = format!("seconds for {}", thousands(TIMED));
    let mut header: Vec<String> =
        ["method", "setting", "energy gradients a sample", &seconds].map(String::from).to_vec();
    header.extend(headings.iter().map(|heading| heading.to_string()));
    header.push("acceptance".into());
    let mut floor = vec!["real images".to_string(), "floor".into(), "–".into(), "–".into()];
    floor.extend(metrics.iter().map(|name| {
        let found = groups.iter().find_map(|group| group.floor(name));
        found.map_or("–".into(), |floor| floor.shown(name))
    }));
    floor.push("–".into());
    let mut lines = vec![header, floor];
    let is_annealed = |group: &Group| {
        let method = plan.file.methods.iter().find(|method| method.name == group.name().0);
        method.is_some_and(|method| matches!(method.work(), Work::Annealed(_)))
    };
    lines.extend(groups.iter().map(|group| line(group, is_annealed(group), &metrics)));
    lines
}

fn line(group: &Group, is_annealed: bool, metrics: &[&str]) -> Vec<String> {
    let (method, setting) = group.name();
    // The adapted step sizes of corrections differ in every digit, and say little.
    let chosen = group.rows.iter().filter(|_| is_annealed);
    let mut sizes: Vec<f64> = chosen.filter_map(|row| row.step_size).collect();
    sizes.sort_by(f64::total_cmp);
    let setting = match (sizes.first(), sizes.last()) {
        (Some(least), Some(greatest)) if least == greatest => format!("{setting}, h {}", number_of(*least)),
        (Some(least), Some(greatest)) => {
            format!("{setting}, h {} to {}", number_of(*least), number_of(*greatest))
        }
        _ => setting.to_string(),
    };
    let show = |value: Option<f64>| value.map_or("–".into(), number);
    let middle = |value: &dyn Fn(&ResultRow) -> Option<f64>| group.spread(value).map(|spread| spread.middle);
    let evaluations = middle(&|row| row.evaluations_per_sample.map(|evaluations| evaluations as f64));
    let seconds = middle(&|row| row.seconds_per_sample.map(|seconds| seconds * TIMED as f64));
    let mut cells = vec![method.to_string(), setting];
    cells.push(evaluations.map_or("–".into(), |evaluations| format!("{evaluations:.0}")));
    cells.push(show(seconds));
    cells.extend(metrics.iter().map(|name| group.cell(name)));
    cells.push(show(middle(&|row| row.acceptance)));
    cells
}

/// A step size, as short as it was written.
fn number_of(step_size: f64) -> String {
    let text = format!("{step_size:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// `10,000`.
fn thousands(value: i64) -> String {
    if value >= 1000 { format!("{},{:03}", value / 1000, value % 1000) } else { value.to_string() }
}

/// What the columns of such a table are.
pub fn legend(file: &CompareFile) -> String {
    let samples = file.score.samples;
    let mut text = format!(
        "Sorted by the Fréchet distance of {samples} samples. Energy gradients are those for one sample, all of them; a \
         sampler in one step needs none, and one evaluation of its network. Seconds for {} samples are of one rank on the \
         device above: samplers in one step drew so many, everything else drew {samples} and its time is scaled up.",
        thousands(TIMED)
    );
    if file.methods.iter().any(|method| matches!(method.work(), Work::Annealed(_))) {
        text.push_str(
            " Annealed chains with several step sizes have, for each number of steps, the one with the least distance to the same \
             reference, over other chains; that favours them. What it took is left out here (`tuning_evaluations` in \
             results.json).",
        );
    }
    let is_reference = |method: &&MethodEntry| matches!(method.work(), Work::Annealed(section) if section.is_energy_reference());
    if let Some(method) = file.methods.iter().find(is_reference) {
        text.push_str(&format!(
            " Energy W1 is the distance of the samples' energies to those of the longest chains of {} and other seeds, in standard \
             deviations of theirs: what those chains have themselves is as near as can be told. Real images are beside it for \
             comparison, not as a bound.",
            method.name
        ));
    }
    if file.methods.iter().any(|method| method.best_of.is_some()) {
        text.push_str(
            " The best of several looks along training is chosen by the same reference too, and scored on draws that it was not \
             chosen by.",
        );
    }
    text
}

/// Draws `figures/evaluations-TARGET.png` and `figures/grids-TARGET.png`.
///
/// # Errors
/// If they cannot be written.
pub fn draw(
    plan: &ComparePlan,
    target: &TargetEntry,
    evaluate: &EvaluateSection,
    rows: &[ResultRow],
    directory: &Path,
) -> Result<()> {
    let figures = directory.join("figures");
    fs::create_dir_all(&figures).with_context(|| format!("cannot make {}", figures.display()))?;
    let (distance, label) = distance(evaluate);
    let groups = groups(plan, &target.name, rows, &[distance]);
    let (curves, floor) = (
        curves(plan, target, &groups, distance),
        groups.iter().find_map(|group| group.floor(distance)).map(|floor| floor.middle),
    );
    if curves.iter().any(|curve| !curve.points.is_empty()) {
        let title = format!("{}: {}", plan.file.run.name, target.name);
        let axis = format!("{label} of {} samples", plan.file.score.samples);
        costs((&title, &axis), &curves, floor, &figures.join(format!("evaluations-{}.png", target.name)))?;
    } else {
        warn!("{}: nothing was scored, so there is no figure of costs", target.name);
    }
    let strips = strips(plan, target, rows, directory);
    let is_drawable = |(_, images): &(String, Tensor)| matches!(images.size()[..], [_, 1 | 3, _, _]);
    if !strips.is_empty() && strips.iter().all(is_drawable) {
        labelled_grids(&strips, &figures.join(format!("grids-{}.png", target.name)))?;
    }
    Ok(())
}

/// Distances against evaluations of the network and of the energy, methods in their order.
fn curves(plan: &ComparePlan, target: &TargetEntry, groups: &[Group], distance: &str) -> Vec<CostCurve> {
    let methods = &plan.file.methods;
    let points = |name: &str, network: f64| -> Vec<(f64, f64)> {
        // The best of several looks stands in the table: in the figure it would be a second point above the same cost.
        let is_trained = methods.iter().any(|method| method.name == name && method.is_trained());
        let is_shown = |setting: &str| !is_trained || setting == TRAINED;
        let of_method = groups.iter().filter(|group| group.name().0 == name && is_shown(group.name().1));
        let mut points: Vec<(f64, f64)> = of_method
            .filter_map(|group| {
                let energy = group.spread(|row| row.evaluations_per_sample.map(|count| count as f64))?;
                Some((energy.middle + network, group.metric(distance)?.middle))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    // A corrected sampler is the same sampler, so it takes no colour of its own.
    let colored: Vec<&str> = methods
        .iter()
        .filter(|method| !matches!(method.work(), Work::Corrected(_)))
        .map(|method| method.name.as_str())
        .collect();
    let color = |name: &str| colored.iter().position(|other| *other == name).unwrap_or(0);
    let curve = |name: &str, of: &str, kind, points| CostCurve {
        name: name.to_string(),
        kind,
        color: color(of),
        points,
    };
    let mut curves = Vec::new();
    for method in methods.iter().filter(|method| method.runs_on(target)) {
        let name = method.name.as_str();
        curves.push(match method.work() {
            Work::Trained => curve(name, name, CostKind::Sampler, points(name, 1.0)),
            Work::Annealed(_) => curve(name, name, CostKind::Chains, points(name, 0.0)),
            Work::Corrected(section) => {
                let start = points(&section.of, 1.0);
                let along = start.into_iter().chain(points(name, 1.0)).collect();
                curve(name, &section.of, CostKind::Corrected, along)
            }
            Work::Chains(_) | Work::Fitted(_) => continue,
        });
    }
    curves
}

/// Rows of images of the first seed with their names: real ones, every trained method, some lengths of annealed chains.
fn strips(
    plan: &ComparePlan,
    target: &TargetEntry,
    rows: &[ResultRow],
    directory: &Path,
) -> Vec<(String, Tensor)> {
    let seed = plan.file.run.seeds[0];
    let of_seed = || rows.iter().filter(|row| row.target == target.name && row.seed == seed);
    let read = |row: &ResultRow, file: &str| Tensor::read_npy(home(plan, row, directory).join(file)).ok();
    let real = of_seed().find_map(|row| read(row, REAL));
    let mut strips: Vec<(String, Tensor)> = real.map(|real| ("real".to_string(), real)).into_iter().collect();
    let mut add = |label: String, method: &str, setting: &str| {
        let is_this = |row: &&ResultRow| row.method == method && row.setting == setting;
        let row = of_seed().find(|row| is_this(row) && row.failure.is_none());
        strips.extend(row.and_then(|row| read(row, &samples_file(setting))).map(|images| (label, images)));
    };
    let methods = || plan.file.methods.iter().filter(|method| method.runs_on(target));
    for method in methods().filter(|method| method.is_trained()) {
        add(method.name.clone(), &method.name, TRAINED);
    }
    for method in methods() {
        let Work::Annealed(section) = method.work() else { continue };
        for steps in shown_steps(&section.steps) {
            let setting = steps_setting(steps);
            add(format!("{}, {setting}", method.name), &method.name, &setting);
        }
    }
    strips
}

/// Those of [`SHOWN_STEPS`] that there are, or without any the first, the middle and the last.
fn shown_steps(steps: &[u64]) -> Vec<u64> {
    let shown: Vec<u64> = SHOWN_STEPS.into_iter().filter(|wanted| steps.contains(wanted)).collect();
    if !shown.is_empty() {
        return shown;
    }
    let mut sorted = steps.to_vec();
    sorted.sort_unstable();
    let mut three = vec![sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]];
    three.dedup();
    three
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_are_shown_are_the_usual_ones_or_span_the_list() {
        assert_eq!(shown_steps(&[1, 10, 200, 500]), [10, 200]);
        assert_eq!(shown_steps(&[9, 1, 3, 2]), [1, 3, 9]);
        assert_eq!(shown_steps(&[4]), [4]);
    }

    #[test]
    fn step_sizes_and_counts_are_as_they_are_written() {
        assert_eq!([0.125, 0.5, 1.0].map(number_of), ["0.125", "0.5", "1"]);
        assert_eq!([100, 10_000].map(thousands), ["100", "10,000"]);
    }
}
