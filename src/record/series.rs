//! One group of growing datasets: rows buffered in memory until a flush moves them to the file at once.

use anyhow::{Context, Result, bail, ensure};
use hdf5::{Dataset, Extent, Extents, Group, Selection};
use ndarray::{ArrayView, Ix1, IxDyn};

use super::array::describe;
use super::scale::{attach_scale, index_scale, set_scale};
use super::{Cell, Column};

/// The column by which rows are counted, resumed and plotted.
pub const INDEX: &str = "iteration";

/// Rows in a chunk: 8 KiB, small beside a file and large beside a row.
const CHUNK_ROWS: usize = 1024;

/// The growing datasets of one group, and the rows that wait to be written.
pub struct Series {
    group: Group,
    columns: Vec<GrowingColumn>,
    arrays: Vec<GrowingArray>,
    written_rows: usize,
    pending_rows: usize,
}

struct GrowingColumn {
    name: String,
    dataset: Dataset,
    pending: Pending,
}

enum Pending {
    Float(Vec<f64>),
    Integer(Vec<i64>),
}

struct GrowingArray {
    name: String,
    dataset: Dataset,
    shape: Vec<usize>,
    /// The row of the group that each value belongs to.
    pending: Vec<(usize, Vec<f64>)>,
}

impl Series {
    /// Creates the datasets of a new group from its first row.
    pub fn create(group: Group, row: &[(Column, Cell)]) -> Result<Self> {
        let index_is_integer = row
            .iter()
            .any(|(c, cell)| c.name == INDEX && matches!(cell, Cell::Integer(_)));
        ensure!(
            index_is_integer,
            "a row of {} has no integer column `{INDEX}`; without one a resumed run cannot tell which rows \
             to drop",
            group.name()
        );
        let mut columns = Vec::with_capacity(row.len());
        for (column, cell) in row {
            columns.push(GrowingColumn::create(&group, column, cell)?);
        }
        let index = group.dataset(INDEX)?;
        set_scale(&index, INDEX)?;
        for column in columns.iter().filter(|column| column.name != INDEX) {
            attach_scale(&column.dataset, &index, 0)?;
        }
        Ok(Self {
            group,
            columns,
            arrays: Vec::new(),
            written_rows: 0,
            pending_rows: 0,
        })
    }

    /// Opens the datasets that an earlier process created.
    pub fn open(group: Group) -> Result<Self> {
        let mut columns = Vec::new();
        let mut arrays = Vec::new();
        for dataset in group.datasets()?.into_iter().filter(Dataset::is_resizable) {
            let name = leaf(&dataset);
            if dataset.ndim() == 1 {
                let pending = if dataset.dtype()?.is::<i64>() {
                    Pending::Integer(Vec::new())
                } else {
                    Pending::Float(Vec::new())
                };
                columns.push(GrowingColumn {
                    name,
                    dataset,
                    pending,
                });
            } else {
                let shape = dataset.shape()[1..].to_vec();
                arrays.push(GrowingArray {
                    name,
                    dataset,
                    shape,
                    pending: Vec::new(),
                });
            }
        }
        let written_rows = columns
            .iter()
            .map(|column| column.dataset.size())
            .min()
            .unwrap_or(0);
        Ok(Self {
            group,
            columns,
            arrays,
            written_rows,
            pending_rows: 0,
        })
    }

    /// Keeps the rows up to and including `last_iteration`, and only those that every column has.
    pub fn truncate(&mut self, last_iteration: i64) -> Result<()> {
        let index = self.group.dataset(INDEX)?.read_raw::<i64>()?;
        let kept = index
            .iter()
            .take(self.written_rows)
            .take_while(|&&i| i <= last_iteration)
            .count();
        for column in &self.columns {
            column
                .dataset
                .resize(kept)
                .with_context(|| format!("shortening {}", column.dataset.name()))?;
        }
        for array in &self.arrays {
            array.resize(kept)?;
        }
        self.written_rows = kept;
        Ok(())
    }

    /// Adds a row to the buffer.
    pub fn append(&mut self, row: &[(Column, Cell)]) -> Result<()> {
        let found: Vec<&str> = row.iter().map(|(column, _)| column.name).collect();
        let same = found.len() == self.columns.len()
            && self
                .columns
                .iter()
                .all(|column| found.contains(&column.name.as_str()));
        if !same {
            let wanted: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            bail!(
                "rows of {} have the columns {}, this row has {}; put other columns in another group",
                self.group.name(),
                wanted.join(", "),
                found.join(", ")
            );
        }
        for column in &self.columns {
            column.accepts(row)?;
        }
        for column in &mut self.columns {
            column.push(row);
        }
        self.pending_rows += 1;
        Ok(())
    }

    /// Adds an array to the group's latest row; rows that got none read as NaN.
    pub fn append_array(&mut self, column: Column, values: &[f64], shape: &[usize]) -> Result<()> {
        let rows = self.written_rows + self.pending_rows;
        ensure!(
            rows > 0,
            "{}/{} belongs to a row, and the group has none; append the row first",
            self.group.name(),
            column.name
        );
        ensure!(
            values.len() == shape.iter().product::<usize>(),
            "{} values for {}/{} of shape {shape:?}",
            values.len(),
            self.group.name(),
            column.name
        );
        let position = match self.arrays.iter().position(|array| array.name == column.name) {
            Some(position) => position,
            None => {
                self.arrays
                    .push(GrowingArray::create(&self.group, &column, shape)?);
                self.arrays.len() - 1
            }
        };
        let array = &mut self.arrays[position];
        ensure!(
            array.shape == shape,
            "{}/{} has rows of shape {:?}, this one has {shape:?}",
            self.group.name(),
            column.name,
            array.shape
        );
        array.pending.push((rows - 1, values.to_vec()));
        Ok(())
    }

    /// Number of rows that a flush would write.
    pub fn pending_rows(&self) -> usize {
        self.pending_rows
    }

    /// Moves the buffered rows to the file. After an error the rows are still buffered.
    pub fn write_pending(&mut self) -> Result<()> {
        let (from, to) = (self.written_rows, self.written_rows + self.pending_rows);
        for column in &self.columns {
            column
                .write(from, to)
                .with_context(|| format!("writing {}", column.dataset.name()))?;
        }
        for array in &self.arrays {
            array
                .write(to)
                .with_context(|| format!("writing {}", array.dataset.name()))?;
        }
        for column in &mut self.columns {
            column.clear();
        }
        for array in &mut self.arrays {
            array.pending.clear();
        }
        self.written_rows = to;
        self.pending_rows = 0;
        Ok(())
    }
}

impl GrowingColumn {
    fn create(group: &Group, column: &Column, cell: &Cell) -> Result<Self> {
        let empty = Extents::from(Extent::resizable(0));
        let builder = group.new_dataset_builder().chunk(CHUNK_ROWS);
        let (dataset, pending) = match cell {
            Cell::Float(_) => {
                let builder = builder.empty::<f64>().fill_value(f64::NAN);
                (
                    builder.shape(empty).create(column.name),
                    Pending::Float(Vec::new()),
                )
            }
            Cell::Integer(_) => (
                builder.empty::<i64>().shape(empty).create(column.name),
                Pending::Integer(Vec::new()),
            ),
        };
        let dataset = dataset.with_context(|| format!("creating {}/{}", group.name(), column.name))?;
        describe(&dataset, column.units, column.description)?;
        Ok(Self {
            name: column.name.to_owned(),
            dataset,
            pending,
        })
    }

    fn cell(&self, row: &[(Column, Cell)]) -> Option<Cell> {
        row.iter()
            .find(|(column, _)| column.name == self.name)
            .map(|(_, cell)| *cell)
    }

    /// A float column takes integers too; an integer column takes nothing else.
    fn accepts(&self, row: &[(Column, Cell)]) -> Result<()> {
        if let (Pending::Integer(_), Some(Cell::Float(value))) = (&self.pending, self.cell(row)) {
            bail!("{} holds integers, this row has {value}", self.dataset.name());
        }
        Ok(())
    }

    fn push(&mut self, row: &[(Column, Cell)]) {
        match (self.cell(row), &mut self.pending) {
            (Some(Cell::Float(value)), Pending::Float(values)) => values.push(value),
            (Some(Cell::Integer(value)), Pending::Float(values)) => values.push(value as f64),
            (Some(Cell::Integer(value)), Pending::Integer(values)) => values.push(value),
            (Some(Cell::Float(_)), Pending::Integer(_)) | (None, _) => {
                unreachable!("the row was checked against the columns before any was pushed")
            }
        }
    }

    fn write(&self, from: usize, to: usize) -> Result<()> {
        self.dataset.resize(to)?;
        match &self.pending {
            Pending::Float(values) => {
                self.dataset
                    .write_slice::<_, f64, _, Ix1>(values.as_slice(), from..to)?;
            }
            Pending::Integer(values) => {
                self.dataset
                    .write_slice::<_, i64, _, Ix1>(values.as_slice(), from..to)?;
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        match &mut self.pending {
            Pending::Float(values) => values.clear(),
            Pending::Integer(values) => values.clear(),
        }
    }
}

impl GrowingArray {
    fn create(group: &Group, column: &Column, shape: &[usize]) -> Result<Self> {
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
            let scale = index_scale(
                group,
                &name,
                size,
                &format!("index along axis {axis} of {}", column.name),
            )?;
            attach_scale(&dataset, &scale, axis + 1)?;
        }
        Ok(Self {
            name: column.name.to_owned(),
            dataset,
            shape: shape.to_vec(),
            pending: Vec::new(),
        })
    }

    fn resize(&self, rows: usize) -> Result<()> {
        let mut size = vec![rows];
        size.extend_from_slice(&self.shape);
        self.dataset
            .resize(size)
            .with_context(|| format!("resizing {}", self.dataset.name()))
    }

    fn write(&self, rows: usize) -> Result<()> {
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

/// Last part of a dataset's path.
pub fn leaf(dataset: &Dataset) -> String {
    let name = dataset.name();
    name.rsplit('/').next().unwrap_or(&name).to_owned()
}
