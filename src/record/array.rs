//! Tensors and attributes to and from HDF5, with the two attributes that every dataset has.

use anyhow::{Context, Result, bail, ensure};
use hdf5::types::{FloatSize, TypeDescriptor, VarLenUnicode};
use hdf5::{Dataset, Group, Location};
use ndarray::{ArrayView, IxDyn};
use tch::{Device, Kind, Tensor};

use super::Attribute;
use super::scale;

/// Time units that xarray decodes into durations, which no reader of a loss curve expects.
const DECODED_BY_XARRAY: [&str; 7] =
    ["days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"];

/// Writes `units` and `description`.
pub fn describe(dataset: &Dataset, units: &str, description: &str) -> Result<()> {
    ensure!(
        !DECODED_BY_XARRAY.contains(&units),
        "units {units:?} of {} would be decoded into durations by xarray; write s, min, h or d",
        dataset.name()
    );
    set_attribute(dataset, "units", &units.into())?;
    set_attribute(dataset, "description", &description.into())
}

/// Writes an attribute, replacing one of the same name.
pub fn set_attribute(location: &Location, name: &str, value: &Attribute) -> Result<()> {
    let context = || format!("writing attribute {name} of {}", location.name());
    if location.attr_names().with_context(context)?.iter().any(|existing| existing == name) {
        location.delete_attr(name).with_context(context)?;
    }
    match value {
        Attribute::Text(text) => {
            let text: VarLenUnicode = text.parse().ok().with_context(|| {
                format!(
                    "attribute {name} of {} holds a NUL character, which HDF5 text cannot",
                    location.name()
                )
            })?;
            location.new_attr::<VarLenUnicode>().create(name).and_then(|a| a.write_scalar(&text))
        }
        Attribute::Float(number) => {
            location.new_attr::<f64>().create(name).and_then(|a| a.write_scalar(number))
        }
        Attribute::Integer(number) => {
            location.new_attr::<i64>().create(name).and_then(|a| a.write_scalar(number))
        }
    }
    .with_context(context)
}

/// Reads an attribute that [`set_attribute`] wrote; `None` for a type that it never writes.
pub fn attribute(location: &Location, name: &str) -> Result<Option<Attribute>> {
    let attribute = location.attr(name)?;
    Ok(match attribute.dtype()?.to_descriptor() {
        Ok(TypeDescriptor::VarLenUnicode) => {
            Some(Attribute::Text(attribute.read_scalar::<VarLenUnicode>()?.as_str().to_owned()))
        }
        Ok(TypeDescriptor::Float(_)) if attribute.is_scalar() => {
            Some(Attribute::Float(attribute.read_scalar()?))
        }
        Ok(TypeDescriptor::Integer(_)) if attribute.is_scalar() => {
            Some(Attribute::Integer(attribute.read_scalar()?))
        }
        _ => None,
    })
}

/// Sizes of a tensor as HDF5 counts them.
pub fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&size| size as usize).collect()
}

/// Creates or overwrites the dataset `name` with `tensor`, and attaches `axes[i].0` as the scale of axis `i`.
///
/// `axes` are pairs (name, description), one an axis. Doubles stay doubles, every other kind becomes f32.
pub fn write_tensor(
    group: &Group,
    name: &str,
    tensor: &Tensor,
    axes: &[(String, String)],
    units: &str,
    description: &str,
) -> Result<()> {
    let shape = shape(tensor);
    ensure!(axes.len() == shape.len(), "{} named axes for {name}, whose shape is {shape:?}", axes.len());
    let dataset = match existing(group, name, &shape)? {
        Some(dataset) => dataset,
        None => {
            let builder = group.new_dataset_builder();
            let dataset = match tensor.kind() {
                Kind::Double => builder.empty::<f64>().shape(shape.as_slice()).create(name),
                _ => builder.empty::<f32>().shape(shape.as_slice()).create(name),
            }
            .with_context(|| format!("creating {}/{name}", group.name()))?;
            describe(&dataset, units, description)?;
            for (axis, (axis_name, axis_description)) in axes.iter().enumerate() {
                let scale = scale::index_scale(group, axis_name, shape[axis], axis_description)?;
                scale::attach_scale(&dataset, &scale, axis)?;
            }
            dataset
        }
    };
    write_values(&dataset, tensor).with_context(|| format!("writing {}/{name}", group.name()))
}

/// The dataset `name` when its shape is `shape`; one of another shape is removed.
fn existing(group: &Group, name: &str, shape: &[usize]) -> Result<Option<Dataset>> {
    if !group.link_exists(name) {
        return Ok(None);
    }
    let dataset = group.dataset(name)?;
    if dataset.shape() == shape {
        return Ok(Some(dataset));
    }
    remove(group, &dataset, name)?;
    Ok(None)
}

/// Removes a dataset together with what the scales of its group say about it.
pub fn remove(group: &Group, dataset: &Dataset, name: &str) -> Result<()> {
    for scale in group.datasets()? {
        for axis in 0..dataset.ndim() {
            // Detaching a scale that is not attached to this axis fails, and that is the answer to the
            // question.
            let _ = scale::detach_scale(dataset, &scale, axis);
        }
    }
    group.unlink(name).with_context(|| format!("removing {}/{name}", group.name()))
}

fn write_values(dataset: &Dataset, tensor: &Tensor) -> Result<()> {
    let shape = IxDyn(&shape(tensor));
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_reshape(-1)?;
    match tensor.kind() {
        Kind::Double => {
            let values: Vec<f64> = Vec::try_from(&flat)?;
            Ok(dataset.write(ArrayView::from_shape(shape, &values)?)?)
        }
        _ => {
            let values: Vec<f32> = Vec::try_from(&flat.f_to_kind(Kind::Float)?)?;
            Ok(dataset.write(ArrayView::from_shape(shape, &values)?)?)
        }
    }
}

/// Reads a dataset: f32 stays f32, other floats become f64, integers i64.
pub fn read_tensor(dataset: &Dataset) -> Result<Tensor> {
    let shape: Vec<i64> = dataset.shape().iter().map(|&size| size as i64).collect();
    let flat = match dataset.dtype()?.to_descriptor()? {
        TypeDescriptor::Float(FloatSize::U4) => Tensor::f_from_slice(&dataset.read_raw::<f32>()?)?,
        TypeDescriptor::Float(_) => Tensor::f_from_slice(&dataset.read_raw::<f64>()?)?,
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) => {
            Tensor::f_from_slice(&dataset.read_raw::<i64>()?)?
        }
        other => bail!("{} holds {other}, wanted numbers", dataset.name()),
    };
    Ok(flat.f_reshape(&shape)?)
}
