//! The idx format of MNIST: a magic number, big-endian sizes, then bytes.

use anyhow::{Context, Result, ensure};

/// Third byte of the magic number: the elements are unsigned bytes.
const UNSIGNED_BYTE: u8 = 8;

/// Sizes and elements of an idx file of unsigned bytes.
pub fn parse(content: &[u8]) -> Result<(Vec<i64>, &[u8])> {
    let (magic, rest) = content.split_first_chunk::<4>().context("an idx file has at least 4 bytes")?;
    let [zero, also_zero, kind, dimensions] = *magic;
    ensure!(
        zero == 0 && also_zero == 0 && kind == UNSIGNED_BYTE,
        "wanted an idx file of unsigned bytes, found the magic number {magic:02x?}"
    );
    let (sizes, elements) = rest
        .split_at_checked(4 * usize::from(dimensions))
        .with_context(|| format!("the idx header of {dimensions} dimensions is cut short"))?;
    let sizes: Vec<i64> = sizes
        .chunks_exact(4)
        .map(|size| i64::from(u32::from_be_bytes([size[0], size[1], size[2], size[3]])))
        .collect();
    let wanted: i64 = sizes.iter().product();
    ensure!(
        elements.len() as i64 == wanted,
        "the idx header {sizes:?} wants {wanted} bytes, found {}",
        elements.len()
    );
    Ok((sizes, elements))
}

/// Header of an idx file of unsigned bytes.
pub fn header(sizes: &[u32]) -> Vec<u8> {
    let mut header = vec![0, 0, UNSIGNED_BYTE, sizes.len() as u8];
    header.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of MNIST's training images as printed on its home page: 0x00000803, 60000, 28, 28.
    #[test]
    fn header_of_the_training_images_is_the_published_one() {
        let published = [0, 0, 8, 3, 0, 0, 0xea, 0x60, 0, 0, 0, 28, 0, 0, 0, 28];
        assert_eq!(header(&[60_000, 28, 28]), published);
    }

    #[test]
    fn parse_inverts_header_and_names_a_wrong_length() {
        let mut content = header(&[2, 3]);
        content.extend([1, 2, 3, 4, 5, 6]);
        assert_eq!(parse(&content).unwrap(), (vec![2, 3], &[1, 2, 3, 4, 5, 6][..]));
        content.pop();
        assert!(parse(&content).unwrap_err().to_string().contains("wants 6 bytes, found 5"));
        assert!(parse(b"PK\x03\x04").unwrap_err().to_string().contains("magic"));
    }
}
