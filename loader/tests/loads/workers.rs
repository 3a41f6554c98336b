//! A worker that has everything its origin has, and does what it is told to do wrong; and the cluster of several.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use longshore_cluster::MemberId;
use longshore_loader::cluster::direct;
use longshore_loader::{Cluster, MemberState, Source, Sources};
use longshore_memory::Arena;
use longshore_origin::Origins;
use longshore_testkit::FakeOrigin;
use longshore_types::{BLOCK_BYTES, BlockChecksum, ChunkKey, Code, Error, Manifest, Result, Selection};
use longshore_wire::{ChunkBody, ChunkReply, ChunkRequest, ChunkService, Endpoint, GrowingChunk, Mode, Page, Tier};
use parking_lot::{Condvar, Mutex};

/// What a worker does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Nothing.
    Good,
    /// Every request fails like this.
    Fails(Code),
    /// A bit of every copy is flipped until a recheck drops the copy.
    CorruptUntilRecheck,
    /// A bit of every copy is flipped, for ever.
    Corrupt,
    /// A bit of every copy is flipped, and the checksums agree with it: whole, and something else.
    Wrong,
    /// The same until a recheck that says what the blocks must be.
    WrongUntilTold,
    /// Answers begin and never go on.
    Stalls,
    /// Requests wait until [`TestWorker::open_gate`].
    Gated,
}

/// See the module.
pub struct TestWorker {
    origin: Arc<FakeOrigin>,
    behaviour: Mutex<Behaviour>,
    gate: Condvar,
    healed: Mutex<HashSet<String>>,
    held: Mutex<Vec<longshore_wire::GrowingWriter>>,
    arena: Arena,
    /// Whether requests for what is cached are answered.
    pub has_copies: AtomicBool,
    requests: AtomicU64,
    waiting: AtomicU64,
}

impl TestWorker {
    pub fn new(origin: Arc<FakeOrigin>) -> Arc<TestWorker> {
        Arc::new(TestWorker {
            origin,
            behaviour: Mutex::new(Behaviour::Good),
            gate: Condvar::new(),
            healed: Mutex::default(),
            held: Mutex::default(),
            arena: Arena::new(1 << 30),
            has_copies: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        })
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
        self.gate.notify_all();
    }

    pub fn open_gate(&self) {
        self.set(Behaviour::Good);
    }

    /// Chunks that were asked for.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Requests that wait at the gate.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }

    fn bytes(&self, key: &ChunkKey) -> Result<Vec<u8>> {
        let path = key.artifact().url().strip_prefix("s3://").unwrap();
        let content = self.origin.content(path).ok_or_else(|| Error::new(Code::NotFound, "no such object"))?;
        Ok(content.read(key.range()))
    }

    fn file(&self, key: &ChunkKey, flip: bool) -> Result<ChunkReply> {
        let mut bytes = self.bytes(key)?;
        let checksums: Arc<[BlockChecksum]> = BlockChecksum::of_blocks(&bytes).into();
        assert_eq!(checksums.len() as u64, (bytes.len() as u64).div_ceil(BLOCK_BYTES));
        if flip {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        Self::reply(&bytes, checksums)
    }

    /// A copy that was wrong when its checksums were made.
    fn wrong(&self, key: &ChunkKey) -> Result<ChunkReply> {
        let mut bytes = self.bytes(key)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        Self::reply(&bytes, BlockChecksum::of_blocks(&bytes).into())
    }

    fn reply(bytes: &[u8], checksums: Arc<[BlockChecksum]>) -> Result<ChunkReply> {
        let mut file: File = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Ok(ChunkReply { tier: Tier::Disk, body: ChunkBody::File { file: Arc::new(file), offset_bytes: 0, checksums } })
    }

    fn growing(&self, key: &ChunkKey, stalls: bool) -> Result<ChunkReply> {
        let bytes = self.bytes(key)?;
        let buffer = self.arena.try_buffer(bytes.len()).expect("room in the arena of the test");
        let (mut writer, chunk) = GrowingChunk::begin(key.clone(), buffer)?;
        if stalls {
            self.held.lock().push(writer);
        } else {
            writer.write(&bytes)?;
            writer.finish()?;
        }
        Ok(ChunkReply { tier: Tier::Memory, body: ChunkBody::Memory(chunk) })
    }
}

impl ChunkService for TestWorker {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if request.mode == Mode::OnlyIfCached && !self.has_copies.load(Ordering::SeqCst) {
            return Err(Error::new(Code::NotFound, "not cached"));
        }
        let mut behaviour = self.behaviour.lock();
        if *behaviour == Behaviour::Gated {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            self.gate.wait_while(&mut behaviour, |behaviour| *behaviour == Behaviour::Gated);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let behaviour = *behaviour;
        let id = request.key.id().to_string();
        if request.recheck && (behaviour != Behaviour::WrongUntilTold || request.expected.is_some()) {
            self.healed.lock().insert(id.clone());
        }
        match behaviour {
            Behaviour::Good | Behaviour::Gated => self.growing(&request.key, false),
            Behaviour::Fails(code) => Err(Error::new(code, "told to fail")),
            Behaviour::CorruptUntilRecheck => self.file(&request.key, !self.healed.lock().contains(&id)),
            Behaviour::Corrupt => self.file(&request.key, true),
            Behaviour::WrongUntilTold if self.healed.lock().contains(&id) => self.growing(&request.key, false),
            Behaviour::Wrong | Behaviour::WrongUntilTold => self.wrong(&request.key),
            Behaviour::Stalls => self.growing(&request.key, true),
        }
    }

    fn page(&self, _path: &str) -> Option<Page> {
        None
    }
}

/// Chunks are spread over the workers in turn; the manifest comes from the origin.
pub struct TestCluster {
    pub origins: Origins,
    pub endpoints: Vec<Endpoint>,
    pub reports: Mutex<Vec<(String, bool)>>,
    pub manifests: AtomicU64,
    pub is_down: AtomicBool,
    pub nearby: Mutex<Option<Arc<TestWorker>>>,
}

#[async_trait]
impl Cluster for TestCluster {
    async fn manifest(&self, url: &str, selection: &Selection, _revalidate: bool) -> Result<(Manifest, bool)> {
        self.manifests.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::new(Code::Unavailable, "nobody can be asked"));
        }
        Ok((direct::manifest(&self.origins, url, selection).await?, false))
    }

    fn sources(&self, key: &ChunkKey) -> Sources {
        let count = self.endpoints.len();
        (0..count)
            .map(|next| (key.index() as usize + next) % count)
            .map(|worker| Source {
                endpoint: self.endpoints[worker].clone(),
                label: format!("worker {worker}"),
                member: Some(MemberId::from_bytes([worker as u8; 16])),
            })
            .collect::<Vec<_>>()
            .into()
    }

    fn nearby(&self, _key: &ChunkKey) -> Option<Source> {
        let worker = self.nearby.lock().clone()?;
        Some(Source { endpoint: Endpoint::InProcess(worker), label: "nearby".to_owned(), member: None })
    }

    fn report(&self, source: &Source, ok: bool) {
        self.reports.lock().push((source.label.clone(), ok));
    }

    fn members(&self) -> Vec<MemberState> {
        Vec::new()
    }
}
