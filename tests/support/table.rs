//! A small table of two classes, for tests of regressions.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use dft::rng::{Generator, Stream};
use tch::{Kind, Tensor};

/// Rows of the table that [`write_table`] writes.
pub const ROWS: usize = 300;

/// Its features.
pub const FEATURES: usize = 4;

/// Writes a CSV file of [`ROWS`] rows: features `a` to `d`, normal, correlated and on different scales, and the column
/// `label`, which is `positive` with the probability sigmoid(1.2 a − 0.8 b + 0.5 c) of the unscaled features and
/// `negative` otherwise.
pub fn write_table(path: &Path, label: &str, [negative, positive]: [&str; 2]) {
    let mut generator = Generator::new(0, Stream::Exact, 0, 0);
    let z = generator.normal(&[ROWS as i64, FEATURES as i64]).to_kind(Kind::Double);
    // d has half of its variance from a.
    z.select(1, 3).copy_(&((z.select(1, 3) + z.select(1, 0)) / 2f64.sqrt()));
    let logit = z.select(1, 0) * 1.2 - z.select(1, 1) * 0.8 + z.select(1, 2) * 0.5;
    let is_positive = generator.uniform(&[ROWS as i64]).to_kind(Kind::Double).lt_tensor(&logit.sigmoid());
    let x = &z * Tensor::from_slice(&[1.0, 10.0, 0.01, 3.0]) + Tensor::from_slice(&[0.0, 50.0, 1.0, -2.0]);
    let x = Vec::<f64>::try_from(x.reshape([-1])).expect("numbers");
    let is_positive = Vec::<bool>::try_from(&is_positive).expect("truths");
    let mut text = format!("a,b,{label},c,d\n");
    for (x, is_positive) in x.chunks(FEATURES).zip(is_positive) {
        let class = if is_positive { positive } else { negative };
        writeln!(text, "{:.6},{:.6},{class},{:.6},{:.6}", x[0], x[1], x[2], x[3]).expect("memory");
    }
    fs::write(path, text).expect("the table can be written");
}
