//! The metrics of saving checkpoints, declared once.

use longshore_runtime::metrics::{Metrics as Registry, SECONDS};
use longshore_types::Result;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

/// Counters and gauges, all named `longshore_checkpoint_*`.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Saves that ended, by how.
    pub saves: IntCounterVec,
    /// Saves and slab sessions that are not ended.
    pub busy: IntGauge,
    /// From the plan until all ranks of this node were staged.
    pub staged_seconds: Histogram,
    /// From the plan until they were durable on this node.
    pub durable_seconds: Histogram,
    /// From the plan until the commit.
    pub committed_seconds: Histogram,
    /// Bytes written to this node's disk.
    pub flushed_bytes: IntCounter,
    /// Bytes that deltas left to their parents.
    pub unchanged_bytes: IntCounter,
    /// One slab, from its first byte read to its bytes synced.
    pub flush_seconds: Histogram,
    /// Writes to this node's disk that failed, by what was done about it.
    pub disk_errors: IntCounterVec,
    /// Times that something waited for room on the disk.
    pub room_waits: IntCounter,
    /// Bytes of the folder's budget that are taken.
    pub disk_used_bytes: IntGauge,
    /// The folder's budget.
    pub disk_budget_bytes: IntGauge,
    /// Records written to journals.
    pub journal_records: IntCounter,
    /// Journals whose torn tail was cut at the start.
    pub journal_cuts: IntCounter,
    /// Attempts set aside at the start because their journal is damaged.
    pub set_aside: IntCounter,
    /// Attempts that were found again at the start, by what became of them.
    pub recovered: IntCounterVec,
    /// Committed checkpoints whose bytes were removed from this node, by why.
    pub evicted: IntCounterVec,
    /// Bytes sent to origins.
    pub uploaded_bytes: IntCounter,
    /// Bytes sent that were still in memory; the rest was read from this node's disk.
    pub uploaded_memory_bytes: IntCounter,
    /// Requests to origins and peers that were repeated by the write-back.
    pub retries: IntCounter,
    /// Chunks given to workers, by result.
    pub sink_chunks: IntCounterVec,
}

impl Metrics {
    /// Declares them in a registry.
    ///
    /// # Errors
    /// `Internal` when the registry has them already.
    pub fn new(registry: &Registry) -> Result<Metrics> {
        let name = |rest: &str| format!("longshore_checkpoint_{rest}");
        let counter = |rest: &str, help: &str| registry.counter(&name(rest), help);
        let counters = |rest: &str, help: &str, labels: &[&str]| registry.counter_vec(&name(rest), help, labels);
        let gauge = |rest: &str, help: &str| registry.int_gauge(&name(rest), help);
        let seconds = |rest: &str, help: &str| registry.histogram(&name(rest), help, SECONDS);
        Ok(Metrics {
            saves: counters("saves_total", "Saves that ended, by how.", &["state"])?,
            busy: gauge("busy", "Saves and slab sessions that are not ended.")?,
            staged_seconds: seconds("staged_seconds", "From the plan until all ranks of this node were staged.")?,
            durable_seconds: seconds("local_durable_seconds", "From the plan until they were durable on this node.")?,
            committed_seconds: seconds("committed_seconds", "From the plan until the commit.")?,
            flushed_bytes: counter("flushed_bytes_total", "Bytes written to this node's disk.")?,
            unchanged_bytes: counter("unchanged_bytes_total", "Bytes that deltas left to their parents.")?,
            flush_seconds: seconds("flush_seconds", "One slab, from its first byte read to its bytes synced.")?,
            disk_errors: counters(
                "disk_errors_total",
                "Writes to the disk that failed, by what was done.",
                &["action"],
            )?,
            room_waits: counter("room_waits_total", "Times that something waited for room on the disk.")?,
            disk_used_bytes: gauge("disk_used_bytes", "Bytes of the folder's budget that are taken.")?,
            disk_budget_bytes: gauge("disk_budget_bytes", "Budget of the folder in bytes.")?,
            journal_records: counter("journal_records_total", "Records written to journals.")?,
            journal_cuts: counter("journal_cuts_total", "Journals whose torn tail was cut at the start.")?,
            set_aside: counter("set_aside_total", "Attempts set aside because their journal is damaged.")?,
            recovered: counters(
                "recovered_total",
                "Attempts found again at the start, by what became of them.",
                &["as"],
            )?,
            evicted: counters("evicted_total", "Committed checkpoints removed from this node, by why.", &["why"])?,
            uploaded_bytes: counter("uploaded_bytes_total", "Bytes sent to origins.")?,
            uploaded_memory_bytes: counter(
                "uploaded_memory_bytes_total",
                "Bytes sent to origins that were still in memory; the rest was read from this node's disk.",
            )?,
            retries: counter("retries_total", "Requests to origins and peers that were repeated.")?,
            sink_chunks: counters("sink_chunks_total", "Chunks given to workers, by result.", &["result"])?,
        })
    }

    /// For a process that shows no metrics.
    ///
    /// # Errors
    /// None in practice: the registry is new.
    pub fn unregistered() -> Result<Metrics> {
        Metrics::new(&Registry::new())
    }
}
