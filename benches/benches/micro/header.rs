//! The header of a safetensors file: our parser, and that of the format's own library beside it.

use criterion::{Criterion, Throughput};
use safetensors::tensor::Metadata;

use crate::models;

pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    for tensors in [100, 10_000, 100_000] {
        let model = models::model(tensors);
        group.throughput(Throughput::Elements(tensors as u64));
        group.bench_function(format!("header-parse-{tensors}"), |b| b.iter_with_large_drop(|| model.parse()));
        group.bench_function(format!("header-parse-{tensors}-safetensors"), |b| {
            let json = &model.head[8..];
            b.iter_with_large_drop(|| serde_json::from_slice::<Metadata>(json).expect("a good header"));
        });
    }
    group.finish();
}
