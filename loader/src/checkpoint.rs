//! Checkpoints at this loader: the engine behind its gRPC service and its slab socket.
//!
//! [`Checkpoints`] opens the engine when somebody first saves, or at the start when there is something to go on with: a
//! loader that only loads needs no folder. `checkpoint/grpc.rs` is what can be asked, `checkpoint/access.rs` who may.

mod access;
mod convert;
mod grpc;
pub mod sink;
pub(crate) mod slab_socket;
mod state;
mod stream;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use longshore_checkpoint::{Catalog, CheckpointOptions, ChunkSink, Engine, Metrics, NoSink};
use longshore_memory::Arena;
use longshore_origin::Origins;
use longshore_types::{ByteSize, Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::options::memory_bytes;
pub(crate) use access::Access;
pub(crate) use convert::status as status_to_proto;
pub(crate) use grpc::CheckpointsGrpc;
pub use grpc::serve_in_process;
pub use state::CheckpointsState;

/// The saving of checkpoints at one loader, or in one process.
pub struct Checkpoints {
    options: CheckpointOptions,
    origins: Origins,
    arena: Arena,
    sink: Arc<dyn ChunkSink>,
    metrics: Metrics,
    engine: OnceCell<Arc<Engine>>,
    /// Why the engine could not be opened, the last time.
    failure: Mutex<Option<Error>>,
    /// No new work is taken.
    closing: CancellationToken,
    /// Nothing changes any more.
    closed: CancellationToken,
    slabs_socket: OnceLock<PathBuf>,
}

impl Checkpoints {
    /// Prepares, and opens nothing. Slabs and buffers are paid for by `arena`; `sink` takes what goes to other nodes.
    pub fn new(
        options: CheckpointOptions,
        origins: Origins,
        arena: Arena,
        sink: Arc<dyn ChunkSink>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Checkpoints {
            options,
            origins,
            arena,
            sink,
            metrics,
            engine: OnceCell::new(),
            failure: Mutex::default(),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
            slabs_socket: OnceLock::new(),
        })
    }

    /// For a command that does without a daemon. Its folder is one of its own below the user's; what it does not finish is
    /// gone on with by the next process.
    ///
    /// # Errors
    /// [`Code::Internal`] when metrics clash: a defect.
    pub fn embedded(options: CheckpointOptions, origins: Origins, memory: Option<ByteSize>) -> Result<Arc<Self>> {
        let options = CheckpointOptions { private: true, ..options };
        let arena = Arena::new(memory_bytes(memory));
        Ok(Checkpoints::new(options, origins, arena, Arc::new(NoSink), Metrics::unregistered()?))
    }

    /// Where saves lie until they are in the origin; the folders of private processes lie in it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when neither an option nor the environment names one.
    pub fn folder(&self) -> Result<PathBuf> {
        self.options.base_folder()
    }

    /// The engine, opened now when it was not: an earlier failure is no reason not to try again.
    ///
    /// # Errors
    /// What keeps the folder from being used; [`Code::Unavailable`] when this loader is ending.
    pub async fn engine(&self) -> Result<&Arc<Engine>> {
        let open = || async {
            if self.closing.is_cancelled() {
                return Err(shutting_down());
            }
            let (options, origins) = (self.options.clone(), self.origins.clone());
            let (arena, sink, metrics) = (self.arena.clone(), self.sink.clone(), self.metrics.clone());
            Engine::open_with(options, origins, arena, sink, metrics).await
        };
        let opened = self.engine.get_or_try_init(open).await;
        *self.failure.lock() = opened.as_ref().err().cloned();
        opened
    }

    /// The engine, when it is open.
    pub fn opened(&self) -> Option<&Arc<Engine>> {
        self.engine.get()
    }

    /// The engine when it is open or its folder holds something; else there is nothing to tell of.
    ///
    /// # Errors
    /// As [`Checkpoints::engine`].
    pub async fn existing(&self) -> Result<Option<&Arc<Engine>>> {
        match self.opened().is_some() || self.holds_something().await {
            true => self.engine().await.map(Some),
            false => Ok(None),
        }
    }

    /// Goes on with what an earlier process left. A folder that was named must be usable; one that was not keeps nobody
    /// from loading.
    ///
    /// # Errors
    /// As [`Checkpoints::engine`].
    pub async fn start(&self) -> Result<()> {
        let is_named = self.options.dir.is_some() && !self.options.private;
        let opened = if is_named { self.engine().await.map(Some) } else { self.existing().await };
        match opened {
            Err(error) if is_named => Err(error),
            Err(error) => {
                tracing::warn!(%error, "saves of an earlier process are not gone on with");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    async fn holds_something(&self) -> bool {
        let Ok(folder) = self.folder() else { return false };
        let look = move || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        tokio::task::spawn_blocking(look).await.unwrap_or(false)
    }

    /// Saves that have not ended, and training processes that are connected: a process that ends with its clients stays
    /// for them.
    pub fn busy(&self) -> usize {
        self.opened().map_or(0, |engine| engine.busy())
    }

    /// Where training processes get slabs; `None` for a process without sockets.
    pub fn slabs_socket(&self) -> Option<&Path> {
        self.slabs_socket.get().map(PathBuf::as_path)
    }

    pub(crate) fn set_slabs_socket(&self, path: &Path) {
        // It is bound once.
        let _ = self.slabs_socket.set(path.to_owned());
    }

    /// Comes to rest within `patience`: what is synced stays, and the next process goes on with it.
    pub async fn close(&self, patience: Duration) {
        self.closing.cancel();
        if let Some(engine) = self.opened() {
            engine.close(patience).await;
        }
        self.closed.cancel();
    }

    /// What runs have in the origin; needs no folder.
    pub(crate) fn catalog(&self) -> Catalog {
        Catalog::new(self.origins.clone())
    }

    pub(crate) fn origins(&self) -> &Origins {
        &self.origins
    }
}

/// For calls that end with the loader.
fn shutting_down() -> Error {
    Error::new(Code::Unavailable, "this loader is shutting down; what is synced is gone on with by the next one")
}
