//! One growing dataset: a column of numbers, or a column of arrays.

use anyhow::{Context, Result, bail};
use hdf5::{Dataset, Extent, Extents, Group, Selection};
use ndarray::{ArrayView, Ix1, IxDyn};

use super::array::describe;
use super::scale::{attach_scale, index_scale};
use super::series::INDEX;
use super::{Cell, Column};

/// Rows in a chunk: 8 KiB, small beside a file and large beside a row.
const CHUNK_ROWS: usize = 1024;

/// A growing one-dimensional dataset and the numbers that wait to be written.
pub struct GrowingColumn {
    /// Name of the dataset in its group.
    pub name: String,
    /// Where the numbers go.
    pub dataset: Dataset,
    pending: Pending,
}

enum Pending {
    Float(Vec<f64>),
    Integer(Vec<i64>),
}

/// A growing dataset `[rows, shape…]` and the arrays that wait to be written.
pub struct GrowingArray {
    /// Name of the dataset in its group.
    pub name: String,
    /// Where the arrays go.
    pub dataset: Dataset,
    /// Shape of one row.
    pub shape: Vec<usize>,
    /// The row of the group that each array belongs to.
    pub pending: Vec<(usize, Vec<f64>)>,
}

impl GrowingColumn {
    /// Opens the dataset that an earlier process created.
    pub fn open(name: String, dataset: Dataset) -> Result<Self> {
        let pending = if dataset.dtype()?.is::<i64>() {
            Pending::Integer(Vec::new())
        } else {
            Pending::Float(Vec::new())
        };
        Ok(Self { name, dataset, pending })
    }

    /// Creates the dataset; the kind of `cell` is the kind of all cells to come.
    pub fn create(group: &Group, column: &Column, cell: &Cell) -> Result<Self> {
        let empty = Extents::from(Extent::resizable(0));
        let builder = group.new_dataset_builder().chunk(CHUNK_ROWS);
        let (dataset, pending) = match cell {
            Cell::Float(_) => {
                let builder = builder.empty::<f64>().fill_value(f64::NAN);
                (builder.shape(empty).create(column.name), Pending::Float(Vec::new()))
            }
            Cell::Integer(_) => {
                (builder.empty::<i64>().shape(empty).create(column.name), Pending::Integer(Vec::new()))
            }
        };
        let dataset = dataset.with_context(|| format!("creating {}/{}", group.name(), column.name))?;
        describe(&dataset, column.units, column.description)?;
        Ok(Self { name: column.name.to_owned(), dataset, pending })
    }

    fn cell(&self, row: &[(Column, Cell)]) -> Option<Cell> {
        row.iter().find(|(column, _)| column.name == self.name).map(|(_, cell)| *cell)
    }

    /// A float column takes integers too; an integer column takes nothing else.
    pub fn accepts(&self, row: &[(Column, Cell)]) -> Result<()> {
        if let (Pending::Integer(_), Some(Cell::Float(value))) = (&self.pending, self.cell(row)) {
            bail!("{} holds integers, this row has {value}", self.dataset.name());
        }
        Ok(())
    }

    /// Buffers the cell of this column; the row was checked by [`Self::accepts`].
    pub fn push(&mut self, row: &[(Column, Cell)]) {
        match (self.cell(row), &mut self.pending) {
            (Some(Cell::Float(value)), Pending::Float(values)) => values.push(value),
            (Some(Cell::Integer(value)), Pending::Float(values)) => values.push(value as f64),
            (Some(Cell::Integer(value)), Pending::Integer(values)) => values.push(value),
            (Some(Cell::Float(_)), Pending::Integer(_)) | (None, _) => {
                unreachable!("the row was checked against the columns before any was pushed")
            }
        }
    }

    /// Writes the buffered numbers as rows `from..to`.
    pub fn write(&self, from: usize, to: usize) -> Result<()> {
        self.dataset.resize(to)?;
        match &self.pending {
            Pending::Float(values) => {
                self.dataset.write_slice::<_, f64, _, Ix1>(values.as_slice(), from..to)?;
            }
            Pending::Integer(values) => {
                self.dataset.write_slice::<_, i64, _, Ix1>(values.as_slice(), from..to)?;
            }
        }
        Ok(())
    }

    /// Forgets the buffered numbers, once they are in the file.
    pub fn clear(&mut self) {
        match &mut self.pending {
            Pending::Float(values) => values.clear(),
            Pending::Integer(values) => values.clear(),
        }
    }
}

impl GrowingArray {
    /// Opens the dataset that an earlier process created.
    pub fn open(name: String, dataset: Dataset) -> Self {
        let shape = dataset.shape()[1..].to_vec();
        Self { name, dataset, shape, pending: Vec::new() }
    }

    /// Creates the dataset, with scales `<name>_dim_<axis>` for the axes of a row.
    pub fn create(group: &Group, column: &Column, shape: &[usize]) -> Result<Self> {
        let mut extents = vec![Extent::resizable(0)];
        extents.extend(shape.iter().map(|&size| Extent::fixed(size)));
        let mut chunk = vec![1];
        chunk.extend_from_slice(shape);
        let dataset = group
            .new_dataset_builder()
            .chunk(chunk)
            .empty::<f64>()
            .fill_value(f64::NAN)
            .shape(extents)
            .create(column.name)
            .with_context(|| format!("creating {}/{}", group.name(), column.name))?;
        describe(&dataset, column.units, column.description)?;
        attach_scale(&dataset, &group.dataset(INDEX)?, 0)?;
        for (axis, &size) in shape.iter().enumerate() {
            let name = format!("{}_dim_{axis}", column.name);
            let scale =
                index_scale(group, &name, size, &format!("index along axis {axis} of {}", column.name))?;
            attach_scale(&dataset, &scale, axis + 1)?;
        }
        Ok(Self { name: column.name.to_owned(), dataset, shape: shape.to_vec(), pending: Vec::new() })
    }

    /// Sets the number of rows; new ones read as NaN.
    pub fn resize(&self, rows: usize) -> Result<()> {
        let mut size = vec![rows];
        size.extend_from_slice(&self.shape);
        self.dataset.resize(size).with_context(|| format!("resizing {}", self.dataset.name()))
    }

    /// Writes the buffered arrays into `rows` rows.
    pub fn write(&self, rows: usize) -> Result<()> {
        self.resize(rows)?;
        for (row, values) in &self.pending {
            let mut shape = vec![1];
            shape.extend_from_slice(&self.shape);
            let view = ArrayView::from_shape(IxDyn(&shape), values)?;
            let row = row_selection(*row, &self.shape);
            self.dataset.write_slice::<_, f64, _, IxDyn>(view, row)?;
        }
        Ok(())
    }
}

/// Selects `row` along the first axis and everything along the others.
fn row_selection(row: usize, shape: &[usize]) -> Selection {
    let mut slices: Vec<hdf5::SliceOrIndex> = vec![(row..row + 1).into()];
    slices.extend(shape.iter().map(|&size| hdf5::SliceOrIndex::from(0..size)));
    hdf5::Hyperslab::from(slices).into()
}
