//! The other workers as this one sees them: who owns what, and whom to ask for a chunk in which order.
//!
//! Each chunk has a first owner. It alone turns to the origin, after its replicas said that they have nothing; every
//! other worker asks the first owner to fill. So the origin is read once, and requests cannot go in circles: what a
//! worker asks of another never makes that one ask a third.

use std::sync::{Arc, OnceLock};

use longshore_cluster::{Health, Member, MemberId, Membership};
use longshore_types::{ChunkId, Code};
use longshore_wire::{Endpoint, Mode};

/// A worker to ask, and how.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Whom.
    pub member: Arc<Member>,
    /// How far it may go.
    pub mode: Mode,
}

/// Where a chunk belongs, seen from here.
#[derive(Debug, Default)]
pub struct Route {
    /// Workers to ask before the origin, in order.
    pub asks: Vec<Ask>,
    /// Whether this worker is an owner.
    pub is_mine: bool,
}

impl Route {
    /// Whether another worker is asked to fill.
    pub fn is_relay(&self) -> bool {
        self.asks.iter().any(|ask| ask.mode != Mode::OnlyIfCached)
    }
}

/// See the module.
pub struct Peers {
    me: MemberId,
    replicas: usize,
    membership: OnceLock<Arc<dyn Membership>>,
    /// What was learnt by asking.
    pub health: Health,
}

impl Peers {
    /// Alone until [`Peers::join`].
    pub fn new(me: MemberId, replicas: usize) -> Self {
        Peers { me, replicas, membership: OnceLock::new(), health: Health::new() }
    }

    /// Sets the source of views; later calls change nothing.
    pub fn join(&self, membership: Arc<dyn Membership>) {
        let _ = self.membership.set(membership);
    }

    /// This worker.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// All members but this one.
    pub fn others(&self) -> Vec<Member> {
        let Some(membership) = self.membership.get() else { return Vec::new() };
        membership.view().members.iter().filter(|member| member.id() != self.me).cloned().collect()
    }

    /// All members of the view.
    pub fn members(&self) -> Vec<Member> {
        self.membership.get().map(|membership| membership.view().members.clone()).unwrap_or_default()
    }

    /// The owners of a key, first owner first; empty when this worker is alone.
    pub fn owners(&self, key: &[u8]) -> Vec<Arc<Member>> {
        self.membership.get().map(|membership| membership.ring().owners(key, self.replicas)).unwrap_or_default()
    }

    /// The worker that answers for a URL's metadata; `None` when that is this one.
    pub fn owner_of_url(&self, url: &str) -> Option<Arc<Member>> {
        let owner = self.membership.get()?.ring().owners(url.as_bytes(), 1).into_iter().next()?;
        (owner.id() != self.me).then_some(owner)
    }

    /// Whom to ask for a chunk that is not here.
    pub fn route(&self, id: &ChunkId, mode: Mode) -> Route {
        let owners = self.owners(id.as_bytes());
        let mine = owners.iter().position(|owner| owner.id() == self.me);
        let is_mine = mine.is_some() || owners.is_empty();
        if mode == Mode::FromPeer && mine != Some(0) {
            return Route { asks: Vec::new(), is_mine };
        }
        let asks = owners.into_iter().enumerate().filter(|(_, owner)| owner.id() != self.me).map(|(rank, member)| {
            let mode = if rank == 0 { Mode::FromPeer } else { Mode::OnlyIfCached };
            Ask { member, mode }
        });
        Route { asks: asks.collect(), is_mine }
    }

    /// Learns from how a call to `member` ended. An answer is an answer, also when it is a refusal.
    pub fn report(&self, member: MemberId, failed: Option<Code>) {
        match failed {
            Some(Code::Unavailable | Code::Timeout | Code::Corrupt | Code::Internal) => {
                self.health.report_failure(member);
            }
            _ => self.health.report_ok(member),
        }
    }
}

/// Where a member's data plane is.
pub fn endpoint(member: &Member) -> Endpoint {
    Endpoint::Tcp(member.address.clone())
}

#[cfg(test)]
mod tests {
    use longshore_cluster::{Identity, Ring, View};
    use tokio::sync::watch;

    use super::*;

    struct Fixed(Arc<View>, Arc<Ring>);

    impl Membership for Fixed {
        fn view(&self) -> Arc<View> {
            self.0.clone()
        }
        fn ring(&self) -> Arc<Ring> {
            self.1.clone()
        }
        fn watch(&self) -> watch::Receiver<Arc<View>> {
            watch::channel(self.0.clone()).1
        }
    }

    fn members(count: u8) -> Vec<Member> {
        let member = |number: u8| Member {
            address: format!("10.0.0.{number}:7070"),
            identity: Identity {
                id: MemberId::from_bytes([number; 16]),
                weight: 100,
                data: format!("10.0.0.{number}:7070"),
                control: format!("10.0.0.{number}:7071"),
                unix_socket: None,
                host_id: String::new(),
                version: String::new(),
            },
        };
        (1..=count).map(member).collect()
    }

    fn peers(me: &Member, members: &[Member], replicas: usize) -> Peers {
        let peers = Peers::new(me.id(), replicas);
        let view = Arc::new(View { epoch: 1, members: members.to_vec() });
        peers.join(Arc::new(Fixed(view, Arc::new(Ring::new(members)))));
        peers
    }

    #[test]
    fn every_chain_of_asking_ends_at_the_first_owner() {
        let members = members(5);
        for number in 0..50u8 {
            let id = ChunkId::parse(&format!("{number:02x}").repeat(16)).unwrap();
            let first = Ring::new(&members).owners(id.as_bytes(), 1)[0].id();
            for me in &members {
                let peers = peers(me, &members, 2);
                let asks = peers.route(&id, Mode::Fill).asks;
                let fillers: Vec<_> = asks.iter().filter(|ask| ask.mode != Mode::OnlyIfCached).collect();
                assert!(asks.iter().all(|ask| ask.member.id() != me.id()));
                if me.id() == first {
                    assert!(fillers.is_empty(), "the first owner asks nobody to fill");
                } else {
                    assert_eq!(fillers.len(), 1);
                    assert_eq!(fillers[0].member.id(), first);
                    assert!(peers.route(&id, Mode::FromPeer).asks.is_empty(), "what a peer asks goes no further");
                }
            }
        }
    }

    #[test]
    fn a_worker_alone_owns_everything() {
        let peers = Peers::new(MemberId::random(), 3);
        let route = peers.route(&ChunkId::parse(&"0".repeat(32)).unwrap(), Mode::Fill);
        assert!(route.asks.is_empty() && route.is_mine);
        assert!(peers.owner_of_url("s3://b/m").is_none());
    }
}
