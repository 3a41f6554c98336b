//! Checksums in journal records: as plain numbers.

use longshore_types::BlockChecksum;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<S: Serializer>(sums: &[BlockChecksum], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(sums.iter().map(|sum| sum.0))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BlockChecksum>, D::Error> {
    let numbers = Vec::<u64>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(BlockChecksum).collect())
}

/// One checksum.
pub(super) mod one {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(sum: &BlockChecksum, serializer: S) -> Result<S::Ok, S::Error> {
        sum.0.serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BlockChecksum, D::Error> {
        u64::deserialize(deserializer).map(BlockChecksum)
    }
}
