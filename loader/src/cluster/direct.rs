//! Builds a manifest from the origin itself: what a worker does, for when no worker can be asked.

use bytes::BytesMut;
use futures::{StreamExt, TryStreamExt, stream};
use longshore_origin::Origins;
use longshore_types::{Code, Error, Manifest, ManifestBuilder, Progress, ReadNeeded, Result, Selection};

/// Reads in flight at once: a model has at most some hundred files with headers.
const READS_IN_FLIGHT: usize = 16;
/// Most rounds of reads: indexes, headers, long headers. A builder that wants more is broken.
const ROUNDS_MAX: usize = 8;

/// Lists the origin and reads indexes and headers.
///
/// # Errors
/// The origin's, or [`Code::Corrupt`] naming the file and the reason.
pub async fn manifest(origins: &Origins, url: &str, selection: &Selection) -> Result<Manifest> {
    let resolved = origins.resolve(url).await?;
    let mut builder = ManifestBuilder::new(resolved, selection)?;
    for _ in 0..ROUNDS_MAX {
        match builder.advance()? {
            Progress::Done(manifest) => return Ok(manifest),
            Progress::Need(reads) => {
                let reads = reads.into_iter().map(|needed| async move {
                    let bytes = read(origins, &needed).await?;
                    Ok::<_, Error>((needed, bytes))
                });
                let mut answers = stream::iter(reads).buffer_unordered(READS_IN_FLIGHT);
                while let Some((needed, bytes)) = answers.try_next().await? {
                    builder.supply(&needed, &bytes)?;
                }
            }
        }
    }
    Err(Error::new(Code::Internal, format!("the manifest of {url} is not done after {ROUNDS_MAX} rounds")))
}

async fn read(origins: &Origins, needed: &ReadNeeded) -> Result<BytesMut> {
    // The builder bounds the range: an index of at most 100 MB, a commit of a bounded size, or a header that was checked
    // against its file.
    let mut bytes = BytesMut::with_capacity((needed.range.end - needed.range.start) as usize);
    let mut body = origins.read(&needed.artifact, needed.object_range.clone());
    while let Some(piece) = body.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
