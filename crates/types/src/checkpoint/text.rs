//! How checksums are written in JSON: 16 hex digits each, or base64 of little-endian numbers for many.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use crate::checksum::BlockChecksum;

/// One checksum: 16 lower-case hex digits.
pub(crate) mod hex {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(checksum: &BlockChecksum, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(checksum)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BlockChecksum, D::Error> {
        let text = String::deserialize(deserializer)?;
        BlockChecksum::parse(&text).ok_or_else(|| D::Error::custom("a checksum is not 16 hex digits"))
    }
}

/// The checksums of the blocks of a file.
pub(crate) mod blocks {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(blocks: &[BlockChecksum], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = blocks.iter().flat_map(|block| block.0.to_le_bytes()).collect();
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BlockChecksum>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        let (numbers, []) = bytes.as_chunks::<8>() else {
            return Err(D::Error::custom("checksums of blocks do not fill whole numbers"));
        };
        Ok(numbers.iter().map(|number| BlockChecksum(u64::from_le_bytes(*number))).collect())
    }
}
