//! The worker's index of what lies on its disk, with 10 million chunks: 160 TB of large files, or as many small ones.

use criterion::{BatchSize, Criterion};
use longshore_types::ChunkId;
use longshore_worker::ChunkIndex;

use crate::once;

const ENTRIES: u64 = 10_000_000;
const FILE_BYTES: u64 = 16 << 20;

/// As evenly spread as digests are.
fn id(number: u64) -> ChunkId {
    let mix = |mut value: u64| {
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    let half = mix(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let text = format!("{half:016x}{:016x}", mix(half));
    ChunkId::parse(&text).expect("32 digits")
}

/// Memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

pub fn benches(criterion: &mut Criterion) {
    let mut index = None;
    let mut group = criterion.benchmark_group("index");
    let mut filled = |criterion: &mut criterion::Bencher<'_>,
                      run: &dyn Fn(&mut ChunkIndex, &mut criterion::Bencher<'_>)| {
        run(index.get_or_insert_with(fill), criterion);
    };
    group.bench_function("index-10m-lookup", |b| {
        filled(b, &|index, b| {
            let mut number = 0u64;
            b.iter_batched(
                || {
                    number = number.wrapping_add(7_919) % ENTRIES;
                    id(number)
                },
                |id| index.touch(&id),
                BatchSize::SmallInput,
            );
        });
    });
    group.bench_function("index-10m-insert", |b| {
        filled(b, &|index, b| {
            let mut number = ENTRIES;
            b.iter_batched(
                || {
                    number += 1;
                    id(number)
                },
                |id| index.insert(id, FILE_BYTES),
                BatchSize::SmallInput,
            );
        });
    });
    group.bench_function("index-10m-evict", |b| {
        filled(b, &|index, b| b.iter(|| index.victim().map(|victim| index.remove(&victim))));
    });
    group.finish();
}

fn fill() -> ChunkIndex {
    let before = resident_bytes();
    let mut index = ChunkIndex::default();
    for number in 0..ENTRIES {
        index.insert(id(number), FILE_BYTES);
    }
    let bytes = resident_bytes().saturating_sub(before) as f64 / ENTRIES as f64;
    once("index-10m-bytes-per-entry", bytes, "bytes");
    index
}
