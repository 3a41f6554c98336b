//! The last resort: a chunk's range from the origin itself, streamed into the landing memory.

use futures::TryStreamExt;
use longshore_memory::Landing;
use longshore_types::{Code, Error, Result, redact_url};
use tokio_util::sync::CancellationToken;

use super::{Readers, Wanted};

/// Reads on the calling thread, which is none of the runtime's. The read is conditional on the version.
pub(super) fn read(
    readers: &Readers,
    wanted: &Wanted<'_>,
    landing: &mut Landing,
    token: &CancellationToken,
) -> Result<()> {
    readers.runtime.block_on(async {
        let work = stream(readers, wanted, landing);
        let ended = token.run_until_cancelled(work).await;
        ended.unwrap_or_else(|| Err(Error::new(Code::Cancelled, "the load was given up")))
    })
}

async fn stream(readers: &Readers, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<()> {
    let artifact = wanted.key.artifact();
    let mut body = readers.origins.read(artifact, wanted.file_range());
    let mut at = 0;
    while let Some(piece) = body.try_next().await? {
        // The origin promises exactly the range; memory does not rest on a promise.
        if piece.len() > landing.len() - at {
            return Err(wrong_length(artifact.url(), wanted.len_bytes()));
        }
        landing.copy_in(at, &piece);
        at += piece.len();
    }
    if at < landing.len() {
        return Err(wrong_length(artifact.url(), wanted.len_bytes()));
    }
    Ok(())
}

fn wrong_length(url: &str, wanted: u64) -> Error {
    let url = redact_url(url);
    Error::new(Code::Corrupt, format!("the origin of {url} did not give the {wanted} bytes that were asked for"))
}
