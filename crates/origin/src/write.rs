//! Writing to origins: what every kind that can be written to must do, and the words of the public calls.
//!
//! One attempt each here, as in `backend.rs`; repeating is for [`Lane`](crate::lane::Lane). What an attempt left behind
//! is not known when its answer was lost, so the calls are made to be repeated: a part and an unconditional put are the
//! same the second time, a conditional put then says [`PutOutcome::Conflict`], and an upload that was completed by a lost
//! attempt is simply not there any more. The caller reads back and decides.

use async_trait::async_trait;
use longshore_types::{BlockChecksum, Version};
use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::body::Body;
use crate::fault::Attempt;

/// Under which condition an object is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutHow {
    /// Whatever is there.
    Overwrite,
    /// Only when nothing of that name is there.
    Create,
    /// Only when the object has this version.
    Replace(Version),
}

/// What became of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is written, and has this version.
    Written(Version),
    /// There is one already, or it has another version. It may be what an attempt of this very call wrote whose answer
    /// was lost: read it back.
    Conflict,
}

/// An unfinished multipart upload, as the origin names it. Opaque; survives restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(pub(crate) String);

/// A part that an upload has. Opaque; survives restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartId(pub(crate) String);

/// An upload that somebody began and did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The object that it would become.
    pub url: String,
    /// For [`Origins::upload_abort`](crate::Origins::upload_abort).
    pub id: UploadId,
    /// When it was begun, in milliseconds since 1970; 0 when the store does not tell.
    pub started_ms: u64,
}

/// What parts may be like. The last part of an upload may be shorter than the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Fewest bytes of a part that is not the last.
    pub part_bytes_min: u64,
    /// Most bytes of a part.
    pub part_bytes_max: u64,
    /// Most parts of one upload.
    pub parts_max: u32,
}

impl UploadLimits {
    /// The size of parts for an object of `size_bytes`: as near to `wish_bytes` as the limits allow. All parts but the
    /// last have it. It is a multiple of 1 MiB where the limits leave that choice.
    pub fn part_bytes(&self, size_bytes: u64, wish_bytes: u64) -> u64 {
        const MIB: u64 = 1 << 20;
        let least = size_bytes.div_ceil(u64::from(self.parts_max.max(1))).div_ceil(MIB) * MIB;
        wish_bytes.max(least).clamp(self.part_bytes_min, self.part_bytes_max)
    }
}

/// How an object was found to be what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// The store computed a checksum over the whole object, and it is the one expected.
    ByStore,
    /// The object was read back and its bytes compared by their checksum.
    ReadBack,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the folder that was listed.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its version, where the listing tells it.
    pub version: Option<Version>,
    /// When it was written, in milliseconds since 1970.
    pub modified_ms: u64,
}

/// Most entries of one listing for maintenance: beyond it the caller names a smaller folder.
pub(crate) const ENTRIES_MAX: usize = 4_000_000;

/// One page of a listing for maintenance.
pub(crate) struct Entries {
    pub objects: Vec<Listed>,
    /// Names of folders, when only one level was listed.
    pub folders: Vec<String>,
    pub next: Option<String>,
}

/// What a store says of an object without sending it.
pub(crate) struct Summary {
    pub version: Version,
    pub size_bytes: u64,
    /// The full-object checksum that the store computed, where it keeps one.
    pub checksum: Option<BlockChecksum>,
}

/// A kind of origin that can be written to.
#[async_trait]
pub(crate) trait Writes: Send + Sync {
    /// Writes one whole object.
    async fn put(&self, target: &Address, body: &Body, how: &PutHow) -> Attempt<PutOutcome>;

    /// A page of what is below `folder`: everything, or one level with its folders. Nothing there is an empty page.
    async fn entries(&self, folder: &Address, one_level: bool, token: Option<&str>) -> Attempt<Entries>;

    /// Deletes one object; `false` when the store says that there was none.
    async fn delete(&self, target: &Address) -> Attempt<bool>;

    fn upload_limits(&self) -> UploadLimits;

    async fn upload_start(&self, target: &Address) -> Attempt<UploadId>;

    async fn upload_part(&self, target: &Address, id: &UploadId, index: u32, body: &Body) -> Attempt<PartId>;

    /// `None` when there is no such upload any more.
    async fn upload_complete(&self, target: &Address, id: &UploadId, parts: &[PartId]) -> Attempt<Option<Version>>;

    async fn upload_abort(&self, target: &Address, id: &UploadId) -> Attempt<()>;

    /// `None` when this store cannot list them.
    async fn open_uploads(&self, folder: &Address) -> Attempt<Option<Vec<OpenUpload>>>;

    /// Size, version and, where the store has one, its own checksum of the whole object.
    async fn summary(&self, target: &Address) -> Attempt<Summary>;
}
