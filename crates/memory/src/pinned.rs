//! Host memory that graphics cards read: pieces behind descriptors, cut into slots of one chunk each.
//!
//! The daemon fills slots ([`PinnedChunk`]); other processes map the same pieces, page-lock them once and copy from
//! them. Everything is allocated here, at the start: no page fault, no SIGBUS and no surprise comes later.
//!
//! Contents of a slot are stale bytes of whatever chunk was in it before; nothing zeroes it. A [`PinnedChunk`] never
//! shows a byte that was not filled, but whoever maps the pieces sees all of it: hand their descriptors to our own
//! processes only.

mod blocks;
mod chunk;
mod nodes;
mod piece;
mod slots;
mod source;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use longshore_types::{CHUNK_BYTES, Code, Error, Result, format_bytes};

pub use self::chunk::{BlockWindow, Claim, PinnedChunk};
pub(crate) use self::nodes::NODES_MAX;
use self::slots::{Bank, Slots};
pub use self::source::PinnedSource;
use crate::arena::Reservation;

/// Slots of one piece at most (1 GiB): registering memory in larger pieces is refused by some drivers.
const PIECE_SLOTS_MAX: u64 = 64;

/// Page-locked memory in slots of one chunk. A clone is the same arena.
#[derive(Clone)]
pub struct PinnedArena {
    slots: Arc<Slots>,
    /// In the order of the slots' banks.
    fds: Arc<[OwnedFd]>,
}

/// What the memory of an arena is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// 2 MiB pages that the administrator set aside.
    Hugetlb,
    /// At least half of it huge pages that the kernel found by itself.
    Transparent,
    /// Ordinary pages.
    Small,
}

impl std::fmt::Display for PageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PageKind::Hugetlb => "hugetlb 2 MiB",
            PageKind::Transparent => "transparent huge",
            PageKind::Small => "4 KiB",
        })
    }
}

/// One descriptor's part of a [`PinnedArena`].
#[derive(Debug, Clone, Copy)]
pub struct PinnedPiece<'a> {
    /// A file of memory, for our own processes only: it may be written, and not every kind can be sealed in its size.
    pub fd: BorrowedFd<'a>,
    /// Its length: whole slots.
    pub len_bytes: u64,
    /// The NUMA node its memory prefers; `None` on a machine with one node.
    pub node: Option<u32>,
}

/// What a [`PinnedArena`] is made of and how much of it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedStats {
    /// All slots.
    pub capacity_bytes: u64,
    /// Slots handed out, each counted whole.
    pub used_bytes: u64,
    /// The kind of its pages.
    pub pages: PageKind,
    /// NUMA nodes it is spread over; 1 on a machine without NUMA.
    pub nodes: u32,
}

impl PinnedArena {
    /// Bytes of a slot.
    pub const SLOT_BYTES: u64 = CHUNK_BYTES;

    /// Allocates the whole slots that `capacity_bytes` has room for, spread over the NUMA nodes this process may use.
    /// `reservation` pays for them until the arena and its last chunk are gone. Every page is zeroed now, which takes up
    /// to some seconds a GiB where they are small.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when not one slot fits, [`Code::Internal`] when the reservation is too small,
    /// [`Code::Exhausted`] when the system does not give the memory.
    pub fn create(capacity_bytes: u64, reservation: Reservation) -> Result<PinnedArena> {
        let count = capacity_bytes / PinnedArena::SLOT_BYTES;
        let bytes = count * PinnedArena::SLOT_BYTES;
        if count == 0 {
            let message = format!(
                "page-locked memory of {} holds no chunk: give at least {}",
                format_bytes(capacity_bytes),
                format_bytes(PinnedArena::SLOT_BYTES)
            );
            return Err(Error::new(Code::InvalidArgument, message));
        }
        if reservation.bytes() < bytes {
            let message = format!(
                "page-locked memory of {} came with a reservation of {}",
                format_bytes(bytes),
                format_bytes(reservation.bytes())
            );
            return Err(Error::new(Code::Internal, message));
        }
        let nodes = nodes::usable();
        let plan = nodes::spread(count, &nodes, PIECE_SLOTS_MAX);
        let (pieces, pages) = piece::create_all(&plan).map_err(|error| {
            let message = format!(
                "cannot allocate page-locked memory of {}: {error}; lower the pinned memory",
                format_bytes(bytes)
            );
            Error::new(Code::Exhausted, message).with_source(error)
        })?;
        let (banks, fds): (Vec<_>, Vec<_>) =
            pieces.into_iter().map(|piece| (Bank { memory: piece.memory, node: piece.node }, piece.fd)).unzip();
        Ok(PinnedArena { slots: Slots::new(banks, pages, Some(reservation)), fds: fds.into() })
    }

    /// The memory, for other processes to map. A chunk's [`PinnedChunk::place`] counts in this order.
    pub fn pieces(&self) -> Vec<PinnedPiece<'_>> {
        let pieces = self.fds.iter().zip(self.slots.banks()).map(|(fd, bank)| PinnedPiece {
            fd: fd.as_fd(),
            len_bytes: bank.memory.len() as u64,
            node: bank.node,
        });
        pieces.collect()
    }

    /// Sizes, kind of pages, and what is in use.
    pub fn stats(&self) -> PinnedStats {
        PinnedStats {
            capacity_bytes: self.slots.capacity() * PinnedArena::SLOT_BYTES,
            used_bytes: self.slots.used() * PinnedArena::SLOT_BYTES,
            pages: self.slots.pages(),
            nodes: self.slots.nodes(),
        }
    }

    /// A slot for a chunk of `len_bytes`, none of whose blocks is filled; on the NUMA node `near` if that has a free
    /// one. `None` when no slot is free, and for a length that no slot holds. Costs nothing but the bookkeeping.
    pub fn try_chunk(&self, len_bytes: u64, near: Option<u32>) -> Option<PinnedChunk> {
        if len_bytes > PinnedArena::SLOT_BYTES {
            return None;
        }
        let slot = Slots::take(&self.slots, near)?;
        Some(PinnedChunk::new(slot, len_bytes))
    }
}

impl std::fmt::Debug for PinnedArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
