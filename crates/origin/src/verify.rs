//! Whether an object is what was sent: by the store's own checksum over all of it, or by reading it back.

use std::ops::Range;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use longshore_types::Checksummer;
use longshore_types::{Artifact, BlockChecksum, Code, Error, Result, Version};

use crate::address::Address;
use crate::backend::Backend;
use crate::read;
use crate::stats::count;
use crate::write::{Verified, Writes};

/// Bytes of one range that is read back.
const RANGE_BYTES: u64 = 64 << 20;
/// Ranges that are read back at a time; each holds no more than the pieces that are arriving.
const RANGES_AT_ONCE: usize = 8;

/// What an object must be.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    pub size_bytes: u64,
    pub checksum: BlockChecksum,
}

/// Compares the object with what is expected.
pub(crate) async fn verify(
    backend: &Arc<dyn Backend>,
    writer: &dyn Writes,
    address: &Address,
    expected: Expected,
) -> Result<(Verified, Version)> {
    let summary = backend.lane().run(|| writer.summary(address)).await?;
    if summary.size_bytes != expected.size_bytes {
        let text = format!("{address} has {} bytes and should have {}", summary.size_bytes, expected.size_bytes);
        return Err(Error::new(Code::Corrupt, text));
    }
    let counters = &backend.lane().counters;
    match summary.checksum {
        Some(checksum) if checksum == expected.checksum => {
            count(&counters.verified_by_store, 1);
            return Ok((Verified::ByStore, summary.version));
        }
        // Some stores tell a checksum that they made in another way: the bytes decide.
        Some(checksum) => {
            tracing::warn!(
                url = %address, told = %checksum, expected = %expected.checksum,
                "the store tells another checksum than expected, the object is read back"
            );
        }
        None => {}
    }
    let artifact = Arc::new(Artifact::new(address.to_string(), summary.version.clone(), summary.size_bytes)?);
    let checksum = read_back(backend, &artifact).await?;
    if checksum != expected.checksum {
        let text = format!(
            "{address} is damaged: its bytes, read back, have checksum {checksum} and should have {}",
            expected.checksum
        );
        return Err(Error::new(Code::Corrupt, text));
    }
    count(&counters.verified_by_reading, 1);
    Ok((Verified::ReadBack, summary.version))
}

/// A range that is to be read. It owns what it needs, or the compiler does not believe that a task may run it.
struct Reading {
    backend: Arc<dyn Backend>,
    artifact: Arc<Artifact>,
    range: Range<u64>,
}

impl Reading {
    /// The checksum of the range, and its length.
    async fn sum(self) -> Result<(BlockChecksum, u64)> {
        let mut checksum = Checksummer::new();
        let len = self.range.end - self.range.start;
        let mut pieces = read::read(self.backend, self.artifact, self.range);
        while let Some(piece) = pieces.try_next().await? {
            checksum.update(&piece);
        }
        Ok((checksum.finish(), len))
    }
}

/// The checksum of all bytes of one version, of several ranges at a time.
async fn read_back(backend: &Arc<dyn Backend>, artifact: &Arc<Artifact>) -> Result<BlockChecksum> {
    let size = artifact.size_bytes();
    let (backend, artifact) = (backend.clone(), artifact.clone());
    let readings = (0..size.div_ceil(RANGE_BYTES)).map(move |i| Reading {
        backend: backend.clone(),
        artifact: artifact.clone(),
        range: i * RANGE_BYTES..((i + 1) * RANGE_BYTES).min(size),
    });
    let mut sums = std::pin::pin!(stream::iter(readings).map(Reading::sum).buffered(RANGES_AT_ONCE));
    let mut whole = BlockChecksum::of(&[]);
    while let Some((part, len)) = sums.try_next().await? {
        whole = whole.combine(part, len);
    }
    Ok(whole)
}
