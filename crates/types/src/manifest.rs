//! The checked description of a model: its files, its tensors, and where each tensor's bytes lie.
//!
//! [`ManifestBuilder`] does no I/O: it says what it needs to read and is given the bytes, so that a worker builds a
//! manifest through the ring, a loader from a local folder, and a test from a vector, by the same code:
//!
//! ```text
//! let mut builder = ManifestBuilder::new(resolved, &selection)?;
//! loop {
//!     match builder.advance()? {
//!         Progress::Need(reads) => for read in reads { builder.supply(&read, bytes)? },
//!         Progress::Done(manifest) => break manifest,
//!     }
//! }
//! ```

mod builder;
mod select;

use std::sync::Arc;

use safetensors::Dtype;

use crate::artifact::Artifact;
pub use builder::{HEAD_GUESS_BYTES, INDEX_BYTES_MAX, ManifestBuilder, Progress, ReadNeeded};
pub use select::Selection;

/// Most files that one model may have.
pub const FILES_MAX: usize = 100_000;

/// What an origin says of a model URL: the files at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Canonical URL of the model.
    pub url: String,
    /// One text that changes whenever any file does: a commit id, or a digest over names and versions.
    pub revision: String,
    /// The files, sorted by name. Names are relative to `url` and checked.
    pub files: Vec<ResolvedFile>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedFile {
    /// Path relative to the model's URL, or the last part of the URL when the model is a single file.
    pub name: String,
    /// Its identity.
    pub artifact: Arc<Artifact>,
}

/// Where bytes lie: a range of one file of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Index into [`Manifest::files`].
    pub file: usize,
    /// First byte in the file.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub length_bytes: u64,
}

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Unique in the model. Tensors of files in a sub-folder are named `folder/name`.
    pub name: String,
    /// The dtype as written in the file.
    pub dtype_name: String,
    /// The dtype, or `None` when unknown: then the tensor is delivered as bytes, and the manifest carries a warning.
    pub dtype: Option<Dtype>,
    /// Shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// Where its bytes lie.
    pub extent: Extent,
}

/// A file that is part of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Path relative to the model's URL.
    pub name: String,
    /// Its identity.
    pub artifact: Arc<Artifact>,
    /// Whether its content is described by tensors; otherwise it is delivered as bytes.
    pub is_tensors: bool,
}

/// The checked description of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Canonical URL.
    pub url: String,
    /// Revision the manifest describes.
    pub revision: String,
    /// Files to load, sorted by name.
    pub files: Vec<ModelFile>,
    /// Tensors, ordered by file and offset.
    pub tensors: Vec<Tensor>,
    /// Names of files under the URL that are not loaded, each with the reason.
    pub skipped: Vec<(String, String)>,
    /// What a user should know: unknown dtypes, for instance.
    pub warnings: Vec<String>,
}

impl Manifest {
    /// Bytes of all files of the load.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.artifact.size_bytes()).sum()
    }
}
