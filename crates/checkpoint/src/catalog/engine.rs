//! The catalog by way of an engine, which knows the attempts that go on here.

use std::sync::Arc;

use longshore_types::Result;
use longshore_types::checkpoint::{AttemptId, Commit};

use super::{Catalog, CheckpointList, Deleted, Swept};
use crate::engine::Engine;

impl Engine {
    fn catalog(&self) -> Catalog {
        Catalog::new(self.parts().origins.clone())
    }

    /// All checkpoints under a URL.
    ///
    /// # Errors
    /// As [`Catalog::list`].
    pub async fn list(&self, run_url: &str) -> Result<CheckpointList> {
        self.catalog().list(run_url).await
    }

    /// The newest committed checkpoint under a URL.
    ///
    /// # Errors
    /// As [`Catalog::latest`].
    pub async fn latest(&self, run_url: &str) -> Result<Option<Arc<Commit>>> {
        self.catalog().latest(run_url).await
    }

    /// The checkpoint of a step, or the newest one.
    ///
    /// # Errors
    /// As [`Catalog::get`].
    pub async fn get(&self, run_url: &str, step: Option<u64>) -> Result<Arc<Commit>> {
        self.catalog().get(run_url, step).await
    }

    /// Deletes the checkpoint of a step, and its bytes on this node.
    ///
    /// # Errors
    /// As [`Catalog::delete`].
    pub async fn delete(&self, run_url: &str, step: u64) -> Result<Deleted> {
        let deleted = self.catalog().delete(run_url, step).await?;
        self.forget_step(run_url, step).await;
        Ok(deleted)
    }

    /// Removes what dead attempts left under a URL; those that go on here are not dead.
    ///
    /// # Errors
    /// As [`Catalog::sweep`].
    pub async fn sweep(&self, run_url: &str, older_than_ms: u64) -> Result<Swept> {
        let saves = self.saves();
        let alive: Vec<AttemptId> = saves
            .iter()
            .filter(|save| save.error.is_some() || !save.state.is_ended())
            .map(|save| save.attempt)
            .collect();
        self.catalog().sweep(run_url, older_than_ms, &alive).await
    }
}
