//! Who keeps the memory of loaded models, serves the attach socket and counts leases: this process, or one that outlives
//! it.
//!
//! [`Holder`] is the state; `attach.rs` is what clients see of it. [`HolderHandle`] is a loader's way to it: directly, or
//! over the control socket of a holder process (`link.rs` there, `control.rs` here). A holder never has a CUDA context,
//! reads no model bytes and knows nothing of URLs: what a model is comes to it as two blobs, one for clients and one for
//! the next loader. Start reading in `keep.rs`.

pub(crate) mod attach;
mod control;
pub(crate) mod frame;
mod keep;
mod link;
mod memory;
mod message;
mod process;
pub(crate) mod record;
mod uses;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_device::MemoryKeeper;
use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use tokio::sync::watch;

use crate::VERSION;
use crate::options::LoaderOptions;
pub(crate) use keep::{Holder, Part, Publication, Remove, Removed};
pub(crate) use link::Link;
pub(crate) use memory::{HOST, Maker};
pub(crate) use process::raise_descriptor_limit;
pub use process::{HolderOptions, serve_holder};
pub(crate) use uses::{ModelUse, Uses};

/// The holder's socket in the socket folder.
pub(crate) const HOLDER_SOCKET: &str = "holder.sock";
/// How long a loader waits for a holder that it requires.
const REQUIRED_WAIT: Duration = Duration::from_secs(5);
/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A loader's holder. A clone is the same one.
#[derive(Clone)]
pub struct HolderHandle(Inner);

#[derive(Clone)]
enum Inner {
    Local(Arc<Local>),
    Process(Arc<Link>),
}

/// A holder inside this process.
struct Local {
    holder: Arc<Holder>,
    session: u64,
}

/// A model in a list of what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub id: String,
    /// Bytes by region and device: `host`, or the UUID of a GPU.
    pub bytes: Vec<(String, u64)>,
}

/// A model that a loader takes over.
pub(crate) struct Adopted {
    pub record: Vec<u8>,
    /// The segments of each region, and its device.
    pub regions: Vec<(String, Vec<OwnedSegment>)>,
}

/// What a user can know about a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderFacts {
    /// Whether it is a process of its own, which outlives this one.
    pub is_process: bool,
    /// Its process.
    pub pid: u32,
    /// Of its binary.
    pub version: String,
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

    /// The holder that listens at `path`. Blocks.
    ///
    /// # Errors
    /// [`Code::NotFound`] when none does, [`Code::FailedPrecondition`] when another loader uses it or it is of a version
    /// that this one cannot talk to, [`Code::PermissionDenied`] for another user's.
    pub fn connect(path: &Path) -> Result<HolderHandle> {
        Link::open(path).map(|link| HolderHandle(Inner::Process(link)))
    }

    /// The holder that the options name, or, when none runs and none is required, one inside this process.
    ///
    /// # Errors
    /// As [`HolderHandle::connect`], and [`Code::FailedPrecondition`] when a holder is required.
    pub async fn find(options: &LoaderOptions) -> Result<HolderHandle> {
        let path = options.holder_socket.clone().unwrap_or_else(|| options.socket_folder().join(HOLDER_SOCKET));
        // Who requires one may start it at the same time.
        let deadline = Instant::now() + if options.require_holder { REQUIRED_WAIT } else { Duration::ZERO };
        loop {
            let at = path.clone();
            let refusal = match crate::load::blocking(move || HolderHandle::connect(&at)).await {
                Err(error) if error.code() == Code::NotFound => error,
                answer => {
                    return answer.inspect(|holder| {
                        let HolderFacts { pid, version, .. } = holder.facts();
                        tracing::info!(socket = %path.display(), pid, version, "the holder keeps the models");
                    });
                }
            };
            if Instant::now() < deadline {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            if options.require_holder {
                let message = format!("{refusal}; start `longshore holder`, or drop --require-holder");
                return Err(Error::new(Code::FailedPrecondition, message).with_source(refusal));
            }
            match &options.holder_socket {
                Some(_) => tracing::warn!(%refusal, "models end with this loader"),
                None => tracing::info!(socket = %path.display(), "no holder runs: models end with this loader"),
            }
            return Ok(HolderHandle::local());
        }
    }

    /// What it is.
    pub fn facts(&self) -> HolderFacts {
        match &self.0 {
            Inner::Local(local) => HolderFacts {
                is_process: false,
                pid: std::process::id(),
                version: VERSION.to_owned(),
                uptime: local.holder.uptime(),
            },
            Inner::Process(link) => {
                HolderFacts { is_process: true, pid: link.pid(), version: link.version(), uptime: link.uptime() }
            }
        }
    }

    /// The holder, when it is in this process.
    pub(crate) fn in_process(&self) -> Option<&Arc<Holder>> {
        match &self.0 {
            Inner::Local(local) => Some(&local.holder),
            Inner::Process(_) => None,
        }
    }

    /// The connection, when it is another process.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        match &self.0 {
            Inner::Local(_) => None,
            Inner::Process(link) => Some(link),
        }
    }

    /// The use of everything, as far as it is known; does not wait.
    pub(crate) fn uses(&self) -> Arc<Uses> {
        match &self.0 {
            Inner::Local(local) => Arc::new(local.holder.uses()),
            Inner::Process(link) => link.uses(),
        }
    }

    /// The use of everything, as it is now. Blocks.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the holder is gone; so it is with what follows.
    pub(crate) fn look(&self) -> Result<Arc<Uses>> {
        match &self.0 {
            Inner::Local(_) => Ok(self.uses()),
            Inner::Process(link) => link.look(),
        }
    }

    /// Every model that is held. Blocks.
    pub(crate) fn list(&self) -> Result<Vec<Summary>> {
        match &self.0 {
            Inner::Local(local) => Ok(local.holder.list()),
            Inner::Process(link) => link.list(),
        }
    }

    /// A model, to be taken over. Blocks.
    pub(crate) fn adopt(&self, id: &str) -> Result<Adopted> {
        match &self.0 {
            Inner::Local(local) => local.holder.adopt(id),
            Inner::Process(link) => link.adopt(id),
        }
    }

    /// Changes when [`HolderHandle::uses`] may have.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        match &self.0 {
            Inner::Local(local) => local.holder.changes(),
            Inner::Process(link) => link.changes(),
        }
    }

    /// Attach connections that are open.
    pub(crate) fn attached(&self) -> watch::Receiver<usize> {
        match &self.0 {
            Inner::Local(local) => local.holder.attached().subscribe(),
            Inner::Process(link) => link.attached(),
        }
    }

    /// Makes a model known to clients. Blocks.
    pub(crate) fn publish(&self, publication: Publication) -> Result<()> {
        match &self.0 {
            Inner::Local(local) => local.holder.publish(local.session, publication),
            Inner::Process(link) => link.publish(publication),
        }
    }

    /// Takes a model away. Blocks, as long as freeing memory takes.
    pub(crate) fn remove(&self, id: &str, when: Remove) -> Result<Removed> {
        match &self.0 {
            Inner::Local(local) => Ok(local.holder.remove(id, when)),
            Inner::Process(link) => link.remove(id, when),
        }
    }
}

impl MemoryKeeper for HolderHandle {
    fn create(&self, label: &str, device_uuid: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        match &self.0 {
            Inner::Local(local) => local.holder.create(local.session, label, device_uuid, size_bytes),
            Inner::Process(link) => link.create(label, device_uuid, size_bytes),
        }
    }

    fn release(&self, label: &str) {
        match &self.0 {
            Inner::Local(local) => local.holder.release(local.session, label),
            Inner::Process(link) => link.release(label),
        }
    }

    fn used_bytes(&self, device_uuid: &str) -> u64 {
        match &self.0 {
            Inner::Local(local) => local.holder.used_bytes(device_uuid),
            Inner::Process(link) => link.uses().devices.get(device_uuid).copied().unwrap_or(0),
        }
    }
}

impl std::fmt::Debug for HolderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HolderHandle").field(&self.facts()).finish()
    }
}
