//! The origin is asked once, however many ask us.

use std::thread;
use std::time::Duration;

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::origin::Counters;
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use longshore_tests::Loaded;

use crate::common::{Embedded, check, load, load_and_check, unload_everywhere};

const MIB: u64 = 1 << 20;
const URI: &str = "s3://bucket/model";
const LOADERS: usize = 8;

/// All loaders at the same time.
fn load_everywhere(cluster: &Cluster) -> Vec<Loaded> {
    let one = |loader| move || load(cluster, loader, URI).unwrap_or_else(|error| panic!("loader {loader}: {error}"));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..LOADERS).map(|loader| scope.spawn(one(loader))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// That no byte was asked for twice.
fn assert_no_overlap(counters: &Counters) {
    for path in counters.keys.keys() {
        let mut ranges = counters.ranges(path);
        ranges.sort_by_key(|range| range.start);
        let overlap = ranges.windows(2).find(|pair| pair[0].end > pair[1].start);
        assert_eq!(overlap, None, "{path} was read twice");
    }
}

#[test]
fn eight_loaders_read_the_origin_once_and_then_never() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 150 * MIB, 60).shards(5).build();
    model.put_into(&origin, "bucket/model");
    // Slow enough that all eight meet while the bytes are still on their way.
    origin.fault(Fault::new(FaultKind::LatencyMs(150)));
    let spec = ClusterSpec::new(3, LOADERS).origin(&origin).budgets("256MiB", "2GiB", "320MiB");
    let cluster = Cluster::start(spec);

    for loaded in load_everywhere(&cluster) {
        check(&loaded, &model);
    }
    assert!(origin.wait_idle(Duration::from_secs(10)));
    let counters = origin.counters();
    assert_eq!(counters.bytes, model.size_bytes(), "bytes = 1.00 x model");
    assert_no_overlap(&counters);
    let shards = model.files.iter().filter(|(name, _)| name.ends_with(".safetensors")).count() as u64;
    let chunks = model.chunks();
    assert!((chunks..=chunks + shards).contains(&counters.get), "{} GETs for {chunks} chunks", counters.get);
    assert_eq!((counters.list, counters.head), (1, 0), "one LIST, no HEAD");

    for worker in cluster.workers() {
        assert!(worker.memory().peak_bytes < 512 * MIB, "tier + 256 MiB: {:?}", worker.memory());
    }

    origin.reset_counters();
    for loaded in load_everywhere(&cluster) {
        assert!(loaded.model.reattached, "the model is in memory");
    }
    unload_everywhere(&cluster, URI);
    for loaded in load_everywhere(&cluster) {
        assert!(!loaded.model.reattached);
        check(&loaded, &model);
    }
    assert_eq!(origin.counters().total(), 0, "everything is cached: {:?}", origin.counters().requests);
}

#[test]
fn loads_of_one_model_at_one_loader_share_one_load() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(2, 48 * MIB, 10).build();
    model.put_into(&origin, "bucket/model");
    origin.fault(Fault::new(FaultKind::LatencyMs(300)));
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let ids: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| load(&cluster, 0, URI).unwrap().model.model_id)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let loads = cluster.loaders()[0].metrics().sum("longshore_loader_loads_total");
    assert_eq!(loads, 1.0, "one load");
    assert_eq!(origin.counters().bytes, model.size_bytes());
}

#[test]
fn a_loader_without_workers_reads_each_byte_once() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(3, 70 * MIB, 20).shards(3).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(0, 1).origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    let counters = origin.counters();
    let headers = 3 * 16 * MIB;
    assert!(counters.bytes <= model.size_bytes() + headers, "{} of {}", counters.bytes, model.size_bytes());
    assert_eq!(counters.list, 1);
}

#[test]
fn the_embedded_default_keeps_what_it_read() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(4, 70 * MIB, 20).shards(3).build();
    model.put_into(&origin, "bucket/model");
    let embedded = Embedded::with(&origin);
    let load = || {
        let output = embedded.run(&["load", URI, "--json", "--device", "host"]);
        assert!(output.success(), "{output}");
        output.json()
    };
    let first = load();
    assert_eq!(first["tensors"], 20);
    // The chunks with the headers are in memory, and perhaps on the disk, by the time the fetch begins.
    let tier = |name: &str| first["bytes_by_tier"][name].as_u64().unwrap();
    assert_eq!(tier("origin") + tier("memory") + tier("disk"), model.size_bytes(), "{first}");
    assert!(tier("origin") > 20 * MIB, "{first}");
    let counters = origin.counters();
    assert_eq!((counters.bytes, counters.list), (model.size_bytes(), 1));
    assert_no_overlap(&counters);

    origin.reset_counters();
    let second = load();
    assert_eq!(second["bytes_by_tier"]["origin"], 0, "{second}");
    assert_eq!(second["bytes_by_tier"]["disk"].as_u64().unwrap(), model.size_bytes(), "{second}");
    let counters = origin.counters();
    // A new process asks whether the model is still the same, and reads nothing.
    assert_eq!((counters.get, counters.bytes), (0, 0), "{:?}", counters.requests);
    assert!(counters.list <= 1);
    embedded.exec_and_check(URI, &model);
}

#[test]
fn a_warmed_model_is_loaded_without_the_origin() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(5, 70 * MIB, 20).shards(2).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(3, 1).origin(&origin));
    let data: Vec<&str> = cluster.workers().iter().map(|worker| worker.data_plane()).collect();
    let warmed = cluster.cli(0).args(["warm", URI, "--json", "--workers", &data.join(",")]).run();
    assert!(warmed.success(), "{warmed}");
    assert_eq!(origin.counters().bytes, model.size_bytes());
    origin.reset_counters();
    load_and_check(&cluster, 0, URI, &model);
    assert_eq!(origin.counters().total(), 0);
}
