//! Safetensors models by description, with what a reader must find in them.
//!
//! Headers are written by hand: the format's library pads, sorts and refuses, and real files come from other writers
//! too. A model is a set of [`Content`]s, so it can be put behind a [`FakeOrigin`] without memory or written to a disk.

mod bad;
mod spec;
mod transformer;
mod write;

use std::io;
use std::path::Path;

use longshore_types::chunk::chunk_count;

pub use bad::{BadModel, bad_models, unknown_dtype};
pub use spec::{ALL_DTYPES, HeaderStyle, ModelSpec, TensorSpec, dtype_bits};
pub use transformer::Transformer;
pub use write::{INDEX_NAME, safetensors_file};

use crate::content::Content;
use crate::origin::FakeOrigin;

/// A tensor that a reader must find.
#[derive(Debug, Clone)]
pub struct ExpectedTensor {
    /// Its name in the model.
    pub name: String,
    /// As the file writes it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Name of the file that holds it.
    pub file: String,
    /// Its bytes.
    pub content: Content,
}

/// A generated model.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Name, relative to the model, and content; sorted by name.
    pub files: Vec<(String, Content)>,
    /// Every tensor, sorted by name.
    pub tensors: Vec<ExpectedTensor>,
}

impl Model {
    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|(_, content)| content.len_bytes()).sum()
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.content.len_bytes()).sum()
    }

    /// Number of chunks of all files.
    pub fn chunks(&self) -> u64 {
        self.files.iter().map(|(_, content)| chunk_count(content.len_bytes())).sum()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&ExpectedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The content of the file of that name.
    pub fn file(&self, name: &str) -> Option<&Content> {
        self.files.iter().find(|(n, _)| n == name).map(|(_, content)| content)
    }

    /// Writes the files under a folder, which is made.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_to(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        self.files.iter().try_for_each(|(name, content)| content.write_file(&folder.join(name)))
    }

    /// Stores the files at an origin, below `prefix` (`bucket/folder`).
    pub fn put_into(&self, origin: &FakeOrigin, prefix: &str) {
        for (name, content) in &self.files {
            origin.put_content(&format!("{prefix}/{name}"), content.clone());
        }
    }

    /// What a reader in another language needs to compare: files and tensors with sizes and SHA-256.
    pub fn expectation(&self) -> serde_json::Value {
        let files = self.files.iter().map(|(name, content)| {
            serde_json::json!({ "name": name, "bytes": content.len_bytes(), "sha256": content.sha256() })
        });
        let tensors = self.tensors.iter().map(|tensor| {
            serde_json::json!({
                "name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "file": tensor.file,
                "bytes": tensor.content.len_bytes(), "sha256": tensor.content.sha256(),
            })
        });
        serde_json::json!({ "files": files.collect::<Vec<_>>(), "tensors": tensors.collect::<Vec<_>>() })
    }
}
