use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use longshore_memory::Arena;
use longshore_types::{Artifact, CHUNK_BYTES, Version};
use rustix::fs::{Advice, fadvise};

use super::*;
use crate::store::format::PAGE_BYTES;

/// Long enough for any disk; nothing waits for it to pass.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) fn options(folder: &Path) -> DiskOptions {
    DiskOptions {
        folder: folder.to_owned(),
        budget_bytes: Some(1 << 40),
        free_floor_bytes: Some(0),
        sync: SyncPolicy::Data,
        writer_threads: 2,
        queue_bytes: 64 * CHUNK_BYTES,
        queue_wait: LONG,
        retry_pause: Duration::ZERO,
    }
}

pub(super) fn open(options: DiskOptions) -> (Arc<DiskTier>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new(&longshore_runtime::metrics::Metrics::new()).unwrap());
    (DiskTier::open(options, metrics.clone()).unwrap(), metrics)
}

/// A complete chunk of `len` bytes that depend on `number`.
fn chunk(number: u32, len: u64) -> Arc<GrowingChunk> {
    chunk_of(number, len, number)
}

/// A complete chunk of `len` bytes that depend on `content`.
pub(super) fn chunk_of(number: u32, len: u64, content: u32) -> Arc<GrowingChunk> {
    let version = Version::new("etag:\"1\"").unwrap();
    let artifact = Artifact::new(format!("s3://bucket/{}/{number}", number % 3), version, len).unwrap();
    let key = ChunkKey::new(Arc::new(artifact), 0).unwrap();
    let buffer = Arena::new(CHUNK_BYTES).try_buffer(len as usize).unwrap();
    let (mut writer, chunk) = GrowingChunk::begin(key, buffer).unwrap();
    let bytes: Vec<u8> = (0..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(content) as u8).collect();
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    chunk
}

pub(super) fn put(tier: &DiskTier, chunk: &Arc<GrowingChunk>) -> ChunkId {
    tier.put(chunk.clone());
    assert!(tier.flush(LONG));
    chunk.key().id()
}

pub(super) fn is_there(tier: &DiskTier, chunk: &GrowingChunk) -> bool {
    let Some(found) = tier.get(chunk.key(), &chunk.key().id()) else { return false };
    let mut bytes = vec![0; chunk.len_bytes() as usize];
    found.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, chunk.get(0..chunk.len_bytes()).unwrap());
    assert_eq!(found.checksums, chunk.checksums().unwrap());
    assert!(tier.is_intact(&found, chunk.key()));
    true
}

#[test]
fn a_restart_finds_what_was_written_and_drops_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = [1, 4095, 4096, 4097, (1 << 20) + 1, 3 << 20].map(|len| chunk(len as u32, len)).into();
    let (tier, _) = open(options(folder.path()));
    chunks.iter().for_each(|chunk| _ = put(&tier, chunk));
    let paths: Vec<_> = chunks.iter().map(|chunk| tier.path(&chunk.key().id())).collect();
    drop(tier);
    // Cut short, renamed to another id, overwritten, temporary, and no chunk file at all.
    fs::File::options().write(true).open(&paths[0]).unwrap().set_len(PAGE_BYTES).unwrap();
    fs::rename(&paths[1], chunk_path(folder.path(), &ChunkId::parse(&"a".repeat(32)).unwrap())).unwrap();
    fs::write(&paths[2], vec![7u8; 3 * PAGE_BYTES as usize]).unwrap();
    fs::write(folder.path().join("tmp/1-1"), "half").unwrap();
    fs::write(folder.path().join("chunks/00/readme"), "hello").unwrap();
    let (tier, metrics) = open(options(folder.path()));
    for (index, chunk) in chunks.iter().enumerate() {
        assert_eq!(is_there(&tier, chunk), index > 2, "chunk {index}");
    }
    let dropped = |reason: &str| metrics.disk_dropped.with_label_values(&[reason]).get();
    assert_eq!((dropped("torn"), dropped("foreign"), dropped("temporary")), (1, 3, 1));
    assert_eq!(tier.usage().2, 3);
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn the_budget_holds_and_the_least_recently_used_go() {
    let folder = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..8).map(|number| chunk(number, 1 << 20)).collect();
    let file_bytes = format::file_bytes(chunks[0].key());
    let budget_bytes = 4 * file_bytes + 100;
    let (tier, metrics) = open(DiskOptions { budget_bytes: Some(budget_bytes), ..options(folder.path()) });
    for chunk in &chunks[..4] {
        put(&tier, chunk);
    }
    let held = tier.get(chunks[1].key(), &chunks[1].key().id()).unwrap();
    assert!(is_there(&tier, &chunks[0]));
    for chunk in &chunks[4..7] {
        put(&tier, chunk);
        assert!(tier.usage().1 <= budget_bytes);
    }
    let there: Vec<bool> = chunks.iter().map(|chunk| is_there(&tier, chunk)).collect();
    assert_eq!(there, [true, false, false, false, true, true, true, false]);
    assert_eq!(metrics.disk_evictions.get(), 3);
    let on_disk: u64 = walk(&folder.path().join("chunks")).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert_eq!(on_disk, 4 * file_bytes);
    // A reader that had the file open before it was evicted reads on.
    assert!(tier.is_intact(&held, chunks[1].key()));
}

#[test]
fn a_chunk_larger_than_the_budget_is_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(DiskOptions { budget_bytes: Some(1 << 20), ..options(folder.path()) });
    let (small, large) = (chunk(0, 5), chunk(1, 1 << 20));
    put(&tier, &small);
    put(&tier, &large);
    assert!(is_there(&tier, &small), "nothing is evicted for what cannot fit");
    assert!(!is_there(&tier, &large));
    assert_eq!(metrics.disk_skips.with_label_values(&["no_room"]).get(), 1);
    assert_eq!(tier.failure(), None);
}

#[test]
fn the_free_space_floor_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(DiskOptions { free_floor_bytes: Some(1 << 60), ..options(folder.path()) });
    put(&tier, &chunk(1, 1));
    assert_eq!(metrics.disk_skips.with_label_values(&["no_room"]).get(), 1);
    assert_eq!(tier.usage().2, 0);
}

#[test]
fn a_failing_disk_is_left_alone_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(options(folder.path()));
    fs::remove_dir(folder.path().join("tmp")).unwrap();
    let chunks = [chunk(1, 5), chunk(2, 5)];
    put(&tier, &chunks[0]);
    assert!(tier.failure().unwrap().contains("cannot write under"));
    assert_eq!(metrics.disk_healthy.get(), 0);
    fs::create_dir(folder.path().join("tmp")).unwrap();
    put(&tier, &chunks[1]);
    assert!(is_there(&tier, &chunks[1]));
    assert_eq!((tier.failure(), metrics.disk_healthy.get()), (None, 1));
    assert_eq!(metrics.disk_errors.with_label_values(&["write"]).get(), 1);
}

#[test]
fn without_a_promise_files_are_written_under_their_own_names() {
    let folder = tempfile::tempdir().unwrap();
    let none = DiskOptions { sync: SyncPolicy::None, ..options(folder.path()) };
    let (tier, metrics) = open(none.clone());
    let chunks: Vec<_> = [5, 4096, 100_000, 3 << 20].map(|len| chunk(len as u32, len)).into();
    // No temporary name is needed.
    fs::remove_dir(folder.path().join("tmp")).unwrap();
    chunks.iter().for_each(|chunk| _ = put(&tier, chunk));
    assert!(chunks.iter().all(|chunk| is_there(&tier, chunk)));
    fs::create_dir(folder.path().join("tmp")).unwrap();
    // The index has lost one: its readers keep what they have, the name gets another file.
    let held = tier.get(chunks[2].key(), &chunks[2].key().id()).unwrap();
    tier.index.lock().remove(&chunks[2].key().id());
    put(&tier, &chunks[2]);
    assert!(is_there(&tier, &chunks[2]) && tier.is_intact(&held, chunks[2].key()));
    assert_eq!(metrics.disk_errors.with_label_values(&["write"]).get(), 0);
    drop(tier);
    // Killed while it wrote: some pages of the data are there, the trailer is not.
    let cut = chunk_path(folder.path(), &chunks[3].key().id());
    fs::File::options().write(true).open(&cut).unwrap().set_len(2 << 20).unwrap();
    let (tier, _) = open(none);
    assert!(!is_there(&tier, &chunks[3]) && !cut.exists());
    assert_eq!(tier.usage().2, 3);
}

#[test]
fn during_its_rest_a_failed_disk_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(DiskOptions { retry_pause: LONG, ..options(folder.path()) });
    fs::remove_dir(folder.path().join("tmp")).unwrap();
    put(&tier, &chunk(1, 5));
    put(&tier, &chunk(2, 5));
    assert_eq!(metrics.disk_errors.with_label_values(&["write"]).get(), 1);
    assert_eq!(metrics.disk_skips.with_label_values(&["disk_failed"]).get(), 2);
}

#[test]
fn files_that_go_bad_under_us_are_misses() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(options(folder.path()));
    let chunks = [chunk(1, 5), chunk(2, 5), chunk(3, 5000)];
    chunks.iter().for_each(|chunk| _ = put(&tier, chunk));
    fs::remove_file(tier.path(&chunks[0].key().id())).unwrap();
    fs::File::options().write(true).open(tier.path(&chunks[1].key().id())).unwrap().set_len(9).unwrap();
    let file = fs::File::options().write(true).open(tier.path(&chunks[2].key().id())).unwrap();
    file.write_all_at(b"flip", 4500).unwrap();
    assert!(!is_there(&tier, &chunks[0]));
    assert!(!is_there(&tier, &chunks[1]));
    let flipped = tier.get(chunks[2].key(), &chunks[2].key().id()).unwrap();
    assert!(!tier.is_intact(&flipped, chunks[2].key()));
    let dropped = |reason: &str| metrics.disk_dropped.with_label_values(&[reason]).get();
    assert_eq!((dropped("vanished"), dropped("torn")), (1, 1));
    assert_eq!(tier.usage().2, 1);
}

#[test]
fn freeing_finds_chunks_by_url() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, _) = open(options(folder.path()));
    let chunks: Vec<_> = (0..9).map(|number| chunk(number, 5000)).collect();
    chunks.iter().for_each(|chunk| _ = put(&tier, chunk));
    let freed = tier.free("s3://bucket/1");
    assert_eq!((freed.chunks, freed.bytes), (3, 3 * format::file_bytes(chunks[0].key())));
    for (number, chunk) in chunks.iter().enumerate() {
        assert_eq!(is_there(&tier, chunk), number % 3 != 1);
    }
    assert_eq!(tier.free("s3://bucket").chunks, 6);
    assert_eq!(walk(&folder.path().join("chunks")).len(), 0);
}

#[test]
fn freeing_catches_chunks_on_their_way() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, _) = open(options(folder.path()));
    for round in 0..30 {
        let chunks: Vec<_> = (0..8).map(|number| chunk(number, (1 << 18) + round)).collect();
        chunks.iter().for_each(|chunk| tier.put(chunk.clone()));
        tier.free("s3://bucket/1");
        tier.forget(&chunks[2].key().id());
        assert!(tier.flush(LONG));
        let there: Vec<bool> = chunks.iter().map(|chunk| is_there(&tier, chunk)).collect();
        assert_eq!(there, [true, false, false, true, false, true, true, false], "round {round}");
        tier.free("s3://bucket");
    }
}

#[test]
fn a_full_file_system_costs_the_reader_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mount) = Mounted::mount(folder.path(), "tmpfs", "size=2m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let (tier, metrics) = open(DiskOptions { sync: SyncPolicy::None, ..options(&mount.0) });
    let chunks = [chunk(1, 1 << 20), chunk(2, 1 << 20), chunk(3, 1 << 20)];
    chunks.iter().for_each(|chunk| _ = put(&tier, chunk));
    let kept = chunks.iter().filter(|chunk| is_there(&tier, chunk)).count();
    assert_eq!(kept, 1, "the floor of free space makes room by evicting");
    assert_eq!(tier.failure(), None);
    // Somebody else fills the disk: eviction cannot help, and the write fails or is skipped.
    fs::write(mount.0.join("foreign"), vec![1u8; 900 << 10]).unwrap();
    put(&tier, &chunk(4, 1 << 20));
    put(&tier, &chunk(5, 1800 << 10));
    assert!(metrics.disk_skips.with_label_values(&["no_room"]).get() > 0);
}

#[test]
fn what_is_not_written_directly_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(options(folder.path()));
    tier.takes_direct.store(false, Ordering::Relaxed);
    let chunks = [chunk(1, (2 << 20) + 5), chunk(2, 1 << 20), chunk(3, 5)];
    chunks.iter().for_each(|chunk| _ = put(&tier, chunk));
    assert!(chunks.iter().all(|chunk| is_there(&tier, chunk)));
    assert_eq!(metrics.fallbacks.with_label_values(&["disk_write_cached"]).get(), 2, "small ones are no fallback");
    assert_eq!((tier.failure(), metrics.disk_writes.get()), (None, 3));
}

#[test]
fn a_use_of_a_copy_elsewhere_counts() {
    let folder = tempfile::tempdir().unwrap();
    let chunks: Vec<_> = (0..3).map(|number| chunk(number, 1 << 20)).collect();
    let budget_bytes = Some(2 * format::file_bytes(chunks[0].key()));
    let (tier, _) = open(DiskOptions { budget_bytes, ..options(folder.path()) });
    chunks[..2].iter().for_each(|chunk| _ = put(&tier, chunk));
    tier.touch(&chunks[0].key().id());
    put(&tier, &chunks[2]);
    let there: Vec<bool> = chunks.iter().map(|chunk| is_there(&tier, chunk)).collect();
    assert_eq!(there, [true, false, true]);
}

#[test]
fn a_file_counts_as_resident_when_all_of_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, _) = open(options(folder.path()));
    tier.takes_direct.store(false, Ordering::Relaxed);
    let chunk = chunk(1, 4 << 20);
    put(&tier, &chunk);
    let found = tier.get(chunk.key(), &chunk.key().id()).unwrap();
    assert!(found.is_resident(chunk.len_bytes()), "it was written a moment ago");
    let middle = std::num::NonZeroU64::new(1 << 20);
    fadvise(&found.file, 2 << 20, middle, Advice::DontNeed).unwrap();
    if residency(&found.file, 2 << 20..3 << 20) != Some(0.0) {
        eprintln!("skipped: this file system keeps no pages, or does not let them go");
        return;
    }
    assert!(!found.is_resident(chunk.len_bytes()));
    tier.prefetch(&found, &(0..chunk.len_bytes()));
    assert!(is_there(&tier, &chunk));
    assert!(found.is_resident(chunk.len_bytes()));
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(walk(&path)),
            false => files.push(path),
        }
    }
    files
}

/// A file system of its own, unmounted on drop.
pub(super) struct Mounted(pub(super) PathBuf);

impl Mounted {
    pub(super) fn mount(at: &Path, kind: &str, option: &str) -> Option<Mounted> {
        let status = std::process::Command::new("mount")
            .args(["-t", kind, "-o", option, kind])
            .arg(at)
            .stderr(std::process::Stdio::null())
            .status()
            .ok()?;
        status.success().then(|| Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
