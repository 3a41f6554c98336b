//! Cuts a copy list along the chunks of the files: what to ask for, and where each incoming byte goes.

mod rows;
mod run;

use std::ops::Range;

use longshore_device::Part;
use longshore_types::{BLOCK_BYTES, CHUNK_BYTES, ChunkKey, Code, Error, Manifest, ModelFile, Result};

use super::expected::Expected;
use super::layout::CopyRange;
use rows::within;
use run::{Piece, Run};

/// Most reads of a plan: a model of 16 TiB. A manifest from the network must not decide how long that list gets.
const CHUNK_PLANS_MAX: usize = 1 << 20;

/// One read: whole blocks of one chunk, and where their bytes go.
///
/// A chunk has one plan, or several when whole blocks between the needed ones are not needed.
#[derive(Debug, Clone)]
pub struct ChunkPlan {
    /// The region that its bytes go to: all of a file goes to one.
    pub region: u32,
    /// The chunk, of the object that it lies in.
    pub key: ChunkKey,
    /// Bytes within the chunk, block-aligned.
    pub range: Range<u64>,
    /// What to do with them, in the order in which they arrive; together exactly the range.
    pub parts: Vec<Part>,
    /// What its blocks must be, where that is known.
    pub expected: Option<Expected>,
}

impl ChunkPlan {
    fn open(region: u32, key: ChunkKey, expected: Option<Expected>) -> ChunkPlan {
        ChunkPlan { region, key, range: 0..0, parts: Vec::new(), expected }
    }

    /// Bytes to read.
    pub fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The range in the object.
    pub fn file_range(&self) -> Range<u64> {
        let start = self.key.range().start;
        start + self.range.start..start + self.range.end
    }
}

/// Cuts `copies`, which are sorted and do not overlap, into reads of whole blocks.
///
/// # Errors
/// [`Code::Corrupt`] when a copy lies outside of its file; [`Code::Internal`] when the list is not in order;
/// [`Code::Exhausted`] for a plan of more reads than any model needs.
pub fn cut(manifest: &Manifest, copies: &[CopyRange]) -> Result<Vec<ChunkPlan>> {
    let mut cutter = Cutter { plans: Vec::new(), open: None };
    let mut reached = (0, 0);
    for copy in copies {
        let file = manifest.files.get(copy.file);
        let file = file.ok_or_else(|| Error::new(Code::Internal, "a copy names a file that the manifest lacks"))?;
        if (copy.file, copy.file_offset_bytes) < reached {
            return Err(Error::new(Code::Internal, format!("the copies of {} are not in order", file.name)));
        }
        reached = (copy.file, copy.file_end_bytes());
        // Where whole blocks fit between two rows, each row is read by itself.
        if copy.rows > 1 && copy.skip_bytes >= BLOCK_BYTES {
            for row in 0..copy.rows {
                cutter.add(file, &single(copy, row))?;
            }
        } else {
            cutter.add(file, copy)?;
        }
    }
    cutter.plans.extend(cutter.open.map(Run::close));
    Ok(cutter.plans)
}

/// One of its rows.
fn single(copy: &CopyRange, row: u64) -> CopyRange {
    CopyRange {
        file_offset_bytes: copy.file_offset_bytes + row * (copy.row_bytes + copy.skip_bytes),
        region_offset_bytes: copy.region_offset_bytes + row * copy.row_bytes,
        skip_bytes: 0,
        rows: 1,
        ..*copy
    }
}

struct Cutter {
    plans: Vec<ChunkPlan>,
    open: Option<Run>,
}

impl Cutter {
    /// Adds a copy chunk by chunk.
    fn add(&mut self, file: &ModelFile, copy: &CopyRange) -> Result<()> {
        let end = copy.file_end_bytes();
        let mut index = copy.file_offset_bytes / CHUNK_BYTES;
        while index * CHUNK_BYTES < end {
            for piece in within(copy, index) {
                self.add_piece(file, copy, index, piece)?;
            }
            index += 1;
        }
        Ok(())
    }

    fn add_piece(&mut self, file: &ModelFile, copy: &CopyRange, index: u64, piece: Piece) -> Result<()> {
        if let Some(run) = self.open.as_mut().filter(|run| run.reaches(copy.file, index, piece.start_bytes)) {
            run.extend(piece);
            return Ok(());
        }
        let key = match &file.chunks {
            Some(chunks) => chunks.key(index)?,
            None => {
                let too_large = |_| Error::new(Code::Corrupt, format!("{} is too large", file.name));
                ChunkKey::new(file.artifact.clone(), u32::try_from(index).map_err(too_large)?)?
            }
        };
        let expected = Expected::new(copy.file, file, index, &key);
        if self.plans.len() >= CHUNK_PLANS_MAX {
            let message =
                format!("the load needs more than {CHUNK_PLANS_MAX} reads, which is more than any model needs");
            return Err(Error::new(Code::Exhausted, message));
        }
        let run = Run::open(copy, index, ChunkPlan::open(copy.region, key, expected), piece);
        self.plans.extend(self.open.replace(run).map(Run::close));
        Ok(())
    }
}
