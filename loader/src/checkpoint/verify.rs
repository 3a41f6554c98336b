//! Reads a committed checkpoint back from the origin, past all caches, and compares each block with the commit.
//!
//! Bytes pass through a checksummer as they arrive and are not kept, so that any size can be verified in little memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, stream};
use longshore_origin::Origins;
use longshore_types::checkpoint::{ChunkRun, Commit, FilePlace, StoredFile};
use longshore_types::checksum::Checksummer;
use longshore_types::{Artifact, BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, Code, Error, Result};
use tokio::sync::watch;

/// Reads that run at once.
const READS_AT_ONCE: usize = 8;
/// Bytes of one read.
const READ_BYTES: u64 = 64 << 20;
/// Objects that are named; further ones are counted.
const PROBLEMS_MAX: usize = 1000;
/// Tensors that a message names.
const TENSORS_NAMED: usize = 4;

/// How far it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub objects_done: u32,
    pub objects_total: u32,
}

/// An object that is not what the commit says.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    /// Relative to the run.
    pub object: String,
    pub error: Error,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Findings {
    /// The first of them.
    pub problems: Vec<Problem>,
    /// All of them.
    pub count: u32,
}

/// Bytes of a file as they lie in one object: block by block, from a block's start.
#[derive(Debug, Clone)]
struct Piece {
    object: u32,
    file: u32,
    /// In the object.
    range: Range<u64>,
    /// Where it begins in the file: a whole number of blocks.
    at_bytes: u64,
}

/// Verifies every byte that the files of a commit consist of.
///
/// # Errors
/// The origin's when it cannot be reached or refuses us: then nothing is known. Objects that are missing or different are
/// found, not failed of.
pub(super) async fn verify(
    commit: &Arc<Commit>,
    run_url: &str,
    origins: &Origins,
    progress: &watch::Sender<Progress>,
) -> Result<Findings> {
    let pieces = pieces(commit);
    let mut left: BTreeMap<u32, usize> = BTreeMap::new();
    pieces.iter().for_each(|piece| *left.entry(piece.object).or_default() += 1);
    progress.send_replace(Progress {
        bytes_total: pieces.iter().map(Piece::len_bytes).sum(),
        objects_total: left.len() as u32,
        ..Progress::default()
    });
    let reads = pieces.into_iter().map(|piece| {
        let reader = Reader { commit: commit.clone(), origins: origins.clone() };
        let artifact = commit.artifact_of(run_url, piece.object);
        async move {
            let outcome = match artifact {
                Ok(artifact) => reader.read(&artifact, &piece, progress).await,
                Err(error) => Err(error),
            };
            (piece.object, outcome)
        }
    });
    let mut reads = stream::iter(reads).buffer_unordered(READS_AT_ONCE);
    let mut bad: BTreeMap<u32, Error> = BTreeMap::new();
    while let Some((object, outcome)) = reads.next().await {
        if let Err(error) = outcome {
            match error.code() {
                // About this object, by itself.
                Code::NotFound | Code::Corrupt | Code::FailedPrecondition => bad.entry(object).or_insert(error),
                _ => return Err(error),
            };
        }
        if let Some(pieces) = left.get_mut(&object) {
            *pieces -= 1;
            progress.send_modify(|progress| progress.objects_done += u32::from(*pieces == 0));
        }
    }
    let name = |object: u32| commit.objects.get(object as usize).map_or_else(String::new, |object| object.path.clone());
    let count = bad.len() as u32;
    let problems = bad.into_iter().take(PROBLEMS_MAX).map(|(object, error)| Problem { object: name(object), error });
    Ok(Findings { problems: problems.collect(), count })
}

/// All files, in pieces of one read each.
fn pieces(commit: &Commit) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, file) in (0u32..).zip(&commit.files) {
        let mut at_bytes = 0;
        for Run { object, start, len_bytes } in runs(file) {
            let end = start + len_bytes;
            let mut from = start;
            // An empty object is looked at, too.
            loop {
                let to = end.min(from + READ_BYTES);
                pieces.push(Piece { object, file: index, range: from..to, at_bytes: at_bytes + (from - start) });
                from = to;
                if from >= end {
                    break;
                }
            }
            at_bytes += len_bytes;
        }
    }
    pieces
}

/// Bytes of a file that follow each other in an object.
struct Run {
    object: u32,
    start: u64,
    len_bytes: u64,
}

/// A checked commit covers its files exactly; what it does not cover would be found short.
fn runs(file: &StoredFile) -> Vec<Run> {
    let mut left_bytes = file.size_bytes;
    let mut of_run = |run: &ChunkRun| {
        let len_bytes = u64::from(run.count).saturating_mul(CHUNK_BYTES).min(left_bytes);
        left_bytes -= len_bytes;
        Run { object: run.object, start: u64::from(run.first_chunk) * CHUNK_BYTES, len_bytes }
    };
    match &file.place {
        FilePlace::Object(object) => vec![Run { object: *object, start: 0, len_bytes: file.size_bytes }],
        FilePlace::Chunks(chunk_runs) => chunk_runs.iter().map(&mut of_run).collect(),
    }
}

impl Piece {
    fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

struct Reader {
    commit: Arc<Commit>,
    origins: Origins,
}

impl Reader {
    /// Reads a piece and compares its blocks.
    async fn read(&self, artifact: &Arc<Artifact>, piece: &Piece, progress: &watch::Sender<Progress>) -> Result<()> {
        if piece.range.is_empty() {
            let found = self.origins.stat(artifact.url()).await?;
            return match found.size_bytes() == artifact.size_bytes() {
                true => Ok(()),
                false => Err(Error::new(Code::Corrupt, format!("has {} bytes, should have none", found.size_bytes()))),
            };
        }
        let mut bytes = self.origins.read(artifact, piece.range.clone());
        let mut blocks = Blocks { reader: self, piece, at_bytes: 0, block: Checksummer::new() };
        while let Some(arrived) = bytes.next().await {
            let arrived = arrived?;
            blocks.add(&arrived)?;
            progress.send_modify(|progress| progress.bytes_done += arrived.len() as u64);
        }
        match blocks.at_bytes == piece.len_bytes() {
            true => Ok(()),
            false => Err(Error::new(Code::Corrupt, "ends before its time")),
        }
    }

    /// Compares a block of a file.
    fn compare(&self, file: u32, block: u64, found: BlockChecksum) -> Result<()> {
        let stored = self.commit.files.get(file as usize);
        let expected = stored.and_then(|stored| stored.blocks.get(usize::try_from(block).ok()?));
        if expected == Some(&found) {
            return Ok(());
        }
        let (name, size_bytes) = stored.map_or(("", 0), |stored| (stored.name.as_str(), stored.size_bytes));
        let start = block * BLOCK_BYTES;
        let end = start.saturating_add(BLOCK_BYTES).min(size_bytes);
        let tensors = self.commit.tensors_at(file, start..end);
        let named = tensors.iter().take(TENSORS_NAMED).copied().collect::<Vec<_>>().join(", ");
        let whose = match tensors.len() {
            0 => String::new(),
            count @ ..=TENSORS_NAMED => format!(", which hold tensor{} {named}", if count == 1 { "" } else { "s" }),
            count => format!(", which hold tensors {named} and {} more", count - TENSORS_NAMED),
        };
        let expected = expected.map_or_else(|| "none".to_owned(), BlockChecksum::to_string);
        let message =
            format!("bytes {start} to {end} of file {name}{whose}, have checksum {found}, should have {expected}");
        Err(Error::new(Code::Corrupt, message))
    }
}

/// The blocks of a piece, as its bytes arrive.
struct Blocks<'a> {
    reader: &'a Reader,
    piece: &'a Piece,
    /// In the piece.
    at_bytes: u64,
    block: Checksummer,
}

impl Blocks<'_> {
    fn add(&mut self, mut arrived: &[u8]) -> Result<()> {
        while !arrived.is_empty() {
            let block_end = ((self.at_bytes / BLOCK_BYTES + 1) * BLOCK_BYTES).min(self.piece.len_bytes());
            let wanted = block_end.saturating_sub(self.at_bytes);
            if wanted == 0 {
                return Err(Error::new(Code::Corrupt, "has more bytes than were asked for"));
            }
            let count = arrived.len().min(usize::try_from(wanted).unwrap_or(usize::MAX));
            let (of_block, rest) = arrived.split_at(count);
            self.block.update(of_block);
            self.at_bytes += count as u64;
            arrived = rest;
            if self.at_bytes == block_end {
                let found = std::mem::take(&mut self.block).finish();
                let block = (self.piece.at_bytes + block_end - 1) / BLOCK_BYTES;
                self.reader.compare(self.piece.file, block, found)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
