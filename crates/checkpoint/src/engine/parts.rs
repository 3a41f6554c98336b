//! What the engine shares with the write-back.

use std::sync::Arc;

use longshore_memory::Arena;
use longshore_origin::Origins;
use tokio_util::sync::CancellationToken;

use super::attempts::Attempts;
use crate::attempt::Surroundings;
use crate::metrics::Metrics;
use crate::options::CheckpointOptions;
use crate::sink::ChunkSink;
use crate::spool::Spool;
use crate::upload::Uploads;

/// What every save on this node has in common.
pub struct Parts {
    /// As set.
    pub options: CheckpointOptions,
    /// Where checkpoints go.
    pub origins: Origins,
    /// Pays for buffers.
    pub memory: Arena,
    /// Takes chunks for the caches and for copies.
    pub cache: Arc<dyn ChunkSink>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Ends when the engine closes.
    pub token: CancellationToken,
    /// Bounds what is uploaded at once.
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) spool: Arc<Spool>,
    pub(crate) attempts: Arc<Attempts>,
}

impl Parts {
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings { spool: Arc::clone(&self.spool), metrics: Arc::clone(&self.metrics), token: self.token.clone() }
    }

    /// Committed attempts of a run that this node knows, newest first: their commits are beside their journals.
    pub(crate) fn committed_here(&self, uri: &str) -> Vec<Arc<crate::attempt::Attempt>> {
        let canonical = |uri: &str| self.origins.canonical_url(uri).unwrap_or_else(|_| uri.to_owned());
        let uri = canonical(uri);
        let mut found = self.attempts.all();
        found.retain(|attempt| attempt.state().committed && canonical(&attempt.plan().uri) == uri);
        found.sort_by_key(|attempt| std::cmp::Reverse((attempt.plan().created_ms, attempt.plan().step)));
        found
    }
}
