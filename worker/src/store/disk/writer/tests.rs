//! Copies of one chunk on their way to the disk. The test takes the part of the writers, so that each step comes when it is
//! to come.

use super::super::tests::{LONG, chunk_of, is_there, open, options, put};
use super::*;

/// Two contents of one chunk.
fn copies() -> (Arc<GrowingChunk>, Arc<GrowingChunk>) {
    (chunk_of(1, 100_000, 5), chunk_of(1, 100_000, 6))
}

#[test]
fn what_replaced_a_chunk_while_that_was_written_gets_to_the_disk() {
    for sync in [SyncPolicy::None, SyncPolicy::Data] {
        let folder = tempfile::tempdir().unwrap();
        let (tier, metrics) = open(crate::store::disk::DiskOptions { sync, ..options(folder.path()) });
        let queue = WriteQueue::new(1 << 20, LONG);
        let ((old, new), other) = (copies(), chunk_of(2, 5, 5));
        let (id, bytes) = (old.key().id(), format::file_bytes(old.key()));
        assert!(queue.push(old.clone()));
        let writing = queue.pop(Turn::Always).unwrap();
        assert!(tier.write_within_room(id, bytes, &writing));
        // Between the write and its end the chunk is replaced, and another thread looks for work.
        queue.discard(|key| key == old.key());
        assert!(queue.push(new.clone()) && queue.push(other.clone()));
        let next = queue.pop(Turn::Always).unwrap();
        tier.write_behind(&queue, &next);
        assert!(is_there(&tier, &other) && !tier.contains(&id));
        tier.conclude(&queue, &writing, true);
        assert!(!tier.path(&id).exists());
        let next = queue.pop(Turn::Always).unwrap();
        tier.write_behind(&queue, &next);
        assert!(is_there(&tier, &new));
        assert_eq!((metrics.disk_writes.get(), tier.usage().2), (3, 2));
        assert_eq!(tier.usage().1, bytes + format::file_bytes(other.key()));
    }
}

#[test]
fn of_two_contents_the_one_that_came_last_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (tier, metrics) = open(options(folder.path()));
    let (old, new) = copies();
    let id = put(&tier, &old);
    let reader = tier.get(old.key(), &id).unwrap();
    put(&tier, &new);
    assert!(is_there(&tier, &new));
    assert!(tier.is_intact(&reader, old.key()), "who reads the older one reads on");
    put(&tier, &new);
    assert_eq!(metrics.disk_writes.get(), 2, "the same again is not written again");
    assert_eq!(tier.usage().1, format::file_bytes(new.key()));
}
