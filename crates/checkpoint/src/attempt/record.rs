//! The records of an attempt's journal. Their order in the enum is part of the format: new ones go to the end.

use longshore_origin::{PartId, UploadId};
use longshore_types::BlockChecksum;
use longshore_types::checkpoint::AttemptId;
use serde::{Deserialize, Serialize};

use super::sums;
use crate::plan::SavePlan;

/// One fact about an attempt, true from the moment that it is on the disk.
///
/// Objects are numbered so: object `k` is file `k` of the plan, byte for byte; object `files + r` is the pack of rank `r`, where
/// the changed chunks of a delta lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// What is to be saved. The first record of every journal.
    Planned {
        /// The plan that all ranks agreed on.
        plan: Box<SavePlan>,
    },
    /// Which files may refer to chunks of an earlier checkpoint. Before any record of a flush.
    Delta {
        /// `None`: a full checkpoint.
        base: Option<DeltaBase>,
    },
    /// This node takes charge of a rank; the content of its small files came along and is synced.
    Started {
        /// The rank.
        rank: u32,
        /// Its small files, each as its only slab.
        inline: Vec<FlushedSlab>,
    },
    /// A slab's bytes are synced on this node's disk.
    Flushed(FlushedSlab),
    /// All bytes of a rank are.
    RankDurable {
        /// The rank.
        rank: u32,
    },
    /// As many peers as asked for hold them.
    PeerDurable {
        /// The rank.
        rank: u32,
    },
    /// The intent is in the origin.
    IntentWritten {
        /// Its fencing epoch.
        epoch: u64,
    },
    /// An upload is open.
    UploadStarted {
        /// The object.
        object: u32,
        /// Its id.
        id: UploadId,
    },
    /// A part is in the origin.
    PartDone {
        /// The object.
        object: u32,
        /// Which part, from 0.
        index: u32,
        /// As the origin named it.
        part_id: PartId,
        /// Of its bytes.
        #[serde(with = "sums::one")]
        checksum: BlockChecksum,
    },
    /// The upload is lost: it starts afresh.
    UploadDropped {
        /// The object.
        object: u32,
    },
    /// The origin was asked to put the parts together, or to take the object whole.
    CompleteSent {
        /// The object.
        object: u32,
    },
    /// The object is in the origin, with the right size and checksum.
    Verified {
        /// The object.
        object: u32,
        /// Its version.
        version: String,
        /// How it was verified.
        how: StoredHow,
    },
    /// The record of a rank is in the origin, for the daemon that commits.
    RankStored {
        /// The rank.
        rank: u32,
    },
    /// The origin was asked to take the commit.
    CommitSent,
    /// The checkpoint is visible.
    Committed,
    /// Given up on request.
    Cancelled,
    /// Given up for ever.
    Failed {
        /// Name of the error's code.
        code: String,
        /// The error's message.
        message: String,
    },
}

/// How it was made sure that the origin has the right bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredHow {
    /// The store computed the same checksum over the whole object.
    ByStore,
    /// It was read back and compared.
    ReadBack,
}

/// A slab that is synced on this node's disk, with what its bytes are known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushedSlab {
    /// Index into the files of the plan.
    pub file: u32,
    /// Which slab of the file.
    pub slab_index: u32,
    /// Checksum of each block; the last one may be short.
    #[serde(with = "sums")]
    pub blocks: Vec<BlockChecksum>,
    /// Checksum of the part in this slab of each tensor that has bytes here, in the order of the plan.
    #[serde(with = "sums")]
    pub fragments: Vec<BlockChecksum>,
    /// `None`: the bytes are in the object of the file. Else where each chunk is: `Some(n)` is chunk `n` of the rank's pack,
    /// `None` is the same chunk of the same file in the parent.
    pub chunks: Option<Vec<Option<u32>>>,
}

/// The checkpoint that a delta is made from, and which of its files serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaBase {
    /// Step of the parent.
    pub step: u64,
    /// Attempt of the parent. Its commit is kept beside the journal.
    pub attempt: AttemptId,
    /// Deltas between this checkpoint and its full ancestor.
    pub depth: u32,
    /// Pairs of a file of the plan and the file of the parent's commit that has the same layout, by the first.
    pub files: Vec<(u32, u32)>,
}
