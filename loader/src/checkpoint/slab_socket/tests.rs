//! The slab socket, spoken to well and badly.

mod abuse;
mod process;
mod service;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use longshore_checkpoint::{
    SLAB_RETURN_GRACE, SealedSlab, SlabEvent, SlabKey, SlabOptions, SlabPlans, SlabWanted, slab_count,
};
use longshore_memory::Arena;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use v1::slab_request::Request;
use v1::slab_response::Answer;

use super::*;
use crate::sockets::{self, BoundSocket, SocketGuard};

const SLAB: u64 = 64 << 10;
/// For what must happen; well below the time for which a living client's memory is kept.
const SOON: Duration = Duration::from_secs(20);
const ATTEMPT: &str = "00000000-0000-4000-8000-000000000001";

/// Knows one attempt with files of any length.
#[derive(Default)]
struct Plans {
    durable: Mutex<HashSet<SlabKey>>,
}

impl SlabPlans for Plans {
    fn look_up(&self, key: &SlabKey) -> Result<SlabWanted> {
        if key.attempt.to_string() != ATTEMPT || key.slab_index >= slab_count(u64::MAX) {
            return Err(Error::new(Code::NotFound, "no such attempt"));
        }
        let is_durable = self.durable.lock().contains(key);
        Ok(SlabWanted { length_bytes: SLAB, is_durable, refuse_when_full: false })
    }
}

struct Source(Slabs);

impl SlabSource for Source {
    async fn slabs(&self) -> Result<Slabs> {
        Ok(self.0.clone())
    }
}

/// A loader but for everything else.
struct Fixture {
    place: Arc<tempfile::TempDir>,
    arena: Arena,
    plans: Arc<Plans>,
    slabs: Slabs,
    recovered: Vec<SealedSlab>,
    events: mpsc::Receiver<SlabEvent>,
    token: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    guard: SocketGuard,
}

impl Fixture {
    async fn new(slabs: u64) -> Fixture {
        let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Fixture::at(Arc::new(place), Arc::default(), slabs)
    }

    fn at(place: Arc<tempfile::TempDir>, plans: Arc<Plans>, slabs: u64) -> Fixture {
        let arena = Arena::new(1 << 30);
        let options = SlabOptions {
            folder: place.path().join("slabs"),
            memory: arena.clone(),
            memory_bytes: slabs * SLAB,
            slab_bytes: SLAB,
            return_grace: SLAB_RETURN_GRACE,
        };
        let (slabs, recovered, events) = Slabs::open(options, plans.clone()).unwrap();
        let BoundSocket { listener, guard } = sockets::bind(place.path(), "slabs.sock", 0o600).unwrap();
        let token = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Arc::new(Source(slabs.clone())), token.clone()));
        Fixture { place, arena, plans, slabs, recovered, events, token, serving, guard }
    }

    /// Ends as a loader does that is told to, and begins again.
    async fn restart(self, slabs: u64) -> Fixture {
        let Fixture { place, plans, slabs: old, recovered, events, token, serving, guard, .. } = self;
        token.cancel();
        serving.await.unwrap();
        eventually(|| old.stats().waiting == 0).await;
        old.close();
        drop((events, recovered, guard));
        let folder = place.path().join("slabs");
        // The last part of the old one holds the lock.
        drop(old);
        eventually(|| longshore_memory::slabs::SlabFolder::open(&folder).is_ok()).await;
        Fixture::at(place, plans, slabs)
    }

    fn path(&self) -> &Path {
        self.guard.path()
    }

    async fn client(&self) -> Client {
        Client::begin(self.path(), "").await.unwrap()
    }

    async fn sealed(&mut self) -> SealedSlab {
        match tokio::time::timeout(SOON, self.events.recv()).await.unwrap().unwrap() {
            SlabEvent::Sealed(slab) => slab,
            other => panic!("{other:?}"),
        }
    }

    /// Descriptors of this process that belong to pieces and control pages of this fixture.
    fn descriptors(&self) -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        let folder = self.place.path().join("slabs");
        targets.filter(|path| path.starts_with(&folder) && *path != folder).count()
    }
}

/// A training process.
struct Client {
    stream: UnixStream,
    session: String,
    sealed: Vec<v1::SlabKey>,
    control: File,
    pieces: Vec<(File, u64)>,
}

impl Client {
    async fn begin(path: &Path, session: &str) -> Result<Client, String> {
        let mut stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        let hello = v1::SlabHello { protocol: 1, session: session.to_owned(), ..Default::default() };
        send(&mut stream, Request::Hello(hello)).await;
        let (response, mut fds) = receive(&mut stream).await.ok_or("closed")?;
        let Some(Answer::Welcome(welcome)) = response.answer else { return Err(response.error_code) };
        assert_eq!(fds.len(), 1 + welcome.piece_bytes.len());
        let control = File::from(fds.remove(0));
        let pieces = fds.into_iter().map(File::from).zip(welcome.piece_bytes).collect();
        assert_eq!(welcome.slab_bytes, SLAB);
        Ok(Client { stream, session: welcome.session, sealed: welcome.sealed, control, pieces })
    }

    async fn ask(&mut self, request: Request) -> Result<v1::SlabResponse, String> {
        send(&mut self.stream, request).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<v1::SlabResponse, String> {
        let (response, fds) = receive(&mut self.stream).await.ok_or("closed")?;
        if let Some(Answer::Grant(grant)) = &response.answer {
            assert_eq!(fds.len(), grant.new_piece_bytes.len());
            self.pieces.extend(fds.into_iter().map(File::from).zip(grant.new_piece_bytes.iter().copied()));
        }
        if response.error_code.is_empty() { Ok(response) } else { Err(response.error_code) }
    }

    async fn acquire(&mut self, slab_index: u32) -> Result<v1::SlabGrant, String> {
        self.ask(acquire(slab_index, SOON)).await.map(granted)
    }

    /// Copies, and writes the seal.
    fn fill(&self, grant: &v1::SlabGrant, slab_index: u32) {
        let (piece, len) = &self.pieces[grant.piece as usize];
        assert!(grant.offset_bytes + grant.length_bytes <= *len);
        piece.write_all_at(&contents(slab_index), grant.offset_bytes).unwrap();
        self.control.write_all_at(&2_u32.to_le_bytes(), u64::from(grant.slab) * 128).unwrap();
    }

    async fn seal(&mut self, slab: u32) -> Result<(), String> {
        self.ask(Request::Seal(v1::SealSlab { slab })).await.map(drop)
    }

    async fn save(&mut self, slab_index: u32) {
        let grant = self.acquire(slab_index).await.unwrap();
        self.fill(&grant, slab_index);
        self.seal(grant.slab).await.unwrap();
    }
}

fn acquire(slab_index: u32, wait: Duration) -> Request {
    let key = v1::SlabKey { attempt: ATTEMPT.to_owned(), file: 0, slab_index };
    Request::Acquire(v1::AcquireSlab { key: Some(key), wait_ms: wait.as_millis() as u64 })
}

fn granted(response: v1::SlabResponse) -> v1::SlabGrant {
    match response.answer {
        Some(Answer::Grant(grant)) => grant,
        other => panic!("{other:?}"),
    }
}

async fn send(stream: &mut UnixStream, request: Request) {
    let message = v1::SlabRequest { request: Some(request) };
    stream.write_all(&frame::encode(&message, MESSAGE_BYTES_MAX).unwrap()).await.unwrap();
}

/// `None` when the other side has closed.
async fn receive(stream: &mut UnixStream) -> Option<(v1::SlabResponse, Vec<OwnedFd>)> {
    let receive = async {
        let response: v1::SlabResponse = frame::read(stream, MESSAGE_BYTES_MAX).await.ok()?;
        let fds = frame::receive_fds(stream, response.fd_count as usize).await.unwrap();
        Some((response, fds))
    };
    timeout(SOON, receive).await.expect("no answer")
}

fn contents(slab_index: u32) -> Vec<u8> {
    let word = u64::from(slab_index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    word.into_iter().cycle().take(SLAB as usize).collect()
}

fn is_whole(slab: &SealedSlab) -> bool {
    let mut bytes = vec![0; slab.length_bytes() as usize];
    slab.read(0, &mut bytes).unwrap();
    bytes == contents(slab.key().slab_index)
}

/// Waits for what happens in another task.
async fn eventually(what: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !what() {
        assert!(tokio::time::Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
