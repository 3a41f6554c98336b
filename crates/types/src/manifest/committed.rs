//! A checkpoint as a model: what its commit says, in the words of a manifest.

use std::sync::Arc;

use super::chunks::{ChunkMap, ChunkRun};
use super::{Extent, ModelFile, Piece, Tensor};
use crate::artifact::{Artifact, Version};
use crate::checkpoint::{
    COMMIT_BYTES_MAX, COMMIT_NAME, Commit, FilePlace, INTENT_NAME, StoredFile, StoredObject, StoredPiece, StoredTensor,
    attempt_in_name, object_url, parse_step_folder, step_folder,
};
use crate::error::{Code, Error, Result};
use crate::header::parse_dtype;
use crate::manifest::{Resolved, ResolvedFile};
use crate::names::base_of;

/// What a listing says about checkpoints.
pub(super) enum Found {
    /// It is one: this file is its commit.
    Commit(usize),
    /// It is an ordinary model.
    Nothing,
}

/// Looks for a commit.
///
/// # Errors
/// [`Code::FailedPrecondition`] for a checkpoint that is not committed, [`Code::InvalidArgument`] for a folder of several,
/// [`Code::Corrupt`] for a commit of an impossible size.
pub(super) fn look_for_commit(resolved: &Resolved, is_selected: bool) -> Result<Found> {
    let url = &resolved.url;
    let position = |name: &str| resolved.files.iter().position(|file| file.name == name && file.artifact.url() != url);
    if let Some(file) = position(COMMIT_NAME) {
        let size = resolved.files[file].artifact.size_bytes();
        if size == 0 || size > COMMIT_BYTES_MAX {
            let why = format!("{url}: {COMMIT_NAME} has {size} bytes, must have 1 to {COMMIT_BYTES_MAX}");
            return Err(Error::new(Code::Corrupt, why));
        }
        return Ok(Found::Commit(file));
    }
    if position(INTENT_NAME).is_some() {
        return Err(Error::new(
            Code::FailedPrecondition,
            format!("{url} is not committed: a save of it is under way, or was given up; load another step, or wait"),
        ));
    }
    // Of a deleted checkpoint, objects stay that later deltas need: what is left must not be taken for a model.
    let is_of_attempt = |file: &ResolvedFile| file.artifact.url() != url && attempt_in_name(&file.name).is_some();
    if parse_step_folder(base_of(url)).is_some() && resolved.files.iter().any(is_of_attempt) {
        return Err(Error::new(
            Code::FailedPrecondition,
            format!("{url} has no commit: it was deleted, or its save was given up; load another step"),
        ));
    }
    let step = resolved.files.iter().find_map(|file| {
        let (folder, name) = file.name.split_once('/')?;
        (name == COMMIT_NAME && parse_step_folder(folder).is_some()).then_some(folder)
    });
    match step {
        Some(step) if !is_selected => Err(Error::new(
            Code::InvalidArgument,
            format!("{url} holds checkpoints, it is not one itself; load one of them, for instance {url}/{step}"),
        )),
        _ => Ok(Found::Nothing),
    }
}

/// The objects of a checkpoint at `url`, the folder that its commit lies in, as manifests name them.
///
/// # Errors
/// [`Code::InvalidArgument`] for URLs that are too long, [`Code::Corrupt`] for objects that cannot be there.
pub fn committed_objects(commit: &Commit, url: &str) -> Result<Vec<Arc<Artifact>>> {
    commit.objects.iter().map(|object| artifact(commit, url, object)).collect()
}

/// The files of a checkpoint at `url`.
///
/// # Errors
/// [`Code::Corrupt`] for a chunk map that does not fit, and as [`committed_objects`].
pub(super) fn files(commit: &Commit, url: &str) -> Result<Vec<ModelFile>> {
    let objects = committed_objects(commit, url)?;
    let version = Version::new(format!("attempt:{}", commit.attempt))?;
    commit.files.iter().map(|file| model_file(file, &objects, url, &version)).collect()
}

/// The paths, relative to `url`, of the objects that belong to this checkpoint's own folder.
pub(super) fn own_objects(commit: &Commit) -> impl Iterator<Item = &str> {
    let own = step_folder(commit.step);
    commit.objects.iter().filter_map(move |object| object.path.strip_prefix(own.as_str())?.strip_prefix('/'))
}

/// An object's identity. Those in the folder of the step are found where the commit was found, also when the folder was
/// copied and has another name; those of earlier steps beside it.
fn artifact(commit: &Commit, url: &str, stored: &StoredObject) -> Result<Arc<Artifact>> {
    let own = stored.path.strip_prefix(step_folder(commit.step).as_str()).and_then(|rest| rest.strip_prefix('/'));
    let object_url = match own {
        Some(path) => object_url(url, path),
        None => object_url(run_of(url)?, &stored.path),
    };
    let version = Version::new(format!("attempt:{}", stored.attempt))?;
    Ok(Arc::new(Artifact::new(object_url, version, stored.size_bytes)?))
}

/// The URL of the run that a checkpoint's folder lies in.
fn run_of(url: &str) -> Result<&str> {
    let path_start = url.find("://").map_or(0, |at| at + 3);
    let slash = url[path_start..].rfind('/').map(|at| path_start + at);
    slash.map(|at| &url[..at]).ok_or_else(|| {
        Error::new(Code::Corrupt, format!("{url} refers to objects of other steps, which cannot lie beside it"))
    })
}

fn model_file(file: &StoredFile, objects: &[Arc<Artifact>], url: &str, version: &Version) -> Result<ModelFile> {
    let missing =
        || Error::new(Code::Corrupt, format!("{url}: the file {} lies in an object that is not there", file.name));
    let object = |index: u32| objects.get(index as usize).cloned().ok_or_else(missing);
    let (artifact, chunks) = match &file.place {
        FilePlace::Object(index) => (object(*index)?, None),
        FilePlace::Chunks(runs) => {
            let run = |run: &crate::checkpoint::ChunkRun| {
                Ok(ChunkRun { artifact: object(run.object)?, first_chunk: run.first_chunk, count: run.count })
            };
            let runs = runs.iter().map(run).collect::<Result<Vec<_>>>()?;
            let map = ChunkMap::new(runs, file.size_bytes, &format!("{url}/{}", file.name))?;
            let logical = Artifact::new(object_url(url, &file.name), version.clone(), file.size_bytes)?;
            (Arc::new(logical), Some(Arc::new(map)))
        }
    };
    Ok(ModelFile {
        name: file.name.clone(),
        artifact,
        is_tensors: false,
        checksums: Some(file.blocks.as_slice().into()),
        chunks,
    })
}

/// The tensors, by file and offset. One that is stored in several pieces is several tensors, `name#0` and so on.
pub(super) fn tensors(commit: &Commit) -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = commit.tensors.iter().flat_map(tensors_of).collect();
    tensors.sort_by_key(|tensor| (tensor.extent.file, tensor.extent.offset_bytes, tensor.extent.length_bytes));
    tensors
}

fn tensors_of(stored: &StoredTensor) -> impl Iterator<Item = Tensor> {
    let is_whole = stored.pieces.len() == 1;
    stored.pieces.iter().enumerate().map(move |(number, piece)| {
        let StoredPiece { file, offset_bytes, length_bytes, start, shape, checksum: _ } = piece;
        Tensor {
            name: if is_whole { stored.name.clone() } else { format!("{}#{number}", stored.name) },
            dtype_name: stored.dtype.clone(),
            dtype: parse_dtype(&stored.dtype),
            shape: shape.clone(),
            extent: Extent { file: *file as usize, offset_bytes: *offset_bytes, length_bytes: *length_bytes },
            piece: (!is_whole).then(|| {
                Box::new(Piece { start: start.clone(), shape: shape.clone(), of_shape: stored.shape.clone() })
            }),
        }
    })
}

/// Why a listed file is no part of the load of a checkpoint.
pub(super) fn reason_to_skip(name: &str) -> String {
    match base_of(name) {
        COMMIT_NAME => "the commit: it says what the checkpoint is".to_owned(),
        _ => "not part of the checkpoint".to_owned(),
    }
}
