use std::collections::{HashMap, HashSet};

use longshore_memory::Arena;
use longshore_types::checkpoint::held_record_name;
use longshore_types::{Artifact, CHUNK_BYTES, Manifest, Selection, Version};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, ClientOptions, Endpoint, GrowingChunk, GrowingWriter, Incoming,
    Mode, Page, PutRequest, PutStart, Tier,
};

use super::*;
use crate::cluster::{MemberState, Sources};

const LEN: usize = 3 << 20;

/// A worker that remembers what it was given.
#[derive(Default)]
struct Worker {
    puts: Mutex<Vec<(ChunkKey, PutMode)>>,
    chunks: Mutex<HashMap<ChunkKey, Arc<GrowingChunk>>>,
    /// Asked again for a copy that was bad.
    rechecks: std::sync::atomic::AtomicUsize,
    is_silent: std::sync::atomic::AtomicBool,
    released: Mutex<Vec<AttemptId>>,
    is_full: std::sync::atomic::AtomicBool,
}

struct Taking(Arc<Handle>, PutRequest, GrowingWriter, Arc<GrowingChunk>);
struct Handle(Arc<Worker>);

impl ChunkService for Handle {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        assert_eq!(request.mode, Mode::OnlyIfCached, "nothing is filled from the origin");
        self.check()?;
        self.0.rechecks.fetch_add(usize::from(request.recheck), Relaxed);
        let chunk = self.0.chunks.lock().get(&request.key).cloned();
        let chunk = chunk.ok_or_else(|| Error::new(Code::NotFound, "not here"))?;
        Ok(ChunkReply { tier: Tier::Disk, body: ChunkBody::Memory(chunk) })
    }

    fn put(&self, request: &PutRequest) -> Result<PutStart> {
        if self.0.is_full.load(Relaxed) {
            return Err(Error::new(Code::Exhausted, "full"));
        }
        let buffer = Arena::new(CHUNK_BYTES).try_buffer(request.key.len_bytes() as usize).unwrap();
        let (writer, chunk) = GrowingChunk::begin(request.key.clone(), buffer)?;
        Ok(PutStart::Take(Box::new(Taking(Arc::new(Handle(self.0.clone())), request.clone(), writer, chunk))))
    }

    fn release(&self, attempt: &AttemptId) -> Result<()> {
        self.0.released.lock().push(*attempt);
        Ok(())
    }

    fn page(&self, path: &str) -> Option<Page> {
        if self.check().is_err() {
            return Some(Page { status: 503, content_type: "text/plain".to_owned(), body: Vec::new() });
        }
        let records = format!("/v1/holds/{}/records", attempt());
        let body = match path {
            "/v1/holds" => serde_json::json!({ "attempts": [{ "attempt": attempt().to_string() }] }),
            path if path == records => {
                let chunks = self.0.chunks.lock();
                let object = |key: &ChunkKey| {
                    let artifact = key.artifact();
                    serde_json::json!({
                        "url": artifact.url(), "version": artifact.version().as_str(),
                        "size_bytes": artifact.size_bytes(), "chunks": [key.index()],
                    })
                };
                serde_json::json!({ "objects": chunks.keys().map(object).collect::<Vec<_>>() })
            }
            _ => return None,
        };
        Some(Page { status: 200, content_type: "application/json".to_owned(), body: body.to_string().into_bytes() })
    }
}

impl Handle {
    fn check(&self) -> Result<()> {
        match self.0.is_silent.load(Relaxed) {
            true => Err(Error::new(Code::Unavailable, "it does not answer")),
            false => Ok(()),
        }
    }
}

impl Incoming for Taking {
    fn writer(&mut self) -> &mut GrowingWriter {
        &mut self.2
    }

    fn keep(self: Box<Self>) -> Result<()> {
        self.2.finish()?;
        self.0.0.chunks.lock().insert(self.1.key.clone(), self.3);
        self.0.0.puts.lock().push((self.1.key, self.1.mode));
        Ok(())
    }
}

/// Workers on hosts of their own, all of them owners in the same order.
struct Fake(Vec<Arc<Worker>>);

impl Fake {
    fn new(count: usize) -> Arc<Fake> {
        Arc::new(Fake((0..count).map(|_| Arc::default()).collect()))
    }

    fn all(&self) -> Vec<Source> {
        let source = |(number, worker): (usize, &Arc<Worker>)| Source {
            endpoint: Endpoint::InProcess(Arc::new(Handle(worker.clone()))),
            label: format!("worker-{number}"),
            member: Some(longshore_cluster::MemberId::from_bytes([number as u8; 16])),
        };
        self.0.iter().enumerate().map(source).collect()
    }

    /// Who holds something, by number.
    fn holding(&self) -> Vec<usize> {
        let held = |worker: &Arc<Worker>| worker.puts.lock().iter().any(|(_, mode)| *mode != PutMode::Cache);
        (0..self.0.len()).filter(|&number| held(&self.0[number])).collect()
    }

    fn fill(&self, number: usize, is_full: bool) {
        self.0[number].is_full.store(is_full, Relaxed);
    }
}

#[async_trait]
impl Cluster for Fake {
    async fn manifest(&self, _: &str, _: &Selection, _: bool) -> Result<(Manifest, bool)> {
        Err(Error::new(Code::Unavailable, "nobody is asked here"))
    }

    fn sources(&self, _: &ChunkKey) -> Sources {
        self.all().into()
    }

    fn holders(&self, _: &ChunkKey) -> Vec<Holder> {
        self.all().into_iter().enumerate().map(|(n, source)| Holder { source, host: n.to_string() }).collect()
    }

    fn holder_count(&self) -> usize {
        self.0.len()
    }

    fn everyone(&self) -> Vec<Source> {
        self.all()
    }

    fn has_workers(&self) -> bool {
        !self.0.is_empty()
    }

    fn report(&self, _: &Source, _: bool) {}

    fn members(&self) -> Vec<MemberState> {
        Vec::new()
    }
}

fn attempt() -> AttemptId {
    AttemptId::from_bytes([7; 16])
}

fn chunk() -> (ChunkKey, Bytes, Vec<BlockChecksum>) {
    let bytes: Vec<u8> = (0..LEN).map(|at| ((at * 7) >> 3) as u8).collect();
    let version = Version::new(format!("attempt:{}", attempt())).unwrap();
    let artifact = Arc::new(Artifact::new("s3://b/run/step-1/f", version, LEN as u64).unwrap());
    let blocks = BlockChecksum::of_blocks(&bytes);
    (ChunkKey::new(artifact, 0).unwrap(), bytes.into(), blocks)
}

fn sink(cluster: &Arc<Fake>) -> Arc<ClusterSink> {
    ClusterSink::new(cluster.clone(), DataClient::new(ClientOptions::default()))
}

#[tokio::test]
async fn copies_go_to_different_hosts_and_a_full_one_is_passed_over() {
    let (cluster, (key, bytes, blocks)) = (Fake::new(3), chunk());
    let sink = sink(&cluster);
    assert_eq!(sink.peers(), 3);
    let hold = |copy| sink.put(&key, bytes.clone(), &blocks, SinkHow::Hold { attempt: attempt(), copy });
    cluster.fill(0, true);
    hold(0).await.unwrap();
    hold(1).await.unwrap();
    assert_eq!(cluster.holding(), [1, 2], "one copy each, not both on one host");
    assert_eq!(sink.stats().hold_failures, 1);
    let error = hold(2).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    cluster.fill(0, false);
    hold(2).await.unwrap();
    assert_eq!(cluster.holding(), [0, 1, 2]);
    assert_eq!(hold(3).await.unwrap_err().code(), Code::FailedPrecondition, "there is no fourth host");

    sink.release(&attempt()).await;
    assert!(cluster.0.iter().all(|worker| *worker.released.lock() == [attempt()]));
    assert!(sink.places.lock().is_empty());
    assert_eq!(sink.stats().release_failures, 0);
}

#[tokio::test]
async fn a_cache_is_the_first_owner_that_takes_the_chunk() {
    let (cluster, (key, bytes, blocks)) = (Fake::new(3), chunk());
    let sink = sink(&cluster);
    let put = || sink.put(&key, bytes.clone(), &blocks, SinkHow::Cache);
    put().await.unwrap();
    cluster.fill(0, true);
    put().await.unwrap();
    let counts: Vec<usize> = cluster.0.iter().map(|worker| worker.puts.lock().len()).collect();
    assert_eq!(counts, [1, 1, 0]);
    cluster.fill(1, true);
    assert_eq!(put().await.unwrap_err().code(), Code::Exhausted);
    assert_eq!((sink.stats().cached, sink.stats().cache_failures), (2, 3));
    // What is announced wrong is refused where it lands, and not sent on as if it were right.
    cluster.fill(0, false);
    let mut wrong = blocks.clone();
    wrong[1] = BlockChecksum(1);
    let error = sink.put(&key, bytes.clone(), &wrong, SinkHow::Cache).await.unwrap_err();
    assert!(matches!(error.code(), Code::Corrupt | Code::Exhausted), "{error}");
}

#[tokio::test]
async fn without_workers_nothing_is_cached_and_nobody_holds() {
    let (cluster, (key, bytes, blocks)) = (Fake::new(0), chunk());
    let sink = sink(&cluster);
    sink.put(&key, bytes.clone(), &blocks, SinkHow::Cache).await.unwrap();
    let hold = SinkHow::Hold { attempt: attempt(), copy: 0 };
    assert_eq!(sink.put(&key, bytes, &blocks, hold).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!((sink.peers(), sink.stats().cached), (0, 0));
    let modes: HashSet<usize> = cluster.holding().into_iter().collect();
    assert!(modes.is_empty());
}

fn record(rank: u32, size_bytes: u64) -> (Arc<Artifact>, Vec<u8>) {
    let version = Version::new(format!("attempt:{}", attempt())).unwrap();
    let url = format!("s3://b/run/step-1/{}", held_record_name(&attempt(), rank));
    let bytes = (0..size_bytes).map(|at| (at >> 7) as u8).collect();
    (Arc::new(Artifact::new(url, version, size_bytes).unwrap()), bytes)
}

#[tokio::test]
async fn records_are_found_wherever_they_are_and_only_whole() {
    let cluster = Fake::new(3);
    let sink = sink(&cluster);
    for (rank, len) in [(0, 100), (4, CHUNK_BYTES + 5)] {
        let (artifact, bytes) = record(rank, len);
        for (key, bytes) in ChunkKey::all(&artifact).zip(bytes.chunks(CHUNK_BYTES as usize)) {
            let how = SinkHow::Hold { attempt: attempt(), copy: key.index() };
            sink.put(&key, Bytes::copy_from_slice(bytes), &BlockChecksum::of_blocks(bytes), how).await.unwrap();
        }
    }
    // A chunk of the data is no record.
    let (key, bytes, blocks) = chunk();
    sink.put(&key, bytes, &blocks, SinkHow::Hold { attempt: attempt(), copy: 0 }).await.unwrap();
    let held = sink.held("s3://b/run/step-1").await.unwrap();
    let ranks: Vec<(u32, u64)> = held.records.iter().map(|held| (held.rank, held.artifact.size_bytes())).collect();
    assert_eq!((&ranks[..], held.unanswered.len()), (&[(0, 100), (4, CHUNK_BYTES + 5)][..], 0));
    for found in &held.records {
        let (_, bytes) = record(found.rank, found.artifact.size_bytes());
        let mut got = Vec::new();
        for key in ChunkKey::all(&found.artifact) {
            got.extend_from_slice(&sink.fetch(&key, None).await.unwrap());
        }
        assert!(got == bytes, "rank {}", found.rank);
    }
    assert!(sink.held("s3://b/run/step-10").await.unwrap().records.is_empty());
    // The second chunk of rank 4's went elsewhere, and that worker is silent.
    cluster.0[1].is_silent.store(true, Relaxed);
    let held = sink.held("s3://b/run/step-1").await.unwrap();
    assert_eq!(held.records.iter().map(|held| held.rank).collect::<Vec<_>>(), [0]);
    assert!(held.unanswered.len() == 1 && held.unanswered[0].starts_with("worker-1 ("), "{:?}", held.unanswered);
}

#[tokio::test]
async fn a_chunk_comes_from_whoever_has_a_good_copy() {
    let (cluster, (key, bytes, blocks)) = (Fake::new(3), chunk());
    let sink = sink(&cluster);
    let error = sink.fetch(&key, Some(&blocks)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    sink.put(&key, bytes.clone(), &blocks, SinkHow::Hold { attempt: attempt(), copy: 2 }).await.unwrap();
    assert_eq!(cluster.holding(), [2]);
    // Something else under the same name, whole by itself, at the first that is asked.
    let other = vec![7; LEN];
    let put = |worker: usize, bytes: Vec<u8>| {
        let endpoint = cluster.all()[worker].endpoint.clone();
        let blocks = BlockChecksum::of_blocks(&bytes);
        DataClient::new(ClientOptions::default()).put(&endpoint, &key, &bytes, &blocks, PutMode::Cache).unwrap();
    };
    put(0, other);
    assert!(sink.fetch(&key, Some(&blocks)).await.unwrap() == bytes);
    assert_eq!(cluster.0[0].rechecks.load(Relaxed), 1, "it is asked once more, for another copy");
    cluster.0[2].is_silent.store(true, Relaxed);
    let error = sink.fetch(&key, Some(&blocks)).await.unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error}");
    for part in ["chunk 0 of s3://b/run/step-1/f", "worker-0: ", "worker-2: ", "it does not answer"] {
        assert!(error.message().contains(part), "{part:?} is not in {error}");
    }
}

#[tokio::test]
async fn without_workers_nothing_is_looked_for() {
    let error = sink(&Fake::new(0)).held("s3://b/run/step-1").await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains("--workers"), "{error}");
}
