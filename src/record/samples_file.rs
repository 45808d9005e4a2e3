//! Samples as a file of their own: `.h5` that ArviZ opens, or `.npy`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ndarray::{ArrayView, IxDyn};
use ndarray_npy::WriteNpyExt;
use tch::{Device, Kind, Tensor};

use super::file::create_or_replace;
use super::layout::write_draws;
use super::{Attribute, array};

/// Chains into which independent samples are cut when their number allows it: the number at which R-hat and
/// effective sample sizes of ArviZ work without a warning.
const CHAINS: i64 = 4;

/// Writes samples `[n, …]`, in the format that the file's extension names.
///
/// `.npy` holds the array as it is. `.h5` holds `/posterior/x` `[chain, draw, …]`: independent samples have
/// no chains, so they are cut into 4 equal ones in order when `n` divides by 4, else they make one.
///
/// # Errors
/// For any other extension, and when the file exists unless `force` is set.
pub fn write_samples_file(path: impl AsRef<Path>, samples: &Tensor, force: bool) -> Result<()> {
    write_described_samples(path, samples, &[], force)
}

/// As [`write_samples_file`], with what is to be known of the samples: attributes of `/posterior`, which ArviZ and
/// xarray show. `.npy` has no place for them.
///
/// # Errors
/// As [`write_samples_file`], and for text with a NUL.
pub fn write_described_samples(
    path: impl AsRef<Path>,
    samples: &Tensor,
    attributes: &[(&str, Attribute)],
    force: bool,
) -> Result<()> {
    let path = path.as_ref();
    ensure!(
        force || !path.exists(),
        "{} exists; choose another name, or ask to overwrite it",
        path.display()
    );
    ensure!(samples.dim() >= 1, "one number is not a set of samples, wanted the shape [n, …]");
    // Written under another name and renamed, so that a reader never meets half a file.
    let partial = partial_path(path);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("h5") => write_hdf5(&partial, samples, attributes),
        Some("npy") => write_npy(&partial, samples),
        _ => bail!("{} has to end in .h5 or .npy", path.display()),
    }
    .with_context(|| format!("writing samples to {}", path.display()))?;
    fs::rename(&partial, path).with_context(|| format!("renaming {} into place", partial.display()))
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn write_hdf5(path: &Path, samples: &Tensor, attributes: &[(&str, Attribute)]) -> Result<()> {
    let count = samples.size()[0];
    let chains = if count > 0 && count % CHAINS == 0 { CHAINS } else { 1 };
    let mut shape = vec![chains, count / chains];
    shape.extend_from_slice(&samples.size()[1..]);
    let file = create_or_replace(path)?;
    let group = file.create_group("posterior")?;
    write_draws(&group, &samples.f_reshape(&shape)?)?;
    attributes.iter().try_for_each(|(name, value)| array::set_attribute(&group, name, value))?;
    Ok(file.close()?)
}

fn write_npy(path: &Path, samples: &Tensor) -> Result<()> {
    let shape = IxDyn(&array::shape(samples));
    let flat = samples.f_detach()?.f_to_device(Device::Cpu)?.f_reshape(-1)?;
    let file = BufWriter::new(File::create(path)?);
    match samples.kind() {
        Kind::Double => ArrayView::from_shape(shape, &Vec::<f64>::try_from(&flat)?)?.write_npy(file)?,
        _ => {
            let flat = Vec::<f32>::try_from(&flat.f_to_kind(Kind::Float)?)?;
            ArrayView::from_shape(shape, &flat)?.write_npy(file)?;
        }
    }
    Ok(())
}
