//! Checkpoints of a run as messages.

use longshore_checkpoint::{CheckpointList, CheckpointSummary, Deleted, Swept};
use longshore_proto::v1;
use longshore_types::checkpoint::{Alias, Commit, StoredFile, StoredPiece, StoredTensor};

/// What a run has.
pub(in crate::checkpoint) fn list(list: &CheckpointList) -> v1::ListCheckpointsResponse {
    v1::ListCheckpointsResponse {
        checkpoints: list.checkpoints.iter().map(summary).collect(),
        uncommitted_steps: list.uncommitted_steps.clone(),
    }
}

fn summary(summary: &CheckpointSummary) -> v1::CheckpointSummary {
    v1::CheckpointSummary {
        step: summary.step,
        url: summary.url.clone(),
        attempt: summary.attempt.to_string(),
        created_ms: summary.created_ms,
        size_bytes: summary.size_bytes,
        own_bytes: summary.own_bytes,
        tensor_count: summary.tensor_count,
        file_count: summary.file_count,
        parent_step: summary.parent_step,
        metadata: summary.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

/// One checkpoint with its files and tensors.
pub(in crate::checkpoint) fn checkpoint(commit: &Commit, run_url: &str) -> v1::Checkpoint {
    v1::Checkpoint {
        summary: Some(summary(&CheckpointSummary::of(commit, run_url))),
        files: commit.files.iter().map(file).collect(),
        tensors: commit.tensors.iter().map(tensor).collect(),
        aliases: commit.aliases.iter().map(alias).collect(),
    }
}

fn file(file: &StoredFile) -> v1::CheckpointFile {
    v1::CheckpointFile { name: file.name.clone(), size_bytes: file.size_bytes, checksum: file.checksum.to_string() }
}

fn tensor(tensor: &StoredTensor) -> v1::CheckpointTensor {
    v1::CheckpointTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype.clone(),
        shape: tensor.shape.clone(),
        pieces: tensor.pieces.iter().map(piece).collect(),
    }
}

fn piece(piece: &StoredPiece) -> v1::TensorPiece {
    v1::TensorPiece {
        file: piece.file,
        offset_bytes: piece.offset_bytes,
        length_bytes: piece.length_bytes,
        start: piece.start.clone(),
        shape: piece.shape.clone(),
        checksum: piece.checksum.to_string(),
    }
}

fn alias(alias: &Alias) -> v1::TensorAlias {
    let Alias { group, name, target } = alias.clone();
    v1::TensorAlias { group, name, target }
}

/// What went with a checkpoint.
pub(in crate::checkpoint) fn deleted(deleted: &Deleted) -> v1::DeleteCheckpointResponse {
    let Deleted { objects_deleted, bytes_freed, objects_kept } = *deleted;
    v1::DeleteCheckpointResponse { objects_deleted, bytes_freed, objects_kept }
}

/// What a sweep removed.
pub(in crate::checkpoint) fn swept(swept: &Swept) -> v1::SweepCheckpointsResponse {
    let Swept { objects_deleted, uploads_aborted, bytes_freed } = *swept;
    v1::SweepCheckpointsResponse { objects_deleted, uploads_aborted, bytes_freed }
}
