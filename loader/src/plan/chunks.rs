//! Cuts a copy list along the chunks of the files: what to ask for, and where each incoming byte goes.

use std::ops::Range;

use longshore_device::Part;
use longshore_types::chunk::block_aligned;
use longshore_types::{CHUNK_BYTES, ChunkKey, Code, Error, Manifest, Result};

use super::layout::CopyRange;

/// One read: whole blocks of one chunk, and where their bytes go.
///
/// A chunk has one plan, or several when whole blocks between the needed ones are not needed.
#[derive(Debug, Clone)]
pub struct ChunkPlan {
    /// The region that its bytes go to: all of a file goes to one.
    pub region: u32,
    /// The chunk.
    pub key: ChunkKey,
    /// Bytes within the chunk, block-aligned.
    pub range: Range<u64>,
    /// What to do with them, in the order in which they arrive; together exactly the range.
    pub parts: Vec<Part>,
}

impl ChunkPlan {
    /// Bytes to read.
    pub fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The range in the file.
    pub fn file_range(&self) -> Range<u64> {
        let start = self.key.range().start;
        start + self.range.start..start + self.range.end
    }
}

/// Cuts `copies`, which are sorted and do not overlap, into reads of whole blocks.
///
/// # Errors
/// [`Code::Corrupt`] when a copy lies outside of its file; [`Code::Internal`] when the list is not in order.
pub fn cut(manifest: &Manifest, copies: &[CopyRange]) -> Result<Vec<ChunkPlan>> {
    let mut plans = Vec::new();
    let mut open: Option<Run> = None;
    let mut reached = (0, 0);
    for copy in copies {
        let file = manifest.files.get(copy.file);
        let file = file.ok_or_else(|| Error::new(Code::Internal, "a copy names a file that the manifest lacks"))?;
        let end = copy.file_offset_bytes + copy.length_bytes;
        if (copy.file, copy.file_offset_bytes) < reached {
            return Err(Error::new(Code::Internal, format!("the copies of {} are not in order", file.name)));
        }
        reached = (copy.file, end);
        let mut at = copy.file_offset_bytes;
        while at < end {
            let index = at / CHUNK_BYTES;
            let stop = end.min((index + 1) * CHUNK_BYTES);
            let region = copy.region_offset_bytes + (at - copy.file_offset_bytes);
            let piece = at - index * CHUNK_BYTES..stop - index * CHUNK_BYTES;
            let finished = open.take_if(|run| !run.reaches(copy.file, index, piece.start));
            plans.extend(finished.map(Run::close));
            match &mut open {
                Some(run) => run.extend(piece, region),
                None => {
                    let index = u32::try_from(index);
                    let index = index.map_err(|_| Error::new(Code::Corrupt, format!("{} is too large", file.name)))?;
                    let key = ChunkKey::new(file.artifact.clone(), index)?;
                    open = Some(Run::open(copy, key, piece, region));
                }
            }
            at = stop;
        }
    }
    plans.extend(open.map(Run::close));
    Ok(plans)
}

/// A read under construction.
struct Run {
    file: usize,
    plan: ChunkPlan,
    /// How far the parts reach, within the chunk.
    at: u64,
}

impl Run {
    fn open(copy: &CopyRange, key: ChunkKey, piece: Range<u64>, region: u64) -> Run {
        let range = block_aligned(piece.clone(), key.len_bytes());
        let at = range.start;
        let plan = ChunkPlan { region: copy.region, key, range, parts: Vec::new() };
        let mut run = Run { file: copy.file, plan, at };
        run.extend(piece, region);
        run
    }

    /// Whether a piece at `start` of that chunk begins in, or right behind, the blocks already asked for.
    fn reaches(&self, file: usize, index: u64, start: u64) -> bool {
        self.file == file && u64::from(self.plan.key.index()) == index && start <= self.plan.range.end
    }

    fn extend(&mut self, piece: Range<u64>, region: u64) {
        let aligned = block_aligned(piece.clone(), self.plan.key.len_bytes());
        self.plan.range.end = self.plan.range.end.max(aligned.end);
        self.discard_to(piece.start);
        let len = piece.end - piece.start;
        match self.plan.parts.last_mut() {
            Some(Part::Place { offset_bytes, len_bytes }) if *offset_bytes + *len_bytes == region => *len_bytes += len,
            _ => self.plan.parts.push(Part::Place { offset_bytes: region, len_bytes: len }),
        }
        self.at = piece.end;
    }

    fn discard_to(&mut self, to: u64) {
        if to > self.at {
            self.plan.parts.push(Part::Discard { len_bytes: to - self.at });
            self.at = to;
        }
    }

    fn close(mut self) -> ChunkPlan {
        self.discard_to(self.plan.range.end);
        self.plan
    }
}
