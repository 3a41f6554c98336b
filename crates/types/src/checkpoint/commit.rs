//! The commit: which objects make up a checkpoint, which files they hold, which tensors lie in the files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::artifact::{Artifact, Version};
use crate::checkpoint::{AttemptId, COMMIT_BYTES_MAX, COMMIT_NAME, frame, step_folder, text, validate};
use crate::checksum::BlockChecksum;
use crate::error::{Code, Error, Result};

/// A committed checkpoint. What [`Commit::parse`] gives is checked: indexes exist, extents lie in their files, the pieces of
/// each tensor tile it, files are covered by their objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The attempt that committed.
    pub attempt: AttemptId,
    /// The step.
    pub step: u64,
    /// Fencing epoch of the intent.
    pub epoch: u64,
    /// When the save was planned, milliseconds since 1970.
    pub created_ms: u64,
    /// Ranks that saved.
    pub world_size: u32,
    /// The checkpoint that this delta was made from; `None` for a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Deltas between this checkpoint and its full ancestor: 0 for a full one.
    pub delta_depth: u32,
    /// Objects that the files lie in; those of a delta may be of other steps.
    pub objects: Vec<StoredObject>,
    /// The files of the checkpoint.
    pub files: Vec<StoredFile>,
    /// The tensors of the checkpoint.
    pub tensors: Vec<StoredTensor>,
    /// Further names of tensors.
    pub aliases: Vec<Alias>,
    /// What the caller wanted kept.
    pub metadata: BTreeMap<String, String>,
}

/// The checkpoint that a delta was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its step.
    pub step: u64,
    /// Its attempt.
    pub attempt: AttemptId,
}

/// One object in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredObject {
    /// Relative to the URL of the **run**, for instance `step-90/config.json`.
    pub path: String,
    /// Size of the object.
    pub size_bytes: u64,
    /// Its version as the origin gave it.
    pub version: String,
    /// Of the whole object.
    #[serde(with = "text::hex")]
    pub checksum: BlockChecksum,
    /// The attempt that wrote it.
    pub attempt: AttemptId,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFile {
    /// Path relative to the checkpoint.
    pub name: String,
    /// Size of the file.
    pub size_bytes: u64,
    /// Of the whole file.
    #[serde(with = "text::hex")]
    pub checksum: BlockChecksum,
    /// Of each 1 MiB block; the last one may be short.
    #[serde(with = "text::blocks")]
    pub blocks: Vec<BlockChecksum>,
    /// Where its bytes are.
    pub place: FilePlace,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilePlace {
    /// They are this object, byte for byte.
    Object(u32),
    /// Runs of 16 MiB chunks of objects, in the order of the file. The last chunk may be followed by padding.
    Chunks(Vec<ChunkRun>),
}

/// Chunks that follow each other in an object, and in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRun {
    /// Index into [`Commit::objects`].
    pub object: u32,
    /// First chunk in the object.
    pub first_chunk: u32,
    /// Number of chunks.
    pub count: u32,
}

/// One tensor, whole or in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTensor {
    /// `group/name`, or the name alone.
    pub name: String,
    /// As the safetensors format writes it.
    pub dtype: String,
    /// Of the whole tensor.
    pub shape: Vec<u64>,
    /// Rectangular pieces that tile it.
    pub pieces: Vec<StoredPiece>,
}

/// A rectangular piece of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPiece {
    /// Index into [`Commit::files`].
    pub file: u32,
    /// First byte in the file.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub length_bytes: u64,
    /// First index in each dimension.
    pub start: Vec<u64>,
    /// Extent in each dimension.
    pub shape: Vec<u64>,
    /// Of these bytes.
    #[serde(with = "text::hex")]
    pub checksum: BlockChecksum,
}

/// A further name of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// Group of both; empty for the model itself.
    pub group: String,
    /// The further name, without the group.
    pub name: String,
    /// The name of the tensor that is stored, without the group.
    pub target: String,
}

impl Commit {
    /// The bytes of `_CKPT.json`. Equal commits give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        frame::to_bytes("commit", self)
    }

    /// Parses and checks `_CKPT.json`.
    ///
    /// # Errors
    /// [`Code::Corrupt`], naming `url` and the reason.
    pub fn parse(bytes: &[u8], url: &str) -> Result<Commit> {
        let commit: Commit = frame::parse("commit", bytes, COMMIT_BYTES_MAX, url)?;
        validate::commit(&commit).map_err(|reason| frame::corrupt(url, &reason))?;
        Ok(commit)
    }

    /// Checks what [`Commit::parse`] checks, for a commit that was built here.
    ///
    /// # Errors
    /// [`Code::Internal`]: a commit that readers would refuse must not be written.
    pub fn check(&self) -> Result<()> {
        validate::commit(self)
            .map_err(|reason| Error::new(Code::Internal, format!("a commit was built wrong: {reason}")))
    }

    /// The identity of an object in caches: content is checked against the commit's checksums, and the attempt tells two
    /// contents of one name apart, so the version is `attempt:<id>`.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when there is no such object or the URL is too long.
    pub fn artifact_of(&self, run_url: &str, object: u32) -> Result<Arc<Artifact>> {
        let stored = self.objects.get(object as usize).ok_or_else(|| {
            Error::new(
                Code::InvalidArgument,
                format!(
                    "step {} of {run_url} has {} objects, there is no object {object}",
                    self.step,
                    self.objects.len()
                ),
            )
        })?;
        let version = Version::new(format!("attempt:{}", stored.attempt))?;
        Ok(Arc::new(Artifact::new(object_url(run_url, &stored.path), version, stored.size_bytes)?))
    }

    /// The URL of this commit.
    pub fn url(&self, run_url: &str) -> String {
        object_url(run_url, &format!("{}/{COMMIT_NAME}", step_folder(self.step)))
    }

    /// Names of the tensors that have bytes in `range` of a file: for messages about a block that is wrong.
    pub fn tensors_at(&self, file: u32, range: Range<u64>) -> Vec<&str> {
        let overlaps = |piece: &StoredPiece| {
            piece.file == file
                && piece.offset_bytes < range.end
                && range.start < piece.offset_bytes.saturating_add(piece.length_bytes)
        };
        self.tensors
            .iter()
            .filter(|tensor| tensor.pieces.iter().any(overlaps))
            .map(|tensor| tensor.name.as_str())
            .collect()
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    /// Bytes of the objects that this attempt wrote, as opposed to those of its ancestors.
    pub fn own_bytes(&self) -> u64 {
        let own = self.objects.iter().filter(|object| object.attempt == self.attempt);
        own.fold(0, |sum, object| sum.saturating_add(object.size_bytes))
    }
}

/// The URL of an object from its path relative to the run: what would end the path of a URL is escaped, as the origin's
/// addresses have it (keys of buckets are otherwise taken as they are, paths of `file` URLs are percent-encoded).
pub fn object_url(run_url: &str, path: &str) -> String {
    let plain_keys = !run_url.starts_with("file://") && !run_url.starts_with("http");
    let mut url = String::with_capacity(run_url.len() + 1 + path.len());
    url.push_str(run_url.trim_end_matches('/'));
    url.push('/');
    for (at, c) in path.char_indices() {
        let escaped = match c {
            '?' | '#' => true,
            '%' if plain_keys => matches!(path.get(at..at + 3), Some("%25" | "%23" | "%3F" | "%3f")),
            '%' | ' ' | '"' | '<' | '>' | '^' | '`' | '{' | '}' => !plain_keys,
            c => !plain_keys && !c.is_ascii(),
        };
        if escaped {
            let mut utf8 = [0; 4];
            for byte in c.encode_utf8(&mut utf8).bytes() {
                url.push_str(&format!("%{byte:02X}"));
            }
        } else {
            url.push(c);
        }
    }
    url
}
