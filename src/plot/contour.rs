//! Contour lines of a function on a square grid, at the levels of highest density.

use anyhow::{Result, ensure};

/// Values on a square grid over the unit square.
pub struct Field {
    values: Vec<f64>,
    side: usize,
}

/// A point of the unit square, y upwards.
pub type Point = (f64, f64);

impl Field {
    /// `values` `[side · side]`: row by row from the bottom, each from the left. Values of no density (−∞ or not a
    /// number) count as far below all others.
    ///
    /// # Errors
    /// If there are not `side`² values or none is finite.
    pub fn new(mut values: Vec<f64>, side: usize) -> Result<Self> {
        ensure!(
            side > 1 && values.len() == side * side,
            "a grid of {side} × {side} points has {} values",
            values.len()
        );
        let highest = values.iter().copied().filter(|value| value.is_finite()).fold(f64::MIN, f64::max);
        ensure!(highest > f64::MIN, "the log-density is finite nowhere on the grid");
        // e^−200 of the highest density holds no mass, and is still a number to interpolate with.
        for value in &mut values {
            *value = if value.is_finite() { value.max(highest - 200.0) } else { highest - 200.0 };
        }
        Ok(Field { values, side })
    }

    fn value(&self, column: usize, row: usize) -> f64 {
        self.values[row * self.side + column]
    }

    /// Bilinear interpolation at a point of the unit square.
    pub fn at(&self, x: f64, y: f64) -> f64 {
        let cell = |at: f64| {
            let at = at.clamp(0.0, 1.0) * (self.side - 1) as f64;
            let index = (at as usize).min(self.side - 2);
            (index, at - index as f64)
        };
        let ((column, dx), (row, dy)) = (cell(x), cell(y));
        let along = |row| self.value(column, row) * (1.0 - dx) + self.value(column + 1, row) * dx;
        along(row) * (1.0 - dy) + along(row + 1) * dy
    }

    /// Pieces of the line at which the function crosses `level`, by marching squares: one or two in each cell
    /// whose corners lie on both sides.
    pub fn contour(&self, level: f64) -> Vec<(Point, Point)> {
        let mut pieces = Vec::new();
        for row in 0..self.side - 1 {
            for column in 0..self.side - 1 {
                self.contour_of_cell(level, column, row, &mut pieces);
            }
        }
        pieces
    }

    fn contour_of_cell(&self, level: f64, column: usize, row: usize, pieces: &mut Vec<(Point, Point)>) {
        // Counter-clockwise from the lower left.
        let corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)];
        let values = corners.map(|(column, row)| self.value(column, row));
        let scale = (self.side - 1) as f64;
        let mut crossings = Vec::with_capacity(4);
        for edge in 0..4 {
            let (from, to) = (edge, (edge + 1) % 4);
            if (values[from] > level) != (values[to] > level) {
                let part = (level - values[from]) / (values[to] - values[from]);
                let between = |a: usize, b: usize| (a as f64 + part * (b as f64 - a as f64)) / scale;
                crossings
                    .push((between(corners[from].0, corners[to].0), between(corners[from].1, corners[to].1)));
            }
        }
        match crossings[..] {
            [a, b] => pieces.push((a, b)),
            // A saddle: the middle says which corners are joined.
            [a, b, c, d] if (values.iter().sum::<f64>() / 4.0 > level) == (values[0] > level) => {
                pieces.extend([(a, b), (c, d)]);
            }
            [a, b, c, d] => pieces.extend([(d, a), (b, c)]),
            _ => {}
        }
    }
}

/// For each of `masses`, the level above which lies that part of the field's mass, the field being log-density.
pub fn mass_levels(field: &Field, masses: &[f64]) -> Vec<f64> {
    let mut values = field.values.clone();
    values.sort_by(|a, b| b.total_cmp(a));
    let highest = values[0];
    let total: f64 = values.iter().map(|value| (value - highest).exp()).sum();
    let level = |mass: &f64| {
        let mut sum = 0.0;
        let holds = |value: &&f64| {
            sum += (**value - highest).exp();
            sum >= mass * total
        };
        *values.iter().find(holds).unwrap_or(&values[values.len() - 1])
    };
    masses.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 201;

    /// log-density of a standard normal over [−5, 5]².
    fn normal() -> Field {
        let at = |index: usize| index as f64 / (SIDE - 1) as f64 * 10.0 - 5.0;
        let value = |index: usize| -0.5 * (at(index % SIDE).powi(2) + at(index / SIDE).powi(2));
        Field::new((0..SIDE * SIDE).map(value).collect(), SIDE).unwrap()
    }

    #[test]
    fn levels_of_a_normal_hold_their_mass() {
        // The mass within radius r is 1 − exp(−r²/2): the level that holds m is log(1 − m).
        let levels = mass_levels(&normal(), &[0.5, 0.9, 0.99]);
        for (level, mass) in levels.into_iter().zip([0.5f64, 0.9, 0.99]) {
            assert!((level - (1.0 - mass).ln()).abs() < 0.02, "{level} {mass}");
        }
    }

    #[test]
    fn contour_of_a_normal_is_one_circle() {
        let pieces = normal().contour(-2.0); // radius 2 of a square of side 10
        let mut length = 0.0;
        for ((x1, y1), (x2, y2)) in &pieces {
            assert!(((x1 - 0.5).hypot(y1 - 0.5) - 0.2).abs() < 1e-4);
            length += (x1 - x2).hypot(y1 - y2);
        }
        assert!((length - 0.4 * std::f64::consts::PI).abs() < 1e-3, "{length}");
        assert!(normal().contour(1.0).is_empty());
    }

    #[test]
    fn saddle_joins_the_corners_that_its_middle_belongs_to() {
        // Corners 1, −1, 1, −2 counter-clockwise: the mean −1/4 separates the two high corners at level 0.
        let field = Field::new(vec![1.0, -1.0, -2.0, 1.0], 2).unwrap();
        let near_a_high_corner = |(a, b): &(Point, Point)| {
            let (x, y) = ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0);
            (x < 0.5) == (y < 0.5)
        };
        let pieces = field.contour(0.0);
        assert!(pieces.len() == 2 && pieces.iter().all(near_a_high_corner), "{pieces:?}");
    }

    #[test]
    fn points_of_no_density_do_not_spoil_the_field() {
        let field = Field::new(vec![0.0, f64::NEG_INFINITY, f64::NAN, -1.0], 2).unwrap();
        assert!(field.at(0.5, 0.5).is_finite());
        assert_eq!(mass_levels(&field, &[0.7]), [0.0]); // 1 of 1 + e⁻¹ is .73
        assert!(Field::new(vec![f64::NAN; 4], 2).is_err());
    }
}
