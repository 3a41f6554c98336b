//! What the records of an attempt add up to. Built by replay and by every new record alike: there is one way to a state.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_origin::{PartId, UploadId};
use longshore_types::checkpoint::Commit;
use longshore_types::{BlockChecksum, CHUNK_BYTES, Code, Error};

use super::record::{DeltaBase, FlushedSlab, Record, StoredHow};
use crate::plan::SavePlan;
use crate::{SLAB_BYTES, slab_count};

/// What C gives for a delta: the parent's commit, and which of its files have the layout of ours.
#[derive(Debug, Clone)]
pub struct DeltaChoice {
    /// As it is recorded.
    pub base: DeltaBase,
    /// The parent's commit.
    pub commit: Arc<Commit>,
}

/// Where a chunk of a delta's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkPlace {
    /// Unchanged: the same chunk of the parent's file.
    Parent,
    /// This chunk of the rank's pack.
    Pack(u32),
}

/// A rank that this node has charge of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RankState {
    /// Slabs of its files that are flushed.
    pub flushed_slabs: u64,
    /// All its bytes are synced here.
    pub durable: bool,
    /// As many peers as asked for hold them.
    pub peer_durable: bool,
    /// Its record is in the origin.
    pub stored: bool,
}

/// A file of a rank of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileState {
    /// The slabs that are flushed, by index.
    pub slabs: BTreeMap<u32, FlushedSlab>,
}

/// The upload of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UploadState {
    /// The open multipart upload.
    pub id: Option<UploadId>,
    /// Parts that are in the origin, with the checksums of their bytes.
    pub parts: BTreeMap<u32, (PartId, BlockChecksum)>,
    /// The origin was asked to put them together.
    pub complete_sent: bool,
    /// Version of the verified object, and how it was verified.
    pub verified: Option<(String, StoredHow)>,
}

/// Replayed and live state of an attempt on this node.
#[derive(Debug, Clone, Default)]
pub struct AttemptState {
    /// Fencing epoch of the intent; 0 before it is written.
    pub epoch: u64,
    /// Whether it is settled that the save is a delta or full.
    pub delta_settled: bool,
    /// What the delta is made from.
    pub delta: Option<DeltaBase>,
    /// Ranks of this node.
    pub ranks: BTreeMap<u32, RankState>,
    /// Files of these ranks; an index into the plan's.
    pub files: BTreeMap<u32, FileState>,
    /// Uploads by object.
    pub uploads: BTreeMap<u32, UploadState>,
    /// The origin was asked to take the commit.
    pub commit_sent: bool,
    /// The checkpoint is visible.
    pub committed: bool,
    /// It was given up on request.
    pub cancelled: bool,
    /// It was given up for this error.
    pub failed: Option<Error>,
    /// Flushed chunks of each rank's pack.
    pub(super) packs: BTreeMap<u32, BTreeMap<u32, PackedChunk>>,
}

/// A chunk in a pack: the file's chunk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedChunk {
    pub(super) file: u32,
    pub(super) chunk: u32,
}

impl AttemptState {
    /// Whether nothing is left to do.
    pub fn is_ended(&self) -> bool {
        self.committed || self.cancelled || self.failed.is_some()
    }

    /// Whether this slab's bytes are on the disk.
    pub fn is_flushed(&self, file: u32, slab_index: u32) -> bool {
        self.files.get(&file).is_some_and(|state| state.slabs.contains_key(&slab_index))
    }

    /// Whether all ranks of this node are durable.
    pub fn is_local_durable(&self) -> bool {
        !self.ranks.is_empty() && self.ranks.values().all(|rank| rank.durable)
    }

    /// Whether all bytes of the file are on the disk.
    pub fn is_file_flushed(&self, file: u32, size_bytes: u64) -> bool {
        self.files.get(&file).is_some_and(|state| state.slabs.len() == slab_count(size_bytes) as usize)
    }

    /// Takes a record in. The journal's reader checks that indexes are the plan's (see [`check`]).
    pub(super) fn apply(&mut self, record: &Record, plan: &SavePlan) {
        match record {
            Record::Planned { .. } => {}
            Record::Delta { base } => {
                self.delta_settled = true;
                self.delta = base.clone();
            }
            Record::Started { rank, inline } => {
                self.ranks.entry(*rank).or_default();
                for (file, _) in rank_files(plan, *rank) {
                    self.files.entry(file).or_default();
                }
                inline.iter().for_each(|slab| self.flushed(slab, plan));
            }
            Record::Flushed(slab) => self.flushed(slab, plan),
            Record::RankDurable { rank } => self.ranks.entry(*rank).or_default().durable = true,
            Record::PeerDurable { rank } => self.ranks.entry(*rank).or_default().peer_durable = true,
            Record::RankStored { rank } => self.ranks.entry(*rank).or_default().stored = true,
            Record::IntentWritten { epoch } => self.epoch = *epoch,
            Record::UploadStarted { object, id } => {
                let fresh = UploadState { id: Some(id.clone()), ..UploadState::default() };
                self.uploads.insert(*object, fresh);
            }
            Record::PartDone { object, index, part_id, checksum } => {
                self.uploads.entry(*object).or_default().parts.insert(*index, (part_id.clone(), *checksum));
            }
            Record::UploadDropped { object } => {
                self.uploads.remove(object);
            }
            Record::CompleteSent { object } => self.uploads.entry(*object).or_default().complete_sent = true,
            Record::Verified { object, version, how } => {
                self.uploads.entry(*object).or_default().verified = Some((version.clone(), *how));
            }
            Record::CommitSent => self.commit_sent = true,
            Record::Committed => self.committed = true,
            Record::Cancelled => self.cancelled = true,
            Record::Failed { code, message } => {
                self.failed = Some(Error::new(Code::from_name(code), message.clone()));
            }
        }
    }

    fn flushed(&mut self, slab: &FlushedSlab, plan: &SavePlan) {
        if let Some(chunks) = &slab.chunks
            && let Some(file) = plan.files.get(slab.file as usize)
        {
            let pack = self.packs.entry(file.rank).or_default();
            let first = slab.slab_index * (SLAB_BYTES / CHUNK_BYTES) as u32;
            for (chunk, place) in (first..).zip(chunks) {
                if let Some(place) = place {
                    pack.insert(*place, PackedChunk { file: slab.file, chunk });
                }
            }
        }
        let slabs = &mut self.files.entry(slab.file).or_default().slabs;
        let is_new = slabs.insert(slab.slab_index, slab.clone()).is_none();
        if let Some(file) = plan.files.get(slab.file as usize) {
            self.ranks.entry(file.rank).or_default().flushed_slabs += u64::from(is_new);
        }
    }
}

/// Files of a rank with their sizes.
pub(crate) fn rank_files(plan: &SavePlan, rank: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
    let files = (0u32..).zip(&plan.files);
    files.filter(move |(_, file)| file.rank == rank).map(|(index, file)| (index, file.size_bytes))
}
