use std::sync::mpsc;
use std::thread;

use longshore_memory::{Arena, Claim};
use longshore_types::{Artifact, BLOCK_BYTES, CHUNK_BYTES, Version};

use super::*;

fn tier(slots: u64) -> Arc<PinnedTier> {
    let bytes = slots * PinnedArena::SLOT_BYTES;
    let reservation = Arena::new(bytes).try_reserve(bytes).unwrap();
    PinnedTier::new(PinnedArena::create(bytes, reservation).unwrap())
}

fn key(version: &str, index: u32) -> ChunkKey {
    let version = Version::new(version).unwrap();
    let artifact = Artifact::new("s3://bucket/model/file", version, 100 * CHUNK_BYTES).unwrap();
    ChunkKey::new(Arc::new(artifact), index).unwrap()
}

fn get(tier: &Arc<PinnedTier>, key: &ChunkKey) -> PinnedLease {
    tier.get(key, None, &CancellationToken::new()).unwrap()
}

/// Fills the first block of a chunk with one value.
fn fill(lease: &PinnedLease, value: u8) {
    let Claim::Fill(mut window) = lease.chunk().claim(0..1) else { panic!("not to be filled") };
    window.fill(value);
    window.commit();
}

fn put(tier: &Arc<PinnedTier>, key: &ChunkKey, value: u8) -> PinnedChunk {
    let lease = get(tier, key);
    fill(&lease, value);
    lease.chunk().clone()
}

fn value(tier: &Arc<PinnedTier>, key: &ChunkKey) -> Option<u8> {
    let lease = get(tier, key);
    lease.chunk().bytes(0..BLOCK_BYTES).map(|bytes| bytes[0])
}

#[test]
fn chunks_stay_until_their_slot_is_needed_and_versions_are_told_apart() {
    let tier = tier(3);
    for index in 0..3 {
        put(&tier, &key("a", index), index as u8);
    }
    assert_eq!(tier.usage().cached_bytes, 3 * CHUNK_BYTES);
    assert_eq!(value(&tier, &key("a", 0)), Some(0));
    put(&tier, &key("b", 0), 9);
    assert_eq!(value(&tier, &key("b", 0)), Some(9));
    assert_eq!(value(&tier, &key("a", 0)), Some(0), "it was used a moment ago");
    assert_eq!(value(&tier, &key("a", 2)), Some(2));
    assert_eq!(value(&tier, &key("a", 1)), None, "it made room");
}

#[test]
fn a_chunk_that_a_copy_still_reads_is_waited_for_and_no_other_one_goes_for_it() {
    let tier = tier(2);
    let in_copy = put(&tier, &key("a", 0), 1);
    put(&tier, &key("a", 1), 2);
    let (told, waits) = mpsc::channel();
    let waiting = thread::spawn({
        let tier = tier.clone();
        move || {
            let lease = get(&tier, &key("a", 2));
            told.send(()).unwrap();
            lease.chunk().len_bytes()
        }
    });
    while tier.state.lock().shelf.len() > 1 {
        thread::yield_now();
    }
    assert!(waits.recv_timeout(Duration::from_millis(50)).is_err(), "there is no slot");
    assert_eq!(tier.usage(), PinnedUse { staging_bytes: CHUNK_BYTES, cached_bytes: CHUNK_BYTES, ..tier.usage() });
    assert_eq!(in_copy.bytes(0..1), Some(&[1][..]), "the copy reads what it is to read");
    drop(in_copy);
    waiting.join().unwrap();
    assert_eq!(value(&tier, &key("a", 1)), Some(2));
}

#[test]
fn as_many_chunks_go_as_threads_wait() {
    let tier = tier(2);
    let copies = [put(&tier, &key("a", 0), 1), put(&tier, &key("a", 1), 2)];
    let waiting: Vec<_> = (2..4)
        .map(|index| {
            let tier = tier.clone();
            thread::spawn(move || drop(get(&tier, &key("a", index))))
        })
        .collect();
    while tier.state.lock().shelf.len() > 0 {
        thread::yield_now();
    }
    drop(copies);
    waiting.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn who_waits_for_a_slot_can_be_called_off() {
    let tier = tier(1);
    let held = get(&tier, &key("a", 0));
    let token = CancellationToken::new();
    let waiting = thread::spawn({
        let (tier, token) = (tier.clone(), token.clone());
        move || tier.get(&key("a", 1), None, &token).map(|_| ())
    });
    token.cancel();
    assert_eq!(waiting.join().unwrap().unwrap_err().code(), Code::Cancelled);
    drop(held);
    assert_eq!(tier.state.lock().waiting, 0);
    get(&tier, &key("a", 1));
}

#[test]
fn a_chunk_in_which_nothing_arrived_gives_its_slot_back() {
    let tier = tier(1);
    let lease = get(&tier, &key("a", 0));
    let Claim::Fill(window) = lease.chunk().claim(0..1) else { panic!("not to be filled") };
    drop(window);
    drop(lease);
    assert_eq!(tier.usage(), PinnedUse { staging_bytes: 0, cached_bytes: 0, ..tier.usage() });
}

#[test]
fn who_waits_for_another_takes_over_when_that_one_fails() {
    let tier = tier(1);
    let (first, second) = (get(&tier, &key("a", 0)), get(&tier, &key("a", 0)));
    let Claim::Fill(window) = first.chunk().claim(0..2) else { panic!("not to be filled") };
    let token = CancellationToken::new();
    let waiting = thread::spawn(move || {
        loop {
            match second.chunk().claim(0..2) {
                Claim::Ready => panic!("nobody filled it"),
                Claim::Busy => second.wait_for_others(0..2, &token).unwrap(),
                Claim::Fill(window) => return window.blocks(),
            }
        }
    });
    drop(window);
    assert_eq!(waiting.join().unwrap(), 0..2);
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    assert_eq!(first.wait_for_others(0..2, &cancelled).unwrap_err().code(), Code::Cancelled);
}

#[test]
fn what_is_forgotten_goes_at_once_or_with_its_last_lease() {
    let tier = tier(3);
    put(&tier, &key("a", 0), 1);
    let held = get(&tier, &key("a", 1));
    fill(&held, 2);
    assert_eq!(tier.forget(|url| url == "s3://bucket/other"), 0);
    assert_eq!(tier.forget(|url| url == "s3://bucket/model/file"), CHUNK_BYTES);
    assert_eq!(tier.usage(), PinnedUse { staging_bytes: CHUNK_BYTES, cached_bytes: 0, ..tier.usage() });
    drop(held);
    assert_eq!(tier.source.get().unwrap().stats().used_bytes, 0);
}
