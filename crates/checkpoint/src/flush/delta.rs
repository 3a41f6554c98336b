//! Which chunks of a file differ from the parent's.

use std::sync::Arc;

use longshore_types::BlockChecksum;
use longshore_types::checkpoint::Commit;

use crate::attempt::Attempt;

/// The parent's file with the same layout.
pub(super) struct ParentFile {
    commit: Arc<Commit>,
    file: usize,
}

impl ParentFile {
    /// `None` when the file is written whole.
    pub(super) fn of(attempt: &Attempt, file: u32) -> Option<ParentFile> {
        let file = attempt.parent_file(file)? as usize;
        let commit = attempt.parent_commit()?;
        commit.files.get(file)?;
        Some(ParentFile { commit, file })
    }

    /// Checksum of one of its blocks.
    pub(super) fn block(&self, index: u64) -> Option<BlockChecksum> {
        self.commit.files.get(self.file)?.blocks.get(index as usize).copied()
    }
}
