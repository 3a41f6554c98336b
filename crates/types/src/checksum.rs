//! Block checksums: CRC-64/NVME, the checksum S3 keeps for whole objects, so that ours combine into the origin's.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

mod combine;

use crate::chunk::BLOCK_BYTES;

/// CRC-64/NVME of one block (or of any run of bytes). Finds accidents, not attackers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockChecksum(pub u64);

impl BlockChecksum {
    /// Checksum of `bytes`: about 11 GB/s on one core.
    pub fn of(bytes: &[u8]) -> Self {
        BlockChecksum(crc_fast::crc64_nvme(bytes))
    }

    /// The checksum of the concatenation of what `self` and `next` cover; `next` covers `next_len_bytes`.
    #[must_use]
    pub fn combine(self, next: BlockChecksum, next_len_bytes: u64) -> Self {
        BlockChecksum(combine::shift(self.0, next_len_bytes) ^ next.0)
    }

    /// The checksums of each 1 MiB block of `chunk`, the last of which may be short.
    pub fn of_blocks(chunk: &[u8]) -> Vec<BlockChecksum> {
        chunk.chunks(BLOCK_BYTES as usize).map(BlockChecksum::of).collect()
    }

    /// Parses the 16 hex digits that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(BlockChecksum)
    }
}

impl fmt::Display for BlockChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BlockChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Checksum of a block that arrives in pieces (a scattered read).
pub struct Checksummer(Digest);

impl Checksummer {
    /// A checksum over nothing yet.
    pub fn new() -> Self {
        Checksummer(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The checksum of all pieces.
    pub fn finish(self) -> BlockChecksum {
        BlockChecksum(self.0.finalize())
    }
}

impl Default for Checksummer {
    fn default() -> Self {
        Checksummer::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer_pieces_and_combination_agree() {
        // The check value of CRC-64/NVME in the catalogue of parametrised CRC algorithms.
        assert_eq!(BlockChecksum::of(b"123456789"), BlockChecksum(0xae8b_1486_0a79_9888));
        let mut pieces = Checksummer::new();
        pieces.update(b"1234");
        pieces.update(b"56789");
        assert_eq!(pieces.finish(), BlockChecksum(0xae8b_1486_0a79_9888));
        let combined = BlockChecksum::of(b"1234").combine(BlockChecksum::of(b"56789"), 5);
        assert_eq!(combined, BlockChecksum(0xae8b_1486_0a79_9888));
        assert_eq!(BlockChecksum::parse(&combined.to_string()), Some(combined));
        assert_eq!(BlockChecksum::parse("+e8b14860a799888"), None);
    }
}
