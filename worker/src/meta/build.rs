//! Builds a manifest: drives the builder in rounds, and reads heads and indexes through the ring.
//!
//! A head is read from the owner of its chunk, which fills the whole chunk by that: the load that follows finds it
//! there, and the origin serves each byte once. Everything here blocks and runs on its own threads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use longshore_memory::Landing;
use longshore_types::chunk::block_aligned;
use longshore_types::{
    Artifact, CHUNK_BYTES, ChunkKey, Code, Error, Manifest, ManifestBuilder, Progress, ReadNeeded, Resolved, Result,
    Selection,
};
use longshore_wire::{ChunkReply, ChunkRequest, ChunkService, Endpoint, Mode, Page, Tier};

use crate::fill::Chunks;
use crate::peers::endpoint;

/// Reads at once for one manifest.
const READS_MAX: usize = 16;

/// Builds the manifest of what was resolved. Blocks.
///
/// # Errors
/// As [`ManifestBuilder`] and the reads give them.
pub fn build(chunks: &Arc<Chunks>, resolved: Resolved, selection: &Selection) -> Result<Manifest> {
    let mut builder = ManifestBuilder::new(resolved, selection)?;
    loop {
        match builder.advance()? {
            Progress::Done(manifest) => return Ok(manifest),
            Progress::Need(reads) => read_round(chunks, &reads, &mut builder)?,
        }
    }
}

/// One round of reads, a few at a time; each is supplied as it comes, so that only few are held in memory.
fn read_round(chunks: &Arc<Chunks>, reads: &[ReadNeeded], builder: &mut ManifestBuilder) -> Result<()> {
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        for _ in 0..READS_MAX.min(reads.len()) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some(read) = reads.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bytes = read_range(chunks, &read.artifact, read.object_range.clone());
                    // The receiver is gone when another read failed.
                    if sender.send((read, bytes)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        // Taken into the loop, so that an early return drops it and the readers end.
        for (read, bytes) in results {
            builder.supply(read, &bytes?)?;
        }
        Ok(())
    })
}

/// Reads a range of an artifact through the ring.
fn read_range(chunks: &Arc<Chunks>, artifact: &Arc<Artifact>, range: Range<u64>) -> Result<Vec<u8>> {
    // The builder bounds the range by its own limits and by the size of the file.
    let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
    while (bytes.len() as u64) < range.end - range.start {
        let at = range.start + bytes.len() as u64;
        let index = u32::try_from(at / CHUNK_BYTES)
            .map_err(|_| Error::new(Code::InvalidArgument, format!("{} is too large", artifact.url())))?;
        let key = ChunkKey::new(artifact.clone(), index)?;
        let start = key.range().start;
        let within = at - start..range.end.min(key.range().end) - start;
        read_chunk(chunks, key, within, &mut bytes)?;
    }
    Ok(bytes)
}

/// Appends `within` of a chunk to `out`, from its owners or, when they fail, filled here.
fn read_chunk(chunks: &Arc<Chunks>, key: ChunkKey, within: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
    let aligned = block_aligned(within.clone(), key.len_bytes());
    let here = Endpoint::InProcess(Arc::new(Here(chunks.clone())));
    for owner in chunks.peers.owners(key.id().as_bytes()) {
        if owner.id() == chunks.peers.me() {
            break;
        }
        if chunks.peers.health.is_suspect(owner.id()) {
            chunks.metrics().fallback("head_owner_suspect");
            continue;
        }
        match fetch(chunks, &endpoint(&owner), &key, &aligned) {
            Ok(landing) => {
                chunks.peers.report(owner.id(), None);
                return copy_out(&landing, within, aligned.start, out);
            }
            Err(error) => {
                chunks.peers.report(owner.id(), Some(error.code()));
                chunks.metrics().fallback("head_owner_failed");
                tracing::warn!(peer = %owner.address, code = %error.code(), %error, "head read failed; next source");
            }
        }
    }
    let landing = fetch(chunks, &here, &key, &aligned)?;
    copy_out(&landing, within, aligned.start, out)
}

/// One verified range; a wrong checksum is asked for once more, with the copy checked and filled again.
fn fetch(
    chunks: &Arc<Chunks>,
    endpoint: &Endpoint,
    key: &ChunkKey,
    range: &Range<u64>,
) -> Result<longshore_memory::Buffer> {
    let len = (range.end - range.start) as usize;
    let mut buffer = chunks.store.memory.buffer(len, chunks.wait())?;
    let mut recheck = false;
    loop {
        let whole = 0..len;
        let mut landing = Landing::builder().buffer(buffer, vec![whole]).build()?;
        let mode = Mode::Fill;
        let request = ChunkRequest { range: range.clone(), mode, recheck, ..ChunkRequest::whole(key.clone()) };
        let fetched = chunks.client.fetch(endpoint, &request, &mut landing);
        buffer = landing
            .into_buffers()
            .pop()
            .ok_or_else(|| Error::new(Code::Internal, "a landing lost the buffer that it was given"))?;
        match fetched {
            Ok(fetched) => {
                if let (Tier::Origin, Some(fills)) = (fetched.tier, chunks.head_fills.get()) {
                    fills.note(key.id());
                }
                return Ok(buffer);
            }
            Err(error) if error.code() == Code::Corrupt && !recheck => {
                chunks.metrics().checksum_mismatches.with_label_values(&["head"]).inc();
                recheck = true;
            }
            Err(error) => return Err(error),
        }
    }
}

fn copy_out(landed: &[u8], within: Range<u64>, landed_start: u64, out: &mut Vec<u8>) -> Result<()> {
    let range = (within.start - landed_start) as usize..(within.end - landed_start) as usize;
    let bytes = landed.get(range).ok_or_else(|| Error::new(Code::Internal, "a head read landed short"))?;
    out.extend_from_slice(bytes);
    Ok(())
}

/// This worker's own chunks as an endpoint.
struct Here(Arc<Chunks>);

impl ChunkService for Here {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        self.0.get(request)
    }

    fn page(&self, _path: &str) -> Option<Page> {
        None
    }
}
