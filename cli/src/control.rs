//! Control calls to the cache: to worker processes over gRPC, or to the worker inside this process.
//!
//! Both give domain types, so that a command is written once. Generated types stop here and in `loader_client`.

mod remote;

use std::path::PathBuf;
use std::sync::Arc;

use longshore_cluster::Membership;
use longshore_types::{Artifact, Code, Error, ResolvedFile, Result, Selection};
use longshore_worker::{WarmEvent, Worker, WorkerStatus};
use tokio::sync::mpsc;

use crate::embedded::ask;

/// Where control calls go.
#[derive(Clone)]
pub enum Control {
    /// Worker processes.
    Remote(Arc<dyn Membership>),
    /// The worker inside this process.
    Embedded(Arc<Worker>),
}

/// The objects under a URL.
pub struct Listing {
    /// Changes whenever any of them does.
    pub revision: String,
    /// Sorted by name.
    pub files: Vec<ResolvedFile>,
    /// Whether the answer came from the cache.
    pub is_cached: bool,
}

/// What `free` did.
pub struct FreeOutcome {
    /// Bytes in memory and on disk.
    pub bytes: u64,
    /// Copies of chunks.
    pub chunks: u32,
    /// Members that could not be reached.
    pub unreachable: Vec<String>,
}

/// Capacity and use of a tier.
#[derive(serde::Serialize)]
pub struct Tier {
    /// Its budget.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// Chunks that it holds.
    pub chunks: u64,
}

/// A worker at one moment.
#[derive(serde::Serialize)]
pub struct WorkerState {
    /// Its id.
    pub id: String,
    /// Version of its binary.
    pub version: String,
    /// Its cache folder, when it has one.
    pub cache_dir: Option<PathBuf>,
    /// The memory tier.
    pub memory: Tier,
    /// The disk tier.
    pub disk: Option<Tier>,
    /// Why the disk tier takes no writes.
    pub disk_error: Option<String>,
    /// What was not done in the first way, and what can be done about it.
    pub notes: Vec<String>,
    /// Fills that run.
    pub fills_in_flight: u64,
    /// Bytes served since its start.
    pub served_bytes: u64,
    /// Bytes read from origins since its start.
    pub origin_bytes: u64,
    /// Copies with a wrong checksum since its start.
    pub checksum_mismatches: u64,
    /// Since its start.
    pub uptime_seconds: f64,
}

impl Control {
    /// Size and version of one object, and whether they came from the cache.
    ///
    /// # Errors
    /// Those of the origin.
    pub async fn stat(&self, url: &str, revalidate: bool) -> Result<(Artifact, bool)> {
        match self {
            Control::Remote(membership) => remote::stat(&**membership, url, revalidate).await,
            Control::Embedded(worker) => {
                let answer = worker.stat(url, ask(url, revalidate)).await?;
                Ok((answer.value, answer.cached))
            }
        }
    }

    /// The objects under a URL.
    ///
    /// # Errors
    /// Those of the origin.
    pub async fn list(&self, url: &str, revalidate: bool) -> Result<Listing> {
        match self {
            Control::Remote(membership) => remote::list(&**membership, url, revalidate).await,
            Control::Embedded(worker) => {
                let answer = worker.list(url, ask(url, revalidate)).await?;
                let (revision, files) = (answer.value.revision.clone(), answer.value.files.clone());
                Ok(Listing { revision, files, is_cached: answer.cached })
            }
        }
    }

    /// Brings a model into the cache.
    ///
    /// # Errors
    /// Those of the origin, and of the owners of the chunks.
    pub async fn warm(
        &self,
        url: &str,
        selection: &Selection,
        revalidate: bool,
        mut progress: impl FnMut(&WarmEvent),
    ) -> Result<WarmEvent> {
        match self {
            Control::Remote(membership) => remote::warm(&**membership, url, selection, revalidate, progress).await,
            Control::Embedded(worker) => {
                let (sender, mut events) = mpsc::channel(WARM_EVENTS);
                let revalidate = ask(url, revalidate).revalidate;
                let warmed = async move { worker.warm(url, selection, revalidate, &sender).await };
                let shown = async {
                    while let Some(Ok(event)) = events.recv().await {
                        progress(&event);
                    }
                };
                tokio::join!(warmed, shown).0
            }
        }
    }

    /// Drops everything at or under a URL from the whole cache.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for what is no URL, [`Code::Unavailable`] when no worker answers.
    pub async fn free(&self, url: &str) -> Result<FreeOutcome> {
        match self {
            Control::Remote(membership) => remote::free(&**membership, url).await,
            Control::Embedded(worker) => {
                let (freed, unreachable) = worker.free(url, true).await?;
                Ok(FreeOutcome { bytes: freed.bytes, chunks: freed.chunks, unreachable })
            }
        }
    }

    /// Every worker: its address, and what it said.
    pub async fn states(&self) -> Vec<(String, Result<WorkerState>)> {
        match self {
            Control::Remote(membership) => remote::states(&**membership).await,
            Control::Embedded(worker) => vec![("in this process".to_owned(), Ok(worker.status().into()))],
        }
    }
}

/// Progress events that may wait to be shown.
const WARM_EVENTS: usize = 16;

impl From<WorkerStatus> for WorkerState {
    fn from(status: WorkerStatus) -> Self {
        let tier = |tier: longshore_worker::TierUsage| Tier {
            capacity_bytes: tier.capacity_bytes,
            used_bytes: tier.used_bytes,
            chunks: tier.chunks,
        };
        WorkerState {
            id: status.id.to_string(),
            version: status.version,
            cache_dir: status.cache_dir,
            memory: tier(status.memory),
            disk: status.disk.map(tier),
            disk_error: status.disk_error,
            notes: status.notes,
            fills_in_flight: status.fills_in_flight,
            served_bytes: status.served_bytes,
            origin_bytes: status.origin_bytes,
            checksum_mismatches: status.checksum_mismatches,
            uptime_seconds: status.uptime.as_secs_f64(),
        }
    }
}

fn nobody() -> Error {
    Error::new(Code::Unavailable, "none of the cache workers has answered; are they running, and --workers right?")
}
