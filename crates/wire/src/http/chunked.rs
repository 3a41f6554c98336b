//! The lines between the pieces of a chunked body: `<size in hex>;crc64nvme=<checksum in hex>`.

use longshore_types::BlockChecksum;

/// The longest such line, with its end of line. Ours have 35 bytes.
pub(crate) const LINE_BYTES_MAX: usize = 128;
/// What ends a piece.
pub(crate) const PIECE_END: &[u8] = b"\r\n";
/// What ends a chunked body, after the end of its last piece.
pub(crate) const LAST: &[u8] = b"0\r\n\r\n";

const EXTENSION: &str = "crc64nvme";

/// The line before a piece of `len` bytes.
pub(crate) fn line(len: usize, checksum: BlockChecksum) -> String {
    format!("{len:x};{EXTENSION}={checksum}\r\n")
}

/// The piece that says that a block with this checksum can be read where it lies.
pub(crate) fn checksum_piece(checksum: BlockChecksum) -> String {
    let text = checksum.to_string();
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Reads a line without its end: the size, and the checksum if there is one. `None` when it is no such line.
pub(crate) fn parse(line: &[u8]) -> Option<(u64, Option<BlockChecksum>)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut parts = line.split(';');
    let size = parts.next()?.trim();
    if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let size = u64::from_str_radix(size, 16).ok()?;
    let mut checksum = None;
    for part in parts {
        if let Some((name, value)) = part.split_once('=')
            && name.trim() == EXTENSION
        {
            checksum = Some(BlockChecksum::parse(value.trim())?);
        }
    }
    Some((size, checksum))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_round_trip(len in 0usize..=1 << 20, checksum: u64) {
            let written = line(len, BlockChecksum(checksum));
            prop_assert!(written.len() <= LINE_BYTES_MAX);
            let bare = written.trim_end().as_bytes();
            prop_assert_eq!(parse(bare), Some((len as u64, Some(BlockChecksum(checksum)))));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..LINE_BYTES_MAX)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn foreign_lines() {
        assert_eq!(parse(b"10;other=1"), Some((16, None)));
        assert_eq!(parse(b"10"), Some((16, None)));
        assert_eq!(parse(b"10;crc64nvme=zz"), None);
        assert_eq!(parse(b"+10"), None);
        assert_eq!(parse(b"11112222333344445"), None);
        assert_eq!(parse(b""), None);
    }
}
