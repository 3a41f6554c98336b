//! What the server holds: objects, faults, counters.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;

use super::OriginConfig;
use super::faults::{Fault, Verb};
use crate::content::{Content, mix};

/// Most requests that are remembered one by one.
const RECORDS_MAX: usize = 200_000;

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
    sha256: OnceLock<String>,
}

impl Object {
    /// Computed at the first call, which reads everything.
    pub(super) fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| self.content.sha256())
    }
}

/// Counters of one object, or of one listed prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KeyCounters {
    /// GET requests.
    pub get: u64,
    /// HEAD requests.
    pub head: u64,
    /// Bytes of bodies of GETs.
    pub bytes: u64,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// Its kind.
    pub verb: Verb,
    /// Path of the object, or the prefix of a listing.
    pub path: String,
    /// The bytes that it asked for, when it is a GET of an object that is there.
    pub range: Option<Range<u64>>,
    /// HTTP status of the answer; 0 while there is none.
    pub status: u16,
}

/// What was asked and served.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counters {
    /// GET requests for objects.
    pub get: u64,
    /// HEAD requests for objects.
    pub head: u64,
    /// Listings and, at the hub, questions about a repository; each page is one.
    pub list: u64,
    /// PUT requests.
    pub put: u64,
    /// DELETE requests.
    pub delete: u64,
    /// Bytes of objects that went out, in all GETs.
    pub bytes: u64,
    /// Answers with a status of 400 or more.
    pub errors: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Requests being answered now.
    pub in_flight: u64,
    /// Most requests at the same time.
    pub in_flight_max: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Requests at the redirect target that carried a token.
    pub leaked_tokens: u64,
    /// By path.
    pub keys: BTreeMap<String, KeyCounters>,
    /// The requests in order of arrival, the first 200,000.
    pub requests: Vec<RequestRecord>,
}

impl Counters {
    /// Requests of every kind.
    pub fn total(&self) -> u64 {
        self.get + self.head + self.list + self.put + self.delete
    }

    /// The byte ranges of one object that were asked for, in order of arrival.
    pub fn ranges(&self, path: &str) -> Vec<Range<u64>> {
        self.requests.iter().filter(|r| r.path == path).filter_map(|r| r.range.clone()).collect()
    }
}

pub(super) struct State {
    pub(super) config: OriginConfig,
    pub(super) cdn_address: SocketAddr,
    pub(super) faults: Mutex<Vec<Fault>>,
    pub(super) counters: Mutex<Counters>,
    /// Files of hub repositories at each commit that was ever asked for.
    pub(super) commits: Mutex<HashMap<(String, String), Files>>,
    idle: Condvar,
    objects: RwLock<Files>,
    buckets: RwLock<BTreeSet<String>>,
    generation: AtomicU64,
}

impl State {
    pub(super) fn new(config: OriginConfig, cdn_address: SocketAddr) -> State {
        State {
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
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let etag = format!("\"{}\"", content.fingerprint());
        let object = Object { content, etag, generation, modified: SystemTime::now(), sha256: OnceLock::new() };
        let object = Arc::new(object);
        self.create_bucket(path.split('/').next().unwrap_or_default());
        self.objects.write().insert(path.to_owned(), object.clone());
        object
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

    /// Counts a request in; the ticket counts it out when it is dropped.
    pub(super) fn enter(self: &Arc<Self>, verb: Verb, path: &str, range: Option<Range<u64>>, faults: u64) -> Ticket {
        let mut counters = self.counters.lock();
        counters.faults += faults;
        match verb {
            Verb::Get => counters.get += 1,
            Verb::Head => counters.head += 1,
            Verb::List => counters.list += 1,
            Verb::Put => counters.put += 1,
            Verb::Delete => counters.delete += 1,
        }
        if matches!(verb, Verb::Get | Verb::Head) {
            let key = counters.keys.entry(path.to_owned()).or_default();
            key.get += u64::from(verb == Verb::Get);
            key.head += u64::from(verb == Verb::Head);
        }
        counters.in_flight += 1;
        counters.in_flight_max = counters.in_flight_max.max(counters.in_flight);
        let record = counters.requests.len();
        if record < RECORDS_MAX {
            counters.requests.push(RequestRecord { verb, path: path.to_owned(), range, status: 0 });
        }
        Ticket { state: self.clone(), path: path.to_owned(), record }
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

/// A request that is being answered; lives as long as its body.
pub(super) struct Ticket {
    state: Arc<State>,
    path: String,
    record: usize,
}

impl Ticket {
    pub(super) fn status(&self, status: u16) {
        let mut counters = self.state.counters.lock();
        counters.errors += u64::from(status >= 400);
        // After a reset the place may belong to another request or to none.
        if let Some(record) = counters.requests.get_mut(self.record).filter(|r| r.path == self.path) {
            record.status = status;
        }
    }

    pub(super) fn sent(&self, bytes: u64) {
        let mut counters = self.state.counters.lock();
        counters.bytes += bytes;
        if let Some(key) = counters.keys.get_mut(&self.path) {
            key.bytes += bytes;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counters = self.state.counters.lock();
        counters.in_flight = counters.in_flight.saturating_sub(1);
        if counters.in_flight == 0 {
            self.state.idle.notify_all();
        }
    }
}
