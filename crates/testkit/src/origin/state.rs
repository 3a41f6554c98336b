//! What the server holds: objects, faults, counters.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use longshore_types::{BlockChecksum, Checksummer};
use parking_lot::{Condvar, Mutex, RwLock};

use super::OriginConfig;
use super::checksums::Stated;
use super::counters::Counters;
use super::faults::Fault;
use super::pace::Pacer;
use super::receive::Budget;
use super::stores::Failure;
use super::uploads::Uploads;
use crate::content::{Content, mix};

/// Objects by name.
pub(super) type Files = BTreeMap<String, Arc<Object>>;

/// An object at one version.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) content: Content,
    /// With its quotes.
    pub(super) etag: String,
    pub(super) generation: u64,
    pub(super) modified: SystemTime,
    /// What the uploader told of it, when that is not the checksum that every object has.
    pub(super) stated: Option<Stated>,
    checksum: OnceLock<BlockChecksum>,
    sha256: OnceLock<String>,
}

impl Object {
    /// Computed at the first call, which reads everything.
    pub(super) fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| self.content.sha256())
    }

    /// CRC-64/NVME of everything, as the store keeps it: computed when it came in, else at the first call.
    pub(super) fn checksum(&self) -> BlockChecksum {
        *self.checksum.get_or_init(|| {
            let mut checksum = Checksummer::new();
            let pieces = self.content.pieces(0..self.content.len_bytes());
            pieces.for_each(|piece| checksum.update(&piece.expect("content behind a test is readable")));
            checksum.finish()
        })
    }
}

/// What becomes an object.
pub(super) struct NewObject {
    pub(super) content: Content,
    /// With its quotes.
    pub(super) etag: String,
    pub(super) checksum: BlockChecksum,
    pub(super) stated: Option<Stated>,
}

pub(super) struct State {
    pub(super) config: OriginConfig,
    pub(super) cdn_address: SocketAddr,
    pub(super) faults: Mutex<Vec<Fault>>,
    pub(super) counters: Mutex<Counters>,
    /// Files of hub repositories at each commit that was ever asked for.
    pub(super) commits: Mutex<HashMap<(String, String), Files>>,
    pub(super) uploads: Uploads,
    pub(super) budget: Arc<Budget>,
    /// Of all uploads together.
    pub(super) pacer: Pacer,
    /// Of all bodies that go out together.
    pub(super) out_pacer: Pacer,
    pub(super) idle: Condvar,
    objects: RwLock<Files>,
    buckets: RwLock<BTreeSet<String>>,
    generation: AtomicU64,
}

impl State {
    pub(super) fn new(config: OriginConfig, cdn_address: SocketAddr) -> State {
        State {
            budget: Arc::new(Budget::new(config.memory_bytes_max)),
            pacer: Pacer::new(config.upload_bytes_per_second),
            out_pacer: Pacer::new(config.bytes_per_second),
            uploads: Uploads::default(),
            config,
            cdn_address,
            faults: Mutex::default(),
            counters: Mutex::default(),
            commits: Mutex::default(),
            idle: Condvar::new(),
            objects: RwLock::default(),
            buckets: RwLock::default(),
            generation: AtomicU64::new(1_790_000_000_000_000),
        }
    }

    pub(super) fn put(&self, path: &str, content: Content) -> Arc<Object> {
        let etag = format!("\"{}\"", content.fingerprint());
        let object = Arc::new(self.object_of(content, etag, None, OnceLock::new()));
        self.create_bucket(path.split('/').next().unwrap_or_default());
        self.objects.write().insert(path.to_owned(), object.clone());
        object
    }

    /// Stores an object if `allows` says so of the one that is there, with nobody in between.
    pub(super) fn put_if(
        &self,
        path: &str,
        new: NewObject,
        allows: impl FnOnce(Option<&Object>) -> Result<(), Failure>,
    ) -> Result<Arc<Object>, Failure> {
        let mut objects = self.objects.write();
        allows(objects.get(path).map(Arc::as_ref))?;
        let object = Arc::new(self.object_of(new.content, new.etag, new.stated, OnceLock::from(new.checksum)));
        objects.insert(path.to_owned(), object.clone());
        Ok(object)
    }

    /// Deletes an object if `allows` says so of the one that is there; whether there was one.
    pub(super) fn remove_if(
        &self,
        path: &str,
        allows: impl FnOnce(Option<&Object>) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let mut objects = self.objects.write();
        allows(objects.get(path).map(Arc::as_ref))?;
        Ok(objects.remove(path).is_some())
    }

    /// Turns a bit of the byte at `offset_bytes` where it lies: version and checksum stay as they were.
    pub(super) fn flip(&self, path: &str, offset_bytes: u64) -> bool {
        let mut objects = self.objects.write();
        let Some(object) = objects.get(path).filter(|object| offset_bytes < object.content.len_bytes()) else {
            return false;
        };
        let flipped = Object {
            content: object.content.flipped(offset_bytes),
            etag: object.etag.clone(),
            generation: object.generation,
            modified: object.modified,
            stated: object.stated.clone(),
            checksum: OnceLock::from(object.checksum()),
            sha256: OnceLock::new(),
        };
        objects.insert(path.to_owned(), Arc::new(flipped));
        true
    }

    /// A number that no other call got.
    pub(super) fn next_number(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    fn object_of(
        &self,
        content: Content,
        etag: String,
        stated: Option<Stated>,
        checksum: OnceLock<BlockChecksum>,
    ) -> Object {
        let generation = self.next_number();
        Object { content, etag, generation, modified: SystemTime::now(), stated, checksum, sha256: OnceLock::new() }
    }

    /// Other bytes of the same length.
    pub(super) fn replace(&self, path: &str) {
        if let Some(object) = self.object(path) {
            let seed = mix(self.generation.load(Ordering::Relaxed));
            self.put(path, Content::generated(seed, object.content.len_bytes()));
        }
    }

    pub(super) fn create_bucket(&self, name: &str) {
        self.buckets.write().insert(name.to_owned());
    }

    pub(super) fn has_bucket(&self, name: &str) -> bool {
        self.buckets.read().contains(name)
    }

    pub(super) fn remove(&self, path: &str) -> bool {
        self.objects.write().remove(path).is_some()
    }

    pub(super) fn object(&self, path: &str) -> Option<Arc<Object>> {
        self.objects.read().get(path).cloned()
    }

    /// Objects whose path starts with `prefix`, sorted, from the first behind `after`.
    pub(super) fn objects_under(&self, prefix: &str, after: &str) -> Vec<(String, Arc<Object>)> {
        let objects = self.objects.read();
        let from = if after > prefix { after } else { prefix };
        let found = objects.range(from.to_owned()..).take_while(|(path, _)| path.starts_with(prefix));
        found.filter(|(path, _)| path.as_str() > after).map(|(path, object)| (path.clone(), object.clone())).collect()
    }

    pub(super) fn reset_counters(&self) {
        let mut counters = self.counters.lock();
        let in_flight = counters.in_flight;
        *counters = Counters { in_flight, in_flight_max: in_flight, ..Counters::default() };
    }

    pub(super) fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut counters = self.counters.lock();
        while counters.in_flight > 0 {
            if self.idle.wait_until(&mut counters, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}
