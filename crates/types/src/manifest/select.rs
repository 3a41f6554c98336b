//! Which files of a folder make up a load.
//!
//! A folder often holds the same weights in several formats. By default safetensors win: files of other weight formats
//! are left out, and the manifest says so by name. Where there are no safetensors, everything is loaded as bytes.

use crate::error::{Code, Error, Result};
use crate::names::{base_of, folder_of, join, matches};

/// A user's choice of files: patterns with `*` and `?`. Empty means the default rule above.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// Files whose name matches any of these are loaded, whatever their format.
    pub include: Vec<String>,
}

/// Endings of weight files in other formats than safetensors.
const OTHER_WEIGHTS: [&str; 20] = [
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".hdf5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ggml",
    ".ot",
    ".tflite",
    ".npz",
    ".npy",
    ".pkl",
    ".pickle",
    ".mlmodel",
    ".pb",
    ".nemo",
];

const NO_MATCH: &str = "matches no include pattern";

pub(super) enum Choice {
    Load,
    Skip(String),
}

impl Selection {
    /// # Errors
    /// [`Code::InvalidArgument`] for more patterns, or longer ones, than anyone means.
    pub fn new(include: Vec<String>) -> Result<Self> {
        if include.len() > 64 || include.iter().any(|pattern| pattern.is_empty() || pattern.len() > 256) {
            return Err(Error::new(
                Code::InvalidArgument,
                "at most 64 include patterns of 1 to 256 bytes are accepted".to_owned(),
            ));
        }
        Ok(Selection { include })
    }

    /// Decides for one file of a checkpoint: all of them, or those that match.
    pub(super) fn choose_plainly(&self, name: &str) -> Choice {
        match self.include.is_empty() || self.include.iter().any(|pattern| matches(pattern, name)) {
            true => Choice::Load,
            false => Choice::Skip(NO_MATCH.to_owned()),
        }
    }

    /// Decides for one file. `indexed` are the weight files that an index names, or `None` when there is no index.
    pub(super) fn choose(&self, name: &str, folder: &FolderFacts<'_>) -> Choice {
        if !self.include.is_empty() {
            return self.choose_plainly(name);
        }
        if is_safetensors(name) {
            return folder.choose_safetensors(name);
        }
        if folder.any_safetensors && OTHER_WEIGHTS.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending)) {
            return Choice::Skip(
                "another weight format beside safetensors; name it with --include to load it".to_owned(),
            );
        }
        Choice::Load
    }
}

/// What else lies in the folder of a file.
pub(super) struct FolderFacts<'a> {
    /// Whether any file of the whole model is safetensors.
    pub any_safetensors: bool,
    /// Whether the folder has an index, and the names it gives (relative to the model).
    pub indexed: Option<&'a std::collections::BTreeSet<String>>,
    /// Whether the folder holds a plain `model.safetensors`.
    pub has_single: bool,
}

impl FolderFacts<'_> {
    fn choose_safetensors(&self, name: &str) -> Choice {
        match self.indexed {
            Some(indexed) if indexed.contains(name) => Choice::Load,
            Some(_) => Choice::Skip(format!("not named by {INDEX_NAME}")),
            None if self.has_single && base_of(name) != SINGLE_NAME => {
                Choice::Skip(format!("{} is loaded instead", join(folder_of(name), SINGLE_NAME)))
            }
            None => Choice::Load,
        }
    }
}

/// Name of the index of a sharded model.
pub(super) const INDEX_NAME: &str = "model.safetensors.index.json";
/// Name of an unsharded model's weights.
pub(super) const SINGLE_NAME: &str = "model.safetensors";

pub(super) fn is_safetensors(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".safetensors")
}

/// Indexes are `model.safetensors.index.json` and, in diffusers folders, `diffusion_pytorch_model.safetensors.index.json`.
pub(super) fn is_index(name: &str) -> bool {
    name.ends_with(".safetensors.index.json")
}
