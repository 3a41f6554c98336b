//! Asks workers who they are, over their data plane.

use async_trait::async_trait;
use longshore_cluster::{Identity, Probe};
use longshore_types::{Code, Error, Result};
use longshore_wire::{DataClient, Endpoint};

/// Longest identity page that is accepted, in bytes.
const IDENTITY_BYTES_MAX: usize = 16 << 10;

/// [`Probe`] over `GET /v1/identity`.
pub struct WireProbe {
    client: DataClient,
}

impl WireProbe {
    /// Probes with the connections of `client`.
    pub fn new(client: DataClient) -> Self {
        WireProbe { client }
    }
}

#[async_trait]
impl Probe for WireProbe {
    async fn identity(&self, address: &str) -> Result<Identity> {
        let (client, endpoint) = (self.client.clone(), Endpoint::Tcp(address.to_owned()));
        let page = tokio::task::spawn_blocking(move || client.page(&endpoint, "/v1/identity", IDENTITY_BYTES_MAX));
        let page = page.await.map_err(|error| Error::new(Code::Internal, format!("probe of {address}: {error}")))??;
        serde_json::from_slice(&page).map_err(|error| {
            Error::new(Code::Corrupt, format!("{address} does not answer as a worker: {error}")).with_source(error)
        })
    }
}
