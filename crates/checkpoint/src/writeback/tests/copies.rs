//! Saves that are finished by another node, from copies that peers hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use longshore_testkit::origin::{Fault, FaultKind};
use longshore_types::checkpoint::{held_record_name, parse_held_record_name};
use longshore_types::{ChunkKey, Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;
use crate::engine::{Recovery, RecoveryProgress};
use crate::held;
use crate::sink::{HeldRecord, HeldRecords, SinkHow};

const URI: &str = "s3://bucket/run";

/// Workers, each with what it holds: copy `n` of a chunk is at worker `n`.
#[derive(Default)]
struct Peers {
    workers: [Mutex<HashMap<ChunkKey, Bytes>>; 2],
    released: Mutex<Vec<AttemptId>>,
    bad_copies: AtomicUsize,
}

impl Peers {
    /// Flips a byte of every copy that a worker has and that is of interest.
    fn damage(&self, worker: usize, is_it: impl Fn(&ChunkKey) -> bool) {
        for (_, bytes) in self.workers[worker].lock().iter_mut().filter(|(key, _)| is_it(key)) {
            let mut changed = bytes.to_vec();
            changed[bytes.len() / 2] ^= 1;
            *bytes = changed.into();
        }
    }

    fn forget(&self, is_it: impl Fn(&ChunkKey) -> bool) {
        self.workers.iter().for_each(|worker| worker.lock().retain(|key, _| !is_it(key)));
    }
}

fn is_record(key: &ChunkKey) -> bool {
    key.artifact().url().contains("/_HELD-")
}

#[async_trait::async_trait]
impl ChunkSink for Peers {
    async fn put(&self, key: &ChunkKey, bytes: Bytes, blocks: &[BlockChecksum], how: SinkHow) -> Result<()> {
        assert_eq!(BlockChecksum::of_blocks(&bytes), blocks);
        if let SinkHow::Hold { copy, .. } = how {
            self.workers[copy as usize].lock().insert(key.clone(), bytes);
        }
        Ok(())
    }

    async fn release(&self, attempt: &AttemptId) {
        self.released.lock().push(*attempt);
        self.forget(|key| key.artifact().version().as_str() == format!("attempt:{attempt}"));
    }

    fn peers(&self) -> usize {
        self.workers.len()
    }

    async fn held(&self, step_url: &str) -> Result<HeldRecords> {
        let mut held = HeldRecords::default();
        for key in self.workers.iter().flat_map(|worker| worker.lock().keys().cloned().collect::<Vec<_>>()) {
            let name = key.artifact().url().strip_prefix(step_url).and_then(|rest| rest.strip_prefix('/'));
            if let Some((attempt, rank)) = name.and_then(parse_held_record_name) {
                let record = HeldRecord { artifact: key.artifact().clone(), attempt, rank };
                if !held.records.contains(&record) {
                    held.records.push(record);
                }
            }
        }
        Ok(held)
    }

    async fn fetch(&self, key: &ChunkKey, blocks: Option<&[BlockChecksum]>) -> Result<Bytes> {
        let mut code = Code::NotFound;
        for worker in &self.workers {
            let Some(bytes) = worker.lock().get(key).cloned() else { continue };
            match blocks {
                Some(blocks) if BlockChecksum::of_blocks(&bytes) != blocks => {
                    self.bad_copies.fetch_add(1, Relaxed);
                    code = Code::Corrupt;
                }
                _ => return Ok(bytes),
            }
        }
        Err(Error::new(code, format!("nobody has a good copy of chunk {} of {}", key.index(), key.artifact().url())))
    }
}

/// Two nodes with the same peers; the first one saves, and ends before anything is committed.
struct Pair {
    fake: FakeOrigin,
    peers: Arc<Peers>,
    one: Node,
    two: Node,
}

impl Pair {
    async fn new() -> Pair {
        let (fake, peers) = (server(), Arc::new(Peers::default()));
        let one = Node::with_sink(&origins_of(&fake), peers.clone()).await;
        let two = Node::with_sink(&origins_of(&fake), peers.clone()).await;
        Pair { fake, peers, one, two }
    }

    fn down(&self, pattern: &str) {
        self.fake.fault(Fault::new(FaultKind::Status(503)).any_verb().on(pattern));
    }

    async fn held(&self, attempt: AttemptId) {
        let is_held = |status: &Arc<SaveStatus>| status.ranks.iter().any(|rank| rank.peer_durable);
        self.one.until(attempt, is_held).await;
        self.one.engine.close(PATIENCE).await;
    }

    async fn save(&self, content: &Content, copies: u32) -> AttemptId {
        self.down("bucket/*");
        let options = SaveOptions { peer_copies: copies, hf_index: true, ..SaveOptions::default() };
        let attempt = self.one.save(URI, 5, &options, content).await;
        self.held(attempt).await;
        self.fake.clear_faults();
        attempt
    }
}

impl Node {
    async fn recover(&self, step: u64) -> Result<Recovery> {
        let (progress, seen) = watch::channel(RecoveryProgress::default());
        let recovery = self.engine.recover(URI, step, &progress).await?;
        let seen = *seen.borrow();
        assert_eq!((seen.bytes_done, seen.bytes_total), (recovery.bytes, recovery.bytes));
        Ok(recovery)
    }

    /// What lies in the spool beside attempts that go on.
    fn leftovers(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("spool/recovering")).map_or(0, Iterator::count)
    }
}

async fn soon(mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it never came to that");
        tokio::task::yield_now().await;
    }
}

fn content() -> Content {
    Content::small(3).tensor("", "large", 9, 37 * MIB)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_commits_what_peers_hold() {
    let pair = Pair::new().await;
    let attempt = pair.save(&content(), 1).await;
    let recovery = pair.two.recover(5).await.unwrap();
    assert_eq!((recovery.attempt, recovery.is_committed), (attempt, false));
    assert_eq!((&recovery.recovered[..], &recovery.here[..], &recovery.stored[..]), (&[0][..], &[][..], &[][..]));
    let status = pair.two.committed(attempt).await;
    assert!(status.bytes_total > 37 << 20 && status.bytes_durable == status.bytes_total, "{status:?}");
    assert!(status.ranks[0].peer_durable && status.notes.iter().any(|note| note.contains("recovered")), "{status:?}");
    pair.two.assert_whole(URI, 5, &content()).await;
    soon(|| pair.two.leftovers() == 0).await;
    pair.two.engine.close(PATIENCE).await;
    assert_eq!(*pair.peers.released.lock(), [attempt]);
    // The node that saved has its disk after all.
    let one = pair.one.restart().await;
    one.committed(attempt).await;
    one.assert_whole(URI, 5, &content()).await;
    let again = one.recover(5).await.unwrap();
    assert!(again.is_committed && again.attempt == attempt, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_save_goes_on_after_a_restart() {
    let pair = Pair::new().await;
    let attempt = pair.save(&content(), 1).await;
    pair.down("bucket/run/step-5/*.safetensors");
    pair.two.recover(5).await.unwrap();
    let again = pair.two.recover(5).await.unwrap();
    assert_eq!((&again.recovered[..], &again.here[..], again.bytes), (&[][..], &[0][..], 0));
    // Nobody needs the copies from here on.
    pair.peers.forget(|_| true);
    let folder = pair.two.folder.path().join("spool/recovering/x/y");
    std::fs::create_dir_all(&folder).unwrap();
    let two = pair.two.restart().await;
    assert_eq!(two.leftovers(), 0, "what a recovery left goes at the start");
    pair.fake.clear_faults();
    two.committed(attempt).await;
    two.assert_whole(URI, 5, &content()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_copy_is_passed_over_and_without_a_good_one_nothing_stays() {
    let pair = Pair::new().await;
    let attempt = pair.save(&content(), 2).await;
    pair.peers.damage(0, |key| !is_record(key));
    let large = |key: &ChunkKey| key.artifact().size_bytes() > 30 << 20 && key.index() == 1;
    pair.peers.damage(1, large);
    let error = pair.two.recover(5).await.unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error}");
    assert!(error.message().contains("chunk 1 of s3://bucket/run/step-5/model-"), "{error}");
    assert!(pair.two.engine.saves().is_empty() && pair.two.catalog().list(URI).await.unwrap().checkpoints.is_empty());
    assert!(pair.peers.released.lock().is_empty());
    // It turns out to be good elsewhere.
    pair.peers.damage(1, large);
    let bad = pair.peers.bad_copies.load(Relaxed);
    pair.two.recover(5).await.unwrap();
    assert!(pair.peers.bad_copies.load(Relaxed) > bad);
    pair.two.committed(attempt).await;
    pair.two.assert_whole(URI, 5, &content()).await;
    // The folder of the first try goes in the background.
    soon(|| pair.two.leftovers() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_holds_is_named() {
    let pair = Pair::new().await;
    let error = pair.two.recover(5).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("no worker holds copies of s3://bucket/run/step-5"), "{error}");

    let attempt = pair.save(&content(), 1).await;
    // A record that says nothing is as good as none.
    pair.peers.damage(0, is_record);
    let error = pair.two.recover(5).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains(&held_record_name(&attempt, 0)), "{error}");
    assert!(pair.fake.paths("bucket/run/").is_empty(), "the step is not claimed for nothing");
}

/// The plan of two ranks with copies.
async fn two_ranks(node: &Node) -> (SavePlan, [Content; 2], Content) {
    let (one, two) = (Content::small(7), Content::default().tensor("", "b", 52, 18 * MIB));
    let options = SaveOptions { peer_copies: 1, ..SaveOptions::default() };
    let plans = tokio::join!(
        node.engine.plan(one.request(URI, 5, options.clone(), 2, 0)),
        node.engine.plan(two.request(URI, 5, options, 2, 1)),
    );
    let mut all = one.clone();
    all.tensors.extend(two.tensors.clone());
    ((*plans.0.unwrap()).clone(), [one, two], all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_comes_back_joins_the_one_that_is_here() {
    let pair = Pair::new().await;
    let (plan, [first, second], all) = two_ranks(&pair.one).await;
    pair.down("bucket/*");
    pair.one.save_rank(&plan, 0, &first).await;
    pair.held(plan.attempt).await;
    pair.fake.clear_faults();
    // Of two ranks one is held, and the other one nowhere.
    let error = pair.two.recover(5).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("nobody holds rank 1,"), "{error}");

    pair.two.save_rank(&plan, 1, &second).await;
    pair.two.until(plan.attempt, |status| status.waiting_for.contains("rank 0")).await;
    let recovery = pair.two.recover(5).await.unwrap();
    assert_eq!((&recovery.recovered[..], &recovery.here[..]), (&[0][..], &[1][..]));
    let status = pair.two.committed(plan.attempt).await;
    assert_eq!((status.ranks.len(), status.bytes_durable), (2, status.bytes_total), "{status:?}");
    pair.two.assert_whole(URI, 5, &all).await;
    pair.two.engine.close(PATIENCE).await;
    let left = pair.fake.paths("bucket/run/step-5/");
    assert!(!left.iter().any(|path| path.contains("_RANK-")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_is_recovered_with_its_parent() {
    let pair = Pair::new().await;
    let parent = Content::default().tensor("", "w", 1, 70 * MIB);
    let mut content = parent.clone();
    content.tensors[0].1[20 * MIB..20 * MIB + 9].copy_from_slice(b"different");
    let first = pair.one.save(URI, 4, &SaveOptions::default(), &parent).await;
    pair.one.committed(first).await;
    pair.down("bucket/run/step-5/delta-*");
    let options = SaveOptions { delta: true, peer_copies: 1, ..SaveOptions::default() };
    let attempt = pair.one.save(URI, 5, &options, &content).await;
    pair.held(attempt).await;
    pair.fake.clear_faults();
    let recovery = pair.two.recover(5).await.unwrap();
    assert_eq!(recovery.bytes, 16 << 20, "what changed, and nothing else");
    pair.two.committed(attempt).await;
    let commit = pair.two.assert_whole(URI, 5, &content).await;
    assert_eq!((commit.delta_depth, commit.parent.unwrap().attempt), (1, first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_another_attempt_has_is_left_to_it() {
    let pair = Pair::new().await;
    let attempt = pair.save(&content(), 1).await;
    // Planned later, and still without its bytes.
    let plan = pair.two.plan(URI, 5, &SaveOptions::default(), &Content::small(8)).await;
    pair.two.engine.start(plan.clone(), 0, vec![]).await.unwrap();
    soon(|| pair.fake.content("bucket/run/step-5/_INTENT.json").is_some()).await;
    pair.two.engine.cancel(&plan.attempt).await.unwrap();
    pair.two.ended(plan.attempt).await;
    let error = pair.two.recover(5).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("fenced") && error.message().contains(&plan.attempt.to_string()), "{error}");
    assert_eq!(pair.peers.released.lock().iter().filter(|released| **released == attempt).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_a_note() {
    let pair = Pair::new().await;
    let mut content = Content::default();
    for tensor in 0..3000 {
        content = content.tensor("", &format!("a.name.that.is.rather.long.{tensor}"), tensor, 8);
    }
    let options = SaveOptions { peer_copies: 1, ..SaveOptions::default() };
    let attempt = pair.one.save(URI, 5, &options, &content).await;
    let status = pair.one.committed(attempt).await;
    let is_told = |note: &String| note.contains("not peer-durable: its plan and checksums have");
    assert!(!status.ranks[0].peer_durable && status.notes.iter().any(is_told), "{:?}", status.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_exactly_what_was_held_or_refused() {
    let pair = Pair::new().await;
    let attempt = pair.save(&content(), 1).await;
    let held = pair.peers.workers[0].lock().clone();
    let (key, bytes) = held.iter().find(|(key, _)| is_record(key)).unwrap();
    let url = key.artifact().url();
    let read = held::decode(bytes, &attempt, 0, url).unwrap();
    assert_eq!((read.rank, read.plan.attempt, read.base), (0, attempt, None));
    let refused = |bytes: &[u8], attempt: &AttemptId, rank: u32| {
        let error = held::decode(bytes, attempt, rank, url).unwrap_err();
        assert!(error.code() == Code::Corrupt && error.message().contains(url), "{error}");
    };
    refused(bytes, &attempt, 1);
    refused(bytes, &AttemptId::from_bytes([1; 16]), 0);
    refused(b"", &attempt, 0);
    refused(&[&bytes[..], &[0]].concat(), &attempt, 0);
    for at in (0..bytes.len()).step_by(7) {
        refused(&bytes[..at], &attempt, 0);
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 4;
        refused(&flipped, &attempt, 0);
    }
}
