//! The command line, beside a cluster and alone.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_testkit::cluster::{Cluster, ClusterSpec, http_get};
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use serde_json::Value;

use crate::common::{Embedded, chunk_files, load, load_and_check, wait_until};

const MIB: u64 = 1 << 20;
const URI: &str = "s3://bucket/model";

/// Workers of the cluster, as the command line takes them.
fn members(cluster: &Cluster) -> String {
    cluster.workers().iter().map(|worker| worker.data_plane().to_owned()).collect::<Vec<_>>().join(",")
}

#[test]
fn every_command_beside_a_cluster() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 80 * MIB, 20).shards(3).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(3, 1).origin(&origin));
    let workers = members(&cluster);
    let run = |args: &[&str]| -> Value {
        let output = cluster.cli(0).args(args).args(["--json", "--workers", &workers]).run();
        assert!(output.success(), "{output}");
        output.json()
    };

    let listed = run(&["ls", URI]);
    let names: Vec<&str> =
        listed["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    let wanted: Vec<&str> = model.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names, listed["bytes"].as_u64().unwrap()), (wanted, model.size_bytes()));
    let stat = run(&["stat", "s3://bucket/model/config.json"]);
    assert_eq!(stat["bytes"].as_u64().unwrap(), model.file("config.json").unwrap().len_bytes());

    let warmed = run(&["warm", URI]);
    assert_eq!(warmed["bytes"].as_u64().unwrap(), model.size_bytes(), "{warmed}");
    let loaded = run(&["load", URI, "--device", "host"]);
    assert_eq!(loaded["bytes_by_tier"]["origin"], 0, "{loaded}");
    assert_eq!(loaded["tensors"], 20);
    let again = run(&["load", URI, "--device", "host"]);
    assert_eq!(again["reattached"], true, "{again}");

    let ring = run(&["ring", URI, "--chunks"]);
    assert_eq!(ring["members"].as_array().unwrap().len(), 3, "{ring}");
    assert_eq!(ring["chunks"].as_array().unwrap().len() as u64, model.chunks(), "{ring}");
    let owned: u64 = ring["members"].as_array().unwrap().iter().map(|member| member["bytes"].as_u64().unwrap()).sum();
    assert_eq!(owned, model.size_bytes());

    let status = run(&["status"]).to_string();
    for worker in cluster.workers() {
        assert!(status.contains(worker.data_plane()), "{status}");
    }
    let freed = run(&["free", URI]);
    assert_eq!(freed["models_unloaded"], 1, "{freed}");
    // Both tiers of a worker may have a chunk.
    assert!(freed["cache_bytes_freed"].as_u64().unwrap() >= model.size_bytes(), "{freed}");
    for worker in 0..3 {
        wait_until("chunk files are gone", || chunk_files(&cluster.cache_folder(worker)).is_empty());
    }
    origin.reset_counters();
    load_and_check(&cluster, 0, URI, &model);
    assert_eq!(origin.counters().bytes, model.size_bytes(), "freed is freed");
}

#[test]
fn what_the_ring_says_is_where_the_chunks_are() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(2, 150 * MIB, 20).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(3, 1).origin(&origin));
    load(&cluster, 0, URI).unwrap();
    let ring = cluster.cli(0).args(["ring", URI, "--json", "--workers", &members(&cluster)]).run().json();
    for worker in cluster.workers() {
        let owned = ring["members"].as_array().unwrap().iter();
        let owned = owned.filter(|member| member["address"] == worker.data_plane());
        let owned: u64 = owned.map(|member| member["bytes"].as_u64().unwrap()).sum();
        let filled = worker.metrics().sum("longshore_worker_fill_bytes_total");
        assert_eq!(filled, owned as f64, "{}", worker.name());
    }
}

#[test]
fn exec_becomes_the_program_and_its_end() {
    let origin = FakeOrigin::start();
    ModelSpec::small(1).build().put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let exec =
        |command: &[&str]| cluster.cli(0).args(["exec", "--model", URI, "--device", "host", "--"]).args(command).run();
    let output = exec(&["sh", "-c", "echo $LONGSHORE_MODEL_URI $LONGSHORE_REVISION $LONGSHORE_DEVICE; exit 7"]);
    assert_eq!(output.code(), 7, "{output}");
    let revision = load(&cluster, 0, URI).unwrap().model.revision;
    assert_eq!(output.stdout.trim(), format!("{URI} {revision} host"));
    let output = exec(&["/no/such/program"]);
    assert!(!output.success() && output.stderr.contains("/no/such/program"), "{output}");

    // The program holds the lease for as long as it lives.
    let mut client = longshore_tests::Client::connect(&cluster.loader_socket(0)).unwrap();
    let arguments = ["exec", "--model", URI, "--device", "host", "--", "sleep", "1000"];
    let mut running = cluster.cli(0).args(arguments).spawn();
    wait_until("the lease is taken", || client.models().unwrap().iter().any(|model| model.leases == 1));
    running.kill();
    running.wait();
    wait_until("the lease is given back", || client.models().unwrap().iter().all(|model| model.leases == 0));
}

#[test]
fn a_private_loader_ends_with_its_client() {
    let origin = FakeOrigin::start();
    ModelSpec::small(1).build().put_into(&origin, "bucket/model");
    let embedded = Embedded::with(&origin);
    let output =
        embedded.run(&["exec", "--model", URI, "--device", "host", "--", "sh", "-c", "echo $LONGSHORE_LOADER"]);
    assert!(output.success(), "{output}");
    let socket = output.stdout.trim().strip_prefix("unix://").unwrap().to_owned();
    wait_until("the private loader is gone", || !Path::new(&socket).exists());
}

#[test]
fn a_trace_is_one_that_a_viewer_reads() {
    let origin = FakeOrigin::start();
    ModelSpec::sized(3, 40 * MIB, 10).build().put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    let path = cluster.folder().join("trace.json");
    let output = cluster.cli(0).args(["load", URI, "--device", "host", "--trace", path.to_str().unwrap()]).run();
    assert!(output.success(), "{output}");
    let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace.get("traceEvents").unwrap_or(&trace).as_array().unwrap();
    let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert!(spans.len() >= 3, "{trace}");
    for event in spans {
        assert!(event["ts"].is_number() && event["dur"].is_number() && event["name"].is_string(), "{event}");
    }
}

#[test]
fn pull_writes_what_is_there_and_nothing_by_halves() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(4, 40 * MIB, 10).shards(2).side_file("sub/a.txt", b"text".to_vec()).build();
    model.put_into(&origin, "bucket/model");
    let embedded = Embedded::with(&origin);
    let folder = embedded.folder.path().join("out");
    let pull = || embedded.run(&["pull", URI, folder.to_str().unwrap(), "--json"]);
    let output = pull();
    assert!(output.success(), "{output}");
    for (name, content) in &model.files {
        assert!(content.equals(&std::fs::read(folder.join(name)).unwrap()), "{name}");
    }
    // Again, over what is there.
    std::fs::write(folder.join("config.json"), b"changed by hand").unwrap();
    assert!(pull().success());
    assert!(model.file("config.json").unwrap().equals(&std::fs::read(folder.join("config.json")).unwrap()));

    let broken = embedded.folder.path().join("broken");
    origin.put("bucket/broken/a.txt", b"one".to_vec());
    origin.generate("bucket/broken/z.bin", 1, 20 * MIB);
    origin.fault(Fault::new(FaultKind::Status(403)).on("*z.bin"));
    let output = embedded.run(&["pull", "s3://bucket/broken", broken.to_str().unwrap()]);
    assert!(!output.success(), "{output}");
    assert!(!broken.join("z.bin").exists(), "no file by halves under its own name");
    assert!(!output.stderr.contains("panicked"), "{output}");
}

#[test]
fn pages_of_both_daemons() {
    let origin = FakeOrigin::start();
    ModelSpec::small(1).build().put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    load(&cluster, 0, URI).unwrap();
    for daemon in cluster.workers().iter().chain(cluster.loaders()) {
        for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/nothing", 404)] {
            assert_eq!(http_get(daemon.ops_address(), path).unwrap().0, status, "{} {path}", daemon.name());
        }
        let (_, text) = http_get(daemon.ops_address(), "/metrics").unwrap();
        assert!(text.contains("longshore_") && text.contains("process_resident_memory_bytes"), "{text}");
        check_with_promtool(&text);
    }
}

fn check_with_promtool(text: &str) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("promtool does not start: {error}: run `make setup`"));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_demo_shows_what_it_says() {
    let output = Embedded::new().run(&["demo", "--size", "20MiB"]);
    assert!(output.success(), "{output}");
}

#[test]
fn a_command_that_fails_while_others_of_its_reads_run_ends_in_peace() {
    let origin = FakeOrigin::start();
    for number in 0..30 {
        origin.generate(&format!("bucket/many/{number:02}.bin"), number, 3 * MIB);
    }
    let slow = FaultKind::BytesPerSecond(2 * MIB);
    for round in 0..4 {
        origin.clear_faults();
        origin.fault(Fault::new(slow.clone()).on("*many/*"));
        origin.fault(Fault::new(FaultKind::Status(503)).on("*1?.bin").times(5));
        origin.fault(Fault::new(FaultKind::Status(403)).on(&format!("*many/{round:02}.bin")));
        let embedded = Embedded::with(&origin);
        let folder = embedded.folder.path().join("out");
        for args in [
            &["pull", "s3://bucket/many", folder.to_str().unwrap()][..],
            &["load", "s3://bucket/many", "--device", "host"],
        ] {
            let start = Instant::now();
            let output = embedded.run(args);
            assert!(!output.success() && !output.stderr.contains("panicked"), "{output}");
            assert!(start.elapsed() < Duration::from_secs(15), "{:?}: {output}", start.elapsed());
        }
    }
}

#[test]
fn an_interrupted_command_ends_soon_and_in_peace() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(5, 120 * MIB, 10).shards(3).build();
    model.put_into(&origin, "bucket/model");
    let embedded = Embedded::with(&origin);
    let folder = embedded.folder.path().join("out");
    for args in [&["pull", URI, folder.to_str().unwrap()][..], &["load", URI, "--device", "host"], &["warm", URI]] {
        for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
            origin.reset_counters();
            origin.fault(Fault::new(FaultKind::BytesPerSecond(MIB)));
            let running = embedded.cli(args).spawn();
            wait_until("the command reads", || origin.counters().bytes > MIB);
            let pid = rustix::process::Pid::from_raw(running.pid() as i32).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
            let start = Instant::now();
            let output = running.wait();
            assert!(!output.success() && !output.stderr.contains("panicked"), "{output}");
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}: {output}", start.elapsed());
        }
    }
    origin.clear_faults();
    embedded.exec_and_check(URI, &model);
}
