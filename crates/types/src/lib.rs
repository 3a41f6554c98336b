//! The words of Longshore as types: artifacts, chunks, blocks, tensors, manifests. No I/O happens here.
//!
//! Everything that enters from outside (a URL, a file header, an index) is parsed and checked in this crate
//! before any other code sees it: what is illegal cannot be built. Start reading at [`Artifact`] (identity),
//! then [`chunk`] (how an artifact is cut), then [`manifest`] (how a model is described).

pub mod artifact;
pub mod bytesize;
pub mod checkpoint;
pub mod checksum;
pub mod chunk;
pub mod error;
pub mod header;
pub mod manifest;
pub mod names;
pub mod redact;

pub use artifact::{Artifact, Version};
pub use bytesize::{ByteSize, format_bytes};
pub use checksum::{BlockChecksum, Checksummer};
pub use chunk::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES, ChunkId, ChunkKey};
pub use error::{Code, Error, Result};
pub use header::{SafetensorsHeader, TensorHeader};
pub use manifest::{
    ChunkMap, ChunkRun, Extent, Manifest, ManifestBuilder, ModelFile, Piece, Progress, ReadNeeded, Resolved,
    ResolvedFile, Selection, Tensor,
};
pub use redact::redact_url;
pub use safetensors::Dtype;
