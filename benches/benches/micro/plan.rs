//! From a manifest to what has to be read, for 100,000 tensors. The aim is 50 ms, for the one time that a load does it.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use longshore_loader::plan::{Plan, SideFiles};
use longshore_loader::{Parallel, ParallelRule, Rule};
use longshore_proto::convert::{manifest_from_proto, manifest_to_proto};
use longshore_proto::v1;
use longshore_types::Manifest;
use prost::Message;

use crate::{models, once};

const TENSORS: usize = 100_000;
const ALIGNMENT_BYTES: u64 = 256;

fn plan(manifest: &Manifest, parallel: Option<&Parallel>) -> Plan {
    Plan::new(manifest, parallel, ALIGNMENT_BYTES, SideFiles::WithTensors).expect("a good plan")
}

/// One rank of eight, by rules as they are given for such models.
fn one_of_eight() -> Parallel {
    let split = |pattern: &str, dim| ParallelRule::new(pattern, Rule::Split { dim, parts: vec![] });
    let rules = [
        split("*.gate_proj.weight", 0),
        split("*.up_proj.weight", 0),
        split("*.down_proj.weight", 1),
        ParallelRule::new("*.norm.weight", Rule::Replicate),
    ];
    let rules = rules.into_iter().collect::<Result<_, _>>().expect("good rules");
    Parallel::new(3, 8, rules).expect("a rank")
}

/// The steps of a load between the bytes of the header and the first read, each for the first time in this process.
pub fn cold() {
    let model = models::model(TENSORS);
    let cpu = Cell::new(cpu_time());
    // On a busy machine only the second figure says much.
    let timed = |case: &str, begin: Instant| {
        once(&format!("{case}-cold"), begin.elapsed().as_secs_f64() * 1e3, "ms");
        let before = cpu.replace(cpu_time());
        once(&format!("{case}-cold-cpu"), cpu.get().saturating_sub(before).as_secs_f64() * 1e3, "ms");
    };
    let begin = Instant::now();
    let manifest = model.manifest();
    timed("manifest-100000", begin);
    let begin = Instant::now();
    let message = manifest_to_proto(&manifest).encode_to_vec();
    timed("manifest-encode-100000", begin);
    let begin = Instant::now();
    let manifest = decoded(&message);
    timed("manifest-decode-100000", begin);
    let begin = Instant::now();
    let whole = plan(&manifest, None);
    timed("plan-100000", begin);
    let begin = Instant::now();
    let rank = plan(&manifest, Some(&one_of_eight()));
    timed("plan-100000-rank", begin);
    black_box((whole, rank));
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn decoded(message: &[u8]) -> Manifest {
    manifest_from_proto(v1::Manifest::decode(message).expect("our own message")).expect("our own manifest")
}

pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    let manifest = models::model(TENSORS).manifest();
    let parallel = one_of_eight();
    group.bench_function("plan-100000", |b| b.iter_with_large_drop(|| plan(&manifest, None)));
    group.bench_function("plan-100000-rank", |b| b.iter_with_large_drop(|| plan(&manifest, Some(&parallel))));
    group.finish();
}

/// The manifest: built by a worker, sent, and read by a loader.
pub fn manifest_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("manifest");
    let model = models::model(TENSORS);
    let manifest = model.manifest();
    let message = manifest_to_proto(&manifest).encode_to_vec();
    group.bench_function("manifest-100000", |b| b.iter_with_large_drop(|| model.manifest()));
    group.bench_function("manifest-encode-100000", |b| {
        b.iter_with_large_drop(|| manifest_to_proto(&manifest).encode_to_vec());
    });
    group.bench_function("manifest-decode-100000", |b| b.iter_with_large_drop(|| decoded(&message)));
    group.finish();
}
