//! Collects what happens in a load while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{EVENTS_MAX, Fallback, FallbackKind, LoadReport, SourceTier, Step, StepTime, TraceEvent};
use crate::fetch::Ways;
use crate::metrics::Metrics;

/// Shared by all threads of one load. Locked a few times per chunk, never while bytes move.
pub struct Recorder {
    start: Instant,
    trace: bool,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    steps: BTreeMap<Step, StepSpan>,
    tiers: BTreeMap<SourceTier, u64>,
    fallbacks: BTreeMap<FallbackKind, (u64, String)>,
    retries: u64,
    mismatches: u64,
    events: Vec<TraceEvent>,
    events_dropped: u64,
}

#[derive(Clone, Copy)]
struct StepSpan {
    start: Duration,
    end: Duration,
    busy: Duration,
}

/// Measures one stretch of work of a step.
#[must_use = "time is recorded by `Recorder::end`"]
pub struct StepTimer {
    step: Step,
    start: Duration,
}

impl Recorder {
    /// Starts the clock. Events are kept only with `trace`; what is counted is counted in `metrics` too.
    pub fn new(trace: bool, metrics: Arc<Metrics>) -> Self {
        Recorder { start: Instant::now(), trace, metrics, inner: Mutex::default() }
    }

    /// Time since the start of the load.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Starts a stretch of `step`.
    pub fn begin(&self, step: Step) -> StepTimer {
        StepTimer { step, start: self.elapsed() }
    }

    /// Ends it, and keeps it as an event named like the step.
    pub fn end(&self, timer: StepTimer, thread: u32, bytes: u64, source: &str) {
        let end = self.elapsed();
        let busy = end.saturating_sub(timer.start);
        self.note_span(timer.step, timer.start, end, busy);
        self.event(timer.step.as_str(), timer.step, thread, timer.start, bytes, source);
    }

    /// Records work of a step that ran inside of another one, for instance checksums while bytes land.
    pub fn note_span(&self, step: Step, start: Duration, end: Duration, busy: Duration) {
        let mut inner = self.inner.lock();
        let span = inner.steps.entry(step).or_insert(StepSpan { start, end, busy: Duration::ZERO });
        span.start = span.start.min(start);
        span.end = span.end.max(end);
        span.busy += busy;
    }

    /// Keeps an event that began at `start` and ends now.
    pub fn event(&self, name: &'static str, step: Step, thread: u32, start: Duration, bytes: u64, source: &str) {
        if !self.trace {
            return;
        }
        let duration_us = self.elapsed().saturating_sub(start).as_micros() as u64;
        let mut inner = self.inner.lock();
        if inner.events.len() >= EVENTS_MAX {
            inner.events_dropped += 1;
            return;
        }
        let (start_us, source) = (start.as_micros() as u64, source.to_owned());
        inner.events.push(TraceEvent { name, category: step, thread, start_us, duration_us, bytes, source });
    }

    /// Counts a chunk that arrived, verified, from a tier.
    pub fn add_chunk(&self, tier: SourceTier, bytes: u64, took: Duration) {
        self.metrics.add_chunk(tier, bytes, took);
        *self.inner.lock().tiers.entry(tier).or_default() += bytes;
    }

    /// Counts a chunk that is complete in page-locked memory: what was there before, and what was fetched for it, which
    /// [`Recorder::add_chunk`] has counted where it came from.
    pub fn add_pinned(&self, hit_bytes: u64, miss_bytes: u64, took: Duration) {
        self.metrics.add_pinned(hit_bytes, miss_bytes);
        if hit_bytes > 0 {
            self.add_chunk(SourceTier::Pinned, hit_bytes, took);
        }
    }

    /// Counts what was read from local files.
    pub(crate) fn add_local_read(&self, ways: &Ways) {
        self.metrics.add_local_read(ways);
    }

    fn fallbacks_of(&self, kind: FallbackKind) -> u64 {
        self.inner.lock().fallbacks.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// Counts a fallback and logs it.
    pub fn add_fallback(&self, kind: FallbackKind, detail: impl Into<String>) {
        let detail = detail.into();
        self.metrics.add_fallback(kind);
        // The first of a kind is news, thousands more in one load are not.
        match self.fallbacks_of(kind) {
            0 => tracing::warn!(kind = kind.as_str(), detail, "fallback"),
            _ => tracing::debug!(kind = kind.as_str(), detail, "fallback"),
        }
        let mut inner = self.inner.lock();
        let entry = inner.fallbacks.entry(kind).or_default();
        entry.0 += 1;
        entry.1 = detail;
    }

    /// Counts a read that is repeated.
    pub fn add_retry(&self) {
        self.metrics.add_retry();
        self.inner.lock().retries += 1;
    }

    /// Counts a copy that did not match its checksum.
    pub fn add_mismatch(&self) {
        self.metrics.add_mismatch();
        self.inner.lock().mismatches += 1;
    }

    /// The report up to now. Takes the events with it.
    pub fn finish(&self) -> LoadReport {
        let seconds = self.elapsed().as_secs_f64();
        let mut inner = self.inner.lock();
        LoadReport {
            seconds,
            bytes: inner.tiers.values().sum(),
            bytes_by_tier: inner.tiers.iter().map(|(&tier, &bytes)| (tier, bytes)).collect(),
            fallbacks: inner
                .fallbacks
                .iter()
                .map(|(&kind, (count, detail))| Fallback { kind, count: *count, last_detail: detail.clone() })
                .collect(),
            retries: inner.retries,
            checksum_mismatches: inner.mismatches,
            steps: inner.steps.iter().map(|(&step, span)| span.report(step)).collect(),
            events: std::mem::take(&mut inner.events),
            events_dropped: inner.events_dropped,
        }
    }
}

impl StepSpan {
    fn report(self, step: Step) -> StepTime {
        StepTime {
            step,
            start_seconds: self.start.as_secs_f64(),
            end_seconds: self.end.as_secs_f64(),
            busy_seconds: self.busy.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_merge_and_events_are_bounded() {
        let recorder = Recorder::new(true, Arc::new(Metrics::new().unwrap()));
        let ms = Duration::from_millis;
        recorder.note_span(Step::Fetch, ms(5), ms(9), ms(4));
        recorder.note_span(Step::Fetch, ms(2), ms(6), ms(4));
        for _ in 0..EVENTS_MAX + 3 {
            recorder.event("fetch", Step::Fetch, 1, ms(0), 1, "w");
        }
        recorder.add_fallback(FallbackKind::OriginDirect, "first");
        recorder.add_fallback(FallbackKind::OriginDirect, "second");
        let report = recorder.finish();
        let fetch = report.steps[0];
        assert_eq!((fetch.start_seconds, fetch.end_seconds, fetch.busy_seconds), (0.002, 0.009, 0.008));
        assert_eq!((report.events.len(), report.events_dropped), (EVENTS_MAX, 3));
        assert_eq!(report.fallback_count(FallbackKind::OriginDirect), 2);
        assert_eq!(report.fallbacks[0].last_detail, "second");
    }
}
