//! What a data plane serves: one chunk (or a range of it) at a time, and a few small pages.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{BlockChecksum, ChunkKey, Code, Error, Result, redact_url};

use crate::growing::{GrowingChunk, GrowingWriter};

/// How far the server may go to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// A miss is filled, from another worker or the origin.
    #[default]
    Fill,
    /// A miss is [`Code::NotFound`].
    OnlyIfCached,
    /// A worker asks: a miss is filled, but no other worker is asked, so that requests cannot go in circles.
    FromPeer,
}

/// Where the server had the bytes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The server's memory tier.
    Memory,
    /// A chunk file of the server.
    Disk,
    /// Another worker, in this very request.
    Peer,
    /// The origin, in this very request.
    Origin,
}

impl Tier {
    /// The name in the `Longshore-Tier` header, in reports and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Memory => "memory",
            Tier::Disk => "disk",
            Tier::Peer => "peer",
            Tier::Origin => "origin",
        }
    }

    /// The inverse of [`Tier::as_str`].
    pub fn from_name(name: &str) -> Option<Tier> {
        [Tier::Memory, Tier::Disk, Tier::Peer, Tier::Origin].into_iter().find(|tier| tier.as_str() == name)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request for bytes of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRequest {
    /// The chunk.
    pub key: ChunkKey,
    /// The wanted bytes within the chunk. [`crate::DataClient`] needs whole blocks, see
    /// [`longshore_types::chunk::block_aligned`].
    pub range: Range<u64>,
    /// What to do on a miss.
    pub mode: Mode,
    /// The asker found a wrong checksum: verify the stored copy, and drop it when it is bad, before answering.
    pub recheck: bool,
    /// With `recheck`: what each block of the range must be, where the asker knows that. A copy that is whole and something
    /// else is as bad as a torn one.
    pub expected: Option<Arc<[BlockChecksum]>>,
    /// The asker comes back to the chunk: where memory and a file have it, it wants the file.
    pub prefers_file: bool,
}

impl ChunkRequest {
    /// The whole chunk, filled on a miss.
    pub fn whole(key: ChunkKey) -> Self {
        let range = 0..key.len_bytes();
        ChunkRequest { key, range, mode: Mode::Fill, recheck: false, expected: None, prefers_file: false }
    }

    /// The indices of the blocks which the range touches.
    pub fn blocks(&self) -> Range<usize> {
        crate::block_span(&self.range)
    }

    /// # Errors
    /// [`Code::InvalidArgument`] when the range is empty or not within the chunk.
    pub(crate) fn check(&self) -> Result<()> {
        let len = self.key.len_bytes();
        if self.range.is_empty() || self.range.end > len {
            let Range { start, end } = self.range;
            return Err(Error::new(
                Code::InvalidArgument,
                format!("bytes {start}..{end} are not within {self} of {len} bytes"),
            ));
        }
        Ok(())
    }
}

impl fmt::Display for ChunkRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {} of {}", self.key.index(), redact_url(self.key.artifact().url()))
    }
}

/// What a chunk is put for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Into the cache: it may go at any time.
    Cache,
    /// As a durable copy of a checkpoint that is not in its origin yet: synced, and kept until it is released.
    Hold {
        /// The save that it belongs to.
        attempt: AttemptId,
    },
}

impl PutMode {
    /// The name in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            PutMode::Cache => "cache",
            PutMode::Hold { .. } => "hold",
        }
    }
}

/// One chunk to take in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutRequest {
    /// The chunk.
    pub key: ChunkKey,
    /// What each of its blocks must be, in order.
    pub checksums: Arc<[BlockChecksum]>,
    /// What for.
    pub mode: PutMode,
}

impl PutRequest {
    /// # Errors
    /// [`Code::InvalidArgument`] when there is not one checksum for each block of the chunk.
    pub fn new(key: ChunkKey, checksums: Arc<[BlockChecksum]>, mode: PutMode) -> Result<Self> {
        let request = PutRequest { key, checksums, mode };
        let (blocks, given) = (request.key.block_count(), request.checksums.len());
        match blocks == given {
            true => Ok(request),
            false => Err(Error::new(
                Code::InvalidArgument,
                format!("{request} comes with {given} checksums for {blocks} blocks"),
            )),
        }
    }
}

impl fmt::Display for PutRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {} of {}", self.key.index(), redact_url(self.key.artifact().url()))
    }
}

/// How a service wants a chunk.
pub enum PutStart {
    /// Not at all: it has these very bytes already, as the mode asks.
    There,
    /// Into this.
    Take(Box<dyn Incoming>),
}

/// A chunk on its way in. Dropped before [`Incoming::keep`], it was never there.
pub trait Incoming: Send {
    /// Where its bytes go.
    fn writer(&mut self) -> &mut GrowingWriter;

    /// All bytes are there, and every block was compared. Returns when the chunk is kept as its mode asks. May block.
    ///
    /// # Errors
    /// [`Code::Exhausted`] without room, and what the disk says.
    fn keep(self: Box<Self>) -> Result<()>;
}

/// The bytes of a whole chunk, wherever they lie; the server sends the asked range of them.
#[derive(Clone)]
pub enum ChunkBody {
    /// A file that holds the chunk from `offset_bytes` on, with the checksum of every block of the chunk.
    File {
        /// Opened for reading only: clients on this host get this very descriptor.
        file: Arc<File>,
        /// Where the chunk begins in the file.
        offset_bytes: u64,
        /// One a block, in order.
        checksums: Arc<[BlockChecksum]>,
    },
    /// A chunk in memory, perhaps still filling.
    Memory(Arc<GrowingChunk>),
}

/// The answer to a [`ChunkRequest`].
#[derive(Clone)]
pub struct ChunkReply {
    /// Where the bytes came from.
    pub tier: Tier,
    /// The bytes.
    pub body: ChunkBody,
}

/// A small answer to a plain GET, such as `/v1/identity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Value of `Content-Type`.
    pub content_type: String,
    /// The body, in memory.
    pub body: Vec<u8>,
}

/// What stands behind a [`crate::DataServer`] or an in-process [`crate::Endpoint`].
pub trait ChunkService: Send + Sync + 'static {
    /// Finds or fills a chunk. Called on a data thread and may block, but should return as soon as a fill has begun.
    ///
    /// # Errors
    /// Go to the asker with their code and message.
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply>;

    /// A file that [`ChunkService::get`] gave for `request` ended early or could not be read: the stored copy is bad.
    /// The answer was cut; the service should drop the copy before the next request for it.
    fn unreadable(&self, request: &ChunkRequest) {
        let _ = request;
    }

    /// Makes room for a chunk that comes from outside. Called on a data thread, and may block for a bounded time.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`] for a chunk that nobody may put, [`Code::Exhausted`] without room,
    /// [`Code::Unsupported`] for a service that takes none.
    fn put(&self, request: &PutRequest) -> Result<PutStart> {
        Err(Error::new(Code::Unsupported, format!("{request} cannot be put here")))
    }

    /// Lets go of what is held for an attempt. One that nothing is held for is no error. May block.
    ///
    /// # Errors
    /// [`Code::Unsupported`] for a service that holds nothing.
    fn release(&self, attempt: &AttemptId) -> Result<()> {
        Err(Error::new(Code::Unsupported, format!("nothing is held here, of attempt {attempt} or another")))
    }

    /// The page at `path` (without its query), or `None`, which becomes a 404.
    fn page(&self, path: &str) -> Option<Page>;
}
