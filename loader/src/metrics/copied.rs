//! What the origin layer, the sink of checkpoints and the budget of host memory count by themselves, brought over when
//! the metrics are looked at.

use longshore_origin::OriginStats;
use longshore_runtime::Metrics as Registry;
use longshore_types::Result;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec};

use crate::checkpoint::sink::SinkStats;

/// Counters that others have.
pub(super) struct Copied {
    requests: IntCounterVec,
    retries: IntCounter,
    errors: IntCounter,
    bytes: IntCounter,
    bodies: IntCounterVec,
    written_bytes: IntCounter,
    conflicts: IntCounter,
    verified: IntCounterVec,
    checksums_refused: IntCounter,
    unversioned_listings: IntCounter,
    puts: IntCounterVec,
    release_failures: IntCounter,
    prefaulted_used_bytes: IntCounter,
    /// Held while counters are raised, so that two scrapes do not add twice.
    copying: Mutex<()>,
}

impl Copied {
    /// Declares them.
    pub(super) fn new(registry: &Registry) -> Result<Copied> {
        let origin = |rest: &str| format!("longshore_loader_origin_{rest}");
        let sink = |rest: &str| format!("longshore_loader_checkpoint_{rest}");
        let copied = Copied {
            requests: registry.counter_vec(&origin("requests_total"), "Requests sent to origins.", &["kind"])?,
            retries: registry.counter(&origin("retries_total"), "Attempts at origins that were repeated.")?,
            errors: registry.counter(&origin("errors_total"), "Calls to origins that failed in the end.")?,
            bytes: registry.counter(&origin("bytes_total"), "Bytes of objects received from origins.")?,
            bodies: registry.counter_vec(
                &origin("bodies_total"),
                "Bodies received from origins: straight from the connection into their place, or streamed through the HTTP library.",
                &["way"],
            )?,
            written_bytes: registry
                .counter(&origin("written_bytes_total"), "Bytes of objects and parts written to origins.")?,
            conflicts: registry.counter(
                &origin("conflicts_total"),
                "Conditional writes to origins that found another object or version.",
            )?,
            verified: registry.counter_vec(
                &origin("verified_total"),
                "Written objects that were verified, by the store's own checksum or by reading them back.",
                &["how"],
            )?,
            checksums_refused: registry.counter(
                &origin("checksums_refused_total"),
                "Stores that were found to refuse checksums with what they are sent.",
            )?,
            unversioned_listings: registry.counter(
                &origin("unversioned_listings_total"),
                "Objects whose version had to be asked for one by one.",
            )?,
            puts: registry.counter_vec(
                &sink("puts_total"),
                "Chunks of checkpoints sent to workers: to caches, and as copies to hold.",
                &["mode", "outcome"],
            )?,
            release_failures: registry.counter(
                &sink("release_failures_total"),
                "Workers that could not be told that copies of a checkpoint are not needed any more.",
            )?,
            prefaulted_used_bytes: registry.counter(
                "longshore_loader_prefaulted_used_bytes_total",
                "Bytes of models in host memory that had been touched before their load.",
            )?,
            copying: Mutex::new(()),
        };
        copied.raise(&OriginStats::default(), &SinkStats::default(), 0);
        Ok(copied)
    }

    /// Brings them up to what was counted.
    pub(super) fn raise(&self, origin: &OriginStats, sink: &SinkStats, prefaulted_used_bytes: u64) {
        let _alone = self.copying.lock();
        let kinds = [
            ("list", origin.list_requests),
            ("stat", origin.stat_requests),
            ("read", origin.read_requests),
            ("put", origin.put_requests),
            ("upload", origin.upload_requests),
            ("delete", origin.delete_requests),
        ];
        for (kind, count) in kinds {
            raise(&self.requests.with_label_values(&[kind]), count);
        }
        raise(&self.bodies.with_label_values(&["straight"]), origin.straight_reads);
        raise(&self.bodies.with_label_values(&["streamed"]), origin.streamed_reads);
        raise(&self.retries, origin.retries);
        raise(&self.errors, origin.errors);
        raise(&self.bytes, origin.bytes);
        raise(&self.written_bytes, origin.bytes_written);
        raise(&self.conflicts, origin.conflicts);
        raise(&self.verified.with_label_values(&["store"]), origin.verified_by_store);
        raise(&self.verified.with_label_values(&["reading"]), origin.verified_by_reading);
        raise(&self.checksums_refused, origin.checksums_refused);
        raise(&self.unversioned_listings, origin.unversioned_listings);
        let puts = [
            (["cache", "ok"], sink.cached),
            (["cache", "failed"], sink.cache_failures),
            (["hold", "ok"], sink.held),
            (["hold", "failed"], sink.hold_failures),
        ];
        for (labels, count) in puts {
            raise(&self.puts.with_label_values(&labels), count);
        }
        raise(&self.release_failures, sink.release_failures);
        raise(&self.prefaulted_used_bytes, prefaulted_used_bytes);
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        String::from_utf8(registry.render().unwrap()).unwrap()
    }

    #[test]
    fn counters_follow_what_others_count_and_never_fall() {
        let registry = Registry::new();
        let copied = Copied::new(&registry).unwrap();
        assert!(text(&registry).contains("longshore_loader_origin_requests_total{kind=\"upload\"} 0"));
        let origin = OriginStats {
            upload_requests: 3,
            bytes_written: 7,
            verified_by_reading: 1,
            straight_reads: 4,
            streamed_reads: 6,
            ..Default::default()
        };
        let sink = SinkStats { held: 2, cache_failures: 5, ..SinkStats::default() };
        for _ in 0..2 {
            copied.raise(&origin, &sink, 9);
        }
        // A count that is behind, as two scrapes at once may bring it.
        copied.raise(&OriginStats::default(), &SinkStats::default(), 0);
        let text = text(&registry);
        for line in [
            "longshore_loader_origin_requests_total{kind=\"upload\"} 3",
            "longshore_loader_origin_written_bytes_total 7",
            "longshore_loader_origin_bodies_total{way=\"straight\"} 4",
            "longshore_loader_origin_bodies_total{way=\"streamed\"} 6",
            "longshore_loader_origin_verified_total{how=\"reading\"} 1",
            "longshore_loader_checkpoint_puts_total{mode=\"hold\",outcome=\"ok\"} 2",
            "longshore_loader_prefaulted_used_bytes_total 9",
            "longshore_loader_checkpoint_puts_total{mode=\"cache\",outcome=\"failed\"} 5",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
