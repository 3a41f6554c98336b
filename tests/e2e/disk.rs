//! Chunk files that are flipped, torn, or left by a worker that was killed.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::ModelSpec;

use crate::common::{chunk_files, load_and_check, unload_everywhere, wait_until};
use crate::failure::serve;

const MIB: u64 = 1 << 20;
const URI: &str = "s3://bucket/model";

/// Waits until every chunk that a worker filled has reached its disk.
fn wait_written(cluster: &Cluster, chunks: u64) {
    wait_until("chunk files are written", || {
        cluster.worker_metric("longshore_worker_disk_writes_total") >= chunks as f64
    });
}

#[test]
fn a_flipped_bit_in_a_chunk_file_over_tcp() {
    a_flipped_bit(ClusterSpec::new(1, 1));
}

#[test]
fn a_flipped_bit_in_a_chunk_file_on_the_same_host() {
    a_flipped_bit(ClusterSpec::new(1, 1).unix_sockets());
}

fn a_flipped_bit(spec: ClusterSpec) {
    let (origin, model) = serve(&ModelSpec::sized(3, 60 * MIB, 10));
    let mut cluster = Cluster::start(spec.origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    wait_written(&cluster, model.chunks());
    let end = cluster.worker(0).terminate(Duration::from_secs(30));
    assert!(end.is_some_and(|status| status.success()), "{end:?}: {}", cluster.worker(0).log_tail(20));
    let files = chunk_files(&cluster.cache_folder(0));
    assert!(files.len() >= 4, "{files:?}");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&files[1]).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 * MIB + 333).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 3 * MIB + 333).unwrap();
    drop(file);

    origin.reset_counters();
    cluster.worker(0).start_again();
    unload_everywhere(&cluster, URI);
    let loaded = load_and_check(&cluster, 0, URI, &model);
    let report = loaded.model.report.unwrap();
    let metrics = cluster.loaders()[0].metrics();
    let found = report.checksum_mismatches as f64
        + metrics.sum("longshore_loader_checksum_mismatches_total")
        + cluster.worker_metric("longshore_worker_checksum_mismatches_total");
    assert!(found > 0.0, "the mismatch is counted: {report:?}");
    let counters = origin.counters();
    assert!((1..=16 * MIB).contains(&counters.bytes), "one chunk is read again, not {} bytes", counters.bytes);

    // The repaired copy serves from now on.
    origin.reset_counters();
    unload_everywhere(&cluster, URI);
    let again = load_and_check(&cluster, 0, URI, &model);
    assert_eq!((again.model.report.unwrap().checksum_mismatches, origin.counters().bytes), (0, 0));
}

#[test]
fn a_worker_that_was_killed_serves_what_it_had() {
    let (origin, model) = serve(&ModelSpec::sized(4, 80 * MIB, 10));
    let mut cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    wait_written(&cluster, model.chunks());
    for worker in 0..2 {
        cluster.worker(worker).kill();
        cluster.worker(worker).start_again();
    }
    origin.reset_counters();
    unload_everywhere(&cluster, URI);
    let loaded = load_and_check(&cluster, 0, URI, &model);
    let counters = origin.counters();
    assert_eq!((counters.get, counters.bytes), (0, 0), "{:?}", counters.requests);
    assert_eq!(loaded.tier_bytes(longshore_proto::v1::Tier::Origin), 0);
}

#[test]
fn torn_files_are_dropped_at_the_start() {
    let (origin, model) = serve(&ModelSpec::sized(5, 60 * MIB, 10));
    let mut cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    load_and_check(&cluster, 0, URI, &model);
    wait_written(&cluster, model.chunks());
    cluster.worker(0).kill();
    let files = chunk_files(&cluster.cache_folder(0));
    let truncate =
        |at: usize, len| std::fs::File::options().write(true).open(&files[at]).unwrap().set_len(len).unwrap();
    truncate(0, 5 * MIB);
    truncate(1, 0);
    std::fs::write(files[2].with_extension("stray"), b"what is this").unwrap();
    cluster.worker(0).start_again();
    origin.reset_counters();
    unload_everywhere(&cluster, URI);
    load_and_check(&cluster, 0, URI, &model);
    let bytes = origin.counters().bytes;
    assert!(bytes > 0 && bytes <= 32 * MIB, "the two torn chunks are read again, not {bytes} bytes");
    assert!(cluster.workers()[0].metrics().sum("longshore_worker_disk_dropped_total") >= 2.0);
}
