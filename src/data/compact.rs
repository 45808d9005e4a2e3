//! `covertype.h5`, the compact form of Covertype: integers of 16 and 8 bits in the place of 75 MB of text.
//!
//! Not compressed, as that would want zlib in the build of HDF5: these are 13 MB.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hdf5::file::LibraryVersion;
use hdf5::types::VarLenUnicode;
use hdf5::{Dataset, File, FileBuilder, Group, H5Type};
use ndarray::{ArrayView, IxDyn};

use super::covertype::{COVER_TYPES, QUANTITIES, Records, SOIL_TYPES, WILDERNESS_AREAS};
use super::dataset::DataFile;

/// Name of the file in the directory of the data set.
pub const NAME: &str = "covertype.h5";

/// Attribute of the file: SHA-256 of the text that it was made from.
const SOURCE: &str = "source_sha256";

/// Rows in a chunk, each with a checksum; a megabyte and more of quantities.
const CHUNK_ROWS: usize = 65_536;

/// Writes `records`, made from `text`, to `path`; the file has its name only once it is whole.
pub fn write(path: &Path, records: &Records, text: &DataFile, notice: &str) -> Result<()> {
    // Ranks of one machine may do so at the same time: each renames a whole file.
    let partial = path.with_extension(format!("h5.{}.partial", std::process::id()));
    let written = write_content(&partial, records, text, notice)
        .and_then(|()| Ok(fs::rename(&partial, path)?))
        .with_context(|| format!("writing {}", path.display()));
    if written.is_err() {
        fs::remove_file(&partial).ok();
    }
    written
}

fn write_content(path: &Path, records: &Records, text: &DataFile, notice: &str) -> Result<()> {
    let file = options().create(path)?;
    set_text(&file, SOURCE, text.sha256)?;
    set_text(&file, "source", text.name)?;
    set_text(&file, "notice", notice)?;
    let rows = records.cover.len();
    let columns = QUANTITIES.len();
    let quantities = write_column(&file, "quantities", &records.quantities, &[rows, columns])?;
    set_text(&quantities, "description", &format!("columns {}", QUANTITIES.join(", ")))?;
    set_text(&quantities, "units", "metres, degrees of arc, shades of 0 to 255")?;
    for (name, codes, count) in [
        ("wilderness_area", &records.wilderness, WILDERNESS_AREAS),
        ("soil_type", &records.soil, SOIL_TYPES),
        ("cover_type", &records.cover, COVER_TYPES),
    ] {
        let dataset = write_column(&file, name, codes, &[rows])?;
        set_text(&dataset, "description", &format!("a code from 1 to {count}"))?;
        set_text(&dataset, "units", "1")?;
    }
    file.close()?;
    fs::File::open(path)?.sync_all()?;
    Ok(())
}

/// Reads the file at `path`, which has to be made from `text`.
///
/// # Errors
/// When it was made from another text, lacks something, or a checksum or code is wrong.
pub fn read(path: &Path, text: &DataFile) -> Result<Records> {
    let file = options().open(path)?;
    let source = file.attr(SOURCE)?.read_scalar::<VarLenUnicode>()?;
    ensure!(
        source.as_str() == text.sha256,
        "made from a {} whose SHA-256 is {source}, wanted {}",
        text.name,
        text.sha256
    );
    let cover = read_codes(&file, "cover_type", COVER_TYPES)?;
    let wilderness = read_codes(&file, "wilderness_area", WILDERNESS_AREAS)?;
    let soil = read_codes(&file, "soil_type", SOIL_TYPES)?;
    let quantities = file.dataset("quantities")?;
    let (rows, shape) = (cover.len(), quantities.shape());
    ensure!(
        wilderness.len() == rows && soil.len() == rows && shape == [rows, QUANTITIES.len()],
        "{rows} cover types, {} wilderness areas, {} soil types and quantities of the shape {shape:?}",
        wilderness.len(),
        soil.len()
    );
    Ok(Records { quantities: quantities.read_raw()?, wilderness, soil, cover })
}

fn read_codes(file: &File, name: &str, count: u8) -> Result<Vec<u8>> {
    let codes: Vec<u8> = file.dataset(name)?.read_raw()?;
    let wrong = codes.iter().find(|code| !(1..=count).contains(*code));
    ensure!(wrong.is_none(), "{name} holds {wrong:?}, wanted 1 to {count}");
    Ok(codes)
}

fn write_column<T: H5Type>(group: &Group, name: &str, values: &[T], shape: &[usize]) -> Result<Dataset> {
    let mut chunk = shape.to_vec();
    chunk[0] = chunk[0].min(CHUNK_ROWS);
    let view = ArrayView::from_shape(IxDyn(shape), values)?;
    Ok(group.new_dataset_builder().chunk(chunk).fletcher32().with_data(view).create(name)?)
}

fn set_text(location: &hdf5::Location, name: &str, text: &str) -> Result<()> {
    let text: VarLenUnicode = text.parse().ok().with_context(|| format!("{name} holds a NUL character"))?;
    Ok(location.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&text)?)
}

/// The format and the settings of the run files (`record`, a layer below): readable with a writer killed, and no
/// locks, which some network file systems lack.
fn options() -> FileBuilder {
    let mut options = FileBuilder::new();
    options.with_fapl(|access| {
        access.libver_bounds(LibraryVersion::V18, LibraryVersion::V18).file_locking(false)
    });
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::ABC;

    fn records() -> Records {
        // Quantities that are found again in the bytes of the file.
        let quantities = (0..20).map(|index| 0x5a00 + index).collect();
        Records { quantities, wilderness: vec![1, 4], soil: vec![40, 1], cover: vec![2, 7] }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        write(&path, &records(), &ABC, "a notice").unwrap();
        assert_eq!(read(&path, &ABC).unwrap(), records());
        let file = options().open(&path).unwrap();
        assert_eq!(file.attr("notice").unwrap().read_scalar::<VarLenUnicode>().unwrap().as_str(), "a notice");
    }

    #[test]
    fn file_of_another_text_is_refused_with_both_hashes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        write(&path, &records(), &ABC, "").unwrap();
        let error = format!("{:#}", read(&path, &DataFile { sha256: "0123", ..ABC }).unwrap_err());
        assert!(error.contains(ABC.sha256) && error.contains("wanted 0123"), "{error}");
    }

    #[test]
    fn altered_byte_is_found_by_the_checksum() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        write(&path, &records(), &ABC, "").unwrap();
        let mut content = fs::read(&path).unwrap();
        let at = content.windows(4).position(|bytes| bytes == [0x00, 0x5a, 0x01, 0x5a]).unwrap();
        content[at] ^= 1;
        fs::write(&path, content).unwrap();
        assert!(read(&path, &ABC).is_err());
    }

    #[test]
    fn code_that_no_column_has_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        write(&path, &Records { soil: vec![41, 1], ..records() }, &ABC, "").unwrap();
        let error = format!("{:#}", read(&path, &ABC).unwrap_err());
        assert!(error.contains("soil_type holds Some(41), wanted 1 to 40"), "{error}");
    }
}
