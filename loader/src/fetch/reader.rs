//! One chunk, from the nearest source that gives it: local file, worker on this host, owners on the ring, origin.
//!
//! Sources are walked one after the other, never two at once: the landing memory has one writer. A source that fails,
//! stalls or lies is passed over and counted; the load fails only when the origin itself does.
//!
//! Where it is known what the blocks must be, whatever landed is compared with that, wherever it came from: a copy that is
//! whole and something else is as bad as a torn one.

mod compare;
mod node;
mod origin;
mod workers;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use longshore_memory::Landing;
use longshore_origin::Origins;
use longshore_types::{ChunkKey, Code, Error, Manifest, Result, format_bytes};
use longshore_wire::{DataClient, Mode};
use tokio_util::sync::CancellationToken;

use self::workers::{is_no_access, is_word_of_the_origin};
use super::local::LocalFiles;
use super::pace::Pace;
use crate::cluster::{Cluster, Sources, more_telling};
use crate::options::DirectIo;
use crate::plan::Expected;
use crate::report::{FallbackKind, Recorder, SourceTier, Step};

pub(crate) use node::NodeCopies;

/// How often the whole list of sources is walked before the load fails.
const ROUNDS_MAX: u32 = 2;
/// Pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// What all loads read with.
pub(crate) struct Readers {
    pub cluster: Arc<dyn Cluster>,
    pub origins: Origins,
    /// Waits as long as a slow origin behind a worker may take.
    pub patient: DataClient,
    /// Gives up on a silent worker soon: for when others are fast. `None` never hedges.
    pub hedging: Option<Hedging>,
    pub runtime: tokio::runtime::Handle,
    /// How local files are read.
    pub direct_io: DirectIo,
    /// Whether GPUs are to read local files by themselves.
    pub gpudirect_storage: bool,
}

/// When a silent worker is left for another one.
pub(crate) struct Hedging {
    pub client: DataClient,
    /// The median chunk must be faster than this.
    pub median_below: Duration,
}

/// What one load reads with.
pub(crate) struct ChunkReader {
    readers: Arc<Readers>,
    recorder: Arc<Recorder>,
    token: CancellationToken,
    pace: Pace,
    local: LocalFiles,
    nearby_misses: AtomicU32,
    /// For messages about blocks that are not what they must be.
    manifest: Arc<Manifest>,
    /// Objects that lie on this node's disk, because it saved them.
    node: Option<Arc<NodeCopies>>,
    /// That of the load, for what the fetch threads log.
    span: tracing::Span,
}

/// Whole blocks of one chunk, to be read in one go.
pub(super) struct Wanted<'a> {
    pub key: &'a ChunkKey,
    /// Bytes within the chunk, block-aligned.
    pub range: Range<u64>,
    /// What its blocks must be, where that is known.
    pub expected: Option<&'a Expected>,
}

impl Wanted<'_> {
    /// Bytes to read.
    pub(super) fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The range in the file.
    pub(super) fn file_range(&self) -> Range<u64> {
        let start = self.key.range().start;
        start + self.range.start..start + self.range.end
    }
}

/// A chunk that arrived: its tier and its source.
struct Arrived {
    tier: SourceTier,
    source: String,
}

impl ChunkReader {
    pub(crate) fn new(
        readers: Arc<Readers>,
        recorder: Arc<Recorder>,
        token: CancellationToken,
        manifest: Arc<Manifest>,
        node: Option<Arc<NodeCopies>>,
    ) -> Self {
        ChunkReader {
            recorder,
            token,
            manifest,
            node,
            pace: Pace::default(),
            local: LocalFiles::new(readers.direct_io),
            readers,
            nearby_misses: AtomicU32::new(0),
            span: tracing::Span::current(),
        }
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(super) fn local(&self) -> &LocalFiles {
        &self.local
    }

    /// Whether GPUs are to read local files by themselves.
    pub(super) fn gpudirect_storage(&self) -> bool {
        self.readers.gpudirect_storage
    }

    pub(super) fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// Cancelled with the load, and by its first error.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(super) fn cancel(&self) {
        self.token.cancel();
    }

    /// Counts how local files were read; at the end of the load, well or not.
    pub(super) fn count_local_reads(&self) {
        let ways = self.local.ways();
        self.recorder.add_local_read(&ways);
        if self.readers.direct_io == DirectIo::Always && ways.declined_bytes > 0 {
            let declined = format_bytes(ways.declined_bytes);
            let detail = format!("{declined} came through the page cache: their file system takes no direct reads");
            self.recorder.add_fallback(FallbackKind::DirectReadDeclined, detail);
        }
    }

    pub(super) fn check_local_files(&self) -> Result<()> {
        self.local.check()
    }

    /// Fills the landing with what is wanted, verified.
    pub(super) fn read(&self, wanted: &Wanted<'_>, landing: &mut Landing, thread: u32) -> Result<()> {
        let timer = self.recorder.begin(Step::Fetch);
        let start = Instant::now();
        let arrived = match (self.read_node_copy(wanted, landing)?, Origins::local_path(wanted.key.artifact().url())) {
            (Some(arrived), _) => arrived,
            (None, Some(path)) => self.read_local_file(&path, wanted, landing)?,
            (None, None) => self.read_sources(wanted, landing)?,
        };
        self.recorder.end(timer, thread, wanted.len_bytes(), &arrived.source);
        self.recorder.add_chunk(arrived.tier, wanted.len_bytes(), start.elapsed());
        Ok(())
    }

    /// A file that this machine does not have may be one of the workers' machines.
    fn read_local_file(&self, path: &std::path::Path, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<Arrived> {
        match self.read_file(path, wanted, landing) {
            Ok(()) => Ok(Arrived { tier: SourceTier::Origin, source: "local file".to_owned() }),
            Err(error) if matches!(error.code(), Code::NotFound | Code::PermissionDenied) => {
                if self.readers.cluster.sources(wanted.key).to_ask.is_empty() {
                    return Err(error);
                }
                self.recorder.add_fallback(FallbackKind::LocalFileUnreadable, error.to_string());
                self.read_sources(wanted, landing)
            }
            Err(error) => Err(error),
        }
    }

    fn read_sources(&self, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<Arrived> {
        let mut round = 1;
        loop {
            let sources = self.readers.cluster.sources(wanted.key);
            let error = match self.walk(&sources, wanted, landing) {
                Ok(arrived) => return Ok(arrived),
                Err(error) => error,
            };
            // The origin refused, or this node has no access to it. A worker may be back, or have better luck.
            let may_help = error.is_retryable() || is_no_access(&error);
            let has_workers = !sources.to_ask.is_empty() || self.readers.cluster.has_workers();
            if self.token.is_cancelled() || !has_workers || !may_help || round >= ROUNDS_MAX {
                return Err(error);
            }
            round += 1;
            self.recorder.add_retry();
            self.pause(ROUND_PAUSE);
        }
    }

    fn walk(&self, sources: &Sources, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<Arrived> {
        if let Some(arrived) = self.read_nearby(wanted, landing)? {
            return Ok(arrived);
        }
        for address in &sources.avoided {
            let detail = format!("{address}: not asked for its chunks, it failed a moment ago");
            self.recorder.add_fallback(FallbackKind::WorkerAvoided, detail);
        }
        let sources = &sources.to_ask;
        let mut refusal = None;
        for (position, source) in sources.iter().enumerate() {
            self.check_cancelled()?;
            let client = self.client_for(position + 1 == sources.len());
            match self.ask(client, source, Mode::Fill, wanted, landing) {
                Ok(arrived) => return Ok(arrived),
                Err(error) => {
                    self.check_cancelled()?;
                    self.pass_over(source, &error, !std::ptr::eq(client, &self.readers.patient));
                    let is_final = is_word_of_the_origin(&error);
                    refusal = Some(error);
                    if is_final {
                        break;
                    }
                }
            }
        }
        self.check_cancelled()?;
        if !sources.is_empty() || self.readers.cluster.has_workers() {
            let detail = refusal.as_ref().map_or_else(|| "no worker answers at present".to_owned(), Error::to_string);
            self.recorder.add_fallback(FallbackKind::OriginDirect, detail);
        }
        match self.read_origin(wanted, landing) {
            Ok(()) => Ok(Arrived { tier: SourceTier::Origin, source: "origin".to_owned() }),
            Err(error) => Err(more_telling(error, refusal)),
        }
    }

    /// The origin itself. What is wrong there is read once more, in case it went wrong on the way.
    fn read_origin(&self, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<()> {
        let read = |landing: &mut Landing| {
            let checksums = origin::read(&self.readers, wanted, landing, &self.token)?;
            self.compare(wanted, &checksums)
        };
        match read(landing) {
            Err(error) if error.code() == Code::Corrupt && wanted.expected.is_some() => {
                self.recorder.add_mismatch();
                self.check_cancelled()?;
                self.recorder.add_retry();
                read(landing).inspect_err(|_| self.recorder.add_mismatch())
            }
            read => read,
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        match self.token.is_cancelled() {
            true => Err(Error::new(Code::Cancelled, "the load was given up")),
            false => Ok(()),
        }
    }

    /// Waits, but not longer than the load lives.
    fn pause(&self, time: Duration) {
        let cancelled = self.token.cancelled();
        let _ended_early = self.readers.runtime.block_on(async { tokio::time::timeout(time, cancelled).await });
    }
}
