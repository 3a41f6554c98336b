//! Random access to an object that workers cache: [`FileReader`].
//!
//! A worker of this host hands over the files of its chunks; what it has in memory, and what other workers have, comes as
//! whole blocks and is kept for a while. Every byte that is returned was compared with the worker's checksum: a block is
//! read whole when it is first touched, and what its 4 KiB pages are is remembered, so that later reads touch, and compare,
//! only those. A bit that flips on the disk is found also when the page was evicted from the page cache in between.

mod cache;
mod pages;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use longshore_memory::Arena;
use longshore_types::{Artifact, BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, ChunkKey, Code, Error, Result, redact_url};
use parking_lot::Mutex;

use self::cache::{BlockAt, Cache, ChunkFile, Known};
use self::pages::{BlockInFile, give};
use crate::client::{DataClient, Endpoint, Opened};
use crate::service::{ChunkRequest, Mode};

/// Blocks that are brought at the same time; more wait. A block has its gate, so that none is brought twice.
const GATES: usize = 16;
/// The longest wait for memory: others copy out of it, which takes no time.
const MEMORY_WAIT: Duration = Duration::from_secs(30);

/// The bounds of a [`FileReader`].
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Chunk files kept open. A chunk beyond them costs a question to the worker, no second look at its blocks.
    pub open_files_max: usize,
    /// Memory for checksums of pages: 2 KiB for each block of 1 MiB. A block beyond them is read whole again.
    pub checksum_bytes_max: usize,
    /// Blocks of 1 MiB kept in memory, where no file was handed over.
    pub blocks_max: usize,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        ReaderOptions { open_files_max: 256, checksum_bytes_max: 32 << 20, blocks_max: 64 }
    }
}

/// Where to ask for a chunk, in this order: a worker of this host first, with [`Mode::OnlyIfCached`] unless it owns the
/// chunk, then its owners.
pub type AskAt = dyn Fn(&ChunkKey) -> Vec<(Endpoint, Mode)> + Send + Sync;

/// What a [`FileReader`] did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReaderStats {
    /// Blocks that were read whole out of a file that was handed over.
    pub blocks_verified: u64,
    /// Blocks that came through a socket, or out of the memory of this process.
    pub blocks_fetched: u64,
    /// Blocks or pages that were not what they must be, wherever a good copy was found then.
    pub mismatches: u64,
    /// Chunk files open now.
    pub open_files: usize,
    /// Blocks in memory now.
    pub blocks_held: usize,
}

/// Reads one object at any place. Share it between threads; calls block.
pub struct FileReader {
    client: DataClient,
    artifact: Arc<Artifact>,
    ask_at: Box<AskAt>,
    cache: Cache,
    arena: Arena,
    gates: [Mutex<()>; GATES],
    blocks_verified: AtomicU64,
    blocks_fetched: AtomicU64,
    mismatches: AtomicU64,
}

/// A part of one block, and where it goes.
struct Part {
    at: BlockAt,
    /// Bytes in the block.
    within: Range<usize>,
}

impl FileReader {
    /// A reader of an object at its version. Nothing is asked for yet.
    pub fn new(
        client: DataClient,
        artifact: Arc<Artifact>,
        options: &ReaderOptions,
        ask_at: impl Fn(&ChunkKey) -> Vec<(Endpoint, Mode)> + Send + Sync + 'static,
    ) -> FileReader {
        let blocks = options.blocks_max.max(1) + GATES;
        FileReader {
            client,
            artifact,
            ask_at: Box::new(ask_at),
            cache: Cache::new(options),
            arena: Arena::new(blocks as u64 * BLOCK_BYTES),
            gates: std::array::from_fn(|_| Mutex::new(())),
            blocks_verified: AtomicU64::new(0),
            blocks_fetched: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
        }
    }

    /// The object.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// Fills `out` with the bytes from `offset_bytes` on, and says how many there are: fewer than asked for only at the end
    /// of the object, none beyond it. After an error the content of `out` means nothing.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the chunk and the place, when no copy is good, also after the workers checked theirs; else
    /// what the last place that was asked said, as [`DataClient::fetch`].
    pub fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<usize> {
        let left = self.artifact.size_bytes().saturating_sub(offset_bytes);
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut done = 0;
        while done < len {
            let offset = offset_bytes + done as u64;
            let start = (offset % BLOCK_BYTES) as usize;
            let count = (BLOCK_BYTES as usize - start).min(len - done);
            let Ok(chunk) = u32::try_from(offset / CHUNK_BYTES) else {
                let why = format!("byte {offset} of {} is in no chunk", redact_url(self.artifact.url()));
                return Err(Error::new(Code::InvalidArgument, why));
            };
            let block = (offset % CHUNK_BYTES / BLOCK_BYTES) as u32;
            let part = Part { at: BlockAt { chunk, block }, within: start..start + count };
            self.read_part(&part, &mut out[done..done + count])?;
            done += count;
        }
        Ok(done)
    }

    /// What the reader did so far.
    pub fn stats(&self) -> ReaderStats {
        let (open_files, blocks_held) = self.cache.held();
        ReaderStats {
            blocks_verified: self.blocks_verified.load(Relaxed),
            blocks_fetched: self.blocks_fetched.load(Relaxed),
            mismatches: self.mismatches.load(Relaxed),
            open_files,
            blocks_held,
        }
    }

    fn read_part(&self, part: &Part, out: &mut [u8]) -> Result<()> {
        if let Some(Ok(())) = self.read_known(part, out) {
            return Ok(());
        }
        // One thread brings a block; who waited for it finds it there.
        let gate = (part.at.chunk as usize).wrapping_mul(5).wrapping_add(part.at.block as usize) % GATES;
        let _turn = self.gates[gate].lock();
        match self.read_known(part, out) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => {
                self.mismatches.fetch_add(1, Relaxed);
                self.cache.forget_file(part.at);
                self.bring(part, out, Some(error))
            }
            None => self.bring(part, out, None),
        }
    }

    /// Reads a block that was verified before; `None` when there is none.
    fn read_known(&self, part: &Part, out: &mut [u8]) -> Option<Result<()>> {
        match self.cache.get(part.at)? {
            Known::Bytes(bytes) => {
                give(0, &bytes, &part.within, out);
                Some(Ok(()))
            }
            Known::Pages(file, sums) => Some(self.block_in(&file, part.at).again(&sums, part.within.clone(), out)),
        }
    }

    /// Asks for a block, at one place after the other. After a mismatch (`found`) each looks at its copy first.
    fn bring(&self, part: &Part, out: &mut [u8], found: Option<Error>) -> Result<()> {
        let key = ChunkKey::new(self.artifact.clone(), part.at.chunk)?;
        let range = crate::block_range(part.at.block as usize, key.len_bytes());
        let places = (self.ask_at)(&key);
        // One object has one content: where it was seen before, nothing else is taken for it.
        let expected = self.cache.sums(part.at).map(|sums| [sums.block].into());
        let mut request = ChunkRequest { range, expected, prefers_file: true, ..ChunkRequest::whole(key) };
        let (is_recheck, mut worst) = (found.is_some(), found.map(|error| self.name(part, error)));
        for (endpoint, mode) in places {
            request.mode = mode;
            request.recheck = is_recheck;
            let mut result = self.bring_from(&endpoint, &request, part, out);
            if !is_recheck && result.as_ref().is_err_and(|error| error.code() == Code::Corrupt) {
                self.mismatches.fetch_add(1, Relaxed);
                request.recheck = true;
                result = self.bring_from(&endpoint, &request, part, out);
            }
            match result {
                Ok(()) => return Ok(()),
                // That bytes are bad says more than who else does not have them.
                Err(error) if worst.as_ref().is_none_or(|worst| worst.code() != Code::Corrupt) => {
                    worst = Some(if error.code() == Code::Corrupt { self.name(part, error) } else { error });
                }
                Err(_) => {}
            }
        }
        Err(worst.unwrap_or_else(|| {
            let why = format!("there is no worker to ask for {request}; start one, or look at the list of members");
            Error::new(Code::Unavailable, why)
        }))
    }

    fn bring_from(&self, endpoint: &Endpoint, request: &ChunkRequest, part: &Part, out: &mut [u8]) -> Result<()> {
        let known = self.cache.sums(part.at);
        let check = |got: BlockChecksum| match &known {
            Some(known) if known.block != got => {
                let why = format!("it comes with checksum {got}, and had {} before", known.block);
                Err(Error::new(Code::Corrupt, why))
            }
            _ => Ok(()),
        };
        match self.client.open(endpoint, request, |len| self.arena.buffer(len, MEMORY_WAIT))? {
            Opened::Bytes(bytes, checksum) => {
                check(checksum)?;
                give(0, &bytes, &part.within, out);
                self.blocks_fetched.fetch_add(1, Relaxed);
                self.cache.keep_block(part.at, Arc::new(bytes));
            }
            Opened::File { file, offset_bytes, checksum } => {
                check(checksum)?;
                let file = ChunkFile { file, offset_bytes };
                let block = self.block_in(&file, part.at);
                let sums = match known {
                    // Verified before; the file was only closed for room.
                    Some(sums) if !request.recheck => {
                        block.again(&sums, part.within.clone(), out)?;
                        sums
                    }
                    _ => {
                        let sums = block.first(checksum, part.within.clone(), out)?;
                        self.blocks_verified.fetch_add(1, Relaxed);
                        Arc::new(sums)
                    }
                };
                self.cache.keep_file(part.at, file, sums);
            }
        }
        Ok(())
    }

    fn block_in<'a>(&self, file: &'a ChunkFile, at: BlockAt) -> BlockInFile<'a> {
        let in_chunk = u64::from(at.block) * BLOCK_BYTES;
        let in_object = u64::from(at.chunk) * CHUNK_BYTES + in_chunk;
        let len = self.artifact.size_bytes().saturating_sub(in_object).min(BLOCK_BYTES) as usize;
        BlockInFile { file: &file.file, start: file.offset_bytes.saturating_add(in_chunk), len }
    }

    fn name(&self, part: &Part, error: Error) -> Error {
        let BlockAt { chunk, block } = part.at;
        error.context(format_args!("block {block} of chunk {chunk} of {} is damaged", redact_url(self.artifact.url())))
    }
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader").field("url", &redact_url(self.artifact.url())).finish_non_exhaustive()
    }
}
