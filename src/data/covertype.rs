//! Covertype as a table of two classes: lodgepole pine, the cover type 2, against all others.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use super::dataset::{DataFile, Dataset};
use super::table::Table;
use super::{compact, verify};

/// The features that are quantities, in the order of the file (UCI's `covtype.info`).
pub const QUANTITIES: [&str; 10] = [
    "Elevation",
    "Aspect",
    "Slope",
    "Horizontal_Distance_To_Hydrology",
    "Vertical_Distance_To_Hydrology",
    "Horizontal_Distance_To_Roadways",
    "Hillshade_9am",
    "Hillshade_Noon",
    "Hillshade_3pm",
    "Horizontal_Distance_To_Fire_Points",
];

/// Wilderness areas, one column of the text each.
pub const WILDERNESS_AREAS: u8 = 4;
/// Soil types, one column of the text each.
pub const SOIL_TYPES: u8 = 40;
/// Cover types, the classes of the last column.
pub const COVER_TYPES: u8 = 7;

/// Lodgepole pine, nearly half of the rows; Collobert, Bengio and Bengio (2002) made it the positive class of a
/// problem of two, and others since.
const POSITIVE: i64 = 2;

const REMEDY: &str = "run `dft data covertype`";

/// What the text says, with a number in the place of each group of 0-1 columns; `N` rows.
#[derive(Debug, Default, PartialEq)]
pub struct Records {
    /// `[N, 10]`, row after row: the columns of [`QUANTITIES`], in metres, degrees and shades of 0 to 255.
    pub quantities: Vec<i16>,
    /// `[N]`, 1 to 4.
    pub wilderness: Vec<u8>,
    /// `[N]`, 1 to 40.
    pub soil: Vec<u8>,
    /// `[N]`, 1 to 7.
    pub cover: Vec<u8>,
}

/// Loads Covertype from its directory: 581,012 rows of 54 features, label 1 where the cover type is 2.
///
/// Reads `covertype.h5`, the compact form that `dft data covertype` makes; where that is absent it is made from
/// `covtype.data` first, where the directory can be written to.
///
/// # Errors
/// When both are absent, or the one that is read is not the known data set; the message says what to do.
pub fn load_covertype(directory: &Path) -> Result<Table> {
    load_from(directory, &Dataset::Covertype.files()[0])
}

/// Sees to it that the compact form lies beside the text, and returns where: one that is wrong is made anew.
pub fn prepare(directory: &Path) -> Result<PathBuf> {
    prepare_from(directory, &Dataset::Covertype.files()[0])
}

fn prepare_from(directory: &Path, text: &DataFile) -> Result<PathBuf> {
    let path = directory.join(compact::NAME);
    if path.exists() {
        match compact::read(&path, text) {
            Ok(_) => return Ok(path),
            Err(error) => tracing::info!("making {} anew: {error:#}", path.display()),
        }
    }
    make(directory, text)?;
    Ok(path)
}

fn load_from(directory: &Path, text: &DataFile) -> Result<Table> {
    let path = directory.join(compact::NAME);
    let records = if path.exists() {
        compact::read(&path, text).with_context(|| format!("{} cannot be used; {REMEDY}", path.display()))?
    } else {
        make(directory, text)?
    };
    Ok(records.to_table())
}

fn make(directory: &Path, text: &DataFile) -> Result<Records> {
    let path = directory.join(text.name);
    if !path.exists() {
        bail!("{} has neither {} nor {}; {REMEDY}", directory.display(), compact::NAME, text.name);
    }
    let content = verify::read_verified(directory, text, REMEDY)?;
    let records = Records::parse(&content[..]).with_context(|| path.display().to_string())?;
    let notice = Dataset::Covertype.notice().unwrap_or_default();
    compact::write(&directory.join(compact::NAME), &records, text, notice)?;
    Ok(records)
}

impl Records {
    /// Reads the 55 columns of the text.
    ///
    /// # Errors
    /// Names the line and the column that is no number, or the group of columns that is not 0 but for a single 1.
    pub fn parse(mut text: impl BufRead) -> Result<Self> {
        let mut records = Self::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if text.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            records.push(line.trim_ascii_end()).with_context(|| format!("line {number}"))?;
        }
        ensure!(!records.cover.is_empty(), "the text has no rows");
        Ok(records)
    }

    fn push(&mut self, line: &[u8]) -> Result<()> {
        let mut cells = line.split(|&byte| byte == b',');
        for name in QUANTITIES {
            self.quantities.push(integer(cells.next(), name)?);
        }
        self.wilderness.push(one_hot(&mut cells, "Wilderness_Area", WILDERNESS_AREAS)?);
        self.soil.push(one_hot(&mut cells, "Soil_Type", SOIL_TYPES)?);
        let cover = integer(cells.next(), "Cover_Type")?;
        let cover = u8::try_from(cover).ok().filter(|cover| (1..=COVER_TYPES).contains(cover));
        self.cover.push(cover.with_context(|| format!("Cover_Type: wanted 1 to {COVER_TYPES}"))?);
        ensure!(cells.next().is_none(), "wanted 55 columns, found more");
        Ok(())
    }

    /// The table with the groups of 0-1 columns back in their places.
    fn to_table(&self) -> Table {
        let rows = self.cover.len() as i64;
        let quantities = QUANTITIES.len() as i64;
        let areas = i64::from(WILDERNESS_AREAS);
        let columns = quantities + areas + i64::from(SOIL_TYPES);
        let mut features = Tensor::zeros([rows, columns], (Kind::Float, Device::Cpu));
        let numbers = Tensor::from_slice(&self.quantities).reshape([rows, quantities]);
        features.narrow(1, 0, quantities).copy_(&numbers);
        for (codes, first) in [(&self.wilderness, quantities), (&self.soil, quantities + areas)] {
            // Codes count from 1.
            let column = Tensor::from_slice(codes).to_kind(Kind::Int64) + (first - 1);
            let _ = features.scatter_value_(1, &column.unsqueeze(1), 1.0);
        }
        let labels = Tensor::from_slice(&self.cover).eq(POSITIVE).to_kind(Kind::Float);
        Table { names: names(), features, labels }
    }
}

/// Names of the 54 features.
fn names() -> Vec<String> {
    let numbered = |name: &'static str, count: u8| (1..=count).map(move |code| format!("{name}{code}"));
    let quantities = QUANTITIES.iter().map(|name| (*name).to_owned());
    quantities
        .chain(numbered("Wilderness_Area", WILDERNESS_AREAS))
        .chain(numbered("Soil_Type", SOIL_TYPES))
        .collect()
}

fn integer(cell: Option<&[u8]>, name: &str) -> Result<i16> {
    let cell = cell.with_context(|| format!("{name}: wanted 55 columns, found the end of the line"))?;
    let number = std::str::from_utf8(cell).ok().and_then(|text| text.parse().ok());
    number.with_context(|| {
        format!("{name}: wanted an integer of 16 bits, found {:?}", String::from_utf8_lossy(cell))
    })
}

/// Which of the next `count` cells, counted from 1, is the only 1.
fn one_hot<'a>(cells: &mut impl Iterator<Item = &'a [u8]>, name: &str, count: u8) -> Result<u8> {
    let mut found = None;
    for code in 1..=count {
        match cells.next() {
            Some(b"0") => {}
            Some(b"1") => {
                let before = found.replace(code);
                ensure!(before.is_none(), "{name}1 to {name}{count}: wanted a single 1, found two");
            }
            Some(other) => {
                bail!("{name}{code}: wanted 0 or 1, found {:?}", String::from_utf8_lossy(other))
            }
            None => bail!("{name}{code}: wanted 55 columns, found the end of the line"),
        }
    }
    found.with_context(|| format!("{name}1 to {name}{count}: wanted a single 1, found none"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two rows with negative, large and zero quantities, and the first and last code of each group.
    fn text() -> String {
        let row = |quantities: &str, wilderness: usize, soil: usize, cover: u8| {
            let mut groups = vec!["0"; 44];
            groups[wilderness - 1] = "1";
            groups[4 + soil - 1] = "1";
            format!("{quantities},{},{cover}\n", groups.join(","))
        };
        row("3858,360,66,1397,-173,7117,254,254,254,7173", 1, 40, 2)
            + &row("1859,0,0,0,601,0,0,0,0,0", 4, 1, 7)
    }

    /// Length and hash of [`text`], from `sha256sum`.
    const TEXT: DataFile = DataFile {
        name: "covtype.data",
        bytes: 249,
        sha256: "81e24e902f7f266e1b99869e7a969d62b64a017824a505bb24c6dd5ea6307710",
    };

    #[test]
    fn compact_form_gives_the_table_that_the_text_says() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(TEXT.name), text()).unwrap();
        let made = load_from(directory.path(), &TEXT).unwrap();
        fs::remove_file(directory.path().join(TEXT.name)).unwrap();
        let read = load_from(directory.path(), &TEXT).unwrap();
        let names: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, [compact::NAME]);
        let cells: Vec<f32> = text()
            .lines()
            .flat_map(|line| line.split(',').take(54).map(|cell| cell.parse().unwrap()).collect::<Vec<f32>>())
            .collect();
        for table in [made, read] {
            assert_eq!(table.features, Tensor::from_slice(&cells).reshape([2, 54]));
            assert_eq!(table.labels, Tensor::from_slice(&[1f32, 0.0]));
            assert_eq!(table.names.len(), 54);
            assert_eq!(
                [&table.names[0], &table.names[13], &table.names[53]],
                ["Elevation", "Wilderness_Area4", "Soil_Type40"]
            );
        }
    }

    #[test]
    fn wrong_compact_form_is_refused_until_it_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(TEXT.name), text()).unwrap();
        fs::write(directory.path().join(compact::NAME), "cut short").unwrap();
        let error = format!("{:#}", load_from(directory.path(), &TEXT).unwrap_err());
        assert!(error.contains("covertype.h5 cannot be used; run `dft data covertype`"), "{error}");
        prepare_from(directory.path(), &TEXT).unwrap();
        assert!(load_from(directory.path(), &TEXT).is_ok());
    }

    #[test]
    fn neither_form_present_is_an_error_that_names_the_command() {
        let directory = tempfile::tempdir().unwrap();
        let error = load_covertype(directory.path()).unwrap_err().to_string();
        assert!(error.contains("neither covertype.h5 nor covtype.data; run `dft data covertype`"), "{error}");
    }

    /// The text is not the known one, so nothing is made of it.
    #[test]
    fn altered_text_is_refused_before_it_is_parsed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(TEXT.name), text().replace("3858", "3859")).unwrap();
        let error = format!("{:#}", load_from(directory.path(), &TEXT).unwrap_err());
        assert!(error.contains("wanted SHA-256") && error.contains(REMEDY), "{error}");
        assert!(!directory.path().join(compact::NAME).exists());
    }

    #[test]
    fn wrong_rows_are_refused_with_line_and_column() {
        let good = text();
        let second = |from: &str, to: &str| {
            let (first, rest) = good.split_once('\n').unwrap();
            format!("{first}\n{}", rest.replacen(from, to, 1))
        };
        for (wrong, parts) in [
            (
                second("601", "6o1"),
                ["line 2", "Vertical_Distance_To_Hydrology: wanted an integer", "\"6o1\""],
            ),
            (
                second("0,0,0,1,1,", "0,0,1,1,1,"),
                ["line 2", "Wilderness_Area1 to Wilderness_Area4", "found two"],
            ),
            (second("0,0,0,1,1,", "0,0,0,1,0,"), ["line 2", "Soil_Type1 to Soil_Type40", "found none"]),
            (second("0,0,0,1,1,", "0,0,0,1,2,"), ["line 2", "Soil_Type1: wanted 0 or 1", "\"2\""]),
            (second(",7\n", ",8\n"), ["line 2", "Cover_Type", "wanted 1 to 7"]),
            (second(",7\n", ",7,1\n"), ["line 2", "wanted 55 columns", "more"]),
            (second(",7\n", "\n"), ["line 2", "Cover_Type", "the end of the line"]),
            (String::new(), ["the text", "has no", "rows"]),
        ] {
            let error = format!("{:#}", Records::parse(wrong.as_bytes()).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }
}
