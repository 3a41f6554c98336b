//! A chunk in memory that may still be filling.
//!
//! Bytes appear in order. The checksum of a block is known before its last byte is published, so a reader that
//! sees a whole block also sees its checksum. One writer, any number of readers; a failed fill fails them all.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use longshore_memory::{Appender, Buffer, Prefix, append_buffer};
use longshore_types::{BLOCK_BYTES, BlockChecksum, Checksummer, ChunkKey, Code, Error, Result};

/// The readers' side. Made by [`GrowingChunk::begin`]; share it in an `Arc`.
pub struct GrowingChunk {
    key: ChunkKey,
    prefix: Prefix,
    blocks: Box<[OnceLock<BlockChecksum>]>,
    complete: OnceLock<Arc<[BlockChecksum]>>,
}

/// The writer's side. Dropped without [`GrowingWriter::finish`], the fill has failed with [`Code::Cancelled`].
pub struct GrowingWriter {
    chunk: Arc<GrowingChunk>,
    appender: Appender,
    written_bytes: u64,
    block: Checksummer,
}

impl GrowingChunk {
    /// Starts a fill into `buffer`, which has exactly the length of the chunk.
    ///
    /// # Errors
    /// [`Code::Internal`] when the buffer has another length.
    pub fn begin(key: ChunkKey, buffer: Buffer) -> Result<(GrowingWriter, Arc<GrowingChunk>)> {
        if buffer.len() as u64 != key.len_bytes() {
            let (got, wanted) = (buffer.len(), key.len_bytes());
            return Err(Error::new(Code::Internal, format!("a chunk of {wanted} bytes got a buffer of {got}")));
        }
        let (appender, prefix) = append_buffer(buffer);
        let blocks = (0..key.block_count()).map(|_| OnceLock::new()).collect();
        let chunk = Arc::new(GrowingChunk { key, prefix, blocks, complete: OnceLock::new() });
        let writer = GrowingWriter { chunk: chunk.clone(), appender, written_bytes: 0, block: Checksummer::new() };
        Ok((writer, chunk))
    }

    /// What chunk this is.
    pub fn key(&self) -> &ChunkKey {
        &self.key
    }

    /// Bytes of the whole chunk, written or not.
    pub fn len_bytes(&self) -> u64 {
        self.key.len_bytes()
    }

    /// Whether the fill ended well: all bytes and checksums are there.
    pub fn is_complete(&self) -> bool {
        self.complete.get().is_some()
    }

    /// The checksums of all blocks, once the fill is complete.
    pub fn checksums(&self) -> Option<Arc<[BlockChecksum]>> {
        self.complete.get().cloned()
    }

    /// The published bytes as the memory crate keeps them: for waits that are not block by block.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// For another process to read the chunk from its first byte on, where its buffer was made for that: see
    /// [`Buffer::file`].
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.prefix.file()
    }

    /// The bytes of `range`, when all of them have been written.
    pub fn get(&self, range: Range<u64>) -> Option<&[u8]> {
        self.prefix.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    /// Waits for block `index` and gives its bytes and checksum.
    ///
    /// # Errors
    /// [`Code::Timeout`] when the block does not come, the fill's own error when it failed, and
    /// [`Code::InvalidArgument`] when the chunk has no such block.
    pub fn block(&self, index: usize, timeout: Duration) -> Result<(&[u8], BlockChecksum)> {
        let Some(checksum) = self.blocks.get(index) else {
            let count = self.blocks.len();
            return Err(Error::new(Code::InvalidArgument, format!("the chunk has {count} blocks, no block {index}")));
        };
        let range = crate::block_range(index, self.len_bytes());
        self.prefix.wait(range.end as usize, timeout)?;
        match (self.get(range), checksum.get()) {
            (Some(bytes), Some(checksum)) => Ok((bytes, *checksum)),
            _ => Err(Error::new(Code::Internal, format!("block {index} was published without its checksum"))),
        }
    }
}

impl GrowingWriter {
    /// Bytes written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Bytes still to come.
    pub fn remaining_bytes(&self) -> u64 {
        self.chunk.len_bytes() - self.written_bytes
    }

    /// Appends bytes in any portion.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when they are more than the chunk holds.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.remaining_bytes() {
            let (len, room) = (bytes.len(), self.remaining_bytes());
            return Err(Error::new(Code::Corrupt, format!("{len} bytes came where the chunk has room for {room}")));
        }
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(self.block_room()));
            self.block.update(piece);
            self.seal_block(piece.len());
            self.appender.write(piece)?;
            bytes = rest;
        }
        Ok(())
    }

    /// The checksum of a block whose last byte has been written.
    pub(crate) fn block_checksum(&self, index: usize) -> Option<BlockChecksum> {
        self.chunk.blocks.get(index)?.get().copied()
    }

    /// The rest of the current block, to be read into; then [`GrowingWriter::commit`] what was read. Empty at the end.
    pub fn spare(&mut self) -> &mut [u8] {
        let room = self.block_room();
        &mut self.appender.spare()[..room]
    }

    /// Publishes the first `len` bytes of [`GrowingWriter::spare`].
    ///
    /// # Errors
    /// [`Code::Internal`] when `len` is more than the spare room.
    pub fn commit(&mut self, len: usize) -> Result<()> {
        if len > self.block_room() {
            return Err(Error::new(Code::Internal, format!("commit of {len} bytes beyond the spare room")));
        }
        self.block.update(&self.appender.spare()[..len]);
        self.seal_block(len);
        self.appender.commit(len);
        Ok(())
    }

    /// Ends the fill well.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when bytes are missing; the readers get the same error.
    pub fn finish(self) -> Result<()> {
        let missing = self.remaining_bytes();
        let checksums: Option<Arc<[BlockChecksum]>> =
            self.chunk.blocks.iter().map(|block| block.get().copied()).collect();
        match checksums {
            Some(checksums) if missing == 0 => {
                // The writer is consumed here, so the value cannot have been set before.
                let _ = self.chunk.complete.set(checksums);
                self.appender.finish();
                Ok(())
            }
            _ => {
                let error = Error::new(Code::Corrupt, format!("the fill ended {missing} bytes before the chunk did"));
                self.appender.fail(error.clone());
                Err(error)
            }
        }
    }

    /// Ends the fill badly: every reader that waits for more bytes gets `error`.
    pub fn fail(self, error: Error) {
        self.appender.fail(error);
    }

    /// Bytes missing from the current block.
    fn block_room(&self) -> usize {
        (BLOCK_BYTES - self.written_bytes % BLOCK_BYTES).min(self.remaining_bytes()) as usize
    }

    /// Counts `len` bytes of the current block, and keeps its checksum when they complete it. Comes before the bytes
    /// are published: see the module's promise.
    fn seal_block(&mut self, len: usize) {
        if len > 0 && len == self.block_room() {
            let checksum = std::mem::take(&mut self.block).finish();
            let index = (self.written_bytes / BLOCK_BYTES) as usize;
            let _ = self.chunk.blocks[index].set(checksum);
        }
        self.written_bytes += len as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_memory::Arena;
    use longshore_types::{Artifact, Version};
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn begin(len: usize) -> (GrowingWriter, Arc<GrowingChunk>) {
        let artifact = Artifact::new("file:///m", Version::new("v").unwrap(), len as u64).unwrap();
        let buffer = Arena::new(32 << 20).try_buffer(len).unwrap();
        GrowingChunk::begin(ChunkKey::new(Arc::new(artifact), 0).unwrap(), buffer).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn any_portions_give_the_same_blocks(len in 1usize..3 << 20, portions in proptest::collection::vec((1usize..1 << 20, any::<bool>()), 1..9)) {
            let bytes: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
            let (mut writer, chunk) = begin(len);
            let mut at = 0;
            for (portion, spare) in portions.into_iter().cycle() {
                if at == len {
                    break;
                }
                let mut portion = portion.min(len - at);
                if spare {
                    let room = writer.spare();
                    portion = portion.min(room.len());
                    room[..portion].copy_from_slice(&bytes[at..at + portion]);
                    writer.commit(portion).unwrap();
                } else {
                    writer.write(&bytes[at..at + portion]).unwrap();
                }
                at += portion;
                prop_assert_eq!(writer.written_bytes(), at as u64);
                // A block is there as soon as its last byte is, and not before.
                let whole = if at == len { chunk.key().block_count() } else { at / BLOCK_BYTES as usize };
                for index in 0..chunk.key().block_count() {
                    prop_assert_eq!(chunk.block(index, NOW).is_ok(), index < whole);
                }
                prop_assert!(!chunk.is_complete() && chunk.checksums().is_none());
            }
            writer.finish().unwrap();
            prop_assert!(chunk.is_complete());
            prop_assert_eq!(&chunk.checksums().unwrap()[..], &BlockChecksum::of_blocks(&bytes)[..]);
            prop_assert!(chunk.get(0..len as u64).unwrap() == bytes);
        }
    }

    #[test]
    fn readers_learn_how_a_fill_ended() {
        let (mut writer, chunk) = begin(100);
        assert_eq!(chunk.block(0, NOW).unwrap_err().code(), Code::Timeout);
        assert_eq!(chunk.block(1, NOW).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(writer.write(&[0; 101]).unwrap_err().code(), Code::Corrupt);
        assert_eq!(writer.commit(101).unwrap_err().code(), Code::Internal);
        writer.write(&[0; 99]).unwrap();
        assert_eq!(writer.finish().unwrap_err().code(), Code::Corrupt);
        assert_eq!(chunk.block(0, NOW).unwrap_err().code(), Code::Corrupt);

        let (writer, chunk) = begin(100);
        writer.fail(Error::new(Code::NotFound, "gone"));
        assert_eq!(chunk.block(0, NOW).unwrap_err().code(), Code::NotFound);

        let (mut writer, chunk) = begin(100);
        writer.write(&[0; 100]).unwrap();
        drop(writer);
        // What was published stays readable, but the fill never said that it was good.
        assert!(chunk.block(0, NOW).is_ok() && !chunk.is_complete());
    }

    #[test]
    fn a_buffer_of_another_length_is_refused() {
        let artifact = Artifact::new("file:///m", Version::new("v").unwrap(), 100).unwrap();
        let buffer = Arena::new(1000).try_buffer(99).unwrap();
        let key = ChunkKey::new(Arc::new(artifact), 0).unwrap();
        assert_eq!(GrowingChunk::begin(key, buffer).err().unwrap().code(), Code::Internal);
    }
}
