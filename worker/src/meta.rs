//! Metadata: sizes, listings and manifests, each asked of the origin once per TTL by the worker that owns the URL.
//!
//! A listing has an age; a manifest has none: it belongs to a revision, and is found again by it. So revalidating a
//! model costs one listing, and its heads are read again only when the revision changed. When a URL's owner cannot be
//! reached, this worker asks the origin itself, and counts that.

mod build;
mod cache;
mod saved;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_cluster::Member;
use longshore_origin::Origins;
use longshore_types::{Artifact, Code, Error, Manifest, ModelFile, Resolved, Result, Selection};
use tokio::sync::Semaphore;

use crate::fill::Chunks;
use crate::metrics::Metrics;
use crate::peers::Peers;
use cache::{AnswerCache, Freshness, Outcome, is_away};
use longshore_origin::covers;
use saved::SavedLists;

/// Manifests that are built at once: each may hold a few headers of up to 100 MB.
const BUILDS_MAX: usize = 4;

/// How a caller wants its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Ask the origin even when a fresh answer is cached.
    pub revalidate: bool,
    /// Another worker asks for its caller: answer here, whoever owns the URL.
    pub forwarded: bool,
}

/// An answer, and whether it came from the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// False when the origin was asked for it.
    pub cached: bool,
}

/// Passes a call on to the worker that owns a URL. Implemented over gRPC.
#[async_trait]
pub trait Forward: Send + Sync {
    /// Asks `owner` for one object's metadata.
    async fn stat(&self, owner: &Member, url: &str, revalidate: bool) -> Result<Answer<Artifact>>;
    /// Asks `owner` for a listing.
    async fn list(&self, owner: &Member, url: &str, revalidate: bool) -> Result<Answer<Arc<Resolved>>>;
    /// Asks `owner` for a manifest.
    async fn manifest(
        &self,
        owner: &Member,
        url: &str,
        selection: &Selection,
        revalidate: bool,
    ) -> Result<Answer<Arc<Manifest>>>;
}

/// What metadata needs to know.
#[derive(Debug, Clone)]
pub struct MetaOptions {
    /// How long an answer of the origin is fresh.
    pub ttl: Duration,
    /// How long its no is.
    pub negative_ttl: Duration,
    /// Memory for all answers.
    pub memory_bytes: u64,
}

/// See the module.
pub struct Meta {
    origins: Origins,
    peers: Arc<Peers>,
    chunks: Arc<Chunks>,
    forward: Arc<dyn Forward>,
    options: MetaOptions,
    stats: Arc<AnswerCache<Artifact>>,
    lists: Arc<AnswerCache<Resolved>>,
    manifests: Arc<AnswerCache<Manifest>>,
    saved: Option<SavedLists>,
    builds: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Meta {
    /// Nothing cached yet; listings are kept in `cache_folder` when there is one.
    pub fn new(
        chunks: Arc<Chunks>,
        forward: Arc<dyn Forward>,
        options: MetaOptions,
        cache_folder: Option<&Path>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let saved = cache_folder.and_then(|folder| match SavedLists::open(folder) {
            Ok(saved) => Some(saved),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "listings are not kept over a restart");
                metrics.fallback("listings_not_saved");
                None
            }
        });
        Arc::new(Meta {
            origins: chunks.origins.clone(),
            peers: chunks.peers.clone(),
            chunks,
            forward,
            stats: AnswerCache::new(options.memory_bytes / 8, |artifact| artifact.url().len() + 100),
            lists: AnswerCache::new(options.memory_bytes / 8 * 3, list_bytes),
            manifests: AnswerCache::new(options.memory_bytes / 2, manifest_bytes),
            options,
            saved,
            builds: Arc::new(Semaphore::new(BUILDS_MAX)),
            metrics,
        })
    }

    /// Size and version of one object. `url` is canonical.
    ///
    /// # Errors
    /// As the origin says.
    pub async fn stat(self: &Arc<Self>, url: &str, ask: Ask) -> Result<Answer<Artifact>> {
        if let Some(owner) = self.owner(url, ask)
            && let Some(answer) = self.settle("stat", &owner, self.forward.stat(&owner, url, ask.revalidate).await)
        {
            return answer;
        }
        let fetch = || {
            let (origins, url) = (self.origins.clone(), url.to_owned());
            async move { origins.stat(&url).await }
        };
        let (artifact, outcome) = self.stats.get(url, self.freshness(url, ask), fetch).await;
        self.count("stat", outcome, artifact.is_err());
        Ok(Answer { value: (*artifact?).clone(), cached: outcome != Outcome::Miss })
    }

    /// The objects under a URL. `url` is canonical.
    ///
    /// # Errors
    /// As the origin says.
    pub async fn list(self: &Arc<Self>, url: &str, ask: Ask) -> Result<Answer<Arc<Resolved>>> {
        if let Some(owner) = self.owner(url, ask)
            && let Some(answer) = self.settle("list", &owner, self.forward.list(&owner, url, ask.revalidate).await)
        {
            return answer;
        }
        self.list_here(url, ask).await
    }

    /// The manifest of a model. `url` is canonical.
    ///
    /// # Errors
    /// As the origin says; [`Code::Corrupt`] or [`Code::NotFound`] naming the file that makes it impossible.
    pub async fn manifest(
        self: &Arc<Self>,
        url: &str,
        selection: &Selection,
        ask: Ask,
    ) -> Result<Answer<Arc<Manifest>>> {
        if let Some(owner) = self.owner(url, ask) {
            let answer = self.forward.manifest(&owner, url, selection, ask.revalidate).await;
            if let Some(answer) = self.settle("manifest", &owner, answer) {
                return answer;
            }
        }
        match self.manifest_here(url, selection, ask).await {
            // Replaced between listing and reading: once more, from a new listing.
            Err(error) if error.code() == Code::FailedPrecondition => {
                self.metrics.fallback("manifest_replanned");
                self.manifest_here(url, selection, Ask { revalidate: true, ..ask }).await
            }
            answer => answer,
        }
    }

    /// Forgets what is known of URLs at `url` or under it.
    pub fn forget(&self, url: &str) {
        self.stats.forget(|key| covers(url, key));
        self.lists.forget(|key| covers(url, key));
        self.manifests.forget(|key| key.split('\n').next().is_some_and(|key| covers(url, key)));
        if let Some(saved) = &self.saved {
            saved.remove(url);
        }
    }

    async fn list_here(self: &Arc<Self>, url: &str, ask: Ask) -> Result<Answer<Arc<Resolved>>> {
        self.recall(url).await;
        let fetch = || {
            let (meta, url) = (self.clone(), url.to_owned());
            async move {
                let resolved = meta.origins.resolve(&url).await?;
                meta.save(&resolved).await;
                Ok(resolved)
            }
        };
        let (resolved, outcome) = self.lists.get(url, self.freshness(url, ask), fetch).await;
        self.count("list", outcome, resolved.is_err());
        if outcome == Outcome::Stale {
            self.metrics.fallback("stale_listing");
        }
        Ok(Answer { value: resolved?, cached: outcome != Outcome::Miss })
    }

    async fn manifest_here(
        self: &Arc<Self>,
        url: &str,
        selection: &Selection,
        ask: Ask,
    ) -> Result<Answer<Arc<Manifest>>> {
        let list = self.list_here(url, ask).await?;
        let key = format!("{url}\n{}\n{}", list.value.revision, selection.include.join("\n"));
        let freshness = Freshness { ttl: Duration::MAX, negative_ttl: self.options.negative_ttl, revalidate: false };
        let fetch = || {
            let (meta, resolved, selection) = (self.clone(), list.value.clone(), selection.clone());
            async move { meta.build(resolved, selection).await }
        };
        let (manifest, outcome) = self.manifests.get(&key, freshness, fetch).await;
        self.count("manifest", outcome, manifest.is_err());
        Ok(Answer { value: manifest?, cached: list.cached && outcome != Outcome::Miss })
    }

    async fn build(self: Arc<Self>, resolved: Arc<Resolved>, selection: Selection) -> Result<Manifest> {
        let _permit = self
            .builds
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| Error::new(Code::Cancelled, format!("the worker is shutting down: {error}")))?;
        let chunks = self.chunks.clone();
        let built = tokio::task::spawn_blocking(move || build::build(&chunks, (*resolved).clone(), &selection));
        built.await.map_err(|error| Error::new(Code::Internal, format!("building a manifest ended: {error}")))?
    }

    /// The other worker to ask, when there is one that may be asked.
    fn owner(&self, url: &str, ask: Ask) -> Option<Arc<Member>> {
        // A path names a file of the machine that was asked.
        if ask.forwarded || is_local(url) {
            return None;
        }
        let owner = self.peers.owner_of_url(url)?;
        if self.peers.health.is_suspect(owner.id()) {
            self.metrics.fallback("metadata_owner_suspect");
            return None;
        }
        Some(owner)
    }

    /// What a forwarded call means: the owner's answer counts, also its no; `None` when it could not be reached.
    fn settle<T>(&self, kind: &str, owner: &Member, answer: Result<Answer<T>>) -> Option<Result<Answer<T>>> {
        self.peers.report(owner.id(), answer.as_ref().err().map(Error::code));
        match answer {
            Err(error) if is_away(&error) || matches!(error.code(), Code::Internal | Code::Cancelled) => {
                self.metrics.fallback("metadata_owner_failed");
                self.metrics.metadata.with_label_values(&[kind, "owner_failed"]).inc();
                tracing::warn!(owner = %owner.address, %error, "owner of a URL did not answer; asking the origin here");
                None
            }
            answer => {
                self.metrics.metadata.with_label_values(&[kind, "forwarded"]).inc();
                Some(answer)
            }
        }
    }

    /// Local files are asked each time: it costs nothing, and people change them under our hands.
    fn freshness(&self, url: &str, ask: Ask) -> Freshness {
        let (ttl, negative_ttl) = match is_local(url) {
            true => (Duration::ZERO, Duration::ZERO),
            false => (self.options.ttl, self.options.negative_ttl),
        };
        Freshness { ttl, negative_ttl, revalidate: ask.revalidate }
    }

    fn count(&self, kind: &str, outcome: Outcome, failed: bool) {
        let outcome = match (outcome, failed) {
            (Outcome::Hit, false) => "hit",
            (Outcome::Hit, true) => "negative_hit",
            (Outcome::Miss, false) => "miss",
            (Outcome::Miss, true) => "error",
            (Outcome::Stale, _) => "stale",
        };
        self.metrics.metadata.with_label_values(&[kind, outcome]).inc();
    }

    /// Seeds the cache with the listing of an earlier run.
    async fn recall(&self, url: &str) {
        let Some(saved) = self.saved.clone().filter(|_| !self.lists.contains(url) && !is_local(url)) else { return };
        let owned_url = url.to_owned();
        if let Ok(Some(resolved)) = tokio::task::spawn_blocking(move || saved.load(&owned_url)).await {
            self.lists.seed(url, resolved);
        }
    }

    async fn save(&self, resolved: &Resolved) {
        let Some(saved) = self.saved.clone().filter(|_| !is_local(&resolved.url)) else { return };
        let resolved = resolved.clone();
        let written = tokio::task::spawn_blocking(move || saved.save(&resolved)).await;
        if let Ok(Err(error)) = written {
            self.metrics.fallback("listings_not_saved");
            tracing::debug!(%error, "a listing could not be saved");
        }
    }
}

/// Whether a canonical URL names a file of this machine.
pub fn is_local(url: &str) -> bool {
    url.starts_with("file:")
}

fn list_bytes(resolved: &Resolved) -> usize {
    resolved.files.iter().map(|file| file.name.len() + file.artifact.url().len() + 200).sum()
}

fn manifest_bytes(manifest: &Manifest) -> usize {
    let file_bytes = |file: &ModelFile| {
        let known = file.checksums.as_ref().map_or(0, |checksums| 8 * checksums.len());
        let runs = file.chunks.as_ref().map_or(0, |chunks| 32 * chunks.runs().len());
        file.name.len() + file.artifact.url().len() + 200 + known + runs
    };
    let files: usize = manifest.files.iter().map(file_bytes).sum();
    let tensors: usize = manifest.tensors.iter().map(|tensor| tensor.name.len() + 8 * tensor.shape.len() + 150).sum();
    let skipped: usize = manifest.skipped.iter().map(|(name, why)| name.len() + why.len() + 50).sum();
    files + tensors + skipped
}
