//! What a checkpoint will look like: which files, which tensors at which offsets, which rank writes them.
//!
//! [`Planner`] joins the ranks of one save, [`layout`] turns what they have into a [`SavePlan`] that all of them get alike.
//! A plan comes back from clients with StartSave, so it is checked again there ([`SavePlan::check`]): an illegal one never
//! reaches the journal. The same items give the same plan but for the attempt.

mod check;
mod header;
mod items;
mod join;
mod layout;
mod names;

use std::collections::BTreeMap;

use longshore_types::checkpoint::{Alias, AttemptId, object_url, step_folder};
use serde::{Deserialize, Serialize};

pub use join::Planner;
pub use layout::layout;
pub(crate) use names::INDEX_NAME;

/// Most bytes of a safetensors file, when the options do not say.
pub const FILE_BYTES_MAX: u64 = 4 << 30;
/// Deltas between two full checkpoints at most, when the options do not say.
pub const DELTA_DEPTH_MAX: u32 = 16;
/// Time to stage all ranks, when the options do not say, milliseconds.
pub const STAGE_TIMEOUT_MS: u64 = 600_000;
/// Time for all ranks to join, when the request does not say, milliseconds.
pub const JOIN_TIMEOUT_MS: u64 = 600_000;
/// Most ranks of a save.
pub const WORLD_SIZE_MAX: u32 = 65_536;
/// A file given byte for byte up to this size has its plain name in the bucket; a larger one's object names the attempt.
pub const PLAIN_FILE_BYTES_MAX: u64 = 64 << 20;

/// A tensor that a rank has, or one rectangular piece of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SaveTensor {
    /// Folder in the checkpoint, for instance `optim`; empty for the model itself.
    pub group: String,
    /// Unique in its group.
    pub name: String,
    /// As the safetensors format writes it.
    pub dtype: String,
    /// Of the whole tensor.
    pub shape: Vec<u64>,
    /// First index of the piece in each dimension; empty when the piece is the whole.
    pub start: Vec<u64>,
    /// Extent of the piece in each dimension; empty when the piece is the whole.
    pub piece_shape: Vec<u64>,
}

/// A file that a rank has, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SaveFile {
    /// Path relative to the checkpoint.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
}

/// What one rank has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RankItems {
    /// The rank.
    pub rank: u32,
    /// Tensors and pieces.
    pub tensors: Vec<SaveTensor>,
    /// Files.
    pub files: Vec<SaveFile>,
    /// Further names of tensors.
    pub aliases: Vec<Alias>,
}

/// How to save. Zeros stand for the defaults, see the methods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveOptions {
    /// Committed checkpoints to keep under the URL; 0 keeps all.
    pub keep: u32,
    /// Further nodes that must hold the bytes before the save is peer-durable.
    pub peer_copies: u32,
    /// May write only the chunks that differ from the newest committed checkpoint.
    pub delta: bool,
    /// Deltas between two full checkpoints.
    pub delta_depth_max: u32,
    /// Most bytes of a safetensors file.
    pub file_bytes_max: u64,
    /// From the plan until all ranks are staged.
    pub stage_timeout_ms: u64,
    /// Refuse when there is no room instead of waiting.
    pub refuse_when_full: bool,
    /// Kept in the checkpoint.
    pub metadata: BTreeMap<String, String>,
    /// Write an index as Hugging Face tools read it.
    pub hf_index: bool,
    /// Do not move items between ranks.
    pub as_given: bool,
}

impl SaveOptions {
    /// Most bytes of a safetensors file.
    pub fn file_bytes_max(&self) -> u64 {
        if self.file_bytes_max == 0 { FILE_BYTES_MAX } else { self.file_bytes_max }
    }

    /// Deltas between two full checkpoints.
    pub fn delta_depth_max(&self) -> u32 {
        if self.delta_depth_max == 0 { DELTA_DEPTH_MAX } else { self.delta_depth_max }
    }

    /// Milliseconds until all ranks must be staged.
    pub fn stage_timeout_ms(&self) -> u64 {
        if self.stage_timeout_ms == 0 { STAGE_TIMEOUT_MS } else { self.stage_timeout_ms }
    }
}

/// A call that gives what some of the ranks have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRequest {
    /// URL of the run.
    pub uri: String,
    /// The step.
    pub step: u64,
    /// Ranks of the whole save.
    pub world_size: u32,
    /// What these ranks have.
    pub ranks: Vec<RankItems>,
    /// The same for all ranks.
    pub options: SaveOptions,
    /// How long to wait for the other ranks; 0 is the default.
    pub join_timeout_ms: u64,
}

/// A tensor at its place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTensor {
    /// The tensor or piece.
    pub tensor: SaveTensor,
    /// First byte in the file.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub length_bytes: u64,
}

/// A file that one rank writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Path relative to the checkpoint.
    pub name: String,
    /// Who writes it.
    pub rank: u32,
    /// Its size, header included.
    pub size_bytes: u64,
    /// The first bytes of a safetensors file; empty for a file that is given byte for byte.
    pub header: Vec<u8>,
    /// By offset, without holes.
    pub tensors: Vec<PlannedTensor>,
}

impl PlannedFile {
    /// Whether it is a safetensors file of ours, as opposed to a file given byte for byte.
    pub fn is_tensors(&self) -> bool {
        !self.header.is_empty()
    }
}

/// What all ranks agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavePlan {
    /// URL of the run.
    pub uri: String,
    /// The step.
    pub step: u64,
    /// This try.
    pub attempt: AttemptId,
    /// Ranks of the whole save.
    pub world_size: u32,
    /// How to save.
    pub options: SaveOptions,
    /// The files of all ranks.
    pub files: Vec<PlannedFile>,
    /// Further names of tensors.
    pub aliases: Vec<Alias>,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

impl SavePlan {
    /// Checks a plan that came from outside: names, offsets, sizes and headers agree, the pieces of each tensor tile it.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the file or tensor and the reason.
    pub fn check(&self) -> longshore_types::Result<()> {
        check::plan(self)
    }

    /// URL of the checkpoint.
    pub fn url(&self) -> String {
        object_url(&self.uri, &step_folder(self.step))
    }

    /// Path of a file's object, relative to the run, when the file is stored whole. Names of objects hold the attempt, so
    /// that a zombie cannot write over what another attempt verified; small files that are given byte for byte do not.
    pub fn object_path(&self, file: &PlannedFile) -> String {
        format!("{}/{}", step_folder(self.step), names::object_name(file, &self.attempt))
    }

    /// Path of the object that takes the changed chunks of a rank in a delta, relative to the run.
    pub fn pack_path(&self, rank: u32) -> String {
        format!("{}/delta-{}-r{rank}.pack", step_folder(self.step), self.attempt)
    }

    /// Indexes of the files that a rank writes.
    pub fn files_of(&self, rank: u32) -> impl Iterator<Item = usize> + '_ {
        self.files.iter().enumerate().filter(move |(_, file)| file.rank == rank).map(|(index, _)| index)
    }

    /// Bytes that a rank writes.
    pub fn bytes_of(&self, rank: u32) -> u64 {
        self.files_of(rank).map(|file| self.files[file].size_bytes).sum()
    }
}

#[cfg(test)]
mod tests;
