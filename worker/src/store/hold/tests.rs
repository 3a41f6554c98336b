use std::fs;
use std::path::Path;

use longshore_memory::Arena;
use longshore_types::{Artifact, CHUNK_BYTES, Version};

use super::*;
use crate::store::disk::{DiskOptions, SyncPolicy};

const LEN: u64 = 100_000;
/// A chunk file of that length with its trailer.
const FILE: u64 = 102_400 + 4096;

fn attempt(number: u8) -> AttemptId {
    AttemptId::from_bytes([number; 16])
}

fn chunk(number: u32) -> Arc<GrowingChunk> {
    let version = Version::new(format!("attempt:{}", attempt(1))).unwrap();
    let artifact = Artifact::new(format!("s3://bucket/run/step-1/{number}"), version, LEN).unwrap();
    let key = ChunkKey::new(Arc::new(artifact), 0).unwrap();
    let buffer = Arena::new(CHUNK_BYTES).try_buffer(LEN as usize).unwrap();
    let (mut writer, chunk) = GrowingChunk::begin(key, buffer).unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8).collect();
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    chunk
}

struct Fixture {
    disk: Arc<DiskTier>,
    holds: Arc<Holds>,
    metrics: Arc<Metrics>,
}

fn open(folder: &Path, disk_bytes: u64, hold_bytes: Option<u64>) -> Fixture {
    let metrics = Arc::new(Metrics::new(&longshore_runtime::metrics::Metrics::new()).unwrap());
    let options = DiskOptions {
        folder: folder.to_owned(),
        budget_bytes: Some(disk_bytes),
        free_floor_bytes: Some(0),
        sync: SyncPolicy::None,
        writer_threads: 1,
        queue_bytes: 8 * CHUNK_BYTES,
        queue_wait: Duration::from_secs(60),
        retry_pause: Duration::ZERO,
    };
    let disk = DiskTier::open(options, metrics.clone()).unwrap();
    let options = HoldOptions { budget_bytes: hold_bytes, ttl: Duration::from_secs(3600) };
    let holds = Holds::open(folder.join("holds"), &options, disk.clone(), metrics.clone()).unwrap();
    Fixture { disk, holds, metrics }
}

impl Fixture {
    fn hold(&self, attempt: AttemptId, chunk: &GrowingChunk) -> Result<()> {
        let room = self.holds.room(&attempt, chunk.key())?;
        self.holds.keep(attempt, chunk, room)
    }

    fn holds(&self, attempt: AttemptId, chunk: &GrowingChunk) -> bool {
        let checksums = chunk.checksums().unwrap();
        self.holds.contains(&attempt, chunk.key(), &chunk.key().id(), &checksums)
    }
}

#[test]
fn what_is_held_is_found_by_the_next_process_and_goes_when_it_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (chunk(1), chunk(2));
    {
        let fixture = open(folder.path(), 1 << 30, None);
        assert_eq!(fixture.holds.usage().0, 1 << 28, "a quarter of the disk tier");
        fixture.hold(attempt(1), &one).unwrap();
        fixture.hold(attempt(1), &one).unwrap();
        fixture.hold(attempt(2), &two).unwrap();
        assert!(fixture.holds(attempt(1), &one) && !fixture.holds(attempt(2), &one));
    }
    let fixture = open(folder.path(), 1 << 30, None);
    assert_eq!(fixture.holds.usage(), (1 << 28, 2 * FILE, 2));
    let found = fixture.holds.get(one.key(), &one.key().id()).unwrap();
    assert!(fixture.disk.is_intact(&found, one.key()));
    assert!(fixture.holds(attempt(2), &two));
    let listed: Vec<_> = fixture.holds.list().into_iter().map(|held| (held.attempt, held.bytes, held.chunks)).collect();
    assert!(listed.contains(&(attempt(1), FILE, 1)) && listed.len() == 2);

    fixture.holds.release(&attempt(1));
    fixture.holds.release(&attempt(9));
    assert!(!fixture.holds(attempt(1), &one) && fixture.holds(attempt(2), &two));
    assert!(fixture.holds.get(one.key(), &one.key().id()).is_none());
    assert_eq!(fixture.holds.usage().1, FILE);
    let late = fixture.hold(attempt(1), &one).unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
    drop(fixture);
    assert_eq!(open(folder.path(), 1 << 30, None).holds.usage().1, FILE);
}

#[test]
fn room_is_bounded_comes_from_the_cache_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(folder.path(), 4 * FILE, Some(2 * FILE));
    for number in 10..14 {
        fixture.disk.put(chunk(number));
    }
    assert!(fixture.disk.flush(Duration::from_secs(60)));
    assert_eq!(fixture.disk.usage().2, 4);
    fixture.hold(attempt(1), &chunk(1)).unwrap();
    fixture.hold(attempt(1), &chunk(2)).unwrap();
    assert_eq!(fixture.disk.usage().2, 2, "the cache made room");
    let full = fixture.hold(attempt(2), &chunk(3)).unwrap_err();
    assert_eq!(full.code(), Code::Exhausted);
    assert!(full.message().contains("--hold-disk"), "{full}");
    // The cache evicts its own for more of its own, never what is held.
    for number in 20..30 {
        fixture.disk.put(chunk(number));
    }
    assert!(fixture.disk.flush(Duration::from_secs(60)));
    assert_eq!(fixture.disk.usage().2, 2);
    assert!(fixture.holds(attempt(1), &chunk(1)) && fixture.holds(attempt(1), &chunk(2)));
    // What was begun and given up takes nothing.
    fixture.holds.release(&attempt(1));
    drop(fixture.holds.room(&attempt(2), chunk(3).key()).unwrap());
    assert_eq!(fixture.holds.usage().1, 0);
    for number in 30..34 {
        fixture.disk.put(chunk(number));
    }
    assert!(fixture.disk.flush(Duration::from_secs(60)));
    assert_eq!(fixture.disk.usage().2, 4, "the room is the cache's again");
}

#[test]
fn what_is_torn_is_dropped_and_what_is_not_ours_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (chunk(1), chunk(2));
    let path = |chunk: &GrowingChunk| {
        folder.path().join("holds").join(attempt(1).to_string()).join(chunk.key().id().to_string())
    };
    let fixture = open(folder.path(), 1 << 30, None);
    fixture.hold(attempt(1), &one).unwrap();
    fixture.hold(attempt(1), &two).unwrap();
    // Flipped while it lies there: found when it is looked at closely.
    let mut bytes = fs::read(path(&two)).unwrap();
    bytes[77] ^= 1;
    fs::write(path(&two), &bytes).unwrap();
    assert!(!fixture.holds.drop_if_torn(&one.key().id()));
    assert!(fixture.holds.drop_if_torn(&two.key().id()));
    assert!(!path(&two).exists());
    assert_eq!(fixture.holds.usage().1, FILE);
    drop(fixture);

    fs::write(path(&one), b"short").unwrap();
    fs::create_dir_all(folder.path().join("holds/lost+found")).unwrap();
    let fixture = open(folder.path(), 1 << 30, None);
    assert_eq!(fixture.holds.usage().1, 0);
    assert_eq!(fixture.metrics.disk_dropped.with_label_values(&["torn_hold"]).get(), 1);
    assert!(folder.path().join("holds/lost+found").exists() && !path(&one).exists());
}

#[test]
fn what_nobody_releases_goes_some_day() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(folder.path(), 1 << 30, None);
    fixture.hold(attempt(1), &chunk(1)).unwrap();
    fixture.holds.sweep(SystemTime::now() + Duration::from_secs(3500));
    assert!(fixture.holds(attempt(1), &chunk(1)));
    fixture.holds.sweep(SystemTime::now() + Duration::from_secs(3700));
    assert!(!fixture.holds(attempt(1), &chunk(1)));
    assert_eq!((fixture.holds.usage().1, fixture.metrics.holds_expired.get()), (0, 1));
}

#[test]
fn what_is_held_does_not_go_for_what_was_there_before_or_what_a_stranger_says() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = open(folder.path(), 1 << 30, None);
    let (one, id) = (chunk(1), chunk(1).key().id());
    fixture.hold(attempt(1), &one).unwrap();
    let path = fixture.holds.path(&attempt(1), &id);
    // Somebody finds it bad, and before that has consequences a good one has come.
    let bad = File::open(&path).unwrap();
    fixture.hold(attempt(1), &one).unwrap();
    assert!(!fixture.holds.drop_file(&attempt(1), &id, &bad));
    assert!(fixture.holds(attempt(1), &one));
    assert_eq!(fixture.holds.usage(), (1 << 28, FILE, 1));
    // An id says nothing of the size: who asks with another one asks for what is not there.
    let artifact = Artifact::new(one.key().artifact().url(), one.key().artifact().version().clone(), LEN + 1).unwrap();
    let other = ChunkKey::new(Arc::new(artifact), 0).unwrap();
    assert_eq!(other.id(), id);
    assert!(!fixture.holds.drop_if_torn(&id) && fixture.holds.get(&other, &id).is_none());
    assert!(fixture.holds(attempt(1), &one));
    // One that is dropped in the moment between its name and its entry has not been kept.
    let room = fixture.holds.room(&attempt(1), one.key()).unwrap();
    let state = fixture.holds.state.lock();
    let keeping = std::thread::spawn({
        let (holds, one) = (fixture.holds.clone(), one.clone());
        move || holds.keep(attempt(1), &one, room)
    });
    let named = File::open(&path).unwrap();
    while files::is_at(&named, &path) {
        assert!(!keeping.is_finished());
        std::thread::yield_now();
    }
    fs::remove_file(&path).unwrap();
    drop(state);
    let error = keeping.join().unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(fixture.holds.usage().1, FILE, "its room came back");
}
