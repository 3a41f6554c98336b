//! Names of files and objects: who may be called what.

use std::collections::HashSet;

use longshore_types::checkpoint::{AttemptId, COMMIT_NAME, INTENT_NAME, LATEST_NAME};
use longshore_types::names::{base_of, check_relative, folder_of, join};
use longshore_types::{Code, Error, Result};

use super::{PLAIN_FILE_BYTES_MAX, PlannedFile};

/// Longest name of a file: room is left for the attempt in its object's name.
const NAME_BYTES_MAX: usize = 900;
const ENDING: &str = ".safetensors";
/// The index that Hugging Face tools read.
pub(crate) const INDEX_NAME: &str = "model.safetensors.index.json";

/// Name of the `number`-th of `count` tensor files of a group.
pub(super) fn tensor_file(group: &str, number: usize, count: usize) -> String {
    let stem = if group.is_empty() { "model" } else { base_of(group) };
    join(group, &format!("{stem}-{number:05}-of-{count:05}{ENDING}"))
}

/// The parts of a tensor file's base name: `stem` and `0000i-of-0000n`.
fn split_tensor_file(base: &str) -> Option<(&str, &str)> {
    let name = base.strip_suffix(ENDING)?;
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (front, count) = name.rsplit_once("-of-")?;
    let (stem, number) = front.rsplit_once('-')?;
    (!stem.is_empty() && is_number(number) && is_number(count)).then(|| (stem, &name[stem.len() + 1..]))
}

/// Name of a file's object, relative to the checkpoint.
pub(super) fn object_name(file: &PlannedFile, attempt: &AttemptId) -> String {
    let (folder, base) = (folder_of(&file.name), base_of(&file.name));
    if !file.is_tensors() {
        return if file.size_bytes <= PLAIN_FILE_BYTES_MAX {
            file.name.clone()
        } else {
            format!("{}.{attempt}", file.name)
        };
    }
    match split_tensor_file(base) {
        Some((stem, numbers)) => join(folder, &format!("{stem}-{attempt}-{numbers}{ENDING}")),
        None => format!("{}.{attempt}", file.name),
    }
}

/// Checks the name of a file of a checkpoint.
pub(super) fn check_file_name(name: &str) -> Result<()> {
    check_relative(name, "the files to save")?;
    if name.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("the name of the file {name:?} has more than {NAME_BYTES_MAX} bytes")));
    }
    let base = base_of(name);
    let reserved = [COMMIT_NAME, INTENT_NAME, LATEST_NAME].contains(&base) || base.starts_with("_RANK-");
    if reserved || (base.starts_with("delta-") && base.ends_with(".pack")) {
        return Err(invalid(format!("the file name {name:?} is reserved for the checkpoint's own files: rename it")));
    }
    Ok(())
}

/// Checks the name of a group of tensors: a folder.
pub(super) fn check_group(group: &str) -> Result<()> {
    if group.is_empty() {
        return Ok(());
    }
    check_relative(group, "the groups of tensors")?;
    if group.len() > NAME_BYTES_MAX / 2 {
        return Err(invalid(format!("the group name {group:?} has more than {} bytes", NAME_BYTES_MAX / 2)));
    }
    Ok(())
}

/// Checks that all names differ and that none is the folder of another, which a folder of files could not hold.
pub(super) fn check_distinct<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    let mut all = HashSet::new();
    for name in names.clone() {
        if !all.insert(name) {
            return Err(invalid(format!("the file {name:?} is there twice: give one of them another name")));
        }
    }
    for name in names {
        let mut folder = folder_of(name);
        while !folder.is_empty() {
            if all.contains(folder) {
                return Err(invalid(format!(
                    "{folder:?} is both a file and the folder of {name:?}: rename one of them"
                )));
            }
            folder = folder_of(folder);
        }
    }
    Ok(())
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size_bytes: u64, tensors: bool) -> PlannedFile {
        let header = if tensors { vec![1] } else { vec![] };
        PlannedFile { name: name.to_owned(), rank: 0, size_bytes, header, tensors: vec![] }
    }

    #[test]
    fn names_of_objects_hold_the_attempt_but_for_small_plain_files() {
        let attempt = AttemptId::from_bytes([7; 16]);
        let name = |file: PlannedFile| object_name(&file, &attempt);
        assert_eq!(name(file(&tensor_file("", 1, 2), 10, true)), format!("model-{attempt}-00001-of-00002.safetensors"));
        assert_eq!(
            name(file(&tensor_file("a/optim", 100_001, 100_002), 10, true)),
            format!("a/optim/optim-{attempt}-100001-of-100002.safetensors")
        );
        assert_eq!(name(file("config.json", PLAIN_FILE_BYTES_MAX, false)), "config.json");
        assert_eq!(name(file("d/x.bin", PLAIN_FILE_BYTES_MAX + 1, false)), format!("d/x.bin.{attempt}"));
        assert_eq!(name(file("odd.safetensors", 10, true)), format!("odd.safetensors.{attempt}"));
    }

    #[test]
    fn reserved_and_clashing_names_are_refused() {
        for bad in ["_CKPT.json", "a/_INTENT.json", "_RANK-x-1.json", "delta-x-r1.pack", "../x", ""] {
            assert!(check_file_name(bad).is_err(), "{bad}");
        }
        assert!(check_distinct(["a", "b/c", "b/d"].into_iter()).is_ok());
        assert!(check_distinct(["a", "a"].into_iter()).is_err());
        assert!(check_distinct(["b", "b/c/d"].into_iter()).is_err());
    }
}
