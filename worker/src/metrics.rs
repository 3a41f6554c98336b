//! Every metric of the worker, with unit and help. Labels are bounded: tiers, reasons, kinds; never a URL or an id.

use longshore_origin::OriginStats;
use longshore_runtime::metrics::{Metrics as Registry, SECONDS};
use longshore_types::Result;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// The metrics of one worker; several workers in one process have a registry each.
#[derive(Debug)]
pub struct Metrics {
    /// Chunk requests answered, by the tier the bytes came from.
    pub requests: IntCounterVec,
    /// Chunk requests that failed, by code.
    pub request_errors: IntCounterVec,
    /// Bytes of the ranges that were answered, by tier.
    pub served_bytes: IntCounterVec,
    /// Requests that joined a fill in flight.
    pub fill_joins: IntCounter,
    /// Fills ended, by the source that gave the last byte and outcome.
    pub fills: IntCounterVec,
    /// Bytes brought in by fills, by source.
    pub fill_bytes: IntCounterVec,
    /// Time from the start of a fill to its last byte.
    pub fill_seconds: HistogramVec,
    /// Fills in flight.
    pub fills_in_flight: IntGauge,
    /// Ways that were not the first choice, by kind.
    pub fallbacks: IntCounterVec,
    /// Copies with a wrong block checksum, by the tier that held them.
    pub checksum_mismatches: IntCounterVec,
    /// Budget of each tier.
    pub capacity_bytes: IntGaugeVec,
    /// Bytes in each tier.
    pub used_bytes: IntGaugeVec,
    /// Chunks in each tier.
    pub chunks: IntGaugeVec,
    /// Bytes of the arena in use, chunks being filled or sent among them.
    pub arena_used_bytes: IntGauge,
    /// Chunk files written.
    pub disk_writes: IntCounter,
    /// Bytes of chunk files written.
    pub disk_written_bytes: IntCounter,
    /// Time to write one chunk file.
    pub disk_write_seconds: Histogram,
    /// Chunks that were not written to disk, by reason.
    pub disk_skips: IntCounterVec,
    /// Failures of the disk, by operation.
    pub disk_errors: IntCounterVec,
    /// Chunk files evicted.
    pub disk_evictions: IntCounter,
    /// Files dropped when the index was rebuilt or a chunk was opened, by reason.
    pub disk_dropped: IntCounterVec,
    /// Chunks that were put here, by what for and outcome.
    pub puts: IntCounterVec,
    /// Bytes of those that were kept.
    pub put_bytes: IntCounterVec,
    /// Checkpoints that chunks are held of.
    pub holds: IntGauge,
    /// Checkpoints that were let go because nobody released them in time.
    pub holds_expired: IntCounter,
    /// 1 while the disk tier takes writes.
    pub disk_healthy: IntGauge,
    /// Metadata requests, by kind and outcome.
    pub metadata: IntCounterVec,
    /// Workers in the view.
    pub members: IntGauge,
    /// Requests of each kind that were sent to origins.
    pub origin_requests: IntCounterVec,
    /// Attempts at origins that were repeated.
    pub origin_retries: IntCounter,
    /// Calls to origins that failed in the end.
    pub origin_errors: IntCounter,
    /// Bytes of objects received from origins. Workers write nothing to them.
    pub origin_bytes: IntCounter,
    /// Bodies received from origins, by the way that they came.
    pub origin_bodies: IntCounterVec,
    /// Objects whose version had to be asked for one by one.
    pub origin_unversioned_listings: IntCounter,
    /// Held while counters are copied from the origin layer, so that two scrapes do not add twice.
    copying: Mutex<()>,
}

impl Metrics {
    /// Registers all metrics in `registry`.
    ///
    /// # Errors
    /// [`longshore_types::Code::Internal`] when a name is taken already.
    pub fn new(registry: &Registry) -> Result<Self> {
        let name = |short: &str| format!("longshore_worker_{short}");
        let counter = |short: &str, help: &str| registry.counter(&name(short), help);
        let counters = |short: &str, help: &str, label: &str| registry.counter_vec(&name(short), help, &[label]);
        let gauge = |short: &str, help: &str| registry.int_gauge(&name(short), help);
        let gauges = |short: &str, help: &str, label: &str| registry.int_gauge_vec(&name(short), help, &[label]);
        let two = |short: &str, help: &str, labels: [&str; 2]| registry.counter_vec(&name(short), help, &labels);
        Ok(Metrics {
            requests: counters("requests_total", "Chunk requests answered.", "tier")?,
            request_errors: counters("request_errors_total", "Chunk requests that failed.", "code")?,
            served_bytes: counters("served_bytes_total", "Bytes of the ranges that were answered.", "tier")?,
            fill_joins: counter("fill_joins_total", "Requests that joined a fill in flight.")?,
            fills: two("fills_total", "Fills ended, by last source and outcome.", ["source", "outcome"])?,
            fill_bytes: counters("fill_bytes_total", "Bytes brought in by fills.", "source")?,
            fill_seconds: registry.histogram_vec(
                &name("fill_seconds"),
                "Time from the start of a fill to its end.",
                SECONDS,
                &["source"],
            )?,
            fills_in_flight: gauge("fills_in_flight", "Fills in flight.")?,
            fallbacks: counters("fallbacks_total", "Ways taken that were not the first choice.", "kind")?,
            checksum_mismatches: counters(
                "checksum_mismatches_total",
                "Copies dropped because a block checksum was wrong.",
                "tier",
            )?,
            capacity_bytes: gauges("capacity_bytes", "Budget of the tier.", "tier")?,
            used_bytes: gauges("used_bytes", "Bytes held by the tier.", "tier")?,
            chunks: gauges("chunks", "Chunks held by the tier.", "tier")?,
            arena_used_bytes: gauge("arena_used_bytes", "Memory in use for chunks held, filled and sent.")?,
            disk_writes: counter("disk_writes_total", "Chunk files written.")?,
            disk_written_bytes: counter("disk_written_bytes_total", "Bytes of chunk files written.")?,
            disk_write_seconds: registry.histogram(
                &name("disk_write_seconds"),
                "Time to write one chunk file.",
                SECONDS,
            )?,
            disk_skips: counters("disk_writes_skipped_total", "Chunks not written to disk.", "reason")?,
            disk_errors: counters("disk_errors_total", "Failures of the cache disk.", "operation")?,
            disk_evictions: counter("disk_evictions_total", "Chunk files evicted.")?,
            disk_dropped: counters("disk_dropped_total", "Files dropped as unusable.", "reason")?,
            puts: two("puts_total", "Chunks of checkpoints that were put here.", ["mode", "outcome"])?,
            put_bytes: counters("put_bytes_total", "Bytes of chunks that were put here and kept.", "mode")?,
            holds: gauge("holds", "Checkpoints that chunks are held of.")?,
            holds_expired: counter("holds_expired_total", "Checkpoints that nobody released in time.")?,
            disk_healthy: gauge("disk_healthy", "1 while the disk tier takes writes.")?,
            metadata: two("metadata_requests_total", "Metadata requests.", ["kind", "outcome"])?,
            members: gauge("members", "Workers in the view.")?,
            origin_requests: counters("origin_requests_total", "Requests sent to origins.", "kind")?,
            origin_retries: counter("origin_retries_total", "Attempts at origins that were repeated.")?,
            origin_errors: counter("origin_errors_total", "Calls to origins that failed in the end.")?,
            origin_bytes: counter("origin_bytes_total", "Bytes of objects received from origins.")?,
            origin_bodies: counters(
                "origin_bodies_total",
                "Bodies received from origins: straight from the connection into a chunk, or streamed through the HTTP library.",
                "way",
            )?,
            origin_unversioned_listings: counter(
                "origin_unversioned_listings_total",
                "Objects whose version had to be asked for one by one.",
            )?,
            copying: Mutex::new(()),
        })
    }

    /// Brings the origin's counters up to what the origin layer has counted.
    pub fn copy_origin(&self, stats: &OriginStats) {
        let _alone = self.copying.lock();
        let raise = |counter: &IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        let kinds = [("list", stats.list_requests), ("stat", stats.stat_requests), ("read", stats.read_requests)];
        for (kind, count) in kinds {
            raise(&self.origin_requests.with_label_values(&[kind]), count);
        }
        for (way, count) in [("straight", stats.straight_reads), ("streamed", stats.streamed_reads)] {
            raise(&self.origin_bodies.with_label_values(&[way]), count);
        }
        raise(&self.origin_retries, stats.retries);
        raise(&self.origin_errors, stats.errors);
        raise(&self.origin_bytes, stats.bytes);
        raise(&self.origin_unversioned_listings, stats.unversioned_listings);
    }

    /// Counts a way that was not the first choice.
    pub fn fallback(&self, kind: &str) {
        self.fallbacks.with_label_values(&[kind]).inc();
    }
}

/// The sum of a counter over its labels.
pub fn sum(counter: &IntCounterVec) -> u64 {
    let families = counter.collect();
    families.iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value() as u64).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn how_bodies_of_origins_came_is_counted_by_way() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let stats = OriginStats { straight_reads: 5, streamed_reads: 2, ..OriginStats::default() };
        // A count that is behind, as two scrapes at once may bring it.
        [stats, stats, OriginStats::default()].iter().for_each(|stats| metrics.copy_origin(stats));
        let text = String::from_utf8(registry.render().unwrap()).unwrap();
        for (way, count) in [("straight", 5), ("streamed", 2)] {
            let line = format!("longshore_worker_origin_bodies_total{{way=\"{way}\"}} {count}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}
