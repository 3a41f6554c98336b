//! Chunks of checkpoints that are not in their origin yet, held for the node that saved them: synced, out of reach of
//! eviction, in folders of their own (`holds/<attempt>/<id>`, each file as in `format.rs`).
//!
//! Their bytes are taken from the disk tier's budget, up to a part of it: the cache makes room. Invariant: what [`Holds::keep`]
//! has returned for is on the disk, and is found again by the next process. It goes when its attempt is released, or when
//! nothing was added to the attempt for a long time: whoever held it there is gone.

mod files;
mod list;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use longshore_types::checkpoint::AttemptId;
use longshore_types::{BlockChecksum, ChunkId, ChunkKey, Code, Error, Result, format_bytes};
use longshore_wire::GrowingChunk;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::disk::{DiskChunk, DiskTier};
use super::format::{self, Trailer};
use crate::metrics::Metrics;

/// Most chunks that are held: what is known of each takes about 100 bytes of memory.
const CHUNKS_MAX: usize = 1 << 20;
/// Attempts that were released lately: what is still on its way for one of them is not kept.
const RELEASED_MAX: usize = 1024;
/// How often it is looked for attempts that nobody releases.
const SWEEP_PERIOD: Duration = Duration::from_secs(600);

/// What holds need to know.
#[derive(Debug, Clone)]
pub struct HoldOptions {
    /// Most bytes; `None` takes a quarter of the disk tier's budget.
    pub budget_bytes: Option<u64>,
    /// Attempts that nothing was added to for so long are let go.
    pub ttl: Duration,
}

/// What is held of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Bytes of its files.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Since something was added.
    pub idle: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Holds {
    folder: PathBuf,
    budget_bytes: u64,
    ttl: Duration,
    disk: Arc<DiskTier>,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    attempts: BTreeMap<AttemptId, Held>,
    /// Which attempts hold a chunk: most often one.
    holders: HashMap<ChunkId, AttemptId>,
    /// Of files that are there, and of those that are being written.
    used_bytes: u64,
    chunks: usize,
    released: VecDeque<AttemptId>,
}

#[derive(Debug)]
struct Held {
    files: HashMap<ChunkId, u64>,
    touched: SystemTime,
}

/// Room for one chunk; given back when dropped.
#[derive(Debug)]
pub struct Room {
    holds: Arc<Holds>,
    bytes: u64,
}

impl Holds {
    /// Finds what is held already, and lets go of what is too old. Blocks. Must be called inside a tokio runtime, which
    /// looks for old attempts from then on.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub fn open(
        folder: PathBuf,
        options: &HoldOptions,
        disk: Arc<DiskTier>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Holds>> {
        let budget_bytes = options.budget_bytes.unwrap_or(disk.usage().0 / 4);
        let mut state = State::default();
        for found in files::scan(&folder, &metrics)? {
            disk.adopt_held(found.bytes);
            state.add(found.attempt, found.id, found.bytes, found.modified);
            state.used_bytes += found.bytes;
        }
        let (attempts, bytes) = (state.attempts.len(), state.used_bytes);
        let state = Mutex::new(state);
        let holds = Arc::new(Holds { folder, budget_bytes, ttl: options.ttl, disk, state, metrics });
        if attempts > 0 {
            tracing::info!(attempts, bytes, "copies of checkpoints are held that are not in their origin yet");
        }
        holds.sweep(SystemTime::now());
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(sweep_now_and_then(Arc::downgrade(&holds)));
        }
        Ok(holds)
    }

    /// Whether an attempt holds these very bytes.
    pub fn contains(&self, attempt: &AttemptId, key: &ChunkKey, id: &ChunkId, checksums: &[BlockChecksum]) -> bool {
        let is_known = self.state.lock().attempts.get(attempt).is_some_and(|held| held.files.contains_key(id));
        let found = if is_known { files::open(&self.path(attempt, id), key) } else { None };
        found.is_some_and(|chunk| chunk.checksums[..] == *checksums)
    }

    /// The chunk, whichever attempt holds it.
    pub fn get(&self, key: &ChunkKey, id: &ChunkId) -> Option<DiskChunk> {
        let attempt = self.state.lock().holders.get(id).copied()?;
        files::open(&self.path(&attempt, id), key)
    }

    /// Drops a copy whose blocks are not what its own trailer says, whatever the asker says of it. Blocks while it reads all of
    /// it. True when it was bad.
    pub fn drop_if_torn(&self, id: &ChunkId) -> bool {
        let Some(attempt) = self.state.lock().holders.get(id).copied() else { return false };
        let path = self.path(&attempt, id);
        // What cannot be opened now, for want of descriptors perhaps, may be good.
        let Ok(file) = File::open(&path).map(Arc::new) else { return false };
        let is_good = format::read(&file).is_ok_and(|Trailer { key, checksums }| {
            key.id() == *id && self.disk.is_intact(&DiskChunk { file: file.clone(), checksums }, &key)
        });
        !is_good && self.drop_file(&attempt, id, &file)
    }

    /// Drops a copy that was found bad, unless a good one has come in its place meanwhile.
    fn drop_file(&self, attempt: &AttemptId, id: &ChunkId, bad: &File) -> bool {
        let path = self.path(attempt, id);
        let mut state = self.state.lock();
        if !files::is_at(bad, &path) {
            return false;
        }
        // Under the lock: what is put again and gets its name only now is found gone by who put it.
        files::remove(&path, &self.metrics);
        let bytes = state.forget(attempt, id);
        drop(state);
        self.give_back(bytes.unwrap_or(0));
        true
    }

    /// Takes room for a chunk; the cache makes way for it.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the budget, the disk or the number of chunks leaves none.
    pub fn room(self: &Arc<Self>, attempt: &AttemptId, key: &ChunkKey) -> Result<Room> {
        let bytes = format::file_bytes(key);
        {
            let mut state = self.state.lock();
            if state.released.contains(attempt) {
                let why = format!("attempt {attempt} has ended: nothing more is held for it");
                return Err(Error::new(Code::FailedPrecondition, why));
            }
            if state.used_bytes + bytes > self.budget_bytes || state.chunks >= CHUNKS_MAX {
                let (used, budget) = (format_bytes(state.used_bytes), format_bytes(self.budget_bytes));
                let why = format!("{used} of {budget} are held for checkpoints here; raise --hold-disk, or wait");
                return Err(Error::new(Code::Exhausted, why));
            }
            state.used_bytes += bytes;
        }
        match self.disk.take_held(bytes) {
            Ok(()) => Ok(Room { holds: self.clone(), bytes }),
            Err(error) => {
                self.state.lock().used_bytes -= bytes;
                Err(error)
            }
        }
    }

    /// Writes a complete chunk and syncs it. Blocks.
    ///
    /// # Errors
    /// [`Code::Exhausted`] for a full disk, [`Code::Unavailable`] for a failing one.
    pub fn keep(&self, attempt: AttemptId, chunk: &GrowingChunk, room: Room) -> Result<()> {
        let id = chunk.key().id();
        let path = self.path(&attempt, &id);
        self.disk.write_held(chunk, &path)?;
        let mut state = self.state.lock();
        if state.released.contains(&attempt) {
            drop(state);
            files::remove(&path, &self.metrics);
            return Err(Error::new(Code::FailedPrecondition, format!("attempt {attempt} ended while its chunk came")));
        }
        if !path.exists() {
            let why = format!("{} was dropped with a bad copy before it; put it again", path.display());
            return Err(Error::new(Code::Unavailable, why));
        }
        let before = state.add(attempt, id, room.bytes, SystemTime::now());
        // The room is the file's from here on. A chunk that came again has replaced its file.
        room.become_file();
        drop(state);
        if let Some(bytes) = before {
            self.give_back(bytes);
        }
        Ok(())
    }

    /// Lets go of an attempt. Blocks.
    pub fn release(&self, attempt: &AttemptId) {
        let held = {
            let mut state = self.state.lock();
            if state.released.len() >= RELEASED_MAX {
                state.released.pop_front();
            }
            if !state.released.contains(attempt) {
                state.released.push_back(*attempt);
            }
            state.remove(attempt)
        };
        let Some(held) = held else { return };
        files::remove_folder(&self.folder.join(attempt.to_string()), held.files.keys(), &self.metrics);
        self.give_back(held.files.values().sum());
    }

    /// Budget, use and chunks.
    pub fn usage(&self) -> (u64, u64, u64) {
        let state = self.state.lock();
        (self.budget_bytes, state.used_bytes, state.chunks as u64)
    }

    /// Lets go of attempts that nothing was added to for too long.
    pub fn sweep(&self, now: SystemTime) {
        let is_old = |held: &Held| now.duration_since(held.touched).is_ok_and(|idle| idle >= self.ttl);
        let old: Vec<AttemptId> = {
            let state = self.state.lock();
            state.attempts.iter().filter(|(_, held)| is_old(held)).map(|(attempt, _)| *attempt).collect()
        };
        for attempt in old {
            tracing::warn!(%attempt, ttl = ?self.ttl, "what was held for a checkpoint is let go: nobody released it in time");
            self.metrics.holds_expired.inc();
            self.release(&attempt);
        }
    }

    fn give_back(&self, bytes: u64) {
        self.state.lock().used_bytes -= bytes;
        self.disk.settle_held(bytes);
    }

    fn path(&self, attempt: &AttemptId, id: &ChunkId) -> PathBuf {
        self.folder.join(attempt.to_string()).join(id.to_string())
    }
}

impl State {
    /// Adds a file, and says how large the one was that it replaces.
    fn add(&mut self, attempt: AttemptId, id: ChunkId, bytes: u64, modified: SystemTime) -> Option<u64> {
        let held = self.attempts.entry(attempt).or_insert_with(|| Held { files: HashMap::new(), touched: modified });
        held.touched = held.touched.max(modified);
        let before = held.files.insert(id, bytes);
        self.holders.insert(id, attempt);
        self.chunks += usize::from(before.is_none());
        before
    }

    fn remove(&mut self, attempt: &AttemptId) -> Option<Held> {
        let held = self.attempts.remove(attempt)?;
        self.chunks -= held.files.len();
        for id in held.files.keys() {
            if self.holders.get(id) == Some(attempt) {
                self.holders.remove(id);
            }
        }
        Some(held)
    }

    fn forget(&mut self, attempt: &AttemptId, id: &ChunkId) -> Option<u64> {
        let bytes = self.attempts.get_mut(attempt)?.files.remove(id)?;
        self.chunks -= 1;
        if self.holders.get(id) == Some(attempt) {
            self.holders.remove(id);
        }
        Some(bytes)
    }
}

impl Room {
    /// A file takes it: nothing is given back.
    fn become_file(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.holds.give_back(self.bytes);
        }
    }
}

async fn sweep_now_and_then(holds: Weak<Holds>) {
    loop {
        tokio::time::sleep(SWEEP_PERIOD).await;
        let Some(holds) = holds.upgrade() else { return };
        // A panic in it would be told by the runtime; the next period tries again.
        let _ = tokio::task::spawn_blocking(move || holds.sweep(SystemTime::now())).await;
    }
}

#[cfg(test)]
mod tests;
