use std::collections::HashSet;

use longshore_memory::Arena;
use longshore_types::{Artifact, CHUNK_BYTES, Manifest, Selection, Version};
use longshore_wire::{
    ChunkReply, ChunkRequest, ChunkService, ClientOptions, Endpoint, GrowingChunk, GrowingWriter, Incoming, Page,
    PutRequest, PutStart,
};

use super::*;
use crate::cluster::{MemberState, Sources};

const LEN: usize = 3 << 20;

/// A worker that remembers what it was given.
#[derive(Default)]
struct Worker {
    puts: Mutex<Vec<(ChunkKey, PutMode)>>,
    released: Mutex<Vec<AttemptId>>,
    is_full: std::sync::atomic::AtomicBool,
}

struct Taking(Arc<Handle>, PutRequest, GrowingWriter);
struct Handle(Arc<Worker>);

impl ChunkService for Handle {
    fn get(&self, _: &ChunkRequest) -> Result<ChunkReply> {
        Err(Error::new(Code::NotFound, "nothing is read here"))
    }

    fn put(&self, request: &PutRequest) -> Result<PutStart> {
        if self.0.is_full.load(Relaxed) {
            return Err(Error::new(Code::Exhausted, "full"));
        }
        let buffer = Arena::new(CHUNK_BYTES).try_buffer(request.key.len_bytes() as usize).unwrap();
        let (writer, _) = GrowingChunk::begin(request.key.clone(), buffer)?;
        Ok(PutStart::Take(Box::new(Taking(Arc::new(Handle(self.0.clone())), request.clone(), writer))))
    }

    fn release(&self, attempt: &AttemptId) -> Result<()> {
        self.0.released.lock().push(*attempt);
        Ok(())
    }

    fn page(&self, _: &str) -> Option<Page> {
        None
    }
}

impl Incoming for Taking {
    fn writer(&mut self) -> &mut GrowingWriter {
        &mut self.2
    }

    fn keep(self: Box<Self>) -> Result<()> {
        self.2.finish()?;
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
        let source = |worker: &Arc<Worker>| Source {
            endpoint: Endpoint::InProcess(Arc::new(Handle(worker.clone()))),
            label: "w".to_owned(),
            member: None,
        };
        self.0.iter().map(source).collect()
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
