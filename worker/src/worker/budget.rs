//! Shares of what the user gave: memory for fills, writes and the tier, and the weight on the ring.

use longshore_types::CHUNK_BYTES;

use crate::fill::PEER_STEP_BYTES;

/// Chunks of the memory budget that are left to readers when all fills and writes run.
const READER_CHUNKS: u64 = 1;

/// Keeps the four highest bits: free space that is a little different at each start moves no chunks.
pub fn rounded(weight: u64) -> u64 {
    let dropped_bits = (u64::BITS - weight.leading_zeros()).saturating_sub(4);
    weight >> dropped_bits << dropped_bits
}

/// How the memory budget is divided.
pub struct MemoryBudget {
    /// All of it.
    pub total_bytes: u64,
    /// Fills from the origin that run at once.
    pub fills: usize,
    /// Fills that ask another worker to fill, at once.
    pub relays: usize,
    /// Chunks that are put here at once.
    pub puts: usize,
    /// What chunks that wait for the disk may have.
    pub queue_bytes: u64,
    /// What the memory tier leaves to fills, writes and readers.
    pub head_room_bytes: u64,
}

impl MemoryBudget {
    /// As many fills as asked for, but no more than fit in a quarter of the memory; half as many may ask other workers,
    /// and a quarter as many may be put here. The rest, about half, is the memory tier.
    ///
    /// Memory is set aside for half as many chunks that wait for the disk as there are fills. More may wait, up to half of
    /// the tier, since the tier has them anyway: so the disk is written when the cores have time. A disk that hangs costs
    /// half of the tier, no more.
    pub fn split(total_bytes: u64, fills_max: usize) -> Self {
        let per_fill = CHUNK_BYTES + PEER_STEP_BYTES;
        let fills = ((total_bytes / 4 / per_fill) as usize).clamp(1, fills_max.max(1));
        let (relays, queued, puts) = (fills.div_ceil(2), fills.div_ceil(2), fills.div_ceil(4));
        let whole_chunks = (queued + puts) as u64 + READER_CHUNKS;
        let head_room_bytes = (fills + relays) as u64 * per_fill + whole_chunks * CHUNK_BYTES;
        let tier_chunks = total_bytes.saturating_sub(head_room_bytes) / CHUNK_BYTES;
        let queue_bytes = (queued as u64).max(tier_chunks / 2) * CHUNK_BYTES;
        MemoryBudget { total_bytes, fills, relays, puts, queue_bytes, head_room_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_budget_leaves_room_for_a_fill_and_for_the_tier() {
        for mib in [128, 200, 256, 512, 1024, 8192, 1 << 20] {
            let budget = MemoryBudget::split(mib << 20, 32);
            assert!((1..=32).contains(&budget.fills) && budget.queue_bytes >= CHUNK_BYTES, "{mib} MiB");
            assert!(budget.head_room_bytes < budget.total_bytes, "{mib} MiB");
            assert!(budget.queue_bytes <= budget.total_bytes / 2, "{mib} MiB: a disk that hangs");
        }
        assert_eq!(MemoryBudget::split(8 << 30, 32).fills, 32);
    }

    #[test]
    fn a_little_more_free_space_changes_no_weight() {
        assert_eq!([0, 1, 15, 16, 17, 1000, 1023].map(rounded), [0, 1, 15, 16, 16, 960, 960]);
    }
}
