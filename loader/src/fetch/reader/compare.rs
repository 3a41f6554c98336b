//! Compares what landed with what it must be.

use std::path::Path;

use longshore_memory::Landing;
use longshore_types::{BlockChecksum, Code, Error, Result, redact_url};

use super::{ChunkReader, Wanted};
use crate::plan::{ChunkPlan, Expected};

impl ChunkReader {
    /// Compares the checksums of blocks that landed, in order.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the object, the block and the tensors that it is part of.
    pub(super) fn compare(&self, wanted: &Wanted<'_>, got: &[BlockChecksum]) -> Result<()> {
        let Some(expected) = wanted.expected else { return Ok(()) };
        let first = (wanted.range.start / longshore_types::BLOCK_BYTES) as usize;
        let count = wanted.len_bytes().div_ceil(longshore_types::BLOCK_BYTES) as usize;
        if got.len() != count {
            let url = redact_url(wanted.key.artifact().url());
            let why = format!("{count} blocks of {url} came with {} checksums", got.len());
            return Err(Error::new(Code::Internal, why));
        }
        for (block, got) in (first..).zip(got) {
            self.compare_block(wanted.key, expected, block, *got)?;
        }
        Ok(())
    }

    /// Compares blocks of a chunk that lie in memory.
    ///
    /// # Errors
    /// As [`ChunkReader::compare`].
    pub(in crate::fetch) fn compare_bytes(&self, chunk: &ChunkPlan, block: usize, bytes: &[u8]) -> Result<()> {
        match &chunk.expected {
            Some(expected) => self.compare_block(&chunk.key, expected, block, BlockChecksum::of(bytes)),
            None => Ok(()),
        }
    }

    /// Reads a file of this machine, and compares what is known of it.
    pub(super) fn read_file(&self, path: &Path, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<()> {
        if wanted.expected.is_none() {
            return self.local().read(path, wanted, landing, self.token());
        }
        let checksums = self.local().read_summed(path, wanted, landing, self.token())?;
        self.compare(wanted, &checksums).inspect_err(|_| self.recorder().add_mismatch())
    }

    fn compare_block(
        &self,
        key: &longshore_types::ChunkKey,
        expected: &Expected,
        block: usize,
        got: BlockChecksum,
    ) -> Result<()> {
        if expected.block(block) == Some(got) {
            return Ok(());
        }
        let url = redact_url(key.artifact().url());
        let at = key.range().start + block as u64 * longshore_types::BLOCK_BYTES;
        let name = self.manifest.files.get(expected.file).map_or("", |file| file.name.as_str());
        let tensors = self.manifest.tensors_at(expected.file, &expected.file_range(block));
        let wanted = expected.block(block).map_or_else(|| "nothing".to_owned(), |wanted| wanted.to_string());
        Err(Error::new(
            Code::Corrupt,
            format!(
                "{url} is damaged: the block at byte {at} has checksum {got} instead of {wanted}; it holds {tensors} of {name}"
            ),
        ))
    }
}
