//! Host memory: the budget, the buffers under it, and the regions that are handed to clients.
//!
//! Everything that holds model bytes in host memory is paid for from one [`Arena`], a hard budget in bytes: the
//! in-flight buffers of a fetch, the chunks a worker keeps, the regions a loader hands out. A [`Buffer`] is exclusive
//! memory, which other processes may read if it was asked for as such; [`append_buffer`] lets many readers follow one writer; a [`RegionWriter`] becomes a sealed, shareable
//! [`Region`]; a [`Landing`] says where one run of bytes lands. A [`PinnedArena`] is memory that a graphics card reads;
//! its [`PinnedChunk`]s are filled block by block. [`slabs`] are memory with a name that clients fill. [`fdpass`] moves
//! descriptors between processes.
//!
//! This crate and `longshore-device` are the only ones with `unsafe` code. The invariants it rests on: a mapping lives
//! as long as the last object that refers to it; live [`Window`]s of a region never overlap (a checked interval set);
//! the published prefix of an append buffer and the ready blocks of a page-locked chunk are never written again.

mod append;
mod arena;
pub mod direct;
pub mod fdpass;
mod hugepages;
mod landing;
mod limit;
mod mapped;
mod memfd;
mod pinned;
mod raw;
mod region;
mod shared;
pub mod slabs;
mod sys;

pub use append::{Appender, Prefix, append_buffer};
pub use arena::{Arena, ArenaStats, Buffer, Prefaulter, Quiet, Reservation};
pub use hugepages::region_page_advice;
pub use landing::{Landing, LandingBuilder, SLICES_MAX};
pub use limit::memory_limit_bytes;
pub use mapped::MappedFile;
pub use memfd::OwnedSegment;
pub use pinned::{BlockWindow, Claim, PageKind, PinnedArena, PinnedChunk, PinnedPiece, PinnedSource, PinnedStats};
pub use region::{Region, RegionWriter, Window};
pub use shared::{MountHelper, SharedMemory, SharedPages, choose_shared_memory, mount_helper_main, shared_memory};

/// Memory from this size on is mapped, not taken from the heap, and charged in multiples of [`MAPPING_UNIT_BYTES`].
pub const MAPPED_FROM_BYTES: usize = 1 << 20;
/// Mapped memory is charged in multiples of this: a multiple of every page size Linux uses on our platforms.
pub const MAPPING_UNIT_BYTES: u64 = 64 << 10;

/// The bytes that memory of `len` bytes behind a mapping is charged with.
pub fn mapped_charge_bytes(len: u64) -> u64 {
    len.checked_next_multiple_of(MAPPING_UNIT_BYTES).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_may_move_between_threads() {
        fn is_shared<T: Send + Sync>() {}
        is_shared::<Arena>();
        is_shared::<Buffer>();
        is_shared::<Reservation>();
        is_shared::<Prefaulter>();
        is_shared::<Quiet>();
        is_shared::<Appender>();
        is_shared::<Prefix>();
        is_shared::<RegionWriter>();
        is_shared::<Window>();
        is_shared::<Region>();
        is_shared::<Landing>();
        is_shared::<PinnedArena>();
        is_shared::<PinnedChunk>();
        is_shared::<BlockWindow>();
    }
}
