//! Any CSV file with a header as a table of two classes.
//!
//! Only rows that hold a missing value are passed over, and they are reported; whatever else is wrong is an error.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use csv::{Reader, ReaderBuilder, StringRecord, Trim};
use tch::Tensor;

use super::table::Table;

/// What stands for a missing value, in any case; besides it whatever reads as NaN.
const MISSING: [&str; 3] = ["", "NA", "?"];

/// Pairs of classes whose second is the positive one unless the user says otherwise.
const ORDERED: [[&str; 2]; 3] = [["0", "1"], ["-1", "1"], ["false", "true"]];

/// Names in a message before the rest is only counted.
const NAMES_SHOWN: usize = 20;

/// Reads a CSV file with a header: the column `label` has two classes, all others are features.
///
/// `positive` is the class with the label 1, as a number or a text. Without it the greater of {0, 1}, {-1, 1} or
/// {false, true} is. Rows in which a value is missing (empty, `NA`, `NaN` or `?`) are left out, with a warning that
/// counts them.
///
/// # Errors
/// With file, line and column when a cell is no finite number, a row has another number of cells than the header,
/// the header is absent or names a column twice or not at all, the label is not among its names, or there are not
/// exactly two classes.
pub fn load_csv(path: &Path, label: &str, positive: Option<&str>) -> Result<Table> {
    let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let (table, missing) = read(&content, label, positive).with_context(|| path.display().to_string())?;
    if missing.rows > 0 {
        tracing::warn!("{}: {missing}", path.display());
    }
    Ok(table)
}

/// The rows that were left out.
#[derive(Debug, PartialEq)]
struct Missing {
    rows: usize,
    /// Rows of the file with and without a missing value.
    rows_read: usize,
    /// Columns of the file with missing values, and in how many rows.
    columns: Vec<(String, usize)>,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns: Vec<String> =
            self.columns.iter().map(|(name, rows)| format!("{name} in {rows}")).collect();
        write!(
            f,
            "{} of {} rows are left out, as a value is missing: {}",
            self.rows,
            self.rows_read,
            listed(&columns)
        )
    }
}

fn read(content: &[u8], label: &str, positive: Option<&str>) -> Result<(Table, Missing)> {
    let mut lines = Lines::new(content);
    let header =
        lines.next()?.context("the file is empty; wanted a line of column names and rows below it")?;
    let label_column = check_header(&header, label)?;

    let mut features: Vec<f32> = Vec::new();
    let mut classes = Classes { label, names: Vec::new(), of_rows: Vec::new() };
    let mut missing_in = vec![0usize; header.len()];
    let (mut rows_read, mut rows_missing) = (0, 0);
    while let Some(record) = lines.next()? {
        ensure!(
            record.len() == header.len(),
            "line {}: wanted {} cells as in the header, found {}; quote cells that hold commas",
            lines.line(),
            header.len(),
            record.len()
        );
        rows_read += 1;
        let kept = features.len();
        let mut complete = true;
        let mut class = None;
        for (column, cell) in record.iter().enumerate() {
            let value = Cell::read(cell, column == label_column)
                .with_context(|| format!("line {}, column {:?}", lines.line(), &header[column]))?;
            match value {
                Cell::Missing => {
                    missing_in[column] += 1;
                    complete = false;
                }
                Cell::Number(number) => features.push(number),
                Cell::Class(name) => class = Some(name),
            }
        }
        match class {
            Some(class) if complete => {
                classes.push(class).with_context(|| format!("line {}, column {label:?}", lines.line()))?
            }
            _ => {
                features.truncate(kept);
                rows_missing += 1;
            }
        }
    }
    ensure!(rows_read > 0, "no rows below the header");
    let columns = header.iter().map(str::to_owned).zip(missing_in).filter(|(_, rows)| *rows > 0).collect();
    let missing = Missing { rows: rows_missing, rows_read, columns };
    ensure!(rows_missing < rows_read, "no rows are left: {missing}; remove such columns, or fill them in");

    let labels = classes.labels(positive)?;
    let names: Vec<String> = header
        .iter()
        .enumerate()
        .filter(|(column, _)| *column != label_column)
        .map(|(_, name)| name.to_owned())
        .collect();
    let shape = [labels.len() as i64, names.len() as i64];
    let features = Tensor::f_from_slice(&features)?.f_reshape(shape)?;
    Ok((Table { names, features, labels: Tensor::f_from_slice(&labels)? }, missing))
}

/// The records of a file, and the line of the one that came last.
struct Lines<'a> {
    content: &'a [u8],
    reader: Reader<&'a [u8]>,
    /// Byte at which the last record begins, or the ends of line before it.
    start: usize,
}

impl<'a> Lines<'a> {
    fn new(content: &'a [u8]) -> Self {
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        // The header is a record like others, and lengths are compared here, so that all messages are alike.
        let reader =
            ReaderBuilder::new().has_headers(false).flexible(true).trim(Trim::All).from_reader(content);
        Self { content, reader, start: 0 }
    }

    fn next(&mut self) -> Result<Option<StringRecord>> {
        self.start = self.reader.position().byte() as usize;
        let mut record = StringRecord::new();
        let found = self.reader.read_record(&mut record);
        Ok(found.with_context(|| format!("line {}: not text in UTF-8", self.line()))?.then_some(record))
    }

    /// The line, counted from 1, where the last record begins. The reader's own count is that before blank lines,
    /// and one less after lines that end in two characters.
    fn line(&self) -> usize {
        let (before, rest) = self.content.split_at(self.start);
        let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
        1 + before.iter().chain(blank).filter(|byte| **byte == b'\n').count()
    }
}

/// The index of the label column in a header that is one.
fn check_header(header: &StringRecord, label: &str) -> Result<usize> {
    ensure!(
        !header.iter().all(|name| name.parse::<f64>().is_ok()),
        "the first line holds numbers alone; wanted the names of the columns there"
    );
    if let Some(unnamed) = header.iter().position(str::is_empty) {
        bail!(
            "column {} has no name in the header; give it one, or leave it out if it only numbers the rows",
            unnamed + 1
        );
    }
    let mut seen = HashSet::new();
    if let Some(twice) = header.iter().find(|name| !seen.insert(*name)) {
        bail!("the header has the column {twice:?} twice; rename one of them");
    }
    let names: Vec<String> = header.iter().map(str::to_owned).collect();
    let column = names.iter().position(|name| name == label).with_context(|| {
        format!(
            "no column {label:?} for the label; the columns, separated by commas, are: {}",
            listed(&names)
        )
    })?;
    ensure!(names.len() > 1, "{label:?} is the only column; wanted columns of features beside it");
    Ok(column)
}

/// What a cell holds.
enum Cell {
    Missing,
    Number(f32),
    /// A class, in one spelling for each number.
    Class(String),
}

impl Cell {
    fn read(cell: &str, is_label: bool) -> Result<Self> {
        if MISSING.iter().any(|missing| cell.eq_ignore_ascii_case(missing)) {
            return Ok(Self::Missing);
        }
        let number = cell.parse::<f64>().ok();
        match number {
            Some(number) if number.is_nan() => Ok(Self::Missing),
            // Features are f32, so a double beyond their range is as infinite.
            Some(number) if (number as f32).is_infinite() => {
                bail!(
                    "wanted a finite number of 32 bits, found {cell:?}; correct it, or leave it empty if unknown"
                )
            }
            Some(number) if !is_label => Ok(Self::Number(number as f32)),
            None if !is_label => bail!(
                "wanted a number, found {cell:?}; write categories as columns of 0 and 1, and what is missing as NA"
            ),
            _ => Ok(Self::Class(class_name(cell))),
        }
    }
}

/// A class in one spelling: `1`, `1.0` and `+1` are the same number.
fn class_name(text: &str) -> String {
    match text.trim().parse::<f64>() {
        // Adding 0 takes the sign from −0.
        Ok(number) if number.is_finite() => (number + 0.0).to_string(),
        _ => text.trim().to_owned(),
    }
}

/// The classes of the label column in the order in which they appear, and of which each row is.
struct Classes<'a> {
    label: &'a str,
    names: Vec<String>,
    of_rows: Vec<usize>,
}

impl Classes<'_> {
    fn push(&mut self, class: String) -> Result<()> {
        let index = match self.names.iter().position(|name| *name == class) {
            Some(index) => index,
            None if self.names.len() < 2 => {
                self.names.push(class);
                self.names.len() - 1
            }
            None => bail!(
                "a third class {class:?} beside {:?} and {:?}; wanted two: take another column, or make one that is 1 \
                 for one class and 0 for all others",
                self.names[0],
                self.names[1]
            ),
        };
        self.of_rows.push(index);
        Ok(())
    }

    /// 0 or 1 for each row.
    fn labels(&self, positive: Option<&str>) -> Result<Vec<f32>> {
        let [first, second] = &self.names[..] else {
            bail!(
                "column {:?}: wanted two classes, found {:?} in each of {} rows",
                self.label,
                self.names[0],
                self.of_rows.len()
            );
        };
        let wanted = match positive {
            Some(text) => class_name(text),
            None => self.greater()?,
        };
        let positive = self.names.iter().position(|name| *name == wanted).with_context(|| {
            format!(
                "column {:?}: wanted the positive class {wanted:?}, found the classes {first:?} and {second:?}",
                self.label
            )
        })?;
        Ok(self.of_rows.iter().map(|&class| if class == positive { 1.0 } else { 0.0 }).collect())
    }

    /// The greater of two classes whose order is plain.
    fn greater(&self) -> Result<String> {
        for [low, high] in ORDERED {
            let find = |text: &str| self.names.iter().find(|name| name.eq_ignore_ascii_case(text));
            if let (Some(_), Some(high)) = (find(low), find(high)) {
                return Ok(high.clone());
            }
        }
        bail!(
            "column {:?}: which of the classes {:?} and {:?} has the label 1? name it as the positive class",
            self.label,
            self.names[0],
            self.names[1]
        )
    }
}

/// Names with commas between them; of many the first only.
fn listed(names: &[String]) -> String {
    match names.split_at_checked(NAMES_SHOWN) {
        Some((shown, rest)) if !rest.is_empty() => format!("{} and {} more", shown.join(", "), rest.len()),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, positive: Option<&str>) -> Table {
        read(text.as_bytes(), "y", positive).unwrap().0
    }

    fn labels(text: &str, positive: Option<&str>) -> Vec<f32> {
        Vec::try_from(&table(text, positive).labels).unwrap()
    }

    fn refusal(text: &str, positive: Option<&str>) -> String {
        format!("{:#}", read(text.as_bytes(), "y", positive).unwrap_err())
    }

    #[test]
    fn label_column_may_stand_anywhere_and_the_others_keep_their_order() {
        let table = table("a, y ,\"b, c\"\n1.5,0,-2\n\n3e2 , 1, +4\n", None);
        assert_eq!(table.names, ["a", "b, c"]);
        assert_eq!(table.features, Tensor::from_slice(&[1.5f32, -2.0, 300.0, 4.0]).reshape([2, 2]));
        assert_eq!(table.labels, Tensor::from_slice(&[0f32, 1.0]));
    }

    #[test]
    fn greater_of_a_plain_pair_is_positive_unless_the_user_says_otherwise() {
        assert_eq!(labels("x,y\n1,1\n1,0\n1,1.0\n1,-0.0\n", None), [1.0, 0.0, 1.0, 0.0]);
        assert_eq!(labels("x,y\n1,-1\n1,+1\n", None), [0.0, 1.0]);
        assert_eq!(labels("x,y\n1,True\n1,False\n", None), [1.0, 0.0]);
        assert_eq!(labels("x,y\n1,1\n1,0\n", Some("0")), [0.0, 1.0]);
        assert_eq!(labels("x,y\n1,sick\n1,well\n", Some("well")), [0.0, 1.0]);
        assert_eq!(labels("x,y\n1,1\n1,2\n", Some("1.0")), [1.0, 0.0]);
        for classes in ["x,y\n1,sick\n1,well\n", "x,y\n1,1\n1,2\n"] {
            assert!(refusal(classes, None).contains("has the label 1? name it as the positive class"));
        }
        let error = refusal("x,y\n1,sick\n1,well\n", Some("Sick"));
        assert!(
            error.contains("wanted the positive class \"Sick\", found the classes \"sick\" and \"well\"")
        );
    }

    #[test]
    fn rows_with_a_missing_value_are_left_out_and_counted_by_column() {
        let text = "a,b,y\n1,2,0\n,2,1\nNA,?,1\n3,4,1\n5,nan,0\n6,7,\n";
        let (table, missing) = read(text.as_bytes(), "y", None).unwrap();
        assert_eq!(table.features, Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).reshape([2, 2]));
        assert_eq!(table.labels, Tensor::from_slice(&[0f32, 1.0]));
        assert_eq!(
            missing.to_string(),
            "4 of 6 rows are left out, as a value is missing: a in 2, b in 2, y in 1"
        );
        let complete = read("a,y\n1,0\n2,1\n".as_bytes(), "y", None).unwrap().1;
        assert_eq!(complete, Missing { rows: 0, rows_read: 2, columns: Vec::new() });
        // The class of a row that is left out is not one of the two.
        assert_eq!(labels("x,y\n1,0\n,2\n1,1\n", None), [0.0, 1.0]);
    }

    #[test]
    fn wrong_header_is_refused() {
        for (text, parts) in [
            ("", ["the file is empty", "column names"]),
            ("1,0\n2,1\n", ["first line holds numbers alone", "names of the columns"]),
            (",x,y\n1,1,0\n", ["column 1 has no name", "numbers the rows"]),
            ("x,x,y\n1,1,0\n", ["the column \"x\" twice", "rename"]),
            ("x,label\n1,0\n", ["no column \"y\"", "are: x, label"]),
            ("x;y\n1;0\n", ["separated by commas, are: x;y", "no column"]),
            ("y\n1\n0\n", ["\"y\" is the only column", "features"]),
            ("x,y\n", ["no rows", "header"]),
        ] {
            let error = refusal(text, None);
            for part in parts {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }

    #[test]
    fn wrong_rows_are_refused_with_line_and_column() {
        for (text, parts) in [
            ("x,y\n1,0\nold,1\n", ["line 3, column \"x\": wanted a number, found \"old\"", "NA"]),
            // A text is wrong in a row that is left out, too.
            ("x,z,y\n1,2,0\n,old,1\n", ["line 3, column \"z\"", "found \"old\""]),
            ("x,y\n1,0\ninf,1\n", ["line 3, column \"x\"", "wanted a finite number"]),
            ("x,y\n1,0\n1e39,1\n", ["line 3, column \"x\"", "found \"1e39\""]),
            ("x,y\n1,0\n2,-Infinity\n", ["line 3, column \"y\"", "wanted a finite number"]),
            ("x,y\n1,0\n1,2,3\n", ["line 3: wanted 2 cells", "found 3"]),
            ("x,y\n1,0\n1\n", ["line 3: wanted 2 cells", "found 1"]),
            ("x,y\n1,0\n2,0\n", ["column \"y\": wanted two classes", "found \"0\" in each of 2 rows"]),
            ("x,y\n1,0\n2,1\n3,2\n", ["line 4, column \"y\": a third class \"2\"", "\"0\" and \"1\""]),
            ("x,y\n,0\nNA,1\n", ["no rows are left: 2 of 2", "x in 2"]),
        ] {
            let error = refusal(text, None);
            for part in parts {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }

    /// Files of spreadsheets begin with a mark of byte order and their lines end in two characters; lines may be
    /// blank, and a quoted cell may hold a line break.
    #[test]
    fn lines_are_counted_as_an_editor_counts_them() {
        for end in ["\n", "\r\n"] {
            for (rows, line) in [("1,0|1,1|old,1|", 4), ("1,0||old,1|", 4), ("1,0||\"2|\",1|old,1", 6)] {
                let text = format!("\u{feff}x,y|{rows}").replace('|', end);
                let error = refusal(&text, None);
                assert!(error.contains(&format!("line {line}, column \"x\"")), "{text:?}: {error}");
            }
        }
        assert_eq!(table("\u{feff}x,y\r\n1,0\r\n2,1\r\n", None).names, ["x"]);
    }

    #[test]
    fn file_is_named_in_every_message() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("patients.csv");
        let error = format!("{:#}", load_csv(&path, "y", None).unwrap_err());
        assert!(error.contains("patients.csv"), "{error}");
        std::fs::write(&path, "x,y\nold,1\n").unwrap();
        let error = format!("{:#}", load_csv(&path, "y", None).unwrap_err());
        assert!(error.contains("patients.csv: line 2, column \"x\""), "{error}");
        std::fs::write(&path, [b'x', b',', b'y', b'\n', 0xe9, b',', b'1']).unwrap();
        let error = format!("{:#}", load_csv(&path, "y", None).unwrap_err());
        assert!(error.contains("patients.csv: line 2: not text in UTF-8"), "{error}");
    }

    #[test]
    fn long_list_of_columns_is_cut() {
        let names: Vec<String> = (0..25).map(|column| format!("c{column}")).collect();
        assert!(listed(&names).ends_with("c19 and 5 more"));
        assert!(listed(&names[..20]).ends_with("c18, c19"));
    }
}
