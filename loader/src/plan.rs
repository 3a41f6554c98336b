//! From a manifest to what has to be moved: where every tensor lies in the region, and for each chunk the runs of
//! bytes to read and where they go.
//!
//! Pure: no I/O, no clock, no device. `shares` decides *which bytes* a rank of a group gets, [`Layout`] decides *where*
//! they lie, and [`cut`] decides *what is read*, from the layout's copy list alone: bytes that a rank does not need are
//! discarded by the parts, and blocks that nobody needs are never asked for.

mod chunks;
mod expected;
mod layout;
mod shares;

use longshore_types::{Manifest, Result};

use crate::parallel::Parallel;
pub use chunks::{ChunkPlan, cut};
pub use expected::Expected;
pub use layout::{CopyRange, Layout, Place, PlacedTensor, SideFiles, TensorPlace};

/// Everything that a load has to do, known before the first byte moves.
#[derive(Debug)]
pub struct Plan {
    /// Where tensors and files lie.
    pub layout: Layout,
    /// What to read, in the order of the files.
    pub chunks: Vec<ChunkPlan>,
}

impl Plan {
    /// Plans a model, or one rank's part of it, on one device whose regions place tensors at `alignment_bytes`.
    ///
    /// # Errors
    /// Those of [`Layout::new`] and [`cut`].
    pub fn new(
        manifest: &Manifest,
        parallel: Option<&Parallel>,
        alignment_bytes: u64,
        side_files: SideFiles,
    ) -> Result<Plan> {
        let layout = Layout::new(manifest, parallel, alignment_bytes, side_files)?;
        Plan::from_layout(manifest, layout)
    }

    /// Cuts the copies of a layout that was made, and perhaps checked against a capacity, before. They are spent: a
    /// layout that stays with a model has none.
    ///
    /// # Errors
    /// Those of [`cut`].
    pub fn from_layout(manifest: &Manifest, mut layout: Layout) -> Result<Plan> {
        let chunks = cut(manifest, &std::mem::take(&mut layout.copies))?;
        Ok(Plan { layout, chunks })
    }

    /// Bytes that are read from sources: whole blocks, so a little more than is placed.
    pub fn fetch_bytes(&self) -> u64 {
        self.chunks.iter().map(ChunkPlan::len_bytes).sum()
    }
}

#[cfg(test)]
mod tests;
