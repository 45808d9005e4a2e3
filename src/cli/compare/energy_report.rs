//! Energies of a comparison's samples beside those of its longest chains: whether samplers put their mass where the energy does.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use tch::Tensor;
use tracing::warn;

use super::annealed::steps_setting;
use super::images::{REAL_SETTING, energies_file, home};
use super::results::ResultRow;
use super::trained::SETTING as TRAINED;
use crate::cli::energies::{METRIC, energy_score};
use crate::config::{ComparePlan, TargetEntry, Work};
use crate::plot::energy_histograms;

/// The annealed chains that the others are compared with: the longest Langevin chains that end at the energy's own temperature. Their
/// errors, of the step size and of too few steps, are in the comparison too.
struct Longest<'p> {
    method: &'p str,
    setting: String,
}

impl<'p> Longest<'p> {
    fn of(plan: &'p ComparePlan, target: &TargetEntry) -> Option<Self> {
        let annealed =
            plan.file.methods.iter().filter(|method| method.runs_on(target)).filter_map(|method| {
                let Work::Annealed(section) = method.work() else { return None };
                let steps = *section.steps.iter().max()?;
                section.is_energy_reference().then_some((steps, method.name.as_str()))
            });
        annealed
            .max_by_key(|(steps, _)| *steps)
            .map(|(steps, method)| Longest { method, setting: steps_setting(steps) })
    }

    fn is(&self, row: &ResultRow) -> bool {
        row.method == self.method && row.setting == self.setting
    }
}

/// Energies of a row's samples; `None` where there are none.
fn energies(home: &Path, setting: &str) -> Option<Vec<f64>> {
    Vec::try_from(Tensor::read_npy(home.join(energies_file(setting))).ok()?).ok()
}

/// Of the real images, which trained methods keep.
fn real_energies(
    plan: &ComparePlan,
    target: &TargetEntry,
    rows: &[ResultRow],
    directory: &Path,
) -> Option<Vec<f64>> {
    let trained = rows.iter().filter(|row| row.target == target.name && row.setting == TRAINED);
    trained.into_iter().find_map(|row| energies(&home(plan, row, directory), REAL_SETTING))
}

/// Adds to each row of the target how far its energies are from those of the longest chains of all *other* seeds: what the
/// chains score themselves is then the floor. With a single seed they are not scored.
pub fn score(plan: &ComparePlan, target: &TargetEntry, rows: &mut [ResultRow], directory: &Path) {
    let (Some(longest), Some(real)) =
        (Longest::of(plan, target), real_energies(plan, target, rows, directory))
    else {
        return;
    };
    let is_of_target = |row: &ResultRow| row.target == target.name && row.failure.is_none();
    let chains: Vec<(u64, Vec<f64>)> = rows
        .iter()
        .filter(|row| is_of_target(row) && longest.is(row))
        .filter_map(|row| Some((row.seed, energies(&home(plan, row, directory), &row.setting)?)))
        .collect();
    let is_single = plan.file.run.seeds.len() == 1;
    let mut without = BTreeSet::new();
    for row in rows.iter_mut().filter(|row| is_of_target(row)) {
        let Some(found) = energies(&home(plan, row, directory), &row.setting) else {
            without.insert(home(plan, row, directory));
            continue;
        };
        let reference = reference(&chains, row.seed, is_single && !longest.is(row));
        let score = energy_score(&found, &real, &reference);
        row.metrics.extend(score.map(|score| (METRIC.to_string(), score)));
    }
    for home in without {
        warn!("{} has no energies, and no {METRIC}: remove its rows.json to make it again", home.display());
    }
}

/// Energies of the `chains` of all seeds but `seed`; with a single one, of that one, where `may_be_own` says so.
fn reference(chains: &[(u64, Vec<f64>)], seed: u64, may_be_own: bool) -> Vec<f64> {
    let others = chains.iter().filter(|(other, _)| *other != seed || may_be_own);
    others.flat_map(|(_, energies)| energies).copied().collect()
}

/// Draws `figures/energies-TARGET.png`: real images, trained methods and the longest chains of the first seed.
///
/// # Errors
/// If it cannot be written.
pub fn draw(plan: &ComparePlan, target: &TargetEntry, rows: &[ResultRow], directory: &Path) -> Result<()> {
    let Some(real) = real_energies(plan, target, rows, directory) else { return Ok(()) };
    let longest = Longest::of(plan, target);
    let is_longest = |row: &ResultRow| longest.as_ref().is_some_and(|longest| longest.is(row));
    let seed = plan.file.run.seeds[0];
    let shown =
        rows.iter().filter(|row| row.target == target.name && row.seed == seed && row.failure.is_none());
    let mut sets = vec![("real images".to_string(), real)];
    sets.extend(shown.filter(|row| row.setting == TRAINED || is_longest(row)).filter_map(|row| {
        let name =
            if is_longest(row) { format!("{}, {}", row.method, row.setting) } else { row.method.clone() };
        Some((name, energies(&home(plan, row, directory), &row.setting)?))
    }));
    let title = format!("{}: energies on {}", plan.file.run.name, target.name);
    energy_histograms(&title, &sets, &directory.join("figures").join(format!("energies-{}.png", target.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_compared_with_the_chains_of_the_others_and_a_single_one_with_its_own() {
        let chains = [(0, vec![1.0]), (1, vec![2.0, 3.0]), (2, vec![4.0])];
        assert_eq!(reference(&chains, 1, false), [1.0, 4.0]);
        assert_eq!(reference(&chains, 7, false), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(reference(&chains[..1], 0, true), [1.0]);
        assert!(reference(&chains[..1], 0, false).is_empty());
    }
}
