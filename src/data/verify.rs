//! A file is accepted by the SHA-256 of its content, or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::dataset::DataFile;

/// Reads a file whole and verifies it; `remedy` is what the user should do about a wrong one.
pub fn read_verified(directory: &Path, file: &DataFile, remedy: &str) -> Result<Vec<u8>> {
    let path = directory.join(file.name);
    let content = fs::read(&path).with_context(|| format!("{} cannot be read; {remedy}", path.display()))?;
    check(file, content.len() as u64, &Sha256::digest(&content))
        .with_context(|| format!("{}; {remedy}", path.display()))?;
    Ok(content)
}

/// Whether the file is there and right; an error says how it is wrong.
pub fn is_complete(directory: &Path, file: &DataFile) -> Result<bool> {
    let path = directory.join(file.name);
    let Ok(opened) = File::open(&path) else {
        return Ok(false);
    };
    let mut hashing = Hashing { inner: io::sink(), hash: Sha256::new(), bytes: 0 };
    io::copy(&mut io::BufReader::with_capacity(1 << 20, opened), &mut hashing)?;
    check(file, hashing.bytes, &hashing.hash.finalize()).with_context(|| path.display().to_string())?;
    Ok(true)
}

/// SHA-256 of a file's content, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn file_sha256(path: &Path) -> io::Result<String> {
    let mut hashing = Hashing { inner: io::sink(), hash: Sha256::new(), bytes: 0 };
    io::copy(&mut io::BufReader::with_capacity(1 << 20, File::open(path)?), &mut hashing)?;
    Ok(format!("{:x}", hashing.hash.finalize()))
}

/// Copies `content` into `directory` as `file`, verifies it on the way and only then gives it its name.
pub fn accept(directory: &Path, file: &DataFile, content: &mut dyn Read) -> Result<PathBuf> {
    let partial = directory.join(format!("{}.partial", file.name));
    let opened = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut hashing = Hashing { inner: BufWriter::new(opened), hash: Sha256::new(), bytes: 0 };
    // One byte more than wanted is enough to see that a content is too long.
    let copied = io::copy(&mut content.take(file.bytes + 1), &mut hashing).and_then(|_| hashing.flush());
    let verified = copied
        .with_context(|| file.name.to_owned())
        .and_then(|()| check(file, hashing.bytes, &hashing.hash.finalize()).context(file.name));
    if let Err(error) = verified {
        fs::remove_file(&partial).ok();
        return Err(error);
    }
    let path = directory.join(file.name);
    fs::rename(&partial, &path).with_context(|| format!("renaming {} into place", partial.display()))?;
    Ok(path)
}

fn check(file: &DataFile, bytes: u64, digest: &[u8]) -> Result<()> {
    ensure!(bytes == file.bytes, "wanted {} bytes, found {}", file.bytes, found(bytes, file.bytes));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(digest == file.sha256, "wanted SHA-256 {}, found {digest}", file.sha256);
    Ok(())
}

/// Copying stops one byte after the wanted length, so a longer count is not the true one.
fn found(bytes: u64, wanted: u64) -> String {
    if bytes > wanted { "more".to_owned() } else { bytes.to_string() }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::ABC;

    #[test]
    fn right_content_gets_its_name_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        accept(directory.path(), &ABC, &mut &b"abc"[..]).unwrap();
        assert!(is_complete(directory.path(), &ABC).unwrap());
        assert_eq!(read_verified(directory.path(), &ABC, "").unwrap(), b"abc");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn altered_and_truncated_content_are_refused_with_what_was_found() {
        let directory = tempfile::tempdir().unwrap();
        let altered = accept(directory.path(), &ABC, &mut &b"abd"[..]).unwrap_err();
        assert!(format!("{altered:#}").contains("wanted SHA-256 ba7816bf"), "{altered:#}");
        let short = accept(directory.path(), &ABC, &mut &b"ab"[..]).unwrap_err();
        assert!(format!("{short:#}").contains("wanted 3 bytes, found 2"), "{short:#}");
        let long = accept(directory.path(), &ABC, &mut &b"abcdef"[..]).unwrap_err();
        assert!(format!("{long:#}").contains("found more"), "{long:#}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

        fs::write(directory.path().join("abc"), "ab").unwrap();
        let error = read_verified(directory.path(), &ABC, "run `dft data abc`").unwrap_err();
        assert!(format!("{error:#}").contains("run `dft data abc`: wanted 3 bytes, found 2"), "{error:#}");
    }
}
