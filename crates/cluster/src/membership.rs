//! Who is in the cluster. An engine behind [`Membership`] says so; this is the only trait the daemons know.
//!
//! What every engine must keep: the last good view stays when the engine is unreachable, and a member that does not
//! answer stays in the view (whether to ask it is [`crate::Health`]'s business).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_types::Result;
use tokio::sync::watch;

use crate::member::{Identity, View};
use crate::ring::Ring;

mod fixed;

pub use fixed::StaticMembership;

/// Most members of a cluster: bounds the ring's memory (235 MB) and the probes in flight.
pub const MEMBERS_MAX: usize = 1024;
/// How long one member may take to answer a probe.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a worker who it is. The daemons implement it over the data plane; tests inject their own.
#[async_trait]
pub trait Probe: Send + Sync {
    /// The identity of the worker at `address` (`host:port` of its data plane).
    ///
    /// # Errors
    /// Whatever kept the worker from answering; the caller bounds the time.
    async fn identity(&self, address: &str) -> Result<Identity>;
}

/// The source of views. Cheap to call: views and rings are made when the cluster changes, not when asked for.
pub trait Membership: Send + Sync {
    /// The members now.
    fn view(&self) -> Arc<View>;
    /// The ring of the members now.
    fn ring(&self) -> Arc<Ring>;
    /// Wakes up at every change of the view.
    fn watch(&self) -> watch::Receiver<Arc<View>>;
}
