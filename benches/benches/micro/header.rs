//! The header of a safetensors file: our parser, and that of the format's own library beside it, on the same bytes.

use criterion::{Criterion, Throughput};
use safetensors::SafeTensors;

use crate::models;

pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    for tensors in [100, 10_000, 100_000] {
        let model = models::model(tensors);
        group.throughput(Throughput::Elements(tensors as u64));
        group.bench_function(format!("header-parse-{tensors}"), |b| b.iter_with_large_drop(|| model.parse()));
        let file = model.file();
        group.bench_function(format!("header-parse-{tensors}-safetensors"), |b| {
            b.iter_with_large_drop(|| SafeTensors::read_metadata(&file).expect("a good header"));
        });
    }
    group.finish();
}
