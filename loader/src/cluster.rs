//! What a loader needs from the cache ring: manifests, and for each chunk the sources to try.
//!
//! [`Cluster`] is the wall between the loader and the workers: [`RemoteCluster`] stands in front of worker processes,
//! the command line's embedded default puts a worker of the same process behind it, and tests put what they like.

pub mod direct;
mod probe;
mod remote;

use async_trait::async_trait;
use longshore_cluster::MemberId;
use longshore_types::{ChunkKey, Code, Error, Manifest, Result, Selection};
use longshore_wire::Endpoint;

use crate::report::FallbackKind;
pub use probe::WireProbe;
pub use remote::{RemoteCluster, RemoteOptions};

/// A place that may give a chunk.
#[derive(Clone)]
pub struct Source {
    /// How to reach it.
    pub endpoint: Endpoint,
    /// For people: an address, or `in process`.
    pub label: String,
    /// The worker, for its health.
    pub member: Option<MemberId>,
}

/// Who may give a chunk.
#[derive(Clone, Default)]
pub struct Sources {
    /// In the order to ask.
    pub to_ask: Vec<Source>,
    /// Addresses of those that would have come before them, and are left alone for a while because they failed.
    pub avoided: Vec<String>,
}

impl From<Vec<Source>> for Sources {
    fn from(to_ask: Vec<Source>) -> Self {
        Sources { to_ask, avoided: Vec::new() }
    }
}

/// A worker that can hold durable copies for this node; one for each host.
#[derive(Clone)]
pub struct Holder {
    /// The worker.
    pub source: Source,
    /// The machine that it runs on: copies that shall survive one go to several.
    pub host: String,
}

/// A worker as status pages show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    /// Its id.
    pub id: String,
    /// Its address, `host:port` of the data plane.
    pub address: String,
    /// Its weight on the ring.
    pub weight: u64,
    /// False while its last call failed.
    pub is_reachable: bool,
}

/// A manifest and how it was come by.
#[derive(Debug)]
pub struct Described {
    /// The manifest.
    pub manifest: Manifest,
    /// Whether it came from a cache.
    pub is_cached: bool,
    /// What did not go as it should, for the report.
    pub fallbacks: Vec<(FallbackKind, String)>,
}

/// Where manifests and chunks come from, nearest first. The origin itself is not part of it: the loader falls back to
/// it on its own.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The manifest of a canonical URL, and whether it came from a cache. With `revalidate` the origin is asked.
    ///
    /// # Errors
    /// The origin's own answer (`NotFound`, `Unauthenticated`, ..), or `Unavailable` when nobody could be asked.
    async fn manifest(&self, url: &str, selection: &Selection, revalidate: bool) -> Result<(Manifest, bool)>;

    /// As [`Cluster::manifest`], with what went wrong on the way.
    ///
    /// # Errors
    /// As [`Cluster::manifest`].
    async fn describe(&self, url: &str, selection: &Selection, revalidate: bool) -> Result<Described> {
        let (manifest, is_cached) = self.manifest(url, selection, revalidate).await?;
        Ok(Described { manifest, is_cached, fallbacks: Vec::new() })
    }

    /// Who should have the chunk or fill it. Never blocks. Nobody to ask is an answer too.
    fn sources(&self, key: &ChunkKey) -> Sources;

    /// A worker on this host that does not own the chunk but may have a copy: asked first, and only for what it has.
    fn nearby(&self, _key: &ChunkKey) -> Option<Source> {
        None
    }

    /// Who can hold copies of a chunk for this node, best first: on other hosts than this one, where there are any.
    fn holders(&self, _key: &ChunkKey) -> Vec<Holder> {
        Vec::new()
    }

    /// How many hosts [`Cluster::holders`] finds.
    fn holder_count(&self) -> usize {
        0
    }

    /// All workers.
    fn everyone(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Whether there should be workers: then to do without them is a fallback, also while none is known.
    fn has_workers(&self) -> bool {
        false
    }

    /// Tells how a source did; later [`Cluster::sources`] may put it last.
    fn report(&self, source: &Source, ok: bool);

    /// The workers, for status pages.
    fn members(&self) -> Vec<MemberState>;
}

/// The error of a node that cannot read from the origin itself either. Where it has no access, what the worker said is
/// the reason; where the origin has told both the same, once is enough.
pub(crate) fn more_telling(direct: Error, refusal: Option<Error>) -> Error {
    let has_no_way = matches!(direct.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unsupported);
    match refusal {
        Some(refusal) if has_no_way && refusal.code() != direct.code() => {
            refusal.context(format!("this node cannot read from the origin itself ({direct}), and the worker said"))
        }
        _ => direct,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_worker_and_origin_say_alike_is_said_once() {
        let told = |direct, refusal| {
            let refusal = Error::new(refusal, "the worker's reason");
            more_telling(Error::new(direct, "our reason"), Some(refusal)).to_string()
        };
        assert_eq!(told(Code::Unsupported, Code::Unsupported), "our reason");
        assert_eq!(told(Code::NotFound, Code::Unavailable), "our reason");
        let both = told(Code::Unauthenticated, Code::Unavailable);
        assert!(both.starts_with("this node cannot read") && both.ends_with("the worker's reason"), "{both}");
    }
}
