//! Names and axes of what is not a series: sample sets and draws.

use anyhow::{Result, ensure};
use hdf5::Group;
use tch::Tensor;

use super::array;

/// Writes draws `[chain, draw, …]` as `x` in `group`, with the dimension names that ArviZ uses.
pub fn write_draws(group: &Group, draws: &Tensor) -> Result<()> {
    ensure!(
        draws.dim() >= 2,
        "draws have the shape {:?}, wanted [chain, draw, …]; add an axis of one chain",
        draws.size()
    );
    let mut axes = vec![
        ("chain".to_owned(), "index of the chain".to_owned()),
        ("draw".to_owned(), "index of the draw in its chain".to_owned()),
    ];
    axes.extend(event_axes(draws.dim() - 2));
    array::write_tensor(group, "x", draws, &axes, "units of the target", "independent draws of the sampler")
}

/// Name of a sample set; zero-padded, so that names sort as iterations do.
pub fn sample_set_name(iteration: u64) -> String {
    format!("iteration-{iteration:09}")
}

/// The inverse of [`sample_set_name`].
pub fn sample_set_iteration(name: &str) -> Option<u64> {
    name.strip_prefix("iteration-")?.parse().ok()
}

/// Names of the axes of one sample, as ArviZ would call those of a variable `x`.
pub fn event_axes(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|axis| (format!("x_dim_{axis}"), format!("index along axis {axis} of one sample")))
}

/// Adds the paths of all groups below `group` to `names`, innermost first.
pub fn group_names(group: &Group, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for child in group.groups()? {
        let path = child.name();
        let name = path.rsplit('/').next().unwrap_or(&path);
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        group_names(&child, &name, names)?;
        names.push(name);
    }
    Ok(())
}
