//! Slabs as clients, the engine and the next process see them.

mod many;
mod restart;
mod single;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use longshore_memory::Arena;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::*;

const SLAB: u64 = 64 << 10;
const UID: u32 = 1000;
/// For what must happen.
const SOON: Duration = Duration::from_secs(20);

fn attempt(number: u8) -> AttemptId {
    AttemptId::from_bytes([number; 16])
}

fn key(number: u8, slab_index: u32) -> SlabKey {
    SlabKey { attempt: attempt(number), file: 3, slab_index }
}

/// Attempts from 1 to 9, with files of 1,000 slabs, the last of which is short.
#[derive(Default)]
struct Plans {
    durable: Mutex<HashSet<SlabKey>>,
    ended: Mutex<HashSet<AttemptId>>,
    refuses: AtomicBool,
}

impl SlabPlans for Plans {
    fn look_up(&self, key: &SlabKey) -> Result<SlabWanted> {
        if !(1..=9).contains(&key.attempt.as_bytes()[0]) {
            return Err(Error::new(Code::NotFound, "no such attempt"));
        }
        if self.ended.lock().contains(&key.attempt) {
            return Err(Error::new(Code::Cancelled, "the attempt was cancelled"));
        }
        if key.slab_index >= 1000 || key.file != 3 {
            return Err(Error::new(Code::InvalidArgument, "no such slab"));
        }
        Ok(SlabWanted {
            length_bytes: if key.slab_index == 999 { 5 } else { SLAB },
            is_durable: self.durable.lock().contains(key),
            refuse_when_full: self.refuses.load(Ordering::Relaxed),
        })
    }
}

struct Fixture {
    place: tempfile::TempDir,
    arena: Arena,
    plans: Arc<Plans>,
}

struct Opened {
    slabs: Slabs,
    recovered: Vec<SealedSlab>,
    events: mpsc::Receiver<SlabEvent>,
}

impl Fixture {
    fn new() -> Fixture {
        let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Fixture { place, arena: Arena::new(1 << 30), plans: Arc::default() }
    }

    fn try_open(&self, slabs: u64, grace: Duration) -> Result<Opened> {
        let options = SlabOptions {
            folder: self.place.path().join("slabs"),
            memory: self.arena.clone(),
            memory_bytes: slabs * SLAB,
            slab_bytes: SLAB,
            return_grace: grace,
        };
        let (slabs, recovered, events) = Slabs::open(options, self.plans.clone())?;
        Ok(Opened { slabs, recovered, events })
    }

    fn open(&self, slabs: u64) -> Opened {
        self.try_open(slabs, SLAB_RETURN_GRACE).unwrap()
    }

    /// Folders of sessions.
    fn folders(&self) -> usize {
        std::fs::read_dir(self.place.path().join("slabs")).unwrap().count()
    }
}

impl Opened {
    async fn hello(&self) -> SlabSession {
        self.slabs.hello(SlabHello { uid: UID, ..Default::default() }).await.unwrap().0
    }

    async fn sealed(&mut self) -> SealedSlab {
        match tokio::time::timeout(SOON, self.events.recv()).await.unwrap().unwrap() {
            SlabEvent::Sealed(slab) => slab,
            other => panic!("{other:?}"),
        }
    }

    /// As a process that is killed: nothing is freed or marked.
    fn kill(self) {
        let Opened { slabs, recovered, events } = self;
        slabs.close();
        slabs.release();
        drop((recovered, events));
    }
}

fn control(session: &SlabSession) -> File {
    session.control().fd().try_clone_to_owned().unwrap().into()
}

/// The first word of a record, as a client writes it.
fn write_state(session: &SlabSession, slab: u32, state: u32) {
    control(session).write_all_at(&state.to_le_bytes(), u64::from(slab) * 128).unwrap();
}

/// What a client writes for a key.
fn contents(key: &SlabKey, len: u64) -> Vec<u8> {
    let seed = u64::from(key.attempt.as_bytes()[0]) << 32 | u64::from(key.slab_index);
    let words = (0..len.div_ceil(8)).flat_map(|at| (seed ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.take(len as usize).collect()
}

async fn acquire(session: &SlabSession, key: SlabKey) -> Result<u32> {
    match session.acquire(key, SOON).await? {
        SlabGranted::Slab { slab, .. } => Ok(slab),
        SlabGranted::AlreadyDurable { .. } => panic!("{key} is durable"),
    }
}

/// Acquires, copies and writes the seal; the number of the slab.
async fn fill(session: &SlabSession, key: SlabKey) -> u32 {
    let granted = session.acquire(key, SOON).await.unwrap();
    let SlabGranted::Slab { slab, piece, offset_bytes, length_bytes } = granted else { panic!("{granted:?}") };
    let piece: File = session.pieces(piece as usize)[0].fd().try_clone_to_owned().unwrap().into();
    piece.write_all_at(&contents(&key, length_bytes), offset_bytes).unwrap();
    write_state(session, slab, 2);
    slab
}

fn read(slab: &SealedSlab) -> Vec<u8> {
    let mut bytes = vec![0; slab.length_bytes() as usize];
    slab.read(0, &mut bytes).unwrap();
    bytes
}

fn is_whole(slab: &SealedSlab) -> bool {
    read(slab) == contents(slab.key(), slab.length_bytes())
}

/// Waits for what happens on another thread.
async fn eventually(what: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !what() {
        assert!(tokio::time::Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
