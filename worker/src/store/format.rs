//! The chunk file: data padded to 4 KiB, then a trailer with the chunk's identity and block checksums.
//!
//! The trailer ends the file and is a whole number of pages, so the data starts at offset 0 and can be handed out as a
//! descriptor. All numbers are little-endian:
//!
//! ```text
//! url_len u16 | url | version_len u16 | version | object_size u64 | index u32 | data_len u32
//! block_count u16 | block_count x crc u64 | zeros | trailer_len u32 | format u32 | magic 8 | crc of the trailer u64
//! ```
//!
//! Invariant: a trailer that decodes names a chunk whose length fits the file. Whether the data is whole is told by
//! the block checksums alone, which is why a file needs no fsync to be safe.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use longshore_types::artifact::URL_BYTES_MAX;
use longshore_types::{Artifact, BlockChecksum, ChunkKey, Version};

/// Alignment of data and trailer, in bytes.
pub const PAGE_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"LSHCHUNK";
const FORMAT: u32 = 1;
/// trailer_len, format, magic, crc.
const FOOTER_BYTES: usize = 4 + 4 + 8 + 8;
/// The longest trailer: two texts of the greatest length, 16 checksums and the fixed fields fit in two pages.
const TRAILER_BYTES_MAX: u64 = 2 * PAGE_BYTES;

/// Why a file is not a chunk file that can be served.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not written by this program, or by another version of it.
    #[error("it is no chunk file of this version")]
    Foreign,
    /// Cut short or overwritten.
    #[error("it is torn: {0}")]
    Torn(&'static str),
    /// The disk failed.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// What a chunk file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// The chunk.
    pub key: ChunkKey,
    /// One checksum for each block.
    pub checksums: Arc<[BlockChecksum]>,
}

/// `len_bytes` rounded up to whole pages.
pub fn padded_bytes(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(PAGE_BYTES) * PAGE_BYTES
}

/// Bytes that the file of a chunk takes.
pub fn file_bytes(key: &ChunkKey) -> u64 {
    padded_bytes(key.len_bytes()) + trailer_bytes(key)
}

fn trailer_bytes(key: &ChunkKey) -> u64 {
    let artifact = key.artifact();
    let texts = artifact.url().len() + artifact.version().as_str().len();
    let fields = 2 + 2 + 8 + 4 + 4 + 2 + 8 * key.block_count();
    padded_bytes((texts + fields + FOOTER_BYTES) as u64)
}

/// The trailer of a chunk, padded. `checksums` must hold one for each block.
pub fn encode(key: &ChunkKey, checksums: &[BlockChecksum]) -> Vec<u8> {
    debug_assert_eq!(checksums.len(), key.block_count());
    let artifact = key.artifact();
    let len = trailer_bytes(key) as usize;
    let mut out = Vec::with_capacity(len);
    for text in [artifact.url(), artifact.version().as_str()] {
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&artifact.size_bytes().to_le_bytes());
    out.extend_from_slice(&key.index().to_le_bytes());
    out.extend_from_slice(&(key.len_bytes() as u32).to_le_bytes());
    out.extend_from_slice(&(checksums.len() as u16).to_le_bytes());
    for checksum in checksums {
        out.extend_from_slice(&checksum.0.to_le_bytes());
    }
    out.resize(len - FOOTER_BYTES, 0);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(MAGIC);
    let crc = BlockChecksum::of(&out);
    out.extend_from_slice(&crc.0.to_le_bytes());
    out
}

/// Reads and checks the trailer at the end of `file`, with one read.
///
/// # Errors
/// [`FormatError`], telling torn files from foreign ones and from a failing disk.
pub fn read(file: &File) -> Result<Trailer, FormatError> {
    let file_bytes = file.metadata()?.len();
    if file_bytes < 2 * PAGE_BYTES || !file_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(FormatError::Torn("its length is no whole number of pages"));
    }
    let mut tail = [0u8; TRAILER_BYTES_MAX as usize];
    file.read_exact_at(&mut tail, file_bytes - TRAILER_BYTES_MAX)?;
    decode(&tail, file_bytes)
}

/// Checks a trailer; `tail` is the end of a file of `file_bytes`.
///
/// # Errors
/// [`FormatError::Foreign`] or [`FormatError::Torn`].
pub fn decode(tail: &[u8], file_bytes: u64) -> Result<Trailer, FormatError> {
    let footer = tail.len().checked_sub(FOOTER_BYTES).ok_or(FormatError::Torn("it is too short"))?;
    let mut fields = Fields(&tail[footer..]);
    let (trailer_len, format, magic) = (fields.u32()? as usize, fields.u32()?, fields.take(8)?);
    if magic != MAGIC || format != FORMAT {
        return Err(FormatError::Foreign);
    }
    if trailer_len > tail.len() || trailer_len < FOOTER_BYTES {
        return Err(FormatError::Torn("its trailer has an impossible length"));
    }
    let crc = BlockChecksum(fields.u64()?);
    let trailer = &tail[tail.len() - trailer_len..];
    if BlockChecksum::of(&trailer[..trailer_len - 8]) != crc {
        return Err(FormatError::Torn("the checksum of its trailer is wrong"));
    }
    let decoded = decode_fields(Fields(&trailer[..trailer_len - FOOTER_BYTES]))?;
    if padded_bytes(decoded.key.len_bytes()) + trailer_len as u64 != file_bytes {
        return Err(FormatError::Torn("its length disagrees with its trailer"));
    }
    Ok(decoded)
}

fn decode_fields(mut fields: Fields<'_>) -> Result<Trailer, FormatError> {
    let url = fields.text()?;
    let version = Version::new(fields.text()?).map_err(|_| FormatError::Torn("its version is not valid"))?;
    let size_bytes = fields.u64()?;
    let artifact = Artifact::new(url, version, size_bytes).map_err(|_| FormatError::Torn("its URL is not valid"))?;
    let key = ChunkKey::new(Arc::new(artifact), fields.u32()?).map_err(|_| FormatError::Torn("it is out of range"))?;
    let data_len = fields.u32()?;
    let blocks = fields.u16()? as usize;
    if u64::from(data_len) != key.len_bytes() || blocks != key.block_count() {
        return Err(FormatError::Torn("its data length disagrees with its identity"));
    }
    let checksums = (0..blocks).map(|_| fields.u64().map(BlockChecksum)).collect::<Result<Arc<[_]>, _>>()?;
    Ok(Trailer { key, checksums })
}

/// The unread rest of a trailer.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(FormatError::Torn("its trailer ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, FormatError> {
        let len = self.u16()? as usize;
        if len > URL_BYTES_MAX {
            return Err(FormatError::Torn("a text in its trailer is too long"));
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| FormatError::Torn("a text in its trailer is not UTF-8"))
    }
}

#[cfg(test)]
mod tests;
