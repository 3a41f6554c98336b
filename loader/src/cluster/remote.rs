//! The ring of worker processes: who owns what, how to reach it, and what it said about a model.

mod metadata;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_cluster::{Health, Member, Membership, host_id};
use longshore_origin::Origins;
use longshore_types::{ChunkKey, Manifest, Result, Selection};
use longshore_wire::Endpoint;
use parking_lot::Mutex;

use super::{Cluster, Described, Holder, MemberState, Source, Sources};
use metadata::{MetadataClient, Question};

/// How many owners of a key are worth asking before the origin.
pub const OWNERS_TRIED: usize = 3;

/// Members that are looked at to find hosts for durable copies.
const HOLDERS_SEEN: usize = 64;

/// Limits of the calls to workers.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// For a connection to a worker's control service.
    pub connect_timeout: Duration,
    /// For one answer with a manifest.
    pub metadata_timeout: Duration,
}

/// [`Cluster`] over membership, ring and the workers' gRPC interface.
pub struct RemoteCluster {
    membership: Option<Arc<dyn Membership>>,
    health: Health,
    metadata: MetadataClient,
    host_id: String,
    local: Mutex<LocalWorker>,
}

/// The owners of a key, in ring order.
#[derive(Default)]
pub(super) struct Owners {
    /// Those worth asking now.
    pub to_ask: Vec<Arc<Member>>,
    /// Those before the first of them: what is asked of another because of them is not where it belongs.
    pub avoided: Vec<Arc<Member>>,
}

/// The worker on this host, looked up once a view.
#[derive(Default)]
struct LocalWorker {
    epoch: Option<u64>,
    member: Option<Arc<Member>>,
}

impl RemoteCluster {
    /// Without a membership there are no workers, and everything comes from the origin.
    pub fn new(membership: Option<Arc<dyn Membership>>, origins: Origins, options: RemoteOptions) -> Arc<Self> {
        Arc::new(RemoteCluster {
            membership,
            health: Health::new(),
            metadata: MetadataClient::new(origins, options),
            host_id: host_id(),
            local: Mutex::default(),
        })
    }

    /// The owners of a key. One that failed is not asked until its pause is over: behind a network that swallows
    /// packets every question costs a time-out, and the origin is there too.
    fn owners(&self, key: &[u8]) -> Owners {
        let Some(membership) = &self.membership else { return Owners::default() };
        let mut owners = Owners::default();
        for owner in membership.ring().owners(key, OWNERS_TRIED) {
            // Only who is asked first takes the trial after a pause: the others may never be asked.
            let is_first = owners.to_ask.is_empty();
            let is_passed_over = match is_first {
                true => self.health.is_suspect(owner.id()),
                false => self.health.is_troubled(owner.id()),
            };
            match is_passed_over {
                false => owners.to_ask.push(owner),
                true if is_first => owners.avoided.push(owner),
                true => {}
            }
        }
        owners
    }

    fn source(&self, member: &Member) -> Source {
        let (endpoint, label) = match self.unix_socket_of(member) {
            Some(path) => (Endpoint::Unix(path.to_owned()), format!("{} (same host)", member.address)),
            None => (Endpoint::Tcp(member.address.clone()), member.address.clone()),
        };
        Source { endpoint, label, member: Some(member.id()) }
    }

    /// The socket of a worker on this host. The path must exist here too: host and container may see other folders.
    fn unix_socket_of<'a>(&self, member: &'a Member) -> Option<&'a std::path::Path> {
        let same_host = !self.host_id.is_empty() && member.identity.host_id == self.host_id;
        member.identity.unix_socket.as_deref().filter(|path| same_host && path.exists())
    }

    /// One member for each host, in the order given; those of this host only when there are no others. A member that does
    /// not say where it runs counts as a host of its own.
    fn by_host(&self, members: impl Iterator<Item = Arc<Member>>) -> Vec<(String, Arc<Member>)> {
        let mut hosts: Vec<(String, Arc<Member>)> = Vec::new();
        for member in members {
            let host = match member.identity.host_id.as_str() {
                "" => member.id().to_string(),
                host => host.to_owned(),
            };
            match hosts.iter_mut().find(|(known, _)| *known == host) {
                // Another one of a host stands in for one that is in trouble.
                Some((_, first)) if self.health.is_troubled(first.id()) => *first = member,
                Some(_) => {}
                None => hosts.push((host, member)),
            }
        }
        let has_others = hosts.iter().any(|(host, _)| *host != self.host_id);
        hosts.retain(|(host, _)| !has_others || *host != self.host_id);
        hosts
    }

    fn local_worker(&self) -> Option<Arc<Member>> {
        let view = self.membership.as_ref()?.view();
        let mut local = self.local.lock();
        if local.epoch != Some(view.epoch) {
            self.health.retain(&view);
            let member = view.members.iter().find(|member| self.unix_socket_of(member).is_some());
            *local = LocalWorker { epoch: Some(view.epoch), member: member.cloned().map(Arc::new) };
        }
        local.member.clone()
    }
}

#[async_trait]
impl Cluster for RemoteCluster {
    async fn manifest(&self, url: &str, selection: &Selection, revalidate: bool) -> Result<(Manifest, bool)> {
        let described = self.describe(url, selection, revalidate).await?;
        Ok((described.manifest, described.is_cached))
    }

    async fn describe(&self, url: &str, selection: &Selection, revalidate: bool) -> Result<Described> {
        let owners = self.owners(url.as_bytes());
        let question = Question { url, selection, revalidate, has_workers: self.has_workers() };
        self.metadata.describe(&owners, &self.health, &question).await
    }

    fn sources(&self, key: &ChunkKey) -> Sources {
        let Owners { to_ask, avoided } = self.owners(key.id().as_bytes());
        Sources {
            to_ask: to_ask.iter().map(|owner| self.source(owner)).collect(),
            avoided: avoided.iter().map(|owner| owner.address.clone()).collect(),
        }
    }

    fn nearby(&self, key: &ChunkKey) -> Option<Source> {
        let local = self.local_worker()?;
        let owners = self.membership.as_ref()?.ring().owners(key.id().as_bytes(), 1);
        // An owner on this host is asked through its socket anyway.
        let owner_is_here = owners.first().is_some_and(|owner| owner.identity.host_id == self.host_id);
        (!owner_is_here).then(|| self.source(&local))
    }

    fn holders(&self, key: &ChunkKey) -> Vec<Holder> {
        let Some(membership) = &self.membership else { return Vec::new() };
        let in_order = membership.ring().owners(key.id().as_bytes(), HOLDERS_SEEN);
        let holders = self.by_host(in_order.into_iter());
        holders.into_iter().map(|(host, member)| Holder { source: self.source(&member), host }).collect()
    }

    fn holder_count(&self) -> usize {
        let Some(membership) = &self.membership else { return 0 };
        let members = membership.view().members.iter().take(HOLDERS_SEEN).cloned().map(Arc::new).collect::<Vec<_>>();
        self.by_host(members.into_iter()).len()
    }

    fn everyone(&self) -> Vec<Source> {
        let Some(membership) = &self.membership else { return Vec::new() };
        membership.view().members.iter().map(|member| self.source(member)).collect()
    }

    fn has_workers(&self) -> bool {
        self.membership.is_some()
    }

    fn report(&self, source: &Source, ok: bool) {
        match source.member {
            Some(member) if ok => self.health.report_ok(member),
            Some(member) => self.health.report_failure(member),
            None => {}
        }
    }

    fn members(&self) -> Vec<MemberState> {
        let Some(membership) = &self.membership else { return Vec::new() };
        let state = |member: &Member| MemberState {
            id: member.id().to_string(),
            address: member.address.clone(),
            weight: member.weight(),
            is_reachable: !self.health.is_troubled(member.id()),
        };
        membership.view().members.iter().map(state).collect()
    }
}
