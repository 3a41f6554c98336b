//! Answers with an age: fresh for a TTL, fetched once however many ask, kept beyond that for when the origin is away.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use longshore_types::{Code, Error, Result};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;

/// How long a caller with an old answer in hand waits for a new one.
const STALE_WAIT: Duration = Duration::from_secs(3);

/// How an answer came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Fresh in the cache.
    Hit,
    /// Fetched for this call, or for another that asked at the same time.
    Miss,
    /// Too old, but the origin did not answer.
    Stale,
}

/// How long answers count as fresh.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// For what is there.
    pub ttl: Duration,
    /// For [`Code::NotFound`], and between attempts while the origin is away.
    pub negative_ttl: Duration,
    /// Only an answer fetched after the call counts.
    pub revalidate: bool,
}

struct Entry<T> {
    outcome: Result<Arc<T>>,
    /// When it was asked for; `None` for one from an earlier run, which is never fresh.
    asked_at: Option<Instant>,
    /// When the origin last did not answer.
    failed_at: Option<Instant>,
    weight_bytes: u32,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Entry { outcome: self.outcome.clone(), ..*self }
    }
}

impl<T> Entry<T> {
    fn is_fresh(&self, freshness: &Freshness, called_at: Instant) -> bool {
        let Some(asked_at) = self.asked_at else { return false };
        let ttl = if self.outcome.is_ok() { freshness.ttl } else { freshness.negative_ttl };
        match freshness.revalidate {
            true => asked_at >= called_at,
            false => asked_at.elapsed() < ttl,
        }
    }

    fn rests(&self, freshness: &Freshness) -> bool {
        !freshness.revalidate
            && self.outcome.is_ok()
            && self.failed_at.is_some_and(|at| at.elapsed() < freshness.negative_ttl)
    }
}

struct Flight<T> {
    asked_at: Instant,
    result: Shared<BoxFuture<'static, Result<Arc<T>>>>,
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Flight { asked_at: self.asked_at, result: self.result.clone() }
    }
}

/// What a miss turns out to be.
enum Joined<T> {
    /// An answer has come since.
    Fresh(Result<Arc<T>>),
    /// One is on its way.
    Flight(Flight<T>),
}

/// A cache of answers by text key, bounded by bytes.
pub struct AnswerCache<T> {
    entries: Cache<String, Entry<T>>,
    flights: Mutex<HashMap<String, Flight<T>>>,
    weigh: fn(&T) -> usize,
}

impl<T: Send + Sync + 'static> AnswerCache<T> {
    /// At most about `bytes_max` by what `weigh` says.
    pub fn new(bytes_max: u64, weigh: fn(&T) -> usize) -> Arc<Self> {
        let entries = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, entry: &Entry<T>| entry.weight_bytes)
            // The default policy may refuse a new answer once it is full, and that is asked again then.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Arc::new(AnswerCache { entries, flights: Mutex::default(), weigh })
    }

    /// The answer for `key`, from the cache or by `fetch`, which runs once at a time for each key and goes on when the
    /// caller leaves.
    ///
    /// # Errors
    /// What `fetch` said, unless an older answer can stand in; of errors only [`Code::NotFound`] is remembered.
    pub async fn get<F>(
        self: &Arc<Self>,
        key: &str,
        freshness: Freshness,
        fetch: impl Fn() -> F,
    ) -> (Result<Arc<T>>, Outcome)
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let called_at = Instant::now();
        loop {
            let entry = self.entries.get(key);
            if let Some(entry) = entry.as_ref().filter(|entry| entry.is_fresh(&freshness, called_at)) {
                return (entry.outcome.clone(), Outcome::Hit);
            }
            if let Some(entry) = entry.as_ref().filter(|entry| entry.rests(&freshness)) {
                return (entry.outcome.clone(), Outcome::Stale);
            }
            let flight = match self.join(key, &freshness, called_at, &fetch) {
                Joined::Fresh(outcome) => return (outcome, Outcome::Hit),
                Joined::Flight(flight) => flight,
            };
            let stale = entry.filter(|entry| entry.outcome.is_ok() && !freshness.revalidate);
            let Some(stale) = stale else {
                let outcome = flight.result.await;
                // A flight that left before a call for revalidation may bring what was there before the call.
                if freshness.revalidate && flight.asked_at < called_at {
                    continue;
                }
                return (outcome, Outcome::Miss);
            };
            return match tokio::time::timeout(STALE_WAIT, flight.result).await {
                Ok(Err(error)) if !is_away(&error) => (Err(error), Outcome::Miss),
                Ok(Ok(value)) => (Ok(value), Outcome::Miss),
                Ok(Err(_)) | Err(_) => {
                    self.rest(key, &stale);
                    (stale.outcome, Outcome::Stale)
                }
            };
        }
    }

    /// Adds an answer from an earlier run: it stands in while the origin is away, and is never fresh.
    pub fn seed(&self, key: &str, value: T) {
        let weight_bytes = self.weight(key, Some(&value));
        let entry = Entry { outcome: Ok(Arc::new(value)), asked_at: None, failed_at: None, weight_bytes };
        self.entries.entry_by_ref(key).or_insert(entry);
    }

    /// Whether there is any answer, fresh or not.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Drops the answers whose key `matches`.
    pub fn forget(&self, matches: impl Fn(&str) -> bool) {
        for (key, _) in &self.entries {
            if matches(&key) {
                self.entries.invalidate(key.as_str());
            }
        }
    }

    /// The flight for a key that had no fresh answer. A flight leaves its answer in the cache before it is over, so
    /// without a flight there may be one by now: looked at under the lock, or what was asked a moment ago is asked again.
    fn join<F>(
        self: &Arc<Self>,
        key: &str,
        freshness: &Freshness,
        called_at: Instant,
        fetch: impl Fn() -> F,
    ) -> Joined<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(key) {
            return Joined::Flight(flight.clone());
        }
        if let Some(entry) = self.entries.get(key).filter(|entry| entry.is_fresh(freshness, called_at)) {
            return Joined::Fresh(entry.outcome);
        }
        let asked_at = Instant::now();
        let (cache, owned_key, work) = (self.clone(), key.to_owned(), fetch());
        // A task of its own, so that it ends, and leaves the map, also when nobody waits any more.
        let task = tokio::spawn(async move {
            let outcome = std::panic::AssertUnwindSafe(work).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err(Error::new(Code::Internal, "a metadata fetch panicked")));
            cache.land(&owned_key, asked_at, outcome.map(Arc::new))
        });
        let ended = |_| Error::new(Code::Cancelled, "a metadata fetch was cancelled by the shutdown");
        let result = task.map(move |joined| joined.map_err(ended).flatten()).boxed().shared();
        let flight = Flight { asked_at, result };
        flights.insert(key.to_owned(), flight.clone());
        Joined::Flight(flight)
    }

    fn land(&self, key: &str, asked_at: Instant, outcome: Result<Arc<T>>) -> Result<Arc<T>> {
        let keep = outcome.as_ref().map_or_else(|error| error.code() == Code::NotFound, |_| true);
        if keep {
            let weight_bytes = self.weight(key, outcome.as_deref().ok());
            let entry = Entry { outcome: outcome.clone(), asked_at: Some(asked_at), failed_at: None, weight_bytes };
            self.entries.insert(key.to_owned(), entry);
        }
        self.flights.lock().remove(key);
        outcome
    }

    fn rest(&self, key: &str, stale: &Entry<T>) {
        let entry = Entry { failed_at: Some(Instant::now()), ..stale.clone() };
        self.entries.insert(key.to_owned(), entry);
    }

    fn weight(&self, key: &str, value: Option<&T>) -> u32 {
        let bytes = 200 + 2 * key.len() + value.map_or(0, self.weigh);
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// Whether the origin did not answer, as opposed to an answer that is no.
pub fn is_away(error: &Error) -> bool {
    matches!(error.code(), Code::Unavailable | Code::Timeout)
}

#[cfg(test)]
mod tests;
