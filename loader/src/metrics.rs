//! Every metric of the loader, declared once. Labels are closed sets: ids and URLs go into spans, not here.

mod copied;

use std::time::Duration;

use longshore_origin::OriginStats;
use longshore_runtime::Metrics as Registry;
use longshore_types::Result;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use self::copied::Copied;
use crate::VERSION;
use crate::checkpoint::sink::SinkStats;
use crate::fetch::Ways;
use crate::pinned::PinnedUse;
use crate::report::{FallbackKind, SourceTier};

/// From a chunk out of a local page cache to one out of a slow origin.
const CHUNK_SECONDS_BUCKETS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// From a small local file to a large model out of a slow origin.
const LOAD_SECONDS_BUCKETS: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0];

/// How bytes of a local file are read.
const LOCAL_WAYS: [&str; 5] = ["page_cache_mapped", "page_cache", "direct_uring", "direct", "gpudirect"];

/// The loader's metrics, in a registry of their own so that two loaders of one process do not mix.
pub struct Metrics {
    registry: Registry,
    pub(crate) loads: IntCounterVec,
    pub(crate) load_seconds: Histogram,
    pub(crate) loads_in_flight: IntGauge,
    pub(crate) reattached: IntCounter,
    pub(crate) evictions: IntCounter,
    pub(crate) holder_losses: IntCounter,
    pub(crate) attach_connections: IntGauge,
    pub(crate) models: IntGauge,
    pub(crate) leases: IntGauge,
    pub(crate) device_capacity_bytes: IntGaugeVec,
    pub(crate) device_used_bytes: IntGaugeVec,
    pub(crate) device_free_bytes: IntGaugeVec,
    pub(crate) copier_restarts: IntCounterVec,
    upload_bytes: IntCounterVec,
    upload_seconds: HistogramVec,
    pub(crate) prefaulted_bytes: IntGauge,
    pub(crate) prefault_failed: IntGauge,
    pinned_capacity_bytes: IntGauge,
    pinned_staging_bytes: IntGauge,
    pinned_cached_bytes: IntGauge,
    pinned_hit_bytes: IntCounter,
    pinned_miss_bytes: IntCounter,
    local_bytes: IntCounterVec,
    bytes: IntCounterVec,
    chunk_seconds: HistogramVec,
    fallbacks: IntCounterVec,
    retries: IntCounter,
    mismatches: IntCounter,
    copied: Copied,
    pub(crate) checkpoints: longshore_checkpoint::Metrics,
}

impl Metrics {
    /// Declares and registers them.
    ///
    /// # Errors
    /// [`Code::Internal`](longshore_types::Code::Internal) when two metrics share a name: a defect.
    pub fn new() -> Result<Metrics> {
        let r = Registry::for_process("longshore_loader", VERSION)?;
        let metrics = Metrics {
            loads: r.counter_vec(
                "longshore_loader_loads_total",
                "Loads that were not answered from memory, by how they ended.",
                &["outcome"],
            )?,
            load_seconds: r.histogram(
                "longshore_loader_load_seconds",
                "Wall time of loads that succeeded.",
                LOAD_SECONDS_BUCKETS,
            )?,
            loads_in_flight: r.int_gauge("longshore_loader_loads_in_flight", "Loads that are running.")?,
            reattached: r
                .counter("longshore_loader_reattached_total", "Requests answered by a model that was in memory.")?,
            evictions: r.counter("longshore_loader_evictions_total", "Models dropped to make room for another one.")?,
            holder_losses: r
                .counter("longshore_loader_holder_losses_total", "Times that the holder ended, with all its models.")?,
            attach_connections: r
                .int_gauge("longshore_loader_attach_connections", "Open connections of the attach socket.")?,
            models: r.int_gauge("longshore_loader_models", "Models in memory.")?,
            leases: r.int_gauge("longshore_loader_leases", "Leases on models in memory.")?,
            device_capacity_bytes: r.int_gauge_vec(
                "longshore_loader_device_capacity_bytes",
                "Memory that models may take, by device.",
                &["device"],
            )?,
            device_used_bytes: r.int_gauge_vec(
                "longshore_loader_device_used_bytes",
                "Memory in use, by device.",
                &["device"],
            )?,
            device_free_bytes: r.int_gauge_vec(
                "longshore_loader_device_free_bytes",
                "Memory that a new model can get now, by device: less than the rest when others use it too.",
                &["device"],
            )?,
            copier_restarts: r.counter_vec(
                "longshore_loader_copier_restarts_total",
                "Times that the process which copies to a GPU had to be started again, by device.",
                &["device"],
            )?,
            upload_bytes: r.counter_vec(
                "longshore_loader_upload_bytes_total",
                "Bytes copied from page-locked memory to GPUs, by device.",
                &["device"],
            )?,
            upload_seconds: r.histogram_vec(
                "longshore_loader_upload_seconds",
                "Time from the first to the last copy of a load, by device.",
                LOAD_SECONDS_BUCKETS,
                &["device"],
            )?,
            prefaulted_bytes: r.int_gauge(
                "longshore_loader_prefaulted_bytes",
                "Host memory that was touched for the next load, see --prefault.",
            )?,
            prefault_failed: r.int_gauge(
                "longshore_loader_prefault_failed",
                "1 when no more memory is touched ahead because the system gave none; the status says what it told.",
            )?,
            pinned_capacity_bytes: r
                .int_gauge("longshore_loader_pinned_capacity_bytes", "Page-locked memory; 0 without a GPU.")?,
            pinned_staging_bytes: r.int_gauge(
                "longshore_loader_pinned_staging_bytes",
                "Page-locked memory held by fetches and copies in flight.",
            )?,
            pinned_cached_bytes: r.int_gauge(
                "longshore_loader_pinned_cached_bytes",
                "Page-locked memory of chunks that are kept, and go when the room is needed.",
            )?,
            pinned_hit_bytes: r.counter(
                "longshore_loader_pinned_hit_bytes_total",
                "Bytes of loads onto GPUs that were in page-locked memory already.",
            )?,
            pinned_miss_bytes: r.counter(
                "longshore_loader_pinned_miss_bytes_total",
                "Bytes of loads onto GPUs that had to be fetched into page-locked memory.",
            )?,
            local_bytes: r.counter_vec(
                "longshore_loader_local_read_bytes_total",
                "Bytes read from files of this machine: out of the page cache or past it.",
                &["way"],
            )?,
            bytes: r.counter_vec(
                "longshore_loader_read_bytes_total",
                "Bytes read by loads, by the tier they came from.",
                &["tier"],
            )?,
            chunk_seconds: r.histogram_vec(
                "longshore_loader_chunk_seconds",
                "Time to fetch and verify one chunk, by tier.",
                CHUNK_SECONDS_BUCKETS,
                &["tier"],
            )?,
            fallbacks: r.counter_vec(
                "longshore_loader_fallbacks_total",
                "Ways taken that were not the first choice.",
                &["kind"],
            )?,
            retries: r.counter("longshore_loader_retries_total", "Chunk reads that were repeated.")?,
            mismatches: r
                .counter("longshore_loader_checksum_mismatches_total", "Copies that did not match their checksum.")?,
            copied: Copied::new(&r)?,
            checkpoints: longshore_checkpoint::Metrics::new(&r)?,
            registry: r,
        };
        metrics.touch_series();
        Ok(metrics)
    }

    /// Makes the counters exist from the start: a rate over a series that appears with its first event misses it.
    fn touch_series(&self) {
        for kind in FallbackKind::ALL {
            self.fallbacks.with_label_values(&[kind.as_str()]);
        }
        for tier in SourceTier::ALL {
            self.bytes.with_label_values(&[tier.as_str()]);
        }
        for way in LOCAL_WAYS {
            self.local_bytes.with_label_values(&[way]);
        }
        for outcome in ["ok", "cancelled", "failed"] {
            self.loads.with_label_values(&[outcome]);
        }
    }

    /// The registry to render.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn add_chunk(&self, tier: SourceTier, bytes: u64, took: Duration) {
        self.bytes.with_label_values(&[tier.as_str()]).inc_by(bytes);
        self.chunk_seconds.with_label_values(&[tier.as_str()]).observe(took.as_secs_f64());
    }

    pub(crate) fn add_local_read(&self, ways: &Ways) {
        let Ways { mapped_bytes, page_cache_bytes, direct_uring_bytes, direct_bytes, gpudirect_bytes, .. } = *ways;
        let bytes = [mapped_bytes, page_cache_bytes, direct_uring_bytes, direct_bytes, gpudirect_bytes];
        for (way, bytes) in LOCAL_WAYS.into_iter().zip(bytes) {
            self.local_bytes.with_label_values(&[way]).inc_by(bytes);
        }
    }

    pub(crate) fn add_pinned(&self, hit_bytes: u64, miss_bytes: u64) {
        self.pinned_hit_bytes.inc_by(hit_bytes);
        self.pinned_miss_bytes.inc_by(miss_bytes);
    }

    pub(crate) fn set_pinned(&self, pinned: &PinnedUse) {
        self.pinned_capacity_bytes.set(pinned.capacity_bytes as i64);
        self.pinned_staging_bytes.set(pinned.staging_bytes as i64);
        self.pinned_cached_bytes.set(pinned.cached_bytes as i64);
    }

    /// Brings over what the origin layer, the sink of checkpoints and the budget of host memory have counted.
    pub(crate) fn copy(&self, origin: &OriginStats, sink: &SinkStats, prefaulted_used_bytes: u64) {
        self.copied.raise(origin, sink, prefaulted_used_bytes);
    }

    pub(crate) fn add_upload(&self, device: &str, bytes: u64, took: Duration) {
        self.upload_bytes.with_label_values(&[device]).inc_by(bytes);
        self.upload_seconds.with_label_values(&[device]).observe(took.as_secs_f64());
    }

    pub(crate) fn add_fallback(&self, kind: FallbackKind) {
        self.fallbacks.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn add_retry(&self) {
        self.retries.inc();
    }

    pub(crate) fn add_mismatch(&self) {
        self.mismatches.inc();
    }
}
