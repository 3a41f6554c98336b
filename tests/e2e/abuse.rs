//! Strangers at the sockets, thrash, crash loops and long use: the daemons stay well and within their bounds.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use longshore_testkit::cluster::{Cluster, ClusterSpec, Daemon};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use longshore_tests::{Attached, Client};

use crate::common::{check, chunk_files, load, load_and_check, unload_everywhere, wait_until};

const MIB: u64 = 1 << 20;
const URI: &str = "s3://bucket/model";

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn threads(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count()
}

#[test]
fn nothing_leaks_over_many_loads() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 20 * MIB, 6).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin).unix_sockets());
    let cycle = || {
        let loaded = load_and_check(&cluster, 0, URI, &model);
        let held = check(&loaded, &model);
        unload_everywhere(&cluster, URI);
        drop(held);
        assert!(load(&cluster, 0, "s3://bucket/none").is_err());
    };
    (0..5).for_each(|_| cycle());
    let daemons: Vec<&Daemon> = cluster.workers().iter().chain(cluster.loaders()).collect();
    let before: Vec<(usize, usize, u64)> =
        daemons.iter().map(|d| (descriptors(d), threads(d), d.memory().rss_bytes)).collect();
    (0..40).for_each(|_| cycle());
    for (daemon, (fds, tasks, rss)) in daemons.iter().zip(before) {
        let name = daemon.name();
        wait_until("descriptors are closed", || descriptors(daemon) <= fds + 8);
        wait_until("threads end", || threads(daemon) <= tasks + 8);
        let now = daemon.memory().rss_bytes;
        assert!(now < rss + 48 * MIB, "{name} grew from {rss} to {now}");
    }
    wait_until("memory is given back", || {
        Client::connect(&cluster.loader_socket(0)).unwrap().status().unwrap().arena_used_bytes == 0
    });
}

#[test]
fn strangers_at_the_attach_socket() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::small(2).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let loaded = load_and_check(&cluster, 0, URI, &model);
    let socket = std::path::PathBuf::from(&loaded.model.attach_socket);
    let say = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // It may be closed before all is said.
        let _ = stream.write_all(bytes);
        stream
    };
    let answer = |mut stream: UnixStream| {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        assert!(read.is_ok() || !matches!(read, Err(ref e) if e.kind() == std::io::ErrorKind::WouldBlock), "no end");
    };
    answer(say(&u32::MAX.to_le_bytes()));
    answer(say(&[[8, 0, 0, 0].as_slice(), &[0xff; 8]].concat()));
    answer(say(b"GET / HTTP/1.1\r\n\r\n"));
    let error = Attached::attach(&socket, "no-such-model").err().unwrap().to_string();
    assert!(error.starts_with("not_found"), "{error}");
    // Longer than any id can be: refused in words, or by closing.
    assert!(Attached::attach(&socket, &"x".repeat(1 << 20)).is_err());

    let idle: Vec<UnixStream> = (0..300).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    check(&loaded, &model);
    drop(idle);
    // Half a message, and then silence: it must not count as a lease, nor stay for ever.
    let half = say(&[20, 0, 0, 0, 1, 2, 3]);
    let leases = || Client::connect(&cluster.loader_socket(0)).unwrap().models().unwrap()[0].leases;
    wait_until("no lease is held", || leases() == 0);
    drop(half);
    assert!(!cluster.loaders()[0].log().contains("panicked"));
}

#[test]
fn strangers_at_the_data_plane() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::small(3).build();
    model.put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let address = cluster.workers()[0].data_plane().to_owned();
    let ask = |text: &[u8]| -> String {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(text);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let chunk = |query: &str| format!("GET /v1/chunk?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let bad = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET / HTTP/1.1\r\n".repeat(10_000),
        [b"GET /v1/chunk?url=".as_slice(), &[b'a'; 1 << 20]].concat(),
        b"POST /v1/chunk HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nabc".to_vec(),
        chunk("").into_bytes(),
        chunk("url=s3://bucket/model/config.json&version=etag:x&size=99999999999999999&index=0").into_bytes(),
        chunk("url=s3://bucket/model/config.json&version=etag:x&size=18446744073709551615&index=4294967295")
            .into_bytes(),
        chunk("url=file:///etc/passwd&version=mtime:1-1-1&size=100&index=0").into_bytes(),
        chunk("url=s3://bucket/../../etc&version=etag:x&size=10&index=0").into_bytes(),
    ];
    for text in bad {
        let answer = ask(&text);
        let status = answer.get(9..12).unwrap_or_default();
        assert!(status.is_empty() || status.starts_with('4') || status.starts_with('5'), "{answer:.300}");
        assert!(!answer.contains("root:"), "a file of the worker's machine");
    }
    // Slow ones, that say nothing or half of it, must not keep others out.
    let slow: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = TcpStream::connect(&address).unwrap();
            if i % 2 == 0 {
                stream.write_all(b"GET /v1/chu").unwrap();
            }
            stream
        })
        .collect();
    load_and_check(&cluster, 0, URI, &model);
    drop(slow);
    let worker = &cluster.workers()[0];
    assert!(worker.is_running() && !worker.log().contains("panicked"), "{}", worker.log_tail(30));
    assert!(worker.memory().peak_bytes < 512 * MIB, "{:?}", worker.memory());
}

#[test]
fn more_models_than_any_tier_holds_at_the_same_time() {
    let origin = FakeOrigin::start();
    let models: Vec<Model> = (0..6).map(|seed| ModelSpec::sized(seed, 90 * MIB, 12).shards(2).build()).collect();
    for (number, model) in models.iter().enumerate() {
        model.put_into(&origin, &format!("bucket/model-{number}"));
    }
    let spec = ClusterSpec::new(3, 3).origin(&origin).budgets("64MiB", "100MiB", "256MiB");
    let cluster = Cluster::start(spec);
    thread::scope(|scope| {
        for loader in 0..3 {
            let (cluster, models) = (&cluster, &models);
            scope.spawn(move || {
                for round in 0..8 {
                    let number = (round * (loader + 1) + loader) % models.len();
                    load_and_check(cluster, loader, &format!("s3://bucket/model-{number}"), &models[number]);
                }
            });
        }
    });
    for worker in cluster.workers() {
        let memory = worker.memory();
        assert!(memory.peak_bytes < (64 + 256) * MIB, "{}: {memory:?}", worker.name());
    }
    for worker in 0..3 {
        let files = chunk_files(&cluster.cache_folder(worker));
        let bytes: u64 = files.iter().map(|file| file.metadata().map_or(0, |meta| meta.len())).sum();
        assert!(bytes <= 101 * MIB, "worker-{worker} has {bytes} bytes on its disk");
    }
}

#[test]
fn a_worker_in_a_crash_loop() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(4, 150 * MIB, 12).build();
    model.put_into(&origin, "bucket/model");
    let mut cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    for round in 0..5u64 {
        origin.clear_faults();
        origin.fault(Fault::new(FaultKind::BytesPerSecond(20 * MIB)));
        let before = origin.counters().bytes;
        let loaded = thread::scope(|scope| {
            let socket = cluster.loader_socket(0);
            let loading = scope.spawn(move || Client::connect(&socket).unwrap().load(URI));
            // At another point of the load each time; in the last rounds nothing may be left to read.
            let deadline = std::time::Instant::now() + Duration::from_millis(200 + 150 * round);
            wait_until("bytes or time", || {
                origin.counters().bytes > before + round * 17 * MIB || std::time::Instant::now() > deadline
            });
            cluster.worker(0).kill();
            cluster.worker(0).start_again();
            loading.join().unwrap()
        });
        check(&loaded.unwrap_or_else(|error| panic!("round {round}: {error}")), &model);
        unload_everywhere(&cluster, URI);
    }
    origin.clear_faults();
    load_and_check(&cluster, 0, URI, &model);
}

#[test]
fn chunk_files_that_changed_places() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(5, 64 * MIB, 12).build();
    model.put_into(&origin, "bucket/model");
    let mut cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    let chunks = model.chunks() as f64;
    wait_until("chunk files are written", || cluster.worker_metric("longshore_worker_disk_writes_total") >= chunks);
    let files = chunk_files(&cluster.cache_folder(0));
    let swap = |a: &std::path::Path, b: &std::path::Path| {
        let aside = a.with_extension("aside");
        std::fs::rename(a, &aside).unwrap();
        std::fs::rename(b, a).unwrap();
        std::fs::rename(&aside, b).unwrap();
    };
    // Once behind its back, once while it is not there.
    unload_everywhere(&cluster, URI);
    swap(&files[0], &files[1]);
    load_and_check(&cluster, 0, URI, &model);
    cluster.worker(0).kill();
    let files = chunk_files(&cluster.cache_folder(0));
    swap(&files[1], &files[2]);
    cluster.worker(0).start_again();
    unload_everywhere(&cluster, URI);
    load_and_check(&cluster, 0, URI, &model);
}

#[test]
fn a_cache_folder_that_goes_away_under_a_worker() {
    let origin = FakeOrigin::start();
    let (first, second) = (ModelSpec::sized(6, 50 * MIB, 12).build(), ModelSpec::sized(7, 50 * MIB, 12).build());
    first.put_into(&origin, "bucket/first");
    second.put_into(&origin, "bucket/second");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin).budgets("64MiB", "1GiB", "512MiB"));
    load_and_check(&cluster, 0, "s3://bucket/first", &first);
    wait_until("chunk files are written", || cluster.worker_metric("longshore_worker_disk_writes_total") >= 3.0);
    std::fs::remove_dir_all(cluster.cache_folder(0)).unwrap();
    load_and_check(&cluster, 0, "s3://bucket/second", &second);
    unload_everywhere(&cluster, "s3://bucket/first");
    load_and_check(&cluster, 0, "s3://bucket/first", &first);
}
