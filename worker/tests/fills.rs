//! Fills that do not come to their end: those who wait for them learn of it, and nothing stays behind.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use common::*;
use longshore_cluster::{Identity, Member, MemberId, Membership, Ring, View};
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use longshore_types::{CHUNK_BYTES, ChunkKey, Code};
use longshore_wire::{ChunkRequest, Endpoint, Mode};
use longshore_worker::{Worker, WorkerOptions};

const OBJECT: &str = "bucket/model/data.bin";
const URL: &str = "s3://bucket/model/data.bin";
const READERS: usize = 4;

fn origin() -> FakeOrigin {
    let origin = FakeOrigin::start();
    origin.generate(OBJECT, 7, 2 * CHUNK_BYTES);
    origin
}

fn metric(worker: &Worker, name: &str) -> f64 {
    metric_of(&String::from_utf8(worker.render_metrics().unwrap()).unwrap(), name)
}

/// What those are told who ask for a chunk at once, when all of them wait for one fill and then something `happens`.
fn ask_while(worker: &Arc<Worker>, key: &ChunkKey, happens: impl FnOnce()) -> Vec<Code> {
    let endpoint = Endpoint::InProcess(worker.clone());
    std::thread::scope(|scope| {
        let ask = || fetch(&endpoint, &request(key, Mode::Fill, false)).unwrap_err().code();
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(ask)).collect();
        until("all wait for one fill", || {
            metric(worker, "longshore_worker_fill_joins_total") == (READERS - 1) as f64
                && metric(worker, "longshore_worker_fills_in_flight") == 1.0
        });
        happens();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

/// Nothing is left of fills, and who asks a worker that has no runtime any more is told so at once.
fn assert_over(worker: &Arc<Worker>, key: &ChunkKey, source: &str) {
    let cancelled = format!("longshore_worker_fills_total{{outcome=\"cancelled\",source=\"{source}\"}}");
    for fills in [1.0, 2.0] {
        assert!(worker.drain(LONG), "the permit came back");
        assert_eq!(metric(worker, "longshore_worker_fills_in_flight"), 0.0);
        assert_eq!(metric(worker, &cancelled), fills);
        let began = Instant::now();
        let error = fetch(&Endpoint::InProcess(worker.clone()), &request(key, Mode::Fill, false)).unwrap_err();
        assert_eq!(error.code(), Code::Cancelled, "{error}");
        assert!(error.message().contains("the worker is shutting down"), "{error}");
        assert!(began.elapsed() < LONG, "it is not waited for");
    }
}

#[test]
fn a_fill_under_way_ends_when_the_runtime_does() {
    let (origin, folder) = (origin(), tempfile::tempdir().unwrap());
    let local = Local::open(options(folder.path()), &origin);
    let key = local.chunks(URL)[0].clone();
    origin.fault(Fault::new(FaultKind::HangAfter(3 << 20)));
    let Local { worker, runtime } = local;
    let codes = ask_while(&worker, &key, || {
        // The first blocks are there, which is no chunk.
        let first = ChunkRequest { range: 0..1 << 20, ..request(&key, Mode::OnlyIfCached, false) };
        assert_eq!(fetch(&Endpoint::InProcess(worker.clone()), &first).unwrap().0.len(), 1 << 20);
        runtime.shutdown_timeout(LONG);
    });
    assert_eq!(codes, [Code::Cancelled; READERS]);
    assert_over(&worker, &key, "origin");
}

#[test]
fn a_fill_that_another_worker_is_asked_for_ends_when_the_runtime_does() {
    let (origin, folder) = (origin(), tempfile::tempdir().unwrap());
    let key = Local::open(options(&folder.path().join("alone")), &origin).chunks(URL)[0].clone();
    // It takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let runtime = runtime();
    let entered = runtime.enter();
    let others = Arc::new(Others::new(silent.local_addr().unwrap().to_string()));
    let worker = Worker::open(options(&folder.path().join("one")), origins(&origin), Some(others)).unwrap();
    drop(entered);
    let codes = ask_while(&worker, &key, || runtime.shutdown_background());
    assert_eq!(codes, [Code::Cancelled; READERS]);
    assert_over(&worker, &key, "peer");
}

#[test]
fn who_is_served_while_a_daemon_is_told_to_end_gets_no_part_for_the_whole() {
    let (origin, folder) = (origin(), tempfile::tempdir().unwrap());
    let key = Local::open(options(&folder.path().join("alone")), &origin).chunks(URL)[0].clone();
    origin.fault(Fault::new(FaultKind::HangAfter(3 << 20)));
    let impatient = |_, options| WorkerOptions { drain_timeout_ms: 100, ..options };
    let mut workers = serve(1, folder.path(), &origin, impatient);
    let mut worker = workers.pop().unwrap();
    let endpoint = worker.endpoint();
    std::thread::scope(|scope| {
        let ask = || fetch(&endpoint, &request(&key, Mode::Fill, false)).unwrap_err().code();
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(ask)).collect();
        until("all wait for one fill", || worker.metric("longshore_worker_fill_joins_total") == (READERS - 1) as f64);
        worker.terminate();
        worker.ended().unwrap();
        // It ends with its runtime, which waits for what blocks.
        drop(worker);
        for reader in readers {
            let code = reader.join().unwrap();
            assert!(matches!(code, Code::Cancelled | Code::Unavailable), "{code}");
        }
    });
}

/// A view of one other worker, which owns everything.
struct Others {
    view: Arc<View>,
    ring: Arc<Ring>,
}

impl Others {
    fn new(address: String) -> Others {
        let identity = Identity {
            id: MemberId::from_bytes([1; 16]),
            weight: 1,
            data: address.clone(),
            control: address.clone(),
            unix_socket: None,
            host_id: String::new(),
            version: String::new(),
        };
        let members = vec![Member { identity, address }];
        Others { ring: Arc::new(Ring::new(&members)), view: Arc::new(View { epoch: 1, members }) }
    }
}

impl Membership for Others {
    fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.clone()
    }

    fn watch(&self) -> tokio::sync::watch::Receiver<Arc<View>> {
        tokio::sync::watch::channel(self.view.clone()).1
    }
}
