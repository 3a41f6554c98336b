//! Shared memory with names: what other processes copy bytes into, and what a new daemon finds again.
//!
//! A [`SlabFolder`] holds a [`SessionFolder`] for each client: a [`ControlPage`] and [`SlabPiece`]s, files of a memory file
//! system whose descriptors the client gets. Invariant: the client can write, cut and grow these files at any time, so
//! nothing here ever looks at them through a mapping, where a cut file is SIGBUS and bytes change under a reference. All
//! reading is `pread` into memory of our own, and what was read is checked after it was read. A mapping exists only while
//! the pages of a piece are made, before anybody else has its descriptor, and behind a control page on hugetlbfs, where the
//! kernel copies.

mod control;
mod folder;
mod piece;

pub use control::{CONTROL_RECORD_BYTES, ControlPage, SlabRecord, SlabState};
pub use folder::{PieceName, SessionFolder, SlabFolder, SlabPages};
pub use piece::SlabPiece;

/// Longest piece: registering memory with CUDA in larger ones is refused by some drivers.
pub const SLAB_PIECE_BYTES_MAX: u64 = 1 << 30;

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
