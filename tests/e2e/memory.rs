//! Memory stays within its budget while much more than the budget flows through.
//!
//! Read from the operating system, not from our own counters. `LONGSHORE_TEST_FLOW_BYTES` sets how much flows: 4 GB by
//! default, 20 GB for the long version.

use longshore_testkit::FakeOrigin;
use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::ModelSpec;

use crate::common::{load, load_and_check};

const MIB: u64 = 1 << 20;
/// What code, stacks, metadata and buffers of sockets may take beside the budget.
const SLACK_BYTES: u64 = 256 * MIB;

#[test]
fn memory_stays_within_its_budget() {
    let flow: u64 = std::env::var("LONGSHORE_TEST_FLOW_BYTES").map_or(4_000_000_000, |text| text.parse().unwrap());
    let (worker_memory, loader_memory, model_bytes) = (128 * MIB, 512 * MIB, 200 * MIB);
    let origin = FakeOrigin::start();
    let spec = ClusterSpec::new(1, 1).origin(&origin).budgets("128MiB", "1GiB", "512MiB");
    let cluster = Cluster::start(spec);
    let models: u64 = flow.div_ceil(model_bytes);
    for number in 0..models {
        let model = ModelSpec::sized(number, model_bytes, 20).shards(2).build();
        let path = format!("bucket/model-{number}");
        model.put_into(&origin, &path);
        let uri = format!("s3://{path}");
        // Comparing costs more than loading: the first, the last and some between.
        if number % 8 == 0 || number + 1 == models {
            load_and_check(&cluster, 0, &uri, &model);
        } else {
            load(&cluster, 0, &uri).unwrap();
        }
        let (worker, loader) = (cluster.workers()[0].memory(), cluster.loaders()[0].memory());
        assert!(worker.peak_bytes < worker_memory + SLACK_BYTES, "worker after {number} models: {worker:?}");
        assert!(loader.peak_bytes < loader_memory + SLACK_BYTES, "loader after {number} models: {loader:?}");
        model.files.iter().for_each(|(name, _)| assert!(origin.remove(&format!("{path}/{name}"))));
    }
    let (worker, loader) = (cluster.workers()[0].memory(), cluster.loaders()[0].memory());
    println!("{flow} bytes flowed; worker {worker:?}; loader {loader:?}");
    assert!(origin.counters().bytes >= flow, "{} bytes came from the origin", origin.counters().bytes);
    let evicted = cluster.loaders()[0].metrics().sum("longshore_loader_evictions_total");
    assert!(evicted > 0.0, "models without leases made room");
}

#[test]
fn a_model_larger_than_the_memory_is_refused_at_once_and_one_that_is_held_stays() {
    let origin = FakeOrigin::start();
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin).budgets("128MiB", "1GiB", "200MiB"));
    let small = ModelSpec::sized(1, 100 * MIB, 4).build();
    small.put_into(&origin, "bucket/small");
    ModelSpec::sized(2, 400 * MIB, 4).build().put_into(&origin, "bucket/large");
    ModelSpec::sized(3, 120 * MIB, 4).build().put_into(&origin, "bucket/other");

    let held = crate::common::check(&load(&cluster, 0, "s3://bucket/small").unwrap(), &small);
    origin.reset_counters();
    let error = load(&cluster, 0, "s3://bucket/large").unwrap_err();
    assert_eq!(error.code(), longshore_types::Code::Exhausted, "{error}");
    assert!(origin.counters().bytes <= 32 * MIB, "only its header is read");
    let error = load(&cluster, 0, "s3://bucket/other").unwrap_err();
    assert_eq!(error.code(), longshore_types::Code::Exhausted, "a lease keeps the first one: {error}");
    held.check(&small).unwrap();
    drop(held);
    crate::common::wait_until("the lease ends with its socket", || load(&cluster, 0, "s3://bucket/other").is_ok());
}
