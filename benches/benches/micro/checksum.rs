//! The checksum of a block that is in the core's cache, and of a chunk that is not.

use criterion::{Criterion, Throughput};
use longshore_types::BlockChecksum;

pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for (name, bytes) in [("checksum-4kib", 4 << 10), ("checksum-1mib", 1 << 20), ("checksum-16mib", 16 << 20)] {
        let data: Vec<u8> = (0..bytes).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        group.throughput(Throughput::Bytes(u64::from(bytes)));
        group.bench_function(name, |b| b.iter(|| BlockChecksum::of(&data)));
    }
    group.finish();
}
