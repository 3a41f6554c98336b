//! What verifying blocks costs beside a load: the same checksum over the same amount of memory, and nothing else.

use std::time::Instant;

use anyhow::ensure;
use longshore_types::{BLOCK_BYTES, BlockChecksum};
use serde_json::{Value, json};

/// Checksums `size_bytes` in all, out of `memory_bytes` that each thread has its part of.
pub fn measure(size_bytes: u64, memory_bytes: u64, threads: usize) -> anyhow::Result<Value> {
    let threads = threads.max(1);
    let blocks = (memory_bytes / threads as u64 / BLOCK_BYTES).max(1);
    let rounds = (size_bytes / threads as u64 / blocks / BLOCK_BYTES).max(1);
    ensure!(blocks.checked_mul(BLOCK_BYTES * threads as u64).is_some(), "--memory is too large");
    // Touched before the clock starts.
    let memory: Vec<Vec<u8>> = (0..threads).map(|seed| vec![seed as u8 | 1; (blocks * BLOCK_BYTES) as usize]).collect();
    let (cpu, start) = (crate::cpu_seconds(), Instant::now());
    crate::deal(
        memory.iter().collect(),
        threads,
        || (),
        |(), part: &Vec<u8>| {
            for _ in 0..rounds {
                std::hint::black_box(BlockChecksum::of_blocks(std::hint::black_box(part)));
            }
            Ok(())
        },
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = rounds * blocks * BLOCK_BYTES * threads as u64;
    Ok(json!({ "bytes": bytes, "seconds": seconds, "cpu_seconds": crate::cpu_seconds() - cpu, "threads": threads }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_counts_the_bytes_that_it_read() {
        let answer = super::measure(8 << 20, 4 << 20, 2).unwrap();
        assert_eq!(answer["bytes"], 8 << 20);
    }
}
