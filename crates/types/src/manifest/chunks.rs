//! A file whose chunks lie in several objects: which chunk is where.

use std::ops::Range;
use std::sync::Arc;

use crate::artifact::Artifact;
use crate::chunk::{CHUNK_BYTES, ChunkKey, chunk_count};
use crate::error::{Code, Error, Result};

/// Chunks of a file that follow each other in one object too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRun {
    /// The object.
    pub artifact: Arc<Artifact>,
    /// The first of them, in the object.
    pub first_chunk: u32,
    /// How many there are, at least one.
    pub count: u32,
}

/// Where the chunks of a file lie. A chunk of the file is the first bytes of the chunk of the object: the last one of the
/// file may be shorter than what it lies in, and is padded there with zeros.
///
/// Invariant: the runs cover the chunks of the file, in order, and every chunk fits into the one that it lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    runs: Vec<ChunkRun>,
    /// For each run, the number of chunks up to its end.
    ends: Vec<u64>,
}

impl ChunkMap {
    /// The map of a file of `size_bytes`. `name` is for the error.
    ///
    /// # Errors
    /// [`Code::Corrupt`] when the runs do not cover the file, or name chunks that an object does not have.
    pub fn new(runs: Vec<ChunkRun>, size_bytes: u64, name: &str) -> Result<ChunkMap> {
        let corrupt = |why: String| Error::new(Code::Corrupt, format!("the chunk map of {name} {why}"));
        let mut ends = Vec::with_capacity(runs.len());
        let mut end = 0_u64;
        for run in &runs {
            let (first, count) = (u64::from(run.first_chunk), u64::from(run.count));
            let start_bytes = end.saturating_mul(CHUNK_BYTES);
            end = end.saturating_add(count);
            if count == 0 || start_bytes >= size_bytes {
                return Err(corrupt("has runs that hold nothing of the file".to_owned()));
            }
            // The object may end within the run only where the file does.
            let wanted_end = size_bytes.min(end.saturating_mul(CHUNK_BYTES)) - start_bytes;
            if first * CHUNK_BYTES + wanted_end > run.artifact.size_bytes() {
                let (last, url) = (first + count - 1, run.artifact.url());
                return Err(corrupt(format!("names chunks {first} to {last} of {url}, which is shorter")));
            }
            ends.push(end);
        }
        let wanted = chunk_count(size_bytes);
        if end != wanted {
            return Err(corrupt(format!("covers {end} chunks of {wanted}")));
        }
        Ok(ChunkMap { runs, ends })
    }

    /// The runs, in the order of the file.
    pub fn runs(&self) -> &[ChunkRun] {
        &self.runs
    }

    /// The chunk of an object that the file's chunk `index` is the beginning of.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when the file has no such chunk.
    pub fn key(&self, index: u64) -> Result<ChunkKey> {
        let at = self.ends.partition_point(|&end| end <= index);
        let (Some(run), Some(&end)) = (self.runs.get(at), self.ends.get(at)) else {
            return Err(Error::new(Code::InvalidArgument, format!("the chunk map has no chunk {index}")));
        };
        let within = index - (end - u64::from(run.count));
        let index = u32::try_from(u64::from(run.first_chunk) + within)
            .map_err(|_| Error::new(Code::InvalidArgument, format!("{} has no such chunk", run.artifact.url())))?;
        ChunkKey::new(run.artifact.clone(), index)
    }

    /// The pieces that make up a range of the file: an artifact, and where in it.
    ///
    /// # Errors
    /// As [`ChunkMap::key`].
    pub fn pieces(&self, range: Range<u64>) -> Result<Vec<(Arc<Artifact>, Range<u64>)>> {
        let mut pieces: Vec<(Arc<Artifact>, Range<u64>)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let index = at / CHUNK_BYTES;
            let end = range.end.min((index + 1) * CHUNK_BYTES);
            let key = self.key(index)?;
            let start = key.range().start + at % CHUNK_BYTES;
            let piece = start..start + (end - at);
            match pieces.last_mut() {
                Some((artifact, last)) if Arc::ptr_eq(artifact, key.artifact()) && last.end == piece.start => {
                    last.end = piece.end;
                }
                _ => pieces.push((key.artifact().clone(), piece)),
            }
            at = end;
        }
        Ok(pieces)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::artifact::Version;

    fn artifact(name: &str, size_bytes: u64) -> Arc<Artifact> {
        Arc::new(Artifact::new(format!("s3://b/{name}"), Version::new("attempt:x").unwrap(), size_bytes).unwrap())
    }

    fn run(artifact: &Arc<Artifact>, first_chunk: u32, count: u32) -> ChunkRun {
        ChunkRun { artifact: artifact.clone(), first_chunk, count }
    }

    #[test]
    fn chunks_are_found_in_their_objects() {
        let size = 4 * CHUNK_BYTES + 5;
        let (full, pack) = (artifact("full", size), artifact("pack", 2 * CHUNK_BYTES));
        let map = ChunkMap::new(vec![run(&full, 0, 1), run(&pack, 0, 2), run(&full, 3, 2)], size, "f").unwrap();
        let found = (0..5).map(|index| map.key(index).unwrap()).map(|k| (k.artifact().clone(), k.index()));
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(&full, 0), (&pack, 0), (&pack, 1), (&full, 3), (&full, 4)].map(|(a, i)| (a.clone(), i)));
        assert!(map.key(5).is_err());
        let pieces = map.pieces(CHUNK_BYTES - 1..3 * CHUNK_BYTES + 7).unwrap();
        let wanted = [
            (full.clone(), CHUNK_BYTES - 1..CHUNK_BYTES),
            (pack.clone(), 0..2 * CHUNK_BYTES),
            (full.clone(), 3 * CHUNK_BYTES..3 * CHUNK_BYTES + 7),
        ];
        assert_eq!(pieces, wanted);
        assert_eq!(map.pieces(0..0).unwrap(), []);
    }

    #[test]
    fn wrong_maps_are_refused() {
        let size = 2 * CHUNK_BYTES + 5;
        let (full, pack) = (artifact("full", size), artifact("pack", CHUNK_BYTES + 4));
        for runs in [
            vec![],
            vec![run(&full, 0, 2)],
            vec![run(&full, 0, 4)],
            vec![run(&full, 0, 3), run(&pack, 0, 1)],
            vec![run(&full, 0, 0), run(&full, 0, 3)],
            vec![run(&full, 1, 3)],
            // The file's last chunk has a byte more than the object.
            vec![run(&full, 0, 2), run(&pack, 1, 1)],
            // A chunk in the middle of the file is whole.
            vec![run(&pack, 1, 1), run(&full, 1, 2)],
            vec![run(&full, u32::MAX, u32::MAX)],
        ] {
            let error = ChunkMap::new(runs.clone(), size, "the-file").unwrap_err();
            assert_eq!(error.code(), Code::Corrupt, "{runs:?}");
            assert!(error.message().contains("the-file"), "{error}");
        }
        assert!(ChunkMap::new(vec![], 0, "empty").is_ok());
        assert!(ChunkMap::new(vec![run(&full, 0, 2), run(&full, 2, 1)], size, "f").is_ok());
    }
}
