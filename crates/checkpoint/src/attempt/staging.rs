//! What is sealed and not flushed yet: live only, never in the journal.

use std::collections::{BTreeMap, HashSet};

use longshore_types::{CHUNK_BYTES, Code, Error, Result};

use super::{Attempt, FlushedSlab, SaveState, rank_files};
use crate::status::RankStatus;
use crate::{SLAB_BYTES, slab_count};

/// Slabs of this attempt that are sealed (flushed ones among them), by rank.
#[derive(Debug, Default)]
pub(super) struct Staging {
    pub(super) sealed: HashSet<(u32, u32)>,
    pub(super) by_rank: BTreeMap<u32, u64>,
}

/// What a sealed slab is to the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// Its bytes are to be flushed.
    New,
    /// The same slab was sealed before.
    Again,
}

impl Attempt {
    /// Bytes of a slab of a file of this node; refuses what the plan does not have.
    pub(crate) fn slab_bytes(&self, file: u32, slab_index: u32) -> Result<u64> {
        let planned = self.plan().files.get(file as usize).ok_or_else(|| {
            let count = self.plan().files.len();
            Error::new(Code::InvalidArgument, format!("{} has {count} files, there is no file {file}", self.url()))
        })?;
        if !self.state().ranks.contains_key(&planned.rank) {
            let message =
                format!("rank {} of {} is not started on this node: call StartSave first", planned.rank, self.url());
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        let count = slab_count(planned.size_bytes);
        if slab_index >= count {
            let message =
                format!("{} of {} has {count} slabs, there is no slab {slab_index}", planned.name, self.url());
            return Err(Error::new(Code::InvalidArgument, message));
        }
        Ok((planned.size_bytes - u64::from(slab_index) * SLAB_BYTES).min(SLAB_BYTES))
    }

    /// A slab was sealed.
    pub(crate) fn sealed(&self, file: u32, slab_index: u32) -> Result<Sealed> {
        let bytes = self.slab_bytes(file, slab_index)?;
        let rank = self.plan().files[file as usize].rank;
        let state = self.state();
        let is_flushed = state.is_flushed(file, slab_index);
        let mut staging = self.staging.lock();
        if !staging.sealed.insert((file, slab_index)) {
            return Ok(Sealed::Again);
        }
        *staging.by_rank.entry(rank).or_default() += 1;
        drop(staging);
        drop(state);
        self.update(|status| status.bytes_staged += bytes);
        self.show_staged();
        Ok(if is_flushed { Sealed::Again } else { Sealed::New })
    }

    /// Whether all slabs of a rank are sealed.
    pub(crate) fn is_staged(&self, rank: u32) -> bool {
        self.staging.lock().by_rank.get(&rank).copied().unwrap_or(0) >= self.size_of(rank).slabs
    }

    /// Ranks of this node that have slabs left to seal.
    pub(crate) fn unstaged(&self) -> Vec<u32> {
        self.ranks().into_iter().filter(|rank| !self.is_staged(*rank)).collect()
    }

    /// A file of the rank that is not sealed whole, and how many slabs of the rank are missing.
    pub(crate) fn missing(&self, rank: u32) -> (Option<String>, u64) {
        let staging = self.staging.lock();
        let missing = self.size_of(rank).slabs.saturating_sub(staging.by_rank.get(&rank).copied().unwrap_or(0));
        let unsealed =
            |&(file, size): &(u32, u64)| (0..slab_count(size)).any(|slab| !staging.sealed.contains(&(file, slab)));
        let file = rank_files(self.plan(), rank).find(unsealed);
        (file.map(|(file, _)| self.plan().files[file as usize].name.clone()), missing)
    }

    /// Brings the status up to what is sealed.
    pub(crate) fn show_staged(&self) {
        let ranks = self.ranks();
        let staged: Vec<bool> = ranks.iter().map(|rank| self.is_staged(*rank)).collect();
        let status = self.status();
        let known = |rank: u32, is_staged: bool| {
            status.ranks.iter().any(|status: &RankStatus| status.rank == rank && status.staged == is_staged)
        };
        let all = !ranks.is_empty() && staged.iter().all(|staged| *staged);
        let is_news = !ranks.iter().zip(&staged).all(|(rank, staged)| known(*rank, *staged));
        if !(is_news || all && status.state == SaveState::Staging) {
            return;
        }
        let seconds = self.seconds();
        self.update(|status| {
            for (rank, staged) in ranks.iter().zip(&staged) {
                status.rank_mut(*rank).staged = *staged;
            }
            if all && status.state == SaveState::Staging {
                status.state = SaveState::Staged;
                status.staged_seconds = seconds;
                self.metrics.staged_seconds.observe(seconds);
            } else if !all && status.state == SaveState::Staged {
                // A further rank of this node has just been started.
                status.state = SaveState::Staging;
            }
        });
    }
}

/// Bytes of a flushed slab of a file of `file_bytes`, and how many of them a delta left to its parent.
pub(super) fn slab_sizes(slab: &FlushedSlab, file_bytes: u64) -> (u64, u64) {
    let start = u64::from(slab.slab_index) * SLAB_BYTES;
    let bytes = file_bytes.saturating_sub(start).min(SLAB_BYTES);
    let chunks = slab.chunks.iter().flatten().enumerate();
    let unchanged = chunks
        .filter(|(_, place)| place.is_none())
        .map(|(at, _)| bytes.saturating_sub(at as u64 * CHUNK_BYTES).min(CHUNK_BYTES));
    (bytes, unchanged.sum())
}
