//! The first bytes of safetensors files, on their way in: put together from pieces, and compared with what they must be.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::ModelFile;
use super::builder::ReadNeeded;
use crate::chunk::BLOCK_BYTES;
use crate::error::{Code, Error, Result};

/// The bytes that are wanted of each file, and what is there of them.
#[derive(Default)]
pub(super) struct Heads {
    wanted: BTreeMap<usize, u64>,
    /// Of files whose head comes in several reads: the buffer, and how many bytes are still missing.
    partial: BTreeMap<usize, (Vec<u8>, u64)>,
}

impl Heads {
    /// Asks for the first `len_bytes` of a file, or for the whole blocks that hold them where blocks can be checked.
    pub(super) fn want(&mut self, index: usize, file: &ModelFile, len_bytes: u64) {
        let len_bytes = match file.checksums {
            Some(_) => len_bytes.next_multiple_of(BLOCK_BYTES).min(file.artifact.size_bytes()),
            None => len_bytes,
        };
        self.wanted.insert(index, len_bytes);
        self.partial.remove(&index);
    }

    /// The file's head is known.
    pub(super) fn done(&mut self, index: usize) {
        self.wanted.remove(&index);
        self.partial.remove(&index);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// What has to be read.
    pub(super) fn reads(&self, files: &[ModelFile]) -> Result<Vec<ReadNeeded>> {
        let mut reads = Vec::new();
        for (&file, &end) in &self.wanted {
            let entry = &files[file];
            let Some(chunks) = &entry.chunks else {
                reads.push(ReadNeeded::whole(file, &entry.artifact, end));
                continue;
            };
            let mut at = 0;
            for (artifact, object_range) in chunks.pieces(0..end)? {
                let len = object_range.end - object_range.start;
                reads.push(ReadNeeded { file, range: at..at + len, artifact, object_range });
                at += len;
            }
        }
        Ok(reads)
    }

    /// Takes the bytes of one read. Gives the head once all of it is there and right.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the file and the block.
    pub(super) fn supply<'a>(
        &mut self,
        read: &ReadNeeded,
        bytes: &'a [u8],
        file: &ModelFile,
    ) -> Result<Option<Cow<'a, [u8]>>> {
        let end = self.wanted.get(&read.file).copied().unwrap_or_default();
        if read.range.end > end {
            return Err(Error::new(Code::Internal, format!("a read of {:?} that nobody asked for", read.range)));
        }
        let head = match read.range.start == 0 && read.range.end == end {
            true => Cow::Borrowed(bytes),
            false => {
                let fresh = || (vec![0; end as usize], end);
                let (buffer, missing) = self.partial.entry(read.file).or_insert_with(fresh);
                buffer[read.range.start as usize..read.range.end as usize].copy_from_slice(bytes);
                *missing = missing.saturating_sub(bytes.len() as u64);
                if *missing > 0 {
                    return Ok(None);
                }
                Cow::Owned(self.partial.remove(&read.file).map(|(buffer, _)| buffer).unwrap_or_default())
            }
        };
        file.check_blocks(0, &head, file.artifact.url())?;
        Ok(Some(head))
    }
}
