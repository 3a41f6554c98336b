//! A defect in the midst of a fill. A subscriber is called in the midst of everything, so here it is one that panics.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;

use common::*;
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use longshore_types::{CHUNK_BYTES, Code};
use longshore_wire::{Mode, Tier};
use longshore_worker::WorkerOptions;
use parking_lot::Mutex;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const OBJECT: &str = "bucket/model/data.bin";
const URL: &str = "s3://bucket/model/data.bin";
const READERS: usize = 4;

/// Panics at the first event, as soon as it is told to.
struct Defect(Mutex<Option<mpsc::Receiver<()>>>);

impl Subscriber for Defect {
    /// When a read is about to be repeated.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "longshore_origin::lane"
    }

    fn event(&self, _: &Event<'_>) {
        let Some(told) = self.0.lock().take() else { return };
        told.recv_timeout(LONG).unwrap();
        panic!("a defect");
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn a_read_that_panics_fails_those_who_wait_and_nobody_after_them() {
    let origin = FakeOrigin::start();
    origin.generate(OBJECT, 7, 2 * CHUNK_BYTES);
    let content = origin.content(OBJECT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // One permit: without it nothing is filled any more.
    let local = Local::open(WorkerOptions { fills_max: 1, ..options(folder.path()) }, &origin);
    let keys = local.chunks(URL);
    let (tell, told) = mpsc::channel();
    tracing::subscriber::set_global_default(Defect(Mutex::new(Some(told)))).unwrap();
    origin.fault(Fault::new(FaultKind::CutAfter(5 << 20)).times(1));
    let endpoint = local.endpoint();
    let codes: Vec<Code> = std::thread::scope(|scope| {
        let ask = || fetch(&endpoint, &request(&keys[0], Mode::Fill, false)).unwrap_err().code();
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(ask)).collect();
        until("all wait for one fill", || local.metric("longshore_worker_fill_joins_total") == (READERS - 1) as f64);
        tell.send(()).unwrap();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert_eq!(codes, [Code::Internal; READERS]);
    assert!(local.worker.drain(LONG), "the permit came back");
    let fills = |outcome: &str| {
        local.metric(&format!("longshore_worker_fills_total{{outcome=\"{outcome}\",source=\"origin\"}}"))
    };
    assert_eq!((fills("internal"), local.metric("longshore_worker_fills_in_flight")), (1.0, 0.0));
    for key in &keys {
        assert_eq!(fetch_whole(&endpoint, key, &content).unwrap(), Tier::Origin);
    }
    assert_eq!((fills("internal"), fills("ok")), (1.0, 2.0));
}
