//! What a checkpoint is in the bucket: the commit that readers trust, the intent in front of it, the hint to the newest.
//!
//! A checkpoint lies in `<run>/step-N/`. [`Commit`] (`_CKPT.json`) **is** the checkpoint: without it nothing in the folder
//! counts, with it every byte has a checksum. Each of the files here is one JSON object of two members, the checksum of the
//! exact bytes of the second and the second itself, so that a flipped byte is found whatever it hits. Sizes, offsets and
//! counts are checked when a file is parsed: what is illegal cannot be built from bytes. Start reading at [`Commit`].

mod attempt;
mod commit;
mod frame;
mod marks;
mod text;
mod tiles;
mod validate;

pub use attempt::AttemptId;
pub use commit::{
    Alias, ChunkRun, Commit, FilePlace, Parent, StoredFile, StoredObject, StoredPiece, StoredTensor, object_url,
};
pub use marks::{Intent, Latest, RankFile, RankRecord};
pub use tiles::{TileFault, check_tiles};
pub use validate::{check_tensor_name, full_name};

/// Name of the commit in the folder of a step.
pub const COMMIT_NAME: &str = "_CKPT.json";
/// Name of the intent in the folder of a step: who tries to save it.
pub const INTENT_NAME: &str = "_INTENT.json";
/// Name of the hint to the newest checkpoint, in the folder of the run.
pub const LATEST_NAME: &str = "_LATEST.json";
/// Most bytes of a commit.
pub const COMMIT_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of an intent or of the hint.
pub const MARK_BYTES_MAX: u64 = 64 << 10;
/// Most files of a checkpoint, and most objects that it refers to.
pub const FILES_MAX: usize = 200_000;
/// Most tensors of a checkpoint.
pub const TENSORS_MAX: usize = 4_000_000;

const STEP_PREFIX: &str = "step-";

/// The folder of a step under the run's URL: `step-N`.
pub fn step_folder(step: u64) -> String {
    format!("{STEP_PREFIX}{step}")
}

/// The step of a folder's name; `None` when it is not exactly what [`step_folder`] writes.
pub fn parse_step_folder(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(STEP_PREFIX)?;
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    if digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    digits.parse().ok()
}

/// Name of what a daemon writes for one rank when several daemons save one checkpoint.
pub fn rank_record_name(attempt: &AttemptId, rank: u32) -> String {
    format!("_RANK-{attempt}-{rank}.json")
}

const HELD_PREFIX: &str = "_HELD-";

/// Name of the record that makes the held copies of a rank a save again. Peers hold it; it is never in the bucket.
pub fn held_record_name(attempt: &AttemptId, rank: u32) -> String {
    format!("{HELD_PREFIX}{attempt}-{rank}")
}

/// Attempt and rank of a name; `None` when it is not exactly what [`held_record_name`] writes.
pub fn parse_held_record_name(name: &str) -> Option<(AttemptId, u32)> {
    let rest = name.strip_prefix(HELD_PREFIX)?;
    let (attempt, rank) = rest.split_at_checked(AttemptId::TEXT_BYTES)?;
    let attempt = AttemptId::parse(attempt).ok()?;
    let rank = rank.strip_prefix('-')?.parse().ok()?;
    (held_record_name(&attempt, rank) == name).then_some((attempt, rank))
}

/// The attempt that a name of an object holds, wherever it stands in the name's last part.
pub fn attempt_in_name(name: &str) -> Option<AttemptId> {
    let base = crate::names::base_of(name);
    (0..base.len())
        .filter_map(|at| base.get(at..at + AttemptId::TEXT_BYTES))
        .find_map(|text| AttemptId::parse(text).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn step_folders_round_trip_and_nothing_else_is_one() {
        for step in [0, 7, 90, u64::MAX] {
            assert_eq!(parse_step_folder(&step_folder(step)), Some(step));
        }
        for bad in ["step-", "step-01", "step-+1", "step--1", "step-1 ", "Step-1", "step-18446744073709551616", "1"] {
            assert_eq!(parse_step_folder(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_of_held_records_round_trip_and_nothing_else_is_one() {
        let attempt = AttemptId::from_bytes([0xa7; 16]);
        for rank in [0, 9, u32::MAX] {
            assert_eq!(parse_held_record_name(&held_record_name(&attempt, rank)), Some((attempt, rank)));
        }
        for bad in ["", "-", "-01", "-+1", "-4294967296", "-1.json", "1"] {
            assert_eq!(parse_held_record_name(&format!("_HELD-{attempt}{bad}")), None, "{bad}");
        }
        assert_eq!(parse_held_record_name("_HELD-日本語日本語日本語日本語日本語日本語日本語-0"), None);
        assert_eq!(parse_held_record_name(&rank_record_name(&attempt, 7)), None);
    }

    #[test]
    fn attempts_are_found_in_names_of_objects() {
        let attempt = AttemptId::from_bytes([0xa7; 16]);
        for name in [
            format!("model-{attempt}-00001-of-00002.safetensors"),
            format!("optim/optim-{attempt}-00001-of-00002.safetensors"),
            format!("delta-{attempt}-r3.pack"),
            format!("data.bin.{attempt}"),
            rank_record_name(&attempt, 7),
        ] {
            assert_eq!(attempt_in_name(&name), Some(attempt), "{name}");
        }
        assert_eq!(attempt_in_name("model-00001-of-00002.safetensors"), None);
        assert_eq!(attempt_in_name(&format!("{attempt}/config.json")), None);
        assert_eq!(attempt_in_name("日本語日本語日本語日本語日本語日本語日本語"), None);
    }
}
