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
mod chunks;
mod committed;
mod heads;
mod select;

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use crate::artifact::Artifact;
use crate::checksum::BlockChecksum;
use crate::chunk::BLOCK_BYTES;
use crate::error::{Code, Error, Result};
use crate::names::base_of;
use crate::redact::redact_url;
pub use builder::{HEAD_GUESS_BYTES, INDEX_BYTES_MAX, ManifestBuilder, Progress, ReadNeeded};
pub use chunks::{ChunkMap, ChunkRun};
pub use committed::committed_objects;
pub use select::Selection;

/// Tensors that a message names.
const NAMES_SHOWN: usize = 4;

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
    /// Set when this is a rectangular part of a larger tensor, which is stored in several.
    pub piece: Option<Box<Piece>>,
}

/// Where a stored part lies in the tensor that it is part of. Parts are named `name#0`, `name#1` and so on; whoever wants
/// the whole tensor puts them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// First index in each dimension.
    pub start: Vec<u64>,
    /// Extent in each dimension: the shape of the part.
    pub shape: Vec<u64>,
    /// Shape of the whole tensor.
    pub of_shape: Vec<u64>,
}

/// A file that is part of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Path relative to the model's URL.
    pub name: String,
    /// Its identity. A file with [`ModelFile::chunks`] has no object of this name: then only the size means anything.
    pub artifact: Arc<Artifact>,
    /// Whether its content is described by tensors; otherwise it is delivered as bytes.
    pub is_tensors: bool,
    /// What each 1 MiB block of it must be, where that is known: bytes that differ are never delivered.
    pub checksums: Option<Arc<[BlockChecksum]>>,
    /// Where its chunks lie, when they are not those of `artifact`: a checkpoint that shares chunks with earlier ones.
    pub chunks: Option<Arc<ChunkMap>>,
}

impl ModelFile {
    /// A file that is an object of its own, about whose blocks nothing is known.
    pub fn plain(name: impl Into<String>, artifact: Arc<Artifact>, is_tensors: bool) -> Self {
        ModelFile { name: name.into(), artifact, is_tensors, checksums: None, chunks: None }
    }

    /// Compares `bytes`, which begin with block `first` of the file and were read from the object at `url`, with what
    /// is known of the file. They end with a block, or where the file ends.
    ///
    /// # Errors
    /// [`Code::Corrupt`] naming the file, the block and the object.
    pub fn check_blocks(&self, first: usize, bytes: &[u8], url: &str) -> Result<()> {
        let Some(checksums) = &self.checksums else { return Ok(()) };
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            let got = BlockChecksum::of(bytes);
            let wanted = checksums.get(block).copied();
            if wanted != Some(got) {
                let wanted = wanted.map_or_else(|| "nothing".to_owned(), |wanted| wanted.to_string());
                let (name, url) = (base_of(&self.name), redact_url(url));
                let why =
                    format!("block {block} of {name} has checksum {got} instead of {wanted}; it is read from {url}");
                return Err(Error::new(Code::Corrupt, why));
            }
        }
        Ok(())
    }

    /// The artifacts that its bytes lie in.
    pub fn artifacts(&self) -> impl Iterator<Item = &Arc<Artifact>> {
        let runs = self.chunks.as_deref().map(ChunkMap::runs);
        let own = runs.is_none().then_some(&self.artifact);
        own.into_iter().chain(runs.unwrap_or_default().iter().map(|run| &run.artifact))
    }
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

    /// The names of tensors that have bytes in a range of a file, for messages: some of them, and how many more there are.
    pub fn tensors_at(&self, file: usize, range: &Range<u64>) -> String {
        let overlaps = |tensor: &&Tensor| {
            let Extent { file: of, offset_bytes, length_bytes } = tensor.extent;
            let end = offset_bytes.saturating_add(length_bytes);
            of == file && offset_bytes < range.end && range.start < end
        };
        let mut names = self.tensors.iter().filter(overlaps).map(|tensor| tensor.name.as_str());
        let shown: Vec<&str> = names.by_ref().take(NAMES_SHOWN).collect();
        match (shown.is_empty(), names.count()) {
            (true, _) => "no tensor".to_owned(),
            (_, 0) => format!("tensor {}", shown.join(", ")),
            (_, more) => format!("tensor {} and {more} more", shown.join(", ")),
        }
    }
}
