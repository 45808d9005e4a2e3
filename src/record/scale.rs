//! Dimension scales: the netCDF convention by which xarray and ArviZ know what an axis counts.
//!
//! The two calls live in HDF5's high-level library, which the `hdf5` crate does not bind; hand-written
//! attributes of the same names are refused by at least one of the two readers.

use std::ffi::{CString, c_char, c_uint};

use anyhow::{Context, Result, ensure};
use hdf5::{Dataset, Group};
use hdf5_sys::h5::herr_t;
use hdf5_sys::h5i::hid_t;

use super::array;

unsafe extern "C" {
    fn H5DSset_scale(dsid: hid_t, dimname: *const c_char) -> herr_t;
    fn H5DSattach_scale(did: hid_t, dsid: hid_t, idx: c_uint) -> herr_t;
    fn H5DSdetach_scale(did: hid_t, dsid: hid_t, idx: c_uint) -> herr_t;
}

/// Declares a one-dimensional dataset to be the scale called `name`.
pub fn set_scale(dataset: &Dataset, name: &str) -> Result<()> {
    let text = CString::new(name).with_context(|| format!("dimension name {name:?}"))?;
    // SAFETY: the handle is open for as long as `dataset` is borrowed, `text` is NUL-terminated and outlives
    // the call, and `sync` holds the lock that HDF5 needs because it is not thread-safe.
    let status = hdf5::sync::sync(|| unsafe { H5DSset_scale(dataset.id(), text.as_ptr()) });
    ensure!(status >= 0, "cannot declare {} a dimension scale", dataset.name());
    Ok(())
}

/// Attaches `scale` to axis `axis` of `dataset`.
pub fn attach_scale(dataset: &Dataset, scale: &Dataset, axis: usize) -> Result<()> {
    // SAFETY: both handles are open for as long as they are borrowed; HDF5 checks the axis; locked as above.
    let status = hdf5::sync::sync(|| unsafe { H5DSattach_scale(dataset.id(), scale.id(), axis as c_uint) });
    ensure!(status >= 0, "cannot attach the scale {} to axis {axis} of {}", scale.name(), dataset.name());
    Ok(())
}

/// Detaches `scale`, so that no reference to `dataset` stays behind when it is removed.
pub fn detach_scale(dataset: &Dataset, scale: &Dataset, axis: usize) -> Result<()> {
    // SAFETY: as for `attach_scale`.
    let status = hdf5::sync::sync(|| unsafe { H5DSdetach_scale(dataset.id(), scale.id(), axis as c_uint) });
    ensure!(status >= 0, "cannot detach the scale {} from axis {axis} of {}", scale.name(), dataset.name());
    Ok(())
}

/// The scale of `size` entries `0, 1, …` called `name` in `group`, made when it is not there yet.
///
/// An axis of another length than an earlier one of the same name gets `name_<size>`: a netCDF dimension has
/// one length.
pub fn index_scale(group: &Group, name: &str, size: usize, description: &str) -> Result<Dataset> {
    let mut name = name.to_owned();
    if group.link_exists(&name) && group.dataset(&name)?.size() != size {
        name = format!("{name}_{size}");
    }
    if group.link_exists(&name) {
        return Ok(group.dataset(&name)?);
    }
    let index: Vec<i64> = (0..size as i64).collect();
    let dataset = group
        .new_dataset_builder()
        .with_data(&index)
        .create(name.as_str())
        .with_context(|| format!("creating the dimension scale {}/{name}", group.name()))?;
    array::describe(&dataset, "1", description)?;
    set_scale(&dataset, &name)?;
    Ok(dataset)
}
