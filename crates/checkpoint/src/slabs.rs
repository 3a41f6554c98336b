//! Slabs: shared memory that training processes copy into, and that this process flushes.
//!
//! A client has a [`SlabSession`] with pieces of shared memory. It acquires a slab for a part of a file, copies, writes the
//! seal into the control page and seals; then the slab is a [`SealedSlab`] on its way to the disk, and free once that is
//! dropped. What was sealed survives the client and this process; what was not is lost with either.
//!
//! Invariants: this process decides by its own tables, never by what lies in memory that a client can write; the control
//! page is only their copy for the next process. Bytes of a slab are only ever copied out ([`SealedSlab::read`]): what is
//! checksummed and what is written must be the same copy. Memory is reserved before a piece is made. No lock is held while
//! the engine is asked ([`SlabPlans`]).
//!
//! Start reading at [`Slabs::open`], then `hello.rs` and `session.rs` (what a client does), `table.rs` (who has which slab), `budget.rs`
//! (who may have how many), `grow.rs` and `recover.rs`.

mod budget;
mod grow;
mod hello;
mod key;
mod recover;
mod sealed;
mod session;
mod shared;
mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::Arena;
use longshore_types::Result;
use tokio::sync::mpsc;

pub use hello::{SlabHello, SlabWelcome};
pub use key::{SessionId, SlabKey};
pub use sealed::SealedSlab;
pub use session::{Absence, SlabGranted, SlabSession};
use shared::Shared;

/// Sessions at once. Each has a connection and some descriptors.
pub const SLAB_SESSIONS_MAX: usize = 256;
/// How long a session that an earlier process left waits for its client.
pub const SLAB_RETURN_GRACE: Duration = Duration::from_secs(120);
/// Longest wait for a slab.
pub const SLAB_WAIT_MAX: Duration = Duration::from_secs(3600);

/// How slabs are kept.
pub struct SlabOptions {
    /// A folder of a memory file system that nobody else uses. Made when it is missing.
    pub folder: PathBuf,
    /// Pays for every piece before it is made.
    pub memory: Arena,
    /// All pieces together, at most; the arena may have more for other uses.
    pub memory_bytes: u64,
    /// Bytes of a slab: a multiple of the page size. [`crate::SLAB_BYTES`] but for tests.
    pub slab_bytes: u64,
    /// [`SLAB_RETURN_GRACE`] but for tests.
    pub return_grace: Duration,
}

/// What belongs into a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlabWanted {
    /// Bytes of the file that belong there; never zero.
    pub length_bytes: u64,
    /// They are flushed already.
    pub is_durable: bool,
    /// Do not wait for room.
    pub refuse_when_full: bool,
}

/// Who knows the plans: the engine. Asked without any lock held, on the runtime: it must not block.
pub trait SlabPlans: Send + Sync {
    /// What belongs into a slab.
    ///
    /// # Errors
    /// [`longshore_types::Code::NotFound`] for an attempt that is not known (any more), another code for one that has
    /// ended or a place outside of its files. A slab of such a key is discarded.
    fn look_up(&self, key: &SlabKey) -> Result<SlabWanted>;
}

/// What happens to slabs.
#[derive(Debug)]
pub enum SlabEvent {
    /// Bytes to be flushed.
    Sealed(SealedSlab),
    /// A client is gone, or at least its connection: it may come back. What it had not sealed is lost.
    SessionClosed {
        /// The session.
        session: SessionId,
        /// What it was filling.
        lost: Vec<SlabKey>,
    },
}

/// What slabs are used for at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlabStats {
    /// What pieces may take together.
    pub capacity_bytes: u64,
    /// What they take, those included that are being made or freed.
    pub held_bytes: u64,
    /// The same in slabs.
    pub held_slabs: u64,
    /// Of them, slabs that nobody uses.
    pub free_slabs: u64,
    /// Slabs that are being filled.
    pub filling_slabs: u64,
    /// Slabs that wait for the disk.
    pub sealed_slabs: u64,
    /// Sessions, those included whose client is away.
    pub sessions: u64,
    /// Clients that wait for a slab now.
    pub waiting: u64,
    /// Grants, since the start.
    pub grants: u64,
    /// Grants that had to be waited for, since the start.
    pub waits: u64,
    /// Requests for a slab that were refused for lack of room, since the start.
    pub refusals: u64,
    /// Slabs that were granted and lost, since the start: their client left, or they were found damaged after a restart.
    pub lost: u64,
}

/// The slabs of this process. A clone is the same.
#[derive(Clone)]
pub struct Slabs {
    shared: Arc<Shared>,
}

impl Slabs {
    /// Takes the folder over: slabs that were sealed are found again, if `plans` knows their attempt and wants them; all
    /// others are discarded. Sessions wait for their clients to come back. Blocks; inside a tokio runtime.
    ///
    /// The events must be taken: a session ends with one, and a slab is not free before its event was taken and dropped.
    ///
    /// # Errors
    /// [`longshore_types::Code::InvalidArgument`] when the memory does not hold a slab; see also
    /// [`longshore_memory::slabs::SlabFolder::open`].
    pub fn open(
        options: SlabOptions,
        plans: Arc<dyn SlabPlans>,
    ) -> Result<(Slabs, Vec<SealedSlab>, mpsc::Receiver<SlabEvent>)> {
        let (shared, recovered, events) = recover::open(options, plans)?;
        Ok((Slabs { shared }, recovered, events))
    }

    /// Begins a session, or goes on with one that an earlier process of this service had.
    ///
    /// # Errors
    /// [`longshore_types::Code::NotFound`] for a session that does not wait for its client (begin a new one),
    /// [`longshore_types::Code::PermissionDenied`] for another user's, [`longshore_types::Code::Exhausted`] when there are
    /// too many, or no room for a control page.
    pub async fn hello(&self, hello: SlabHello) -> Result<(SlabSession, SlabWelcome)> {
        hello::hello(&self.shared, hello).await
    }

    /// Those who wait for a slab ask [`SlabPlans`] again: an attempt has ended.
    pub fn recheck(&self) {
        self.shared.wake_all();
    }

    /// Bytes of a slab.
    pub fn slab_bytes(&self) -> u64 {
        self.shared.slab_bytes
    }

    /// What slabs are used for.
    pub fn stats(&self) -> SlabStats {
        self.shared.stats()
    }

    /// What is not as it could be, in words.
    pub fn notes(&self) -> Vec<String> {
        self.shared.notes.clone()
    }

    /// After [`Slabs::close`]: waits for memory that is being made, then lets the next process have the folder, whoever still
    /// has a [`SealedSlab`] here. Blocks.
    pub fn release(&self) {
        self.shared.release();
    }

    /// From now on nothing is granted, and a [`SealedSlab`] that is dropped stays sealed for the next process. Sessions
    /// with nothing in them are removed; their clients keep what they have mapped. Blocks briefly.
    pub fn close(&self) {
        self.shared.close();
    }
}
