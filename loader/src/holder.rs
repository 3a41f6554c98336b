//! Who keeps the memory of loaded models, serves the attach socket and counts leases: this process, or one that outlives
//! it.
//!
//! [`Holder`] is the state; `attach.rs` is what clients see of it. [`HolderHandle`] is a loader's way to it: directly, or
//! over the control socket of a holder process (`link.rs` there, `control.rs` here). A holder never has a CUDA context,
//! reads no model bytes and knows nothing of URLs: what a model is comes to it as two blobs, one for clients and one for
//! the next loader. Start reading in `keep.rs`.

mod keep;
mod memory;
mod uses;

use std::sync::Arc;
use std::time::Duration;

use longshore_device::MemoryKeeper;
use longshore_memory::OwnedSegment;
use longshore_types::Result;
use tokio::sync::watch;

pub(crate) use keep::{Holder, Part, Publication, Published, Remove, Removed};
pub(crate) use memory::{HOST, Maker};
pub(crate) use uses::{ModelUse, Uses, ago};

/// A loader's holder. A clone is the same one.
#[derive(Clone)]
pub struct HolderHandle(Inner);

#[derive(Clone)]
enum Inner {
    Local(Arc<Local>),
}

/// A holder inside this process.
struct Local {
    holder: Arc<Holder>,
    session: u64,
}

/// What a user can know about a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderFacts {
    /// Whether it is a process of its own, which outlives this one.
    pub is_process: bool,
    /// Its process.
    pub pid: u32,
    /// How long it has run.
    pub uptime: Duration,
}

impl HolderHandle {
    /// A holder inside this process: its models end with it.
    pub fn local() -> HolderHandle {
        HolderHandle::local_with(memory::gpu_maker())
    }

    pub(crate) fn local_with(make: Maker) -> HolderHandle {
        let holder = Holder::new(make);
        // A new holder has no session, so this cannot fail; with a number that no session has, nothing can be made.
        let session = holder.open_session(std::process::id()).unwrap_or(0);
        HolderHandle(Inner::Local(Arc::new(Local { holder, session })))
    }

    /// What it is.
    pub fn facts(&self) -> HolderFacts {
        match &self.0 {
            Inner::Local(local) => {
                HolderFacts { is_process: false, pid: std::process::id(), uptime: local.holder.uptime() }
            }
        }
    }

    /// The holder, when it is in this process.
    pub(crate) fn in_process(&self) -> Option<&Arc<Holder>> {
        match &self.0 {
            Inner::Local(local) => Some(&local.holder),
        }
    }

    /// The use of everything, as far as it is known; does not wait.
    pub(crate) fn uses(&self) -> Arc<Uses> {
        match &self.0 {
            Inner::Local(local) => Arc::new(local.holder.uses()),
        }
    }

    /// Changes when [`HolderHandle::uses`] may have.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        match &self.0 {
            Inner::Local(local) => local.holder.changes(),
        }
    }

    /// Attach connections that are open.
    pub(crate) fn attached(&self) -> watch::Receiver<usize> {
        match &self.0 {
            Inner::Local(local) => local.holder.attached().subscribe(),
        }
    }

    /// Makes a model known to clients. Blocks.
    pub(crate) fn publish(&self, publication: Publication) -> Result<()> {
        match &self.0 {
            Inner::Local(local) => local.holder.publish(local.session, publication),
        }
    }

    /// Takes a model away. Blocks, as long as freeing memory takes.
    pub(crate) fn remove(&self, id: &str, when: Remove) -> Result<Removed> {
        match &self.0 {
            Inner::Local(local) => Ok(local.holder.remove(id, when)),
        }
    }
}

impl MemoryKeeper for HolderHandle {
    fn create(&self, label: &str, device_uuid: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        match &self.0 {
            Inner::Local(local) => local.holder.create(local.session, label, device_uuid, size_bytes),
        }
    }

    fn release(&self, label: &str) {
        match &self.0 {
            Inner::Local(local) => local.holder.release(local.session, label),
        }
    }

    fn used_bytes(&self, device_uuid: &str) -> u64 {
        match &self.0 {
            Inner::Local(local) => local.holder.used_bytes(device_uuid),
        }
    }
}

impl std::fmt::Debug for HolderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HolderHandle").field(&self.facts()).finish()
    }
}
