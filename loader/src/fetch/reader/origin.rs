//! The last resort: a chunk's range from the origin itself, streamed into the landing memory.

use futures::TryStreamExt;
use longshore_memory::Landing;
use longshore_types::{BLOCK_BYTES, BlockChecksum, Checksummer, Code, Error, Result, redact_url};
use tokio_util::sync::CancellationToken;

use super::{Readers, Wanted};

/// Reads on the calling thread, which is none of the runtime's. The read is conditional on the version. Gives what the
/// blocks are, where that is of interest.
pub(super) fn read(
    readers: &Readers,
    wanted: &Wanted<'_>,
    landing: &mut Landing,
    token: &CancellationToken,
) -> Result<Vec<BlockChecksum>> {
    readers.runtime.block_on(async {
        let work = stream(readers, wanted, landing);
        let ended = token.run_until_cancelled(work).await;
        ended.unwrap_or_else(|| Err(Error::new(Code::Cancelled, "the load was given up")))
    })
}

async fn stream(readers: &Readers, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<Vec<BlockChecksum>> {
    let mut blocks = wanted.expected.is_some().then(Blocks::default);
    let artifact = wanted.key.artifact();
    let mut body = readers.origins.read(artifact, wanted.file_range());
    let mut at = 0;
    while let Some(piece) = body.try_next().await? {
        // The origin promises exactly the range; memory does not rest on a promise.
        if piece.len() > landing.len() - at {
            return Err(wrong_length(artifact.url(), wanted.len_bytes()));
        }
        landing.copy_in(at, &piece);
        if let Some(blocks) = &mut blocks {
            blocks.add(&piece);
        }
        at += piece.len();
    }
    if at < landing.len() {
        return Err(wrong_length(artifact.url(), wanted.len_bytes()));
    }
    Ok(blocks.map(Blocks::finish).unwrap_or_default())
}

/// The checksums of blocks, from pieces of any length.
#[derive(Default)]
struct Blocks {
    done: Vec<BlockChecksum>,
    open: Checksummer,
    /// Bytes in the open one.
    at: usize,
}

impl Blocks {
    fn add(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (front, rest) = piece.split_at(piece.len().min(BLOCK_BYTES as usize - self.at));
            self.open.update(front);
            self.at += front.len();
            if self.at == BLOCK_BYTES as usize {
                self.done.push(std::mem::take(&mut self.open).finish());
                self.at = 0;
            }
            piece = rest;
        }
    }

    fn finish(mut self) -> Vec<BlockChecksum> {
        if self.at > 0 {
            self.done.push(self.open.finish());
        }
        self.done
    }
}

fn wrong_length(url: &str, wanted: u64) -> Error {
    let url = redact_url(url);
    Error::new(Code::Corrupt, format!("the origin of {url} did not give the {wanted} bytes that were asked for"))
}
