//! What breaks is passed over, found, counted and repaired; what a client sees is right.

use std::thread;
use std::time::{Duration, Instant};

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::origin::Verb;
use longshore_testkit::proxy::ProxyFaults;
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use longshore_types::Code;

use crate::common::{check, load, load_and_check, unload_everywhere, wait_until};

const MIB: u64 = 1 << 20;
const URI: &str = "s3://bucket/model";

/// An origin with this model at `s3://bucket/model`.
pub fn serve(spec: &ModelSpec) -> (FakeOrigin, Model) {
    let origin = FakeOrigin::start();
    let model = spec.build();
    model.put_into(&origin, "bucket/model");
    (origin, model)
}

#[test]
fn a_worker_killed_in_mid_load() {
    let (origin, model) = serve(&ModelSpec::sized(1, 400 * MIB, 40).shards(4));
    origin.fault(Fault::new(FaultKind::BytesPerSecond(6 * MIB)));
    let mut cluster = Cluster::start(ClusterSpec::new(3, 1).origin(&origin));
    let loaded = thread::scope(|scope| {
        let socket = cluster.loader_socket(0);
        let loading = scope.spawn(move || longshore_tests::Client::connect(&socket).unwrap().load(URI));
        wait_until("a quarter is read", || origin.counters().bytes > 50 * MIB);
        assert!(!loading.is_finished(), "killed too late to test anything");
        cluster.worker(1).kill();
        origin.clear_faults();
        loading.join().unwrap()
    });
    let loaded = loaded.unwrap_or_else(|error| panic!("{}: {error}", error.code()));
    check(&loaded, &model);
    let report = loaded.model.report.unwrap();
    assert!(!report.fallbacks.is_empty(), "a way that was not the first choice is counted: {report:?}");

    // What comes after that knows of it, and is right too.
    unload_everywhere(&cluster, URI);
    load_and_check(&cluster, 0, URI, &model);
    cluster.worker(1).start_again();
    unload_everywhere(&cluster, URI);
    load_and_check(&cluster, 0, URI, &model);
}

#[test]
fn all_workers_killed_and_the_origin_is_read_directly() {
    let (origin, model) = serve(&ModelSpec::sized(2, 40 * MIB, 10));
    let mut cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    (0..2).for_each(|worker| cluster.worker(worker).kill());
    unload_everywhere(&cluster, URI);
    let loaded = load_and_check(&cluster, 0, URI, &model);
    assert!(!loaded.model.report.unwrap().fallbacks.is_empty());
}

#[test]
fn an_origin_that_fails_now_and_then() {
    let (origin, model) = serve(&ModelSpec::sized(6, 50 * MIB, 10).shards(2));
    let spec = ClusterSpec::new(2, 1)
        .origin(&origin)
        .env("LONGSHORE_ORIGIN_STALL_TIMEOUT_MS", "1000")
        .env("LONGSHORE_ORIGIN_FIRST_BYTE_TIMEOUT_MS", "1000")
        .env("LONGSHORE_WORKER_METADATA_TTL_MS", "0");
    let cluster = Cluster::start(spec);
    let faults = [
        FaultKind::Status(503),
        FaultKind::Status(500),
        FaultKind::Status(429),
        FaultKind::CutAfter(MIB + 17),
        FaultKind::HangAfter(2 * MIB + 5),
        FaultKind::Hang,
        FaultKind::LatencyMs(200),
    ];
    for kind in faults {
        origin.clear_faults();
        origin.fault(Fault::new(kind.clone()).times(3));
        if !matches!(kind, FaultKind::CutAfter(_) | FaultKind::HangAfter(_)) {
            origin.fault(Fault::new(kind.clone()).verb(Verb::List).times(1));
        }
        origin.reset_counters();
        let loaded = load(&cluster, 0, URI).unwrap_or_else(|error| panic!("{kind:?}: {}: {error}", error.code()));
        check(&loaded, &model);
        let faults = origin.counters().faults;
        assert!(faults >= 3, "{kind:?} struck {faults} times");
        let freed = cluster.cli(0).args(["free", URI]).run();
        assert!(freed.success(), "{freed}");
        for worker in cluster.workers() {
            free_at(worker.data_plane(), &cluster);
        }
    }
}

/// Drops the model from the workers' tiers, so that the next load asks the origin.
fn free_at(workers: &str, cluster: &Cluster) {
    let freed = cluster.cli(0).args(["free", URI, "--workers", workers]).run();
    assert!(freed.success(), "{freed}");
}

#[test]
fn an_origin_that_refuses_for_good_ends_the_load_with_its_reason() {
    let cases = [(403, Code::PermissionDenied), (401, Code::Unauthenticated), (404, Code::NotFound)];
    for (status, code) in cases {
        let (origin, _) = serve(&ModelSpec::sized(7, 20 * MIB, 4));
        let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
        origin.fault(Fault::new(FaultKind::Status(status)).on("*.safetensors"));
        let start = Instant::now();
        let error = load(&cluster, 0, URI).unwrap_err();
        let codes = if status == 404 { vec![code, Code::FailedPrecondition] } else { vec![code] };
        assert!(codes.contains(&error.code()), "{status}: {}: {error}", error.code());
        assert!(error.message().contains("model.safetensors"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{status} took {:?}", start.elapsed());
        nothing_is_left(&cluster);
    }
}

/// That a failed load holds neither a model nor memory.
pub fn nothing_is_left(cluster: &Cluster) {
    let mut client = longshore_tests::Client::connect(&cluster.loader_socket(0)).unwrap();
    assert_eq!(client.models().unwrap(), Vec::new());
    wait_until("memory is given back", || client.status().unwrap().arena_used_bytes == 0);
    let status = client.status().unwrap();
    assert_eq!(status.loads_in_flight, 0);
}

#[test]
fn an_object_that_changes_under_a_load_never_mixes() {
    for (seed, kind) in [(1, FaultKind::Replace), (2, FaultKind::Remove)] {
        let origin = FakeOrigin::start();
        let old = longshore_testkit::Content::generated(seed, 120 * MIB + 5);
        origin.put_content("bucket/model/weights.gguf", old.clone());
        let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
        origin.fault(Fault::new(kind.clone()).skip(3).times(1));
        match load(&cluster, 0, URI) {
            Ok(loaded) => {
                let now = origin.content("bucket/model/weights.gguf").expect("a removed object cannot be loaded");
                let model = Model { files: vec![("weights.gguf".to_owned(), now)], tensors: Vec::new() };
                check(&loaded, &model);
            }
            Err(error) => {
                let codes = [Code::FailedPrecondition, Code::NotFound];
                assert!(codes.contains(&error.code()), "{kind:?}: {}: {error}", error.code());
                assert!(error.message().contains("weights.gguf"), "{error}");
                nothing_is_left(&cluster);
            }
        }
    }
}

#[test]
fn a_load_whose_client_went_away_holds_nothing_up() {
    let (origin, model) = serve(&ModelSpec::sized(8, 60 * MIB, 10));
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    origin.fault(Fault::new(FaultKind::BytesPerSecond(2 * MIB)));
    let mut loading = cluster.cli(0).args(["load", URI, "--device", "host", "--json"]).spawn();
    wait_until("the load has begun", || origin.counters().bytes > MIB);
    loading.kill();
    origin.clear_faults();
    let start = Instant::now();
    load_and_check(&cluster, 0, URI, &model);
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
}

#[test]
fn a_shutdown_in_mid_load_does_not_wait_for_ever() {
    let (origin, _) = serve(&ModelSpec::sized(14, 100 * MIB, 10));
    origin.fault(Fault::new(FaultKind::HangAfter(MIB)));
    let mut cluster = Cluster::start(
        ClusterSpec::new(1, 1)
            .origin(&origin)
            .env("LONGSHORE_WORKER_DRAIN_TIMEOUT_MS", "2000")
            .loader_args(&["--drain-timeout-ms", "2000"]),
    );
    thread::scope(|scope| {
        let socket = cluster.loader_socket(0);
        let loading = scope.spawn(move || longshore_tests::Client::connect(&socket).unwrap().load(URI));
        wait_until("the load has begun", || origin.counters().bytes >= 2 * MIB);
        let end = cluster.loader(0).terminate(Duration::from_secs(15));
        assert!(end.is_some(), "the loader ends: {}", cluster.loader(0).log_tail(20));
        let end = cluster.worker(0).terminate(Duration::from_secs(15));
        assert!(end.is_some(), "the worker ends: {}", cluster.worker(0).log_tail(20));
        assert!(loading.join().unwrap().is_err());
    });
}

#[test]
fn shutdown_drains() {
    let (origin, model) = serve(&ModelSpec::sized(9, 40 * MIB, 10));
    origin.fault(Fault::new(FaultKind::BytesPerSecond(8 * MIB)));
    let mut cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    let loaded = thread::scope(|scope| {
        let socket = cluster.loader_socket(0);
        let loading = scope.spawn(move || longshore_tests::Client::connect(&socket).unwrap().load(URI));
        wait_until("the load has begun", || origin.counters().bytes > 2 * MIB);
        let end = cluster.worker(0).terminate(Duration::from_secs(60));
        assert!(end.is_some_and(|status| status.success()), "{end:?}: {}", cluster.worker(0).log_tail(20));
        loading.join().unwrap()
    });
    check(&loaded.unwrap(), &model);
    let end = cluster.loader(0).terminate(Duration::from_secs(60));
    assert!(end.is_some_and(|status| status.success()), "{end:?}: {}", cluster.loader(0).log_tail(20));
    assert!(!cluster.loader_socket(0).exists(), "the socket is removed");
}

#[test]
fn a_network_that_corrupts_cuts_stalls_and_refuses() {
    let (origin, model) = serve(&ModelSpec::sized(10, 100 * MIB, 10));
    let spec = ClusterSpec::new(2, 1).origin(&origin).proxied().loader_args(&["--stall-timeout-ms", "1500"]);
    let mut cluster = Cluster::start(spec);
    load_and_check(&cluster, 0, URI, &model);
    let bad = ProxyFaults::default();
    let faults = [
        ProxyFaults { flip_at: Some(3 * MIB), ..bad.clone() },
        ProxyFaults { cut_after: Some(5 * MIB), ..bad.clone() },
        ProxyFaults { swallows: true, ..bad.clone() },
        ProxyFaults { refuses: true, ..bad.clone() },
        ProxyFaults { delay: Duration::from_millis(30), ..bad },
    ];
    for fault in faults {
        // A new loader each time: it has met nothing bad yet, and so does not avoid the worker.
        cluster.loader(0).kill();
        cluster.loader(0).start_again();
        cluster.proxy(0).set(fault.clone());
        cluster.proxy(0).cut_all();
        let start = Instant::now();
        let loaded = load(&cluster, 0, URI).unwrap_or_else(|error| panic!("{fault:?}: {}: {error}", error.code()));
        check(&loaded, &model);
        assert!(start.elapsed() < Duration::from_secs(60), "{fault:?} took {:?}", start.elapsed());
        let report = loaded.model.report.unwrap();
        println!("{fault:?}: {:?}: {report:?}", start.elapsed());
        if fault.flip_at.is_some() {
            assert!(cluster.proxy(0).flips() > 0 && report.checksum_mismatches > 0, "{report:?}");
        }
        if fault.swallows || fault.refuses || fault.cut_after.is_some() {
            assert!(report.retries > 0 || !report.fallbacks.is_empty(), "{fault:?} is told: {report:?}");
        }
        cluster.proxy(0).set(ProxyFaults::default());
    }
    unload_everywhere(&cluster, URI);
    load_and_check(&cluster, 0, URI, &model);
}

#[test]
fn a_worker_that_stands_still_in_mid_load() {
    let (origin, model) = serve(&ModelSpec::sized(11, 400 * MIB, 40));
    origin.fault(Fault::new(FaultKind::BytesPerSecond(8 * MIB)));
    let spec = ClusterSpec::new(3, 1).origin(&origin).loader_args(&["--stall-timeout-ms", "2000"]);
    let cluster = Cluster::start(spec);
    let pid = rustix::process::Pid::from_raw(cluster.workers()[1].pid() as i32).unwrap();
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    let loaded = thread::scope(|scope| {
        let socket = cluster.loader_socket(0);
        let loading = scope.spawn(move || longshore_tests::Client::connect(&socket).unwrap().load(URI));
        wait_until("a quarter is read", || origin.counters().bytes > 30 * MIB);
        signal(rustix::process::Signal::STOP);
        origin.clear_faults();
        let loaded = loading.join().unwrap();
        signal(rustix::process::Signal::CONT);
        loaded
    });
    let loaded = loaded.unwrap_or_else(|error| panic!("{}: {error}", error.code()));
    check(&loaded, &model);
    assert!(!loaded.model.report.unwrap().fallbacks.is_empty());
}

#[test]
fn a_loader_killed_in_mid_load_comes_back_empty_and_well() {
    let (origin, model) = serve(&ModelSpec::sized(12, 80 * MIB, 10));
    origin.fault(Fault::new(FaultKind::BytesPerSecond(8 * MIB)));
    let mut cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    thread::scope(|scope| {
        let socket = cluster.loader_socket(0);
        let loading = scope.spawn(move || longshore_tests::Client::connect(&socket).unwrap().load(URI));
        wait_until("the load has begun", || origin.counters().bytes > 10 * MIB);
        cluster.loader(0).kill();
        let error = loading.join().unwrap().unwrap_err();
        assert!(matches!(error.code(), Code::Unavailable | Code::Cancelled | Code::Internal), "{error}");
    });
    origin.clear_faults();
    cluster.loader(0).start_again();
    load_and_check(&cluster, 0, URI, &model);
    // What was on its way when the loader died was not thrown away.
    assert_eq!(origin.counters().bytes, model.size_bytes());
}

#[test]
fn a_worker_that_is_avoided_is_told_in_the_report() {
    let (origin, model) = serve(&ModelSpec::sized(13, 100 * MIB, 10));
    let mut cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    cluster.worker(0).kill();
    for round in 0..3 {
        unload_everywhere(&cluster, URI);
        let loaded = load_and_check(&cluster, 0, URI, &model);
        let report = loaded.model.report.unwrap();
        assert!(
            !report.fallbacks.is_empty(),
            "round {round}: half of the chunks are not where they belong: {report:?}"
        );
    }
}
