//! One group of growing datasets: rows buffered in memory until a flush moves them to the file at once.

use anyhow::{Context, Result, bail, ensure};
use hdf5::{Dataset, Group};

use super::growing::{GrowingArray, GrowingColumn};
use super::scale::{attach_scale, set_scale};
use super::{Cell, Column};

/// The column by which rows are counted, resumed and plotted.
pub const INDEX: &str = "iteration";

/// The growing datasets of one group, and the rows that wait to be written.
pub struct Series {
    group: Group,
    columns: Vec<GrowingColumn>,
    arrays: Vec<GrowingArray>,
    written_rows: usize,
    pending_rows: usize,
}

impl Series {
    /// Creates the datasets of a new group from its first row.
    pub fn create(group: Group, row: &[(Column, Cell)]) -> Result<Self> {
        let index_is_integer =
            row.iter().any(|(c, cell)| c.name == INDEX && matches!(cell, Cell::Integer(_)));
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
        Ok(Self { group, columns, arrays: Vec::new(), written_rows: 0, pending_rows: 0 })
    }

    /// Opens the datasets that an earlier process created.
    pub fn open(group: Group) -> Result<Self> {
        let mut columns = Vec::new();
        let mut arrays = Vec::new();
        for dataset in group.datasets()?.into_iter().filter(Dataset::is_resizable) {
            let name = leaf(&dataset);
            if dataset.ndim() == 1 {
                columns.push(GrowingColumn::open(name, dataset)?);
            } else {
                arrays.push(GrowingArray::open(name, dataset));
            }
        }
        let written_rows = columns.iter().map(|column| column.dataset.size()).min().unwrap_or(0);
        Ok(Self { group, columns, arrays, written_rows, pending_rows: 0 })
    }

    /// Keeps the rows up to and including `last_iteration`, and only those that every column has.
    pub fn truncate(&mut self, last_iteration: i64) -> Result<()> {
        let index = self.group.dataset(INDEX)?.read_raw::<i64>()?;
        let kept = index.iter().take(self.written_rows).take_while(|&&i| i <= last_iteration).count();
        for column in &self.columns {
            column.dataset.resize(kept).with_context(|| format!("shortening {}", column.dataset.name()))?;
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
            && self.columns.iter().all(|column| found.contains(&column.name.as_str()));
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
        ensure!(
            !shape.is_empty(),
            "{}/{} is a single number; make it a column of the row",
            self.group.name(),
            column.name
        );
        let position = match self.arrays.iter().position(|array| array.name == column.name) {
            Some(position) => position,
            None => {
                self.arrays.push(GrowingArray::create(&self.group, &column, shape)?);
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

    /// Rows that wait for a flush.
    pub fn pending_rows(&self) -> usize {
        self.pending_rows
    }

    /// Whether a flush has something to write.
    pub fn has_pending(&self) -> bool {
        self.pending_rows > 0 || self.arrays.iter().any(|array| !array.pending.is_empty())
    }

    /// Moves the buffered rows to the file. After an error the rows are still buffered.
    pub fn write_pending(&mut self) -> Result<()> {
        let (from, to) = (self.written_rows, self.written_rows + self.pending_rows);
        for column in &self.columns {
            column.write(from, to).with_context(|| format!("writing {}", column.dataset.name()))?;
        }
        for array in &self.arrays {
            array.write(to).with_context(|| format!("writing {}", array.dataset.name()))?;
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

/// Last part of a dataset's path.
pub fn leaf(dataset: &Dataset) -> String {
    let name = dataset.name();
    name.rsplit('/').next().unwrap_or(&name).to_owned()
}
