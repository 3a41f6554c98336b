//! A card made of host memory, whose copies run on a thread of their own and do what the test orders.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use longshore_device::{Device, DeviceId, DeviceInfo, DeviceRegion, HostDevice, Intake, Part, RegionBuilder, Upload};
use longshore_memory::{Arena, OwnedSegment, PinnedChunk};
use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

/// What the test says, and what it is told.
#[derive(Default)]
pub struct Orders {
    shut: Mutex<bool>,
    gate: Condvar,
    /// Copies that were begun.
    pub uploads: AtomicU64,
    /// The copy that breaks the card down, counted from 1.
    pub break_at: AtomicU64,
    /// So many regions break down when they are finished.
    pub break_finishes: AtomicU64,
}

impl Orders {
    /// Copies wait from now on.
    pub fn shut(&self) {
        *self.shut.lock() = true;
    }

    pub fn open(&self) {
        *self.shut.lock() = false;
        self.gate.notify_all();
    }

    fn wait(&self) {
        self.gate.wait_while(&mut self.shut.lock(), |shut| *shut);
    }
}

pub struct Card {
    memory: HostDevice,
    ordinal: u32,
    uuid: String,
    pub orders: Arc<Orders>,
}

impl Card {
    pub fn new(ordinal: u32, memory_bytes: u64) -> Arc<Card> {
        let (memory, uuid) = (HostDevice::new(Arena::new(memory_bytes)), format!("GPU-{ordinal}"));
        Arc::new(Card { memory, ordinal, uuid, orders: Arc::default() })
    }
}

impl Device for Card {
    fn id(&self) -> DeviceId {
        DeviceId::cuda(self.ordinal)
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo { id: self.id(), uuid: self.uuid.clone(), name: "card".into(), ..self.memory.info() }
    }

    fn alignment_bytes(&self) -> u64 {
        256
    }

    fn reserve(&self, label: &str, size_bytes: u64) -> Result<Box<dyn RegionBuilder>> {
        let region: Region = Arc::new(Mutex::new(Some(self.memory.reserve(label, size_bytes)?)));
        let (sender, copies) = mpsc::channel::<Copy>();
        let (target, orders) = (region.clone(), self.orders.clone());
        let copier = std::thread::spawn(move || {
            for copy in copies {
                orders.wait();
                carry_out(&target, &copy).unwrap();
            }
        });
        Ok(Box::new(Builder { region, orders: self.orders.clone(), sender: Some(sender), copier: Some(copier) }))
    }

    fn adopt(&self, label: &str, segments: Vec<OwnedSegment>, size_bytes: u64) -> Result<Arc<dyn DeviceRegion>> {
        self.memory.adopt(label, segments, size_bytes)
    }
}

type Region = Arc<Mutex<Option<Box<dyn RegionBuilder>>>>;

struct Copy {
    chunk: PinnedChunk,
    start_bytes: u64,
    parts: Vec<Part>,
}

fn carry_out(region: &Region, copy: &Copy) -> Result<()> {
    let region = region.lock();
    let Some(Intake::Land(land)) = region.as_ref().map(|region| region.intake()) else { panic!("no region") };
    let mut landing = land.landing(&copy.parts)?;
    let end = copy.start_bytes + landing.len() as u64;
    landing.copy_in(0, copy.chunk.bytes(copy.start_bytes..end).expect("blocks that were ready"));
    land.submit(landing)
}

struct Builder {
    region: Region,
    orders: Arc<Orders>,
    sender: Option<mpsc::Sender<Copy>>,
    copier: Option<JoinHandle<()>>,
}

impl Builder {
    fn join(&mut self) {
        self.sender = None;
        if let Some(copier) = self.copier.take() {
            copier.join().unwrap();
        }
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.join();
    }
}

impl RegionBuilder for Builder {
    fn intake(&self) -> Intake<'_> {
        Intake::Upload(self)
    }

    fn finish(mut self: Box<Self>) -> Result<Arc<dyn DeviceRegion>> {
        self.join();
        let breaks = |left: u64| left.checked_sub(1);
        if self.orders.break_finishes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, breaks).is_ok() {
            return Err(broken());
        }
        let region = self.region.lock().take().unwrap();
        region.finish()
    }
}

impl Upload for Builder {
    fn upload(&self, chunk: &PinnedChunk, start_bytes: u64, parts: &[Part]) -> Result<()> {
        if self.orders.uploads.fetch_add(1, Ordering::SeqCst) + 1 == self.orders.break_at.load(Ordering::SeqCst) {
            return Err(broken());
        }
        let len: u64 = parts.iter().map(Part::len_bytes).sum();
        assert!(chunk.bytes(start_bytes..start_bytes + len).is_some(), "blocks that are not there");
        let copy = Copy { chunk: chunk.clone(), start_bytes, parts: parts.to_vec() };
        self.sender.as_ref().unwrap().send(copy).unwrap();
        Ok(())
    }

    fn node(&self) -> Option<u32> {
        None
    }
}

fn broken() -> Error {
    Error::new(Code::Unavailable, "the card broke down")
}
