//! What was asked of the server, what came in and what went out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use longshore_types::names;
use serde::Serialize;

use super::faults::Verb;
use super::state::State;

/// Most requests that are remembered one by one.
const RECORDS_MAX: usize = 200_000;

/// How often one part of a multipart upload came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PartCounters {
    /// Its bytes came in to the last one, whatever the answer was.
    pub received: u64,
    /// It was kept.
    pub stored: u64,
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
    /// PUT requests for the whole object.
    pub put: u64,
    /// Requests that delete it.
    pub delete: u64,
    /// Multipart uploads begun.
    pub create_upload: u64,
    /// Requests to complete one.
    pub complete_upload: u64,
    /// Bytes of bodies of PUTs, of the object and of its parts.
    pub received_bytes: u64,
    /// Parts by number, over all uploads of this object.
    pub parts: BTreeMap<u32, PartCounters>,
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
    /// Number of the part, when it is an upload of one.
    pub part: Option<u32>,
    /// Bytes of its own body that came in.
    pub received_bytes: u64,
    /// HTTP status of the answer; 0 while there is none.
    pub status: u16,
    /// The answer was made and, as a fault told, not sent.
    pub reply_lost: bool,
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
    /// PUT requests for whole objects.
    pub put: u64,
    /// Requests that delete: one for many objects is one.
    pub delete: u64,
    /// Multipart uploads begun.
    pub create_upload: u64,
    /// Parts, as requests.
    pub upload_part: u64,
    /// Requests to complete an upload.
    pub complete_upload: u64,
    /// Requests to abort an upload.
    pub abort_upload: u64,
    /// Listings of uploads and of parts.
    pub list_uploads: u64,
    /// Bytes of objects that went out, in all GETs.
    pub bytes: u64,
    /// Bytes of objects and parts that came in.
    pub received_bytes: u64,
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
        self.get + self.head + self.list + self.writes() + self.list_uploads
    }

    /// Requests that change something.
    pub fn writes(&self) -> u64 {
        self.put + self.delete + self.create_upload + self.upload_part + self.complete_upload + self.abort_upload
    }

    /// The byte ranges of one object that were asked for, in order of arrival.
    pub fn ranges(&self, path: &str) -> Vec<Range<u64>> {
        self.requests.iter().filter(|r| r.path == path).filter_map(|r| r.range.clone()).collect()
    }

    /// How many parts of objects like `pattern` came in whole more often than once, counted as often as they were one
    /// too many: 0 when nothing was sent twice.
    pub fn parts_again(&self, pattern: &str) -> u64 {
        let keys = self.keys.iter().filter(|(path, _)| names::matches(pattern, path));
        keys.flat_map(|(_, key)| key.parts.values()).map(|part| part.received.saturating_sub(1)).sum()
    }

    /// The requests of one kind, in order of arrival.
    pub fn of(&self, verb: Verb) -> impl Iterator<Item = &RequestRecord> {
        self.requests.iter().filter(move |record| record.verb == verb)
    }

    fn count(&mut self, verb: Verb, path: &str) {
        let of_all = match verb {
            Verb::Get => &mut self.get,
            Verb::Head => &mut self.head,
            Verb::List => &mut self.list,
            Verb::Put => &mut self.put,
            Verb::Delete => &mut self.delete,
            Verb::CreateUpload => &mut self.create_upload,
            Verb::UploadPart => &mut self.upload_part,
            Verb::CompleteUpload => &mut self.complete_upload,
            Verb::AbortUpload => &mut self.abort_upload,
            Verb::ListUploads => &mut self.list_uploads,
        };
        *of_all += 1;
        if matches!(verb, Verb::List | Verb::ListUploads) {
            return;
        }
        let key = self.keys.entry(path.to_owned()).or_default();
        match verb {
            Verb::Get => key.get += 1,
            Verb::Head => key.head += 1,
            Verb::Put => key.put += 1,
            Verb::Delete => key.delete += 1,
            Verb::CreateUpload => key.create_upload += 1,
            Verb::CompleteUpload => key.complete_upload += 1,
            _ => {}
        }
    }
}

/// What is known of a request before it is answered.
pub(super) struct Arrival<'a> {
    pub(super) verb: Verb,
    pub(super) path: &'a str,
    pub(super) range: Option<Range<u64>>,
    pub(super) part: Option<u32>,
    /// How many faults strike it.
    pub(super) faults: u64,
    pub(super) reply_lost: bool,
}

/// A request that is being answered; lives as long as its body.
pub(super) struct Ticket {
    state: Arc<State>,
    verb: Verb,
    path: String,
    part: Option<u32>,
    record: usize,
}

impl Ticket {
    /// Counts a request in; it is counted out when the ticket is dropped.
    pub(super) fn enter(state: &Arc<State>, arrival: Arrival<'_>) -> Ticket {
        let Arrival { verb, path, range, part, faults, reply_lost } = arrival;
        let mut counters = state.counters.lock();
        counters.faults += faults;
        counters.count(verb, path);
        counters.in_flight += 1;
        counters.in_flight_max = counters.in_flight_max.max(counters.in_flight);
        let (record, path) = (counters.requests.len(), path.to_owned());
        if record < RECORDS_MAX {
            let path = path.clone();
            counters.requests.push(RequestRecord { verb, path, range, part, received_bytes: 0, status: 0, reply_lost });
        }
        Ticket { state: state.clone(), verb, path, part, record }
    }

    pub(super) fn status(&self, status: u16) {
        let mut counters = self.state.counters.lock();
        counters.errors += u64::from(status >= 400);
        if let Some(record) = self.record(&mut counters) {
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

    /// More of the body came in.
    pub(super) fn received(&self, bytes: u64) {
        let mut counters = self.state.counters.lock();
        if let Some(record) = self.record(&mut counters) {
            record.received_bytes += bytes;
        }
        if matches!(self.verb, Verb::Put | Verb::UploadPart) {
            counters.received_bytes += bytes;
            if let Some(key) = counters.keys.get_mut(&self.path) {
                key.received_bytes += bytes;
            }
        }
    }

    /// The body came in to its end.
    pub(super) fn received_whole(&self) {
        self.count_part(|part| part.received += 1);
    }

    pub(super) fn part_stored(&self) {
        self.count_part(|part| part.stored += 1);
    }

    /// Another object that this request deletes.
    pub(super) fn deletes(&self, path: &str) {
        self.state.counters.lock().keys.entry(path.to_owned()).or_default().delete += 1;
    }

    /// More faults that strike it.
    pub(super) fn struck(&self, faults: u64) {
        self.state.counters.lock().faults += faults;
    }

    fn count_part(&self, count: impl FnOnce(&mut PartCounters)) {
        let Some(number) = self.part else { return };
        let mut counters = self.state.counters.lock();
        count(counters.keys.entry(self.path.clone()).or_default().parts.entry(number).or_default());
    }

    /// After a reset the place may belong to another request or to none.
    fn record<'a>(&self, counters: &'a mut Counters) -> Option<&'a mut RequestRecord> {
        counters.requests.get_mut(self.record).filter(|record| record.path == self.path && record.verb == self.verb)
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
