//! Checks of what a commit or a rank's record says against itself. Reasons are phrases that follow the file's URL.

use std::collections::HashSet;

use crate::artifact::Version;
use crate::checkpoint::{
    Commit, FILES_MAX, FilePlace, RankRecord, StoredFile, StoredObject, StoredTensor, TENSORS_MAX, check_tiles,
    parse_step_folder,
};
use crate::chunk::{BLOCK_BYTES, CHUNK_BYTES, chunk_count};
use crate::error::{Code, Error, Result};
use crate::header::{parse_dtype, tensor_bytes};
use crate::names::{check_relative, join};

/// Longest name of a tensor, in bytes.
const TENSOR_NAME_BYTES_MAX: usize = 4096;
/// Largest number of dimensions of a tensor.
const DIMENSIONS_MAX: usize = 64;

type Checked = Result<(), String>;

/// `group/name`, or the name alone when the group is empty.
pub fn full_name(group: &str, name: &str) -> String {
    join(group, name)
}

/// Checks the name of a tensor: any text that a file's header can hold, but not empty, not too long, no control characters.
///
/// # Errors
/// [`Code::InvalidArgument`], naming it.
pub fn check_tensor_name(name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > TENSOR_NAME_BYTES_MAX {
        "is too long"
    } else if name == "__metadata__" {
        "is reserved by the file format"
    } else if name.chars().any(char::is_control) {
        "holds a control character"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(200).collect();
    Err(Error::new(Code::InvalidArgument, format!("tensor name {shown:?} {reason}")))
}

pub(super) fn commit(commit: &Commit) -> Checked {
    if commit.world_size == 0 {
        return Err("says that no rank saved it".to_owned());
    }
    if commit.parent.is_some() != (commit.delta_depth > 0) {
        return Err(format!("has delta depth {}, which disagrees with its parent", commit.delta_depth));
    }
    count("objects", commit.objects.len(), FILES_MAX)?;
    count("files", commit.files.len(), FILES_MAX)?;
    count("tensors", commit.tensors.len(), TENSORS_MAX)?;
    count("aliases", commit.aliases.len(), TENSORS_MAX)?;
    objects(&commit.objects)?;
    let mut names = HashSet::with_capacity(commit.files.len());
    for file in &commit.files {
        check_file(file, &commit.objects)?;
        if !names.insert(file.name.as_str()) {
            return Err(format!("has the file {:?} twice", file.name));
        }
    }
    let mut names = HashSet::with_capacity(commit.tensors.len());
    for tensor in &commit.tensors {
        check_tensor(tensor, &commit.files).map_err(|reason| format!("tensor {:?}: {reason}", tensor.name))?;
        if !names.insert(tensor.name.clone()) {
            return Err(format!("has the tensor {:?} twice", tensor.name));
        }
    }
    for alias in &commit.aliases {
        let target = full_name(&alias.group, &alias.target);
        if !names.contains(&target) {
            return Err(format!("the alias {:?} stands for {target:?}, which is not there", alias.name));
        }
    }
    for alias in &commit.aliases {
        check_tensor_name(&alias.name).map_err(|error| error.message().to_owned())?;
        if !names.insert(full_name(&alias.group, &alias.name)) {
            return Err(format!("has the name {:?} twice", full_name(&alias.group, &alias.name)));
        }
    }
    Ok(())
}

pub(super) fn rank_record(record: &RankRecord) -> Checked {
    count("objects", record.objects.len(), FILES_MAX)?;
    count("files", record.files.len(), FILES_MAX)?;
    objects(&record.objects)?;
    record.files.iter().try_for_each(|file| check_file(&file.stored, &record.objects))
}

fn count(what: &str, found: usize, max: usize) -> Checked {
    if found > max { Err(format!("has {found} {what}, at most {max} are allowed")) } else { Ok(()) }
}

fn objects(objects: &[StoredObject]) -> Checked {
    let mut paths = HashSet::with_capacity(objects.len());
    for object in objects {
        check_relative(&object.path, "the list of objects").map_err(|error| error.message().to_owned())?;
        if object.path.split_once('/').and_then(|(folder, _)| parse_step_folder(folder)).is_none() {
            return Err(format!("the object {:?} is not in the folder of a step", object.path));
        }
        if !paths.insert(object.path.as_str()) {
            return Err(format!("has the object {:?} twice", object.path));
        }
        Version::new(object.version.as_str()).map_err(|error| format!("object {:?}: {error}", object.path))?;
    }
    Ok(())
}

fn check_file(file: &StoredFile, objects: &[StoredObject]) -> Checked {
    check_relative(&file.name, "the list of files").map_err(|error| error.message().to_owned())?;
    let wrong = |reason: String| format!("file {:?}: {reason}", file.name);
    let blocks = file.size_bytes.div_ceil(BLOCK_BYTES);
    if file.blocks.len() as u64 != blocks {
        return Err(wrong(format!("{} checksums for {blocks} blocks", file.blocks.len())));
    }
    match &file.place {
        FilePlace::Object(index) => {
            let object = objects.get(*index as usize).ok_or_else(|| wrong(format!("there is no object {index}")))?;
            if object.size_bytes != file.size_bytes || object.checksum != file.checksum {
                return Err(wrong(format!("size or checksum disagree with those of its object {:?}", object.path)));
            }
        }
        FilePlace::Chunks(runs) => check_runs(file.size_bytes, runs, objects).map_err(wrong)?,
    }
    Ok(())
}

/// Runs cover the chunks of the file in order, and each of their chunks has enough bytes.
fn check_runs(size_bytes: u64, runs: &[super::ChunkRun], objects: &[StoredObject]) -> Checked {
    let chunks = chunk_count(size_bytes);
    let mut covered = 0u64;
    for run in runs {
        let object = objects.get(run.object as usize).ok_or_else(|| format!("there is no object {}", run.object))?;
        if run.count == 0 {
            return Err("a run of chunks is empty".to_owned());
        }
        covered += u64::from(run.count);
        if covered > chunks {
            return Err(format!("its runs have more than its {chunks} chunks"));
        }
        let needed_in_file = (covered * CHUNK_BYTES).min(size_bytes) - (covered - u64::from(run.count)) * CHUNK_BYTES;
        if u64::from(run.first_chunk) * CHUNK_BYTES + needed_in_file > object.size_bytes {
            return Err(format!("a run of chunks goes beyond the end of the object {:?}", object.path));
        }
    }
    if covered != chunks {
        return Err(format!("its runs have {covered} of its {chunks} chunks"));
    }
    Ok(())
}

fn check_tensor(tensor: &StoredTensor, files: &[StoredFile]) -> Checked {
    check_tensor_name(&tensor.name).map_err(|error| error.message().to_owned())?;
    if tensor.shape.len() > DIMENSIONS_MAX {
        return Err(format!("has {} dimensions, at most {DIMENSIONS_MAX}", tensor.shape.len()));
    }
    let dtype = parse_dtype(&tensor.dtype);
    for piece in &tensor.pieces {
        let file = files.get(piece.file as usize).ok_or_else(|| format!("there is no file {}", piece.file))?;
        if piece.offset_bytes.checked_add(piece.length_bytes).is_none_or(|end| end > file.size_bytes) {
            return Err(format!("a piece goes beyond the end of the file {:?}", file.name));
        }
        if dtype.is_some_and(|dtype| tensor_bytes(dtype, &piece.shape) != Some(piece.length_bytes)) {
            return Err(format!("a piece of {} bytes disagrees with its dtype and shape", piece.length_bytes));
        }
    }
    let pieces: Vec<_> = tensor.pieces.iter().map(|piece| (&piece.start[..], &piece.shape[..])).collect();
    check_tiles(&tensor.shape, &pieces).map_err(|fault| fault.to_string())
}
