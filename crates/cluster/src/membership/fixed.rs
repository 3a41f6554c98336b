//! Static membership: a list of addresses, each asked for its identity now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_types::{Code, Error, Result};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{MEMBERS_MAX, Membership, PROBE_TIMEOUT, Probe};
use crate::id::MemberId;
use crate::member::{Identity, Member, View};
use crate::ring::Ring;

/// How soon addresses that have never answered are asked again.
const RETRY_UNSEEN: Duration = Duration::from_secs(1);

/// The members of a fixed list. A listed worker joins when it first answers and stays from then on.
#[derive(Debug)]
pub struct StaticMembership {
    addresses: Vec<String>,
    ring: RwLock<Arc<Ring>>,
    views: watch::Sender<Arc<View>>,
}

impl StaticMembership {
    /// Asks every address once, waiting for each answer or its time-out ([`PROBE_TIMEOUT`]), then again every
    /// `refresh` in the background (once a second while some have never answered) until `token` is cancelled.
    ///
    /// Addresses that do not answer are no error here: the view may be empty at first.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for an empty or overlong list or an address that is not `host:port`.
    pub async fn start(
        addresses: Vec<String>,
        probe: Arc<dyn Probe>,
        refresh: Duration,
        token: CancellationToken,
    ) -> Result<Arc<Self>> {
        let membership = Arc::new(StaticMembership {
            addresses: checked(addresses)?,
            ring: RwLock::new(Arc::new(Ring::new(&[]))),
            views: watch::channel(Arc::new(View::default())).0,
        });
        let mut known = BTreeMap::new();
        membership.round(&probe, &mut known).await;
        let background = membership.clone();
        tokio::spawn(async move {
            let work = background.refresh_forever(probe, known, refresh.max(Duration::from_millis(10)));
            token.run_until_cancelled_owned(work).await;
        });
        Ok(membership)
    }

    async fn refresh_forever(
        self: Arc<Self>,
        probe: Arc<dyn Probe>,
        mut known: BTreeMap<String, Identity>,
        refresh: Duration,
    ) {
        loop {
            let complete = known.len() == self.addresses.len();
            tokio::time::sleep(if complete { refresh } else { refresh.min(RETRY_UNSEEN) }).await;
            self.round(&probe, &mut known).await;
        }
    }

    /// Asks all addresses at once and publishes what changed.
    async fn round(&self, probe: &Arc<dyn Probe>, known: &mut BTreeMap<String, Identity>) {
        let mut asked = JoinSet::new();
        for address in &self.addresses {
            let (probe, address) = (probe.clone(), address.clone());
            asked.spawn(async move {
                let answer = tokio::time::timeout(PROBE_TIMEOUT, probe.identity(&address)).await;
                (address, answer)
            });
        }
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok((address, Ok(Ok(identity)))) => {
                    known.insert(address, identity);
                }
                Ok((address, Ok(Err(error)))) => tracing::debug!(%address, %error, "member does not answer"),
                Ok((address, Err(_))) => tracing::debug!(%address, "member does not answer in time"),
                Err(error) => tracing::warn!(%error, "a membership probe ended abnormally"),
            }
        }
        self.publish(known).await;
    }

    async fn publish(&self, known: &BTreeMap<String, Identity>) {
        let members = members(known);
        let current = self.view();
        if current.members == members {
            return;
        }
        let built = tokio::task::spawn_blocking(move || (Arc::new(Ring::new(&members)), members)).await;
        let (ring, members) = match built {
            Ok(built) => built,
            Err(error) => return tracing::error!(%error, "cannot build the ring; the last one stays"),
        };
        let view = Arc::new(View { epoch: current.epoch + 1, members });
        tracing::info!(epoch = view.epoch, members = view.members.len(), "the members have changed");
        *self.ring.write() = ring;
        self.views.send_replace(view);
    }
}

impl Membership for StaticMembership {
    fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.read().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }
}

/// One member for each id, sorted by id. Of two addresses with one id, the first in the alphabet counts.
fn members(known: &BTreeMap<String, Identity>) -> Vec<Member> {
    let mut members: BTreeMap<MemberId, Member> = BTreeMap::new();
    for (address, identity) in known {
        match members.get(&identity.id) {
            None => {
                members.insert(identity.id, Member { identity: identity.clone(), address: address.clone() });
            }
            Some(first) => {
                tracing::debug!(id = %identity.id, %address, first = %first.address, "two addresses lead to one member");
            }
        }
    }
    members.into_values().collect()
}

fn checked(mut addresses: Vec<String>) -> Result<Vec<String>> {
    addresses.iter_mut().for_each(|address| *address = address.trim().to_owned());
    addresses.sort();
    addresses.dedup();
    let invalid = |message: String| Err(Error::new(Code::InvalidArgument, message));
    if addresses.is_empty() || addresses.len() > MEMBERS_MAX {
        return invalid(format!("the list of workers has {} addresses, must have 1 to {MEMBERS_MAX}", addresses.len()));
    }
    for address in &addresses {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return invalid(format!("worker address {address:?} is not host:port"));
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests;
