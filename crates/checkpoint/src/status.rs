//! What a save tells about itself. One value, watched: readers that are slow see the newest, never a queue.

use longshore_types::Error;
use longshore_types::checkpoint::AttemptId;

/// How far a save has come on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SaveState {
    /// Bytes are being copied into slabs.
    Staging,
    /// All ranks of this node are copied: training may go on.
    Staged,
    /// On this node's disk, synced.
    LocalDurable,
    /// In the origin, whole and visible.
    Committed,
    /// Given up, for [`SaveStatus::error`].
    Failed,
    /// Given up because somebody asked for it.
    Cancelled,
}

impl SaveState {
    /// A word for metrics and reports.
    pub fn label(self) -> &'static str {
        match self {
            SaveState::Staging => "staging",
            SaveState::Staged => "staged",
            SaveState::LocalDurable => "local_durable",
            SaveState::Committed => "committed",
            SaveState::Failed => "failed",
            SaveState::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub fn is_ended(self) -> bool {
        matches!(self, SaveState::Committed | SaveState::Failed | SaveState::Cancelled)
    }
}

/// One rank of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankStatus {
    /// The rank.
    pub rank: u32,
    /// All its bytes are sealed.
    pub staged: bool,
    /// All its bytes are synced on this node's disk.
    pub local_durable: bool,
    /// As many other nodes as asked for hold its bytes.
    pub peer_durable: bool,
}

/// Most notes that a status keeps; further ones are left out, also of the log.
pub(crate) const NOTES_MAX: usize = 64;
const MORE_NOTES: &str = "there was more to tell than is kept";

/// The status of one save on this node.
#[derive(Debug, Clone)]
pub struct SaveStatus {
    /// The attempt.
    pub attempt: AttemptId,
    /// URL of the run.
    pub uri: String,
    /// The step.
    pub step: u64,
    /// How far it has come.
    pub state: SaveState,
    /// Ranks of this node, ascending.
    pub ranks: Vec<RankStatus>,
    /// Ranks of the whole save.
    pub world_size: u32,
    /// Bytes of the ranks of this node.
    pub bytes_total: u64,
    /// Of these, sealed.
    pub bytes_staged: u64,
    /// Of these, synced on this node's disk (or unchanged, in a delta).
    pub bytes_durable: u64,
    /// Of these, held by as many peers as asked for.
    pub bytes_peer: u64,
    /// Of these, in the origin; with [`SaveStatus::bytes_unchanged`] all of them at the end.
    pub bytes_uploaded: u64,
    /// Not written, because the parent has them.
    pub bytes_unchanged: u64,
    /// Why it failed.
    pub error: Option<Error>,
    /// What was not the first choice.
    pub notes: Vec<String>,
    /// Requests to the origin or to peers that were repeated.
    pub retries: u64,
    /// Seconds from the start until all ranks of this node were staged; 0 when they are not.
    pub staged_seconds: f64,
    /// Until all of them were durable on this node.
    pub local_durable_seconds: f64,
    /// Until all of them were durable on other nodes.
    pub peer_durable_seconds: f64,
    /// Until the commit.
    pub committed_seconds: f64,
    /// What the save waits for at present, in words; empty when it does not wait.
    pub waiting_for: String,
    /// URL of the checkpoint.
    pub url: String,
}

impl SaveStatus {
    /// Adds a note, once; their number is bounded, and the last one then says that there are more. False when it says nothing
    /// new.
    pub fn note(&mut self, note: impl Into<String>) -> bool {
        let note = note.into();
        if self.notes.contains(&note) || self.notes.len() >= NOTES_MAX {
            return false;
        }
        let is_last = self.notes.len() + 1 == NOTES_MAX;
        self.notes.push(if is_last { MORE_NOTES.to_owned() } else { note });
        true
    }

    /// The rank's part, added when it is new.
    pub(crate) fn rank_mut(&mut self, rank: u32) -> &mut RankStatus {
        let at = match self.ranks.binary_search_by_key(&rank, |status| status.rank) {
            Ok(at) => at,
            Err(at) => {
                let fresh = RankStatus { rank, staged: false, local_durable: false, peer_durable: false };
                self.ranks.insert(at, fresh);
                at
            }
        };
        &mut self.ranks[at]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_kept_once_and_their_number_is_bounded() {
        let mut status = SaveStatus {
            attempt: AttemptId::from_bytes([1; 16]),
            uri: String::new(),
            step: 1,
            state: SaveState::Staging,
            ranks: Vec::new(),
            world_size: 1,
            bytes_total: 0,
            bytes_staged: 0,
            bytes_durable: 0,
            bytes_peer: 0,
            bytes_uploaded: 0,
            bytes_unchanged: 0,
            error: None,
            notes: Vec::new(),
            retries: 0,
            staged_seconds: 0.0,
            local_durable_seconds: 0.0,
            peer_durable_seconds: 0.0,
            committed_seconds: 0.0,
            waiting_for: String::new(),
            url: String::new(),
        };
        assert!(status.note("one") && !status.note("one"));
        let told = (0..2 * NOTES_MAX).filter(|number| status.note(number.to_string())).count();
        assert_eq!((told, status.notes.len()), (NOTES_MAX - 1, NOTES_MAX));
        assert_eq!(status.notes.last().unwrap(), MORE_NOTES);
    }
}
