//! What commands that use the cache directly work with: origins, the cache, and its control.
//!
//! The cache is that of the workers which are named, else of those the node's loader knows, else one inside this
//! process over the user's cache folder.

use std::sync::Arc;
use std::time::Duration;

use longshore_cluster::{Membership, Ring, StaticMembership};
use longshore_loader::{Cluster, RemoteCluster, RemoteOptions, WireProbe};
use longshore_origin::Origins;
use longshore_proto::status::from_status;
use longshore_proto::v1;
use longshore_types::Result;
use longshore_wire::{ClientOptions, DataClient};
use tokio_util::sync::CancellationToken;

use crate::args::NodeArgs;
use crate::connect::find_loader;
use crate::control::Control;
use crate::embedded::EmbeddedWorker;

/// How often a command that runs long asks the workers who they are.
const MEMBERS_REFRESH: Duration = Duration::from_secs(10);
/// Time limits of calls to workers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const METADATA_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
pub struct Node {
    /// The origins.
    pub origins: Origins,
    /// Manifests and chunks.
    pub cluster: Arc<dyn Cluster>,
    /// Control calls.
    pub control: Control,
    /// What a user should know about the cache that is used.
    pub warnings: Vec<String>,
    embedded: Option<EmbeddedWorker>,
    token: CancellationToken,
}

impl Node {
    /// Finds the cache, or opens the one inside this process. `token` ends what runs in the background.
    ///
    /// # Errors
    /// When an address that was given does not answer, or the cache folder cannot be used.
    pub async fn open(args: &NodeArgs, token: &CancellationToken) -> Result<Node> {
        let origins = Origins::new(args.origin.clone())?;
        let token = token.child_token();
        let addresses = worker_addresses(args).await?;
        if addresses.is_empty() {
            let embedded = EmbeddedWorker::open(args.into(), origins.clone()).await?;
            let (cluster, control) = (embedded.cluster(), Control::Embedded(embedded.worker().clone()));
            let warnings = embedded.warnings().to_vec();
            return Ok(Node { origins, cluster, control, warnings, embedded: Some(embedded), token });
        }
        let membership = membership(addresses, &token).await?;
        let options = RemoteOptions { connect_timeout: CONNECT_TIMEOUT, metadata_timeout: METADATA_TIMEOUT };
        let cluster = RemoteCluster::new(Some(membership.clone()), origins.clone(), options);
        let warnings = Vec::new();
        Ok(Node { origins, cluster, control: Control::Remote(membership), warnings, embedded: None, token })
    }

    /// The ring of the workers; empty when the cache is inside this process.
    pub fn ring(&self) -> Arc<Ring> {
        match &self.control {
            Control::Remote(membership) => membership.ring(),
            Control::Embedded(_) => Arc::new(Ring::new(&[])),
        }
    }

    /// Lets the cache write what it has in hand.
    pub async fn close(self) {
        self.token.cancel();
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}

/// A membership over a list of addresses, asked once before it returns.
///
/// # Errors
/// For a malformed list.
pub async fn membership(addresses: Vec<String>, token: &CancellationToken) -> Result<Arc<dyn Membership>> {
    let client = DataClient::new(ClientOptions {
        connect_timeout: longshore_cluster::PROBE_TIMEOUT,
        stall_timeout: longshore_cluster::PROBE_TIMEOUT,
        connections_per_endpoint_max: 1,
        ..ClientOptions::default()
    });
    let probe = Arc::new(WireProbe::new(client));
    Ok(StaticMembership::start(addresses, probe, MEMBERS_REFRESH, token.clone()).await?)
}

/// The workers that are named, else those of the node's loader.
async fn worker_addresses(args: &NodeArgs) -> Result<Vec<String>> {
    let named: Vec<String> = args.workers.iter().filter(|address| !address.is_empty()).cloned().collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let Some(mut loader) = find_loader(args).await? else { return Ok(Vec::new()) };
    let status = loader.client.status(v1::LoaderStatusRequest {}).await.map_err(|status| from_status(&status))?;
    Ok(addresses_of(&status.into_inner()))
}

/// The workers of a loader that others can reach: the cache inside a private loader is nobody else's.
pub fn addresses_of(status: &v1::LoaderStatus) -> Vec<String> {
    let has_port = |address: &str| address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    status.members.iter().map(|member| member.address.clone()).filter(|address| has_port(address)).collect()
}
