//! The small files beside a commit: who tries to save a step, which step is the newest, what one rank has stored.

use serde::{Deserialize, Serialize};

use crate::checkpoint::{
    AttemptId, COMMIT_BYTES_MAX, MARK_BYTES_MAX, Parent, StoredFile, StoredObject, frame, text, validate,
};
use crate::checksum::BlockChecksum;
use crate::error::Result;

/// `_INTENT.json`: the attempt that may commit a step. A newer attempt replaces it with a higher epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The attempt.
    pub attempt: AttemptId,
    /// One more than that of the attempt it superseded; 1 for the first.
    pub epoch: u64,
    /// The step.
    pub step: u64,
    /// Ranks that save.
    pub world_size: u32,
    /// When the save was planned, milliseconds since 1970.
    pub created_ms: u64,
    /// The checkpoint that this delta refers to: its objects stay while the intent is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
}

/// `_LATEST.json`: a hint to the newest committed checkpoint of a run. Readers verify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latest {
    /// Its step.
    pub step: u64,
    /// Its attempt.
    pub attempt: AttemptId,
}

/// `_RANK-<attempt>-<rank>.json`: all that one rank wrote is stored and verified. Only where several daemons save one
/// checkpoint; whoever sees the records of all ranks commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankRecord {
    /// The attempt.
    pub attempt: AttemptId,
    /// The step.
    pub step: u64,
    /// The rank.
    pub rank: u32,
    /// The objects that its files lie in.
    pub objects: Vec<StoredObject>,
    /// Its files; their places count in `objects`.
    pub files: Vec<RankFile>,
    /// The parent that unchanged chunks were taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Deltas between this checkpoint and its full ancestor.
    pub delta_depth: u32,
}

/// One file in a [`RankRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankFile {
    /// Index into the files of the plan.
    pub file: u32,
    /// What is stored.
    pub stored: StoredFile,
    /// Checksum of each tensor of the file, in the order of the plan.
    #[serde(with = "text::blocks")]
    pub tensors: Vec<BlockChecksum>,
}

impl Intent {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        frame::to_bytes("intent", self)
    }

    /// Parses the file.
    ///
    /// # Errors
    /// [`crate::Code::Corrupt`], naming `url` and the reason.
    pub fn parse(bytes: &[u8], url: &str) -> Result<Self> {
        frame::parse("intent", bytes, MARK_BYTES_MAX, url)
    }
}

impl Latest {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        frame::to_bytes("latest", self)
    }

    /// Parses the file.
    ///
    /// # Errors
    /// [`crate::Code::Corrupt`], naming `url` and the reason.
    pub fn parse(bytes: &[u8], url: &str) -> Result<Self> {
        frame::parse("latest", bytes, MARK_BYTES_MAX, url)
    }
}

impl RankRecord {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        frame::to_bytes("rank", self)
    }

    /// Parses and checks the file.
    ///
    /// # Errors
    /// [`crate::Code::Corrupt`], naming `url` and the reason.
    pub fn parse(bytes: &[u8], url: &str) -> Result<Self> {
        let record: RankRecord = frame::parse("rank", bytes, COMMIT_BYTES_MAX, url)?;
        validate::rank_record(&record).map_err(|reason| frame::corrupt(url, &reason))?;
        Ok(record)
    }
}
