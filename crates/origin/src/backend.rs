//! What every kind of origin can do. One attempt each: repeating, resuming and counting failures is for the callers.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use longshore_types::Artifact;

use crate::address::Address;
use crate::fault::Attempt;
use crate::lane::Lane;
use crate::straight::StraightBody;
use crate::write::Writes;

/// The bytes of one range as they arrive.
pub(crate) type Body = BoxStream<'static, Attempt<Bytes>>;

/// The bytes of one range, in one of two ways.
pub(crate) enum Opened {
    /// Still on their connection, for a thread that may block.
    Straight(StraightBody),
    /// As pieces, from the runtime.
    Streamed(Body),
}

/// One page of a listing.
pub(crate) struct Page {
    /// Names relative to the listed folder, not yet checked, with their artifacts.
    pub files: Vec<(String, Artifact)>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<String>,
    /// A revision of the whole folder, where the origin has such a thing.
    pub revision: Option<String>,
}

/// One bucket, server, hub or the local disk.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// The size and version of one object; `NotFound` when there is none, or when `target` is a folder.
    async fn stat(&self, target: &Address) -> Attempt<Artifact>;

    /// A page of everything below `folder`, in any order. Nothing below it is an empty page, not an error.
    async fn list(&self, folder: &Address, token: Option<&str>) -> Attempt<Page>;

    /// Opens a range of exactly the version that `artifact` names. The range is not empty and lies within the object.
    ///
    /// Fails with `FailedPrecondition` when the object has another version now. The body may end early or fail, and
    /// the caller then opens the rest.
    async fn open(&self, artifact: &Artifact, range: Range<u64>) -> Attempt<Body>;

    /// As [`Backend::open`], with the bytes still on the connection where that can be.
    async fn open_straight(&self, artifact: &Artifact, range: Range<u64>) -> Attempt<Opened> {
        self.open(artifact, range).await.map(Opened::Streamed)
    }

    /// Bounds and counters shared by all calls.
    fn lane(&self) -> &Lane;

    /// The writing side; `None` for origins that are only read.
    fn writer(&self) -> Option<&dyn Writes> {
        None
    }
}
