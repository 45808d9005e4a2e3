//! The design matrix of a regression: a split of a table, scaled, with a column of ones.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::table::Table;
use crate::config::Scaling;
use crate::rng::{Generator, Stream};

/// Name of the column of ones.
const CONSTANT: &str = "constant";

/// Rows that are turned into doubles at a time. Few, so that a block stays in the cache and libtorch works on it in
/// one thread: measured on two busy cores, 8192 rows took 8 s for Covertype as threads waited for one another.
const BLOCK_ROWS: i64 = 512;

/// How a feature of the table became a column: (value − `shift`)·`factor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaledFeature {
    /// Its name.
    pub name: String,
    /// What is taken from it, in its own units.
    pub shift: f64,
    /// What the rest is multiplied by; 0 where it does not vary.
    pub factor: f64,
}

/// A training and a test split of a table on the CPU; `d` columns, one for each feature of the table in its order
/// and then one of ones.
#[derive(Debug)]
pub struct Design {
    /// Names of the `d` columns; the last is `constant`.
    pub names: Vec<String>,
    /// How the features became the first `d` − 1 columns.
    pub features: Vec<ScaledFeature>,
    /// Features that do not vary in the training split. Their columns are 0 in both splits, whatever the scaling,
    /// so that every split has the same columns; the data say nothing of their weights.
    pub constant_columns: Vec<String>,
    /// f32 `[N_train, d]`.
    pub train_x: Tensor,
    /// f32 `[N_train]`, 0 or 1.
    pub train_y: Tensor,
    /// f32 `[N_test, d]`.
    pub test_x: Tensor,
    /// f32 `[N_test]`, 0 or 1.
    pub test_y: Tensor,
}

impl Design {
    /// Splits `table` by the seed `split` and scales both parts by the statistics of the training rows.
    ///
    /// The first floor(`test_fraction`·N) rows of the permutation are the test split. A feature becomes
    /// (x − mean) / standard deviation (divisor N_train) or (x − min) / (max − min), computed in f64.
    ///
    /// # Errors
    /// When `test_fraction` is outside (0, 1), a split is too small or lacks a class, or the table is not one.
    pub fn new(table: &Table, scaling: Scaling, test_fraction: f64, split: u64) -> Result<Design> {
        check(table)?;
        ensure!(
            test_fraction > 0.0 && test_fraction < 1.0,
            "a test fraction of {test_fraction}; wanted one between 0 and 1, e.g. 0.2"
        );
        let rows = table.labels.size()[0];
        let test_rows = (test_fraction * rows as f64).floor() as i64;
        ensure!(
            test_rows >= 1 && rows - test_rows >= 2,
            "{rows} rows and a test fraction of {test_fraction} leave {} training rows and {test_rows} test rows; \
             wanted at least 2 and 1",
            rows - test_rows
        );
        let order = Tensor::from_slice(&Generator::new(split, Stream::Split, 1, 0).permutation(rows));
        let (test, train) = (order.narrow(0, 0, test_rows), order.narrow(0, test_rows, rows - test_rows));
        let train_y = labels(table, &train, "training", split)?;
        let test_y = labels(table, &test, "test", split)?;

        let train_x = gather(&table.features, &train);
        let test_x = gather(&table.features, &test);
        let scale = Scale::of(&without_constant(&train_x), scaling);
        scale.apply(&without_constant(&train_x));
        scale.apply(&without_constant(&test_x));

        let constant_columns: Vec<String> = table
            .names
            .iter()
            .zip(&scale.is_constant)
            .filter(|(_, is_constant)| **is_constant)
            .map(|(name, _)| name.clone())
            .collect();
        if !constant_columns.is_empty() {
            tracing::warn!(
                "features without variation in the {} training rows of split {split}, kept as columns of 0: {}",
                rows - test_rows,
                constant_columns.join(", ")
            );
        }
        let mut names = table.names.clone();
        names.push(CONSTANT.to_owned());
        let numbers = |t: &Tensor| Vec::<f64>::try_from(t).expect("[F] f64");
        let scales = numbers(&scale.shift).into_iter().zip(numbers(&scale.factor));
        let features = table.names.iter().cloned().zip(scales);
        let features =
            features.map(|(name, (shift, factor))| ScaledFeature { name, shift, factor }).collect();
        Ok(Design { names, features, constant_columns, train_x, train_y, test_x, test_y })
    }
}

fn check(table: &Table) -> Result<()> {
    let (features, labels, columns) = (table.features.size(), table.labels.size(), table.names.len() as i64);
    ensure!(
        features.len() == 2 && labels.len() == 1 && features == [labels[0], columns],
        "a table of {columns} names, features of the shape {features:?} and labels of the shape {labels:?}"
    );
    ensure!(
        !table.names.iter().any(|name| name == CONSTANT),
        "a feature has the name {CONSTANT:?}, which the column of ones has; rename it, or leave it out if it is one"
    );
    Ok(())
}

/// The labels of the rows, which must be of both classes.
fn labels(table: &Table, rows: &Tensor, part: &str, split: u64) -> Result<Tensor> {
    let labels = table.labels.index_select(0, rows);
    let (count, positives) = (labels.size()[0], labels.sum(Kind::Double).double_value(&[]));
    ensure!(
        positives > 0.0 && positives < count as f64,
        "the {part} rows of split {split} have the label 1 in {positives} of {count} rows; wanted both classes: \
         take another split, another fraction, or more data"
    );
    Ok(labels)
}

/// The rows of `features`, with a column of ones behind them: the only copy that is made of them.
fn gather(features: &Tensor, rows: &Tensor) -> Tensor {
    let x = Tensor::ones([rows.size()[0], features.size()[1] + 1], (Kind::Float, Device::Cpu));
    for (mut block, rows) in blocks(&without_constant(&x)).into_iter().zip(blocks(rows)) {
        block.copy_(&features.index_select(0, &rows));
    }
    x
}

/// A view of all columns but the last.
fn without_constant(x: &Tensor) -> Tensor {
    x.narrow(1, 0, x.size()[1] - 1)
}

/// Views of [`BLOCK_ROWS`] rows each, the last of fewer.
fn blocks(x: &Tensor) -> Vec<Tensor> {
    x.split(BLOCK_ROWS, 0)
}

/// x ↦ (x − shift)·factor for each feature, f64 `[F]`; the factor is 0 where the feature is constant.
struct Scale {
    shift: Tensor,
    factor: Tensor,
    is_constant: Vec<bool>,
}

impl Scale {
    /// The scale of the features `x`, f32 `[N, F]`.
    fn of(x: &Tensor, scaling: Scaling) -> Self {
        let (least, greatest) = (x.amin([0], false), x.amax([0], false));
        // By equality, which rounding cannot blur as it blurs a standard deviation of 0.
        let is_constant = least.eq_tensor(&greatest);
        let (least, greatest) = (least.to_kind(Kind::Double), greatest.to_kind(Kind::Double));
        let (shift, width) = match scaling {
            Scaling::Standard => moments(x),
            Scaling::MinMax => (least.shallow_clone(), greatest - least),
            Scaling::None => (least.zeros_like(), least.ones_like()),
        };
        let factor = width.reciprocal().masked_fill(&is_constant, 0.0);
        Scale { shift, factor, is_constant: Vec::try_from(&is_constant).expect("[F] bool") }
    }

    /// Scales the features in place.
    fn apply(&self, x: &Tensor) {
        for mut block in blocks(x) {
            let scaled = (block.to_kind(Kind::Double) - &self.shift) * &self.factor;
            block.copy_(&scaled);
        }
    }
}

/// Mean and standard deviation (divisor N) of each column of f32 `[N, F]`, in f64; in two passes, as the sum of
/// squares loses what the mean has in digits.
fn moments(x: &Tensor) -> (Tensor, Tensor) {
    let rows = x.size()[0] as f64;
    let sum = |term: &dyn Fn(Tensor) -> Tensor| -> Tensor {
        let zero = Tensor::zeros([x.size()[1]], (Kind::Double, Device::Cpu));
        blocks(x).into_iter().fold(zero, |sum, block| {
            sum + term(block.to_kind(Kind::Double)).sum_dim_intlist([0].as_slice(), false, Kind::Double)
        })
    };
    let mean = sum(&|block| block) / rows;
    let variance = sum(&|block| (block - &mean).square()) / rows;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feature `row` counts the rows, so a scaled design tells which rows it holds; `same` is 5 everywhere.
    fn table(rows: i64) -> Table {
        let row = Tensor::arange(rows, (Kind::Float, Device::Cpu));
        let same = row.full_like(5.0);
        Table {
            names: vec!["row".to_owned(), "same".to_owned()],
            features: Tensor::stack(&[&row, &same], 1),
            labels: row.remainder(2.0),
        }
    }

    fn column(x: &Tensor, index: i64) -> Vec<f64> {
        Vec::try_from(x.select(1, index).to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn splits_are_a_partition_with_their_labels_and_the_same_for_equal_seeds() {
        let rows = 3 * BLOCK_ROWS / 2; // more than one block
        let table = table(rows);
        let split = |seed| Design::new(&table, Scaling::None, 0.2, seed).unwrap();
        let design = split(3);
        assert_eq!(design.test_x.size(), [rows / 5, 3]); // the floor of 153.6
        let mut held = column(&design.train_x, 0);
        held.extend(column(&design.test_x, 0));
        held.sort_by(f64::total_cmp);
        assert_eq!(held, (0..rows).map(|row| row as f64).collect::<Vec<_>>());
        for (x, y) in [(&design.train_x, &design.train_y), (&design.test_x, &design.test_y)] {
            assert_eq!(x.select(1, 0).remainder(2.0), *y);
        }
        assert_eq!(split(3).train_x, design.train_x);
        assert_ne!(split(4).train_x, design.train_x);
    }

    #[test]
    fn constant_feature_is_kept_as_zeros_and_named_under_each_scaling() {
        for scaling in [Scaling::Standard, Scaling::MinMax, Scaling::None] {
            let design = Design::new(&table(20), scaling, 0.5, 0).unwrap();
            assert_eq!(design.names, ["row", "same", "constant"]);
            assert_eq!(design.constant_columns, ["same"]);
            for x in [&design.train_x, &design.test_x] {
                assert_eq!(column(x, 1), [0.0; 10]);
                assert_eq!(column(x, 2), [1.0; 10]);
            }
        }
    }

    /// A feature that varies in the test rows alone, as rare soil types can: the training rows say nothing of its
    /// weight, so a test row may not feel it.
    #[test]
    fn feature_that_varies_in_the_test_rows_alone_is_zero_there_too() {
        let mut table = table(20);
        let test_row = column(&Design::new(&table, Scaling::None, 0.5, 0).unwrap().test_x, 0)[0] as i64;
        table.features = Tensor::stack(
            &[
                table.features.select(1, 0),
                Tensor::arange(20, (Kind::Float, Device::Cpu)).eq(test_row).to_kind(Kind::Float),
            ],
            1,
        );
        let design = Design::new(&table, Scaling::Standard, 0.5, 0).unwrap();
        assert_eq!(design.constant_columns, ["same"]);
        assert_eq!(column(&design.test_x, 1), [0.0; 10]);
    }

    /// By hand: 1, 2, 3, 6 have the mean 3 and the variance (4 + 1 + 0 + 9) / 4 = 3.5; their range is 5.
    #[test]
    fn scales_are_those_computed_by_hand() {
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 6.0]).unsqueeze(1);
        let scaled = |scaling, value: f32| {
            let x_new = Tensor::from_slice(&[value]).unsqueeze(1);
            Scale::of(&x, scaling).apply(&x_new);
            x_new.double_value(&[0, 0])
        };
        // f32 rounding of numbers near 1.
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-7, "{found} {wanted}");
        close(scaled(Scaling::Standard, 6.0), 3.0 / 3.5f64.sqrt());
        close(scaled(Scaling::Standard, 3.0), 0.0);
        close(scaled(Scaling::MinMax, 2.0), 0.2);
        close(scaled(Scaling::MinMax, 11.0), 2.0);
        close(scaled(Scaling::None, 6.0), 6.0);
    }

    /// 1e6 and 1e6 + 1 in turn have the deviation 1/2; the sum of squares in f32 would give anything.
    #[test]
    fn deviation_of_a_large_mean_is_exact() {
        let x = Tensor::arange(20_000, (Kind::Float, Device::Cpu)).remainder(2.0).unsqueeze(1) + 1e6;
        let (mean, deviation) = moments(&x);
        assert!((mean.double_value(&[0]) - 1_000_000.5).abs() < 1e-9);
        assert!((deviation.double_value(&[0]) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn wrong_requests_say_what_was_wanted_and_found() {
        let error = |table: &Table, fraction: f64| {
            Design::new(table, Scaling::Standard, fraction, 0).unwrap_err().to_string()
        };
        for fraction in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(error(&table(20), fraction).contains("wanted one between 0 and 1"));
        }
        assert!(error(&table(2), 0.5).contains("leave 1 training rows and 1 test rows"));
        assert!(error(&table(20), 0.04).contains("leave 20 training rows and 0 test rows"));
        let mut one_positive = table(20);
        one_positive.labels = one_positive.features.select(1, 0).eq(0.0).to_kind(Kind::Float);
        let message = error(&one_positive, 0.5);
        assert!(message.contains("rows of split 0 have the label 1 in 0 of 10 rows"), "{message}");
        let mut named = table(20);
        named.names[1] = "constant".to_owned();
        assert!(error(&named, 0.5).contains("rename it"));
        let mut ragged = table(20);
        ragged.names.pop();
        assert!(error(&ragged, 0.5).contains("a table of 1 names"));
    }
}
