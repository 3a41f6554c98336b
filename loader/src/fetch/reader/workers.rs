//! One worker is asked for what is wanted, and judged by what it gives.

use std::sync::atomic::Ordering;
use std::time::Instant;

use longshore_memory::Landing;
use longshore_types::{Code, Error, Result};
use longshore_wire::{ChunkRequest, DataClient, Fetched, Mode};

use super::{Arrived, ChunkReader, Wanted};
use crate::cluster::Source;
use crate::report::{FallbackKind, Step};

/// A worker on this host that lacked this many chunks in a row is not asked any more by this load.
const NEARBY_MISSES_MAX: u32 = 4;

impl ChunkReader {
    /// Asks the worker on this host for a copy it happens to have. A miss is no failure.
    pub(super) fn read_nearby(&self, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<Option<Arrived>> {
        if self.nearby_misses.load(Ordering::Relaxed) >= NEARBY_MISSES_MAX {
            return Ok(None);
        }
        let Some(source) = self.readers.cluster.nearby(wanted.key) else { return Ok(None) };
        match self.ask(&self.readers.patient, &source, Mode::OnlyIfCached, wanted, landing) {
            Ok(arrived) => {
                self.nearby_misses.store(0, Ordering::Relaxed);
                return Ok(Some(arrived));
            }
            Err(error) if error.code() == Code::NotFound => {}
            Err(error) => {
                self.check_cancelled()?;
                self.pass_over(&source, &error, false);
            }
        }
        self.nearby_misses.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// One source; a copy that does not match is asked for once more, checked by its holder first.
    pub(super) fn ask(
        &self,
        client: &DataClient,
        source: &Source,
        mode: Mode,
        wanted: &Wanted<'_>,
        landing: &mut Landing,
    ) -> Result<Arrived> {
        let range = wanted.range.clone();
        let mut request = ChunkRequest { range, mode, ..ChunkRequest::whole(wanted.key.clone()) };
        let start = Instant::now();
        let mut fetch = |request: &ChunkRequest| {
            let fetched = client.fetch_until(&source.endpoint, request, landing, &self.token)?;
            self.compare(wanted, &fetched.checksums).map(|()| fetched)
        };
        let mut fetched = fetch(&request);
        if fetched.as_ref().is_err_and(|error| error.code() == Code::Corrupt) {
            self.recorder.add_mismatch();
            self.check_cancelled()?;
            self.recorder.add_retry();
            request.recheck = true;
            request.expected = wanted.expected.and_then(|expected| expected.blocks(request.blocks()));
            fetched = fetch(&request);
            if fetched.as_ref().is_err_and(|error| error.code() == Code::Corrupt) {
                self.recorder.add_mismatch();
            }
        }
        let Fetched { tier, verify, .. } = fetched?;
        self.readers.cluster.report(source, true);
        self.pace.note(start.elapsed());
        // Blocks are compared as they land: that work is part of the fetch, spread over it.
        let end = self.recorder.elapsed();
        let began = end.saturating_sub(start.elapsed());
        self.recorder.note_span(Step::Verify, began, end, verify);
        Ok(Arrived { tier: tier.into(), source: source.label.clone() })
    }

    /// Impatient while the load is fast and there is another worker to ask. The last one gets all the time there is: it
    /// may be filling from a slow origin, which asking that origin again would not speed up.
    pub(super) fn client_for(&self, is_last: bool) -> &DataClient {
        match &self.readers.hedging {
            Some(hedging) if !is_last && self.pace.median().is_some_and(|median| median < hedging.median_below) => {
                &hedging.client
            }
            _ => &self.readers.patient,
        }
    }

    pub(super) fn pass_over(&self, source: &Source, error: &Error, hedged: bool) {
        let kind = match error.code() {
            Code::Timeout if hedged => FallbackKind::WorkerSlow,
            Code::Timeout => FallbackKind::WorkerStalled,
            Code::Unavailable => FallbackKind::WorkerUnreachable,
            Code::Corrupt => FallbackKind::WorkerCorrupt,
            _ => FallbackKind::WorkerFailed,
        };
        if !is_word_of_the_origin(error) {
            self.readers.cluster.report(source, false);
        }
        self.recorder.add_retry();
        self.recorder.add_fallback(kind, format!("{}: {error}", source.label));
    }
}

/// What a worker only passes on: asking another worker gives the same answer, and the worker is well.
pub(super) fn is_word_of_the_origin(error: &Error) -> bool {
    matches!(error.code(), Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::Unsupported)
        || is_no_access(error)
}

pub(super) fn is_no_access(error: &Error) -> bool {
    matches!(error.code(), Code::Unauthenticated | Code::PermissionDenied)
}
