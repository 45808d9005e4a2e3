//! A set of points in R^D on the host, in f64, coordinate by coordinate: what the metrics of points read.

use tch::{Device, Kind, Tensor};

/// `N` points of `D` coordinates, each coordinate contiguous, so that loops over points vectorise.
#[derive(Debug, Clone)]
pub struct Cloud {
    rows: usize,
    columns: Vec<Vec<f64>>,
}

impl Cloud {
    /// From `x` `[N, …]` of any kind and device; further dimensions are flattened to one.
    pub fn new(x: &Tensor) -> Self {
        let x = x.detach().flatten(1, -1).to_device(Device::Cpu).to_kind(Kind::Double);
        let column = |i| Vec::try_from(x.select(1, i).contiguous()).expect("a vector of f64 on the host");
        Cloud { rows: x.size()[0] as usize, columns: (0..x.size()[1]).map(column).collect() }
    }

    /// Number of points, `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of coordinates, `D`.
    pub fn dimension(&self) -> usize {
        self.columns.len()
    }

    /// One coordinate of all points, `[N]`.
    pub fn column(&self, coordinate: usize) -> &[f64] {
        &self.columns[coordinate]
    }

    /// The first `rows` points, or all if there are fewer.
    pub fn head(&self, rows: usize) -> Cloud {
        let rows = rows.min(self.rows);
        Cloud { rows, columns: self.columns.iter().map(|column| column[..rows].to_vec()).collect() }
    }

    /// Mean point, `[D]`.
    pub fn mean(&self) -> Vec<f64> {
        self.columns.iter().map(|column| column.iter().sum::<f64>() / self.rows as f64).collect()
    }

    /// All points less their mean.
    pub fn centred(&self) -> Cloud {
        self.map_columns(&self.mean(), |value, mean| value - mean)
    }

    /// Each coordinate times its factor, `factors` `[D]`.
    pub fn scaled(&self, factors: &[f64]) -> Cloud {
        self.map_columns(factors, |value, factor| value * factor)
    }

    fn map_columns(&self, parameters: &[f64], map: fn(f64, f64) -> f64) -> Cloud {
        let mapped = |(column, &by): (&Vec<f64>, &f64)| column.iter().map(|&value| map(value, by)).collect();
        Cloud { rows: self.rows, columns: self.columns.iter().zip(parameters).map(mapped).collect() }
    }

    /// Coordinate of every point along `direction` `[D]`, `[N]`.
    pub fn along(&self, direction: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.rows];
        for (column, weight) in self.columns.iter().zip(direction) {
            for (total, value) in sum.iter_mut().zip(column) {
                *total += weight * value;
            }
        }
        sum
    }

    /// Squared distances from `point` `[D]` to the points `first..first + out.len()`.
    pub fn square_distances(&self, point: &[f64], first: usize, out: &mut [f64]) {
        out.fill(0.0);
        for (column, at) in self.columns.iter().zip(point) {
            for (total, value) in out.iter_mut().zip(&column[first..]) {
                let difference = at - value;
                *total += difference * difference;
            }
        }
    }

    /// Coordinates of one point, `[D]`.
    pub fn point(&self, row: usize) -> Vec<f64> {
        self.columns.iter().map(|column| column[row]).collect()
    }
}

/// Sum in four lanes: twice as fast as one after the other, and the rounding errors grow more slowly.
pub(super) fn lane_sum(values: &[f64]) -> f64 {
    let mut lanes = [0.0; 4];
    let chunks = values.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f64>() + rest
}
