//! Opening connections: names, addresses, TLS as the library's client has it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use object_store::client::HttpRequest;
use rand::seq::SliceRandom;
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};

use super::Trouble;
use super::pool::Place;
use super::wire::Wire;

/// Why there is no connection.
pub(super) enum Failure {
    Trouble(Trouble),
    /// The server was reached and TLS was not agreed on. The library may have better luck, or better words.
    Tls,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        Failure::Trouble(trouble)
    }
}

/// Opens connections.
pub(super) struct Connector {
    timeout: Duration,
    tick: Duration,
    /// The environment's proxies, as the library sees them.
    proxies: Matcher,
    tls: OnceLock<Option<Arc<ClientConfig>>>,
}

impl Connector {
    pub(super) fn new(timeout: Duration, tick: Duration) -> Connector {
        Connector { timeout, tick, proxies: Matcher::from_system(), tls: OnceLock::new() }
    }

    /// Whether the environment says that a proxy is to be asked.
    pub(super) fn is_proxied(&self, request: &HttpRequest) -> bool {
        self.proxies.intercept(request.uri()).is_some()
    }

    pub(super) async fn connect(&self, place: &Place) -> Result<Wire, Failure> {
        let deadline = Instant::now() + self.timeout;
        let stream = timeout_at(deadline, self.stream(place)).await.map_err(|_| Trouble::ConnectTimeout)??;
        if !place.is_tls {
            return Ok(Wire::plain(stream, self.tick).map_err(Trouble::Connect)?);
        }
        // Reading the system's certificates takes some milliseconds, once.
        let config = self.tls.get_or_init(|| tls_config().ok().map(Arc::new)).clone().ok_or(Failure::Tls)?;
        let name = ServerName::try_from(place.host.clone()).map_err(|_| Failure::Tls)?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        let session = timeout_at(deadline, handshake).await.map_err(|_| Trouble::ConnectTimeout)?;
        let (stream, session) = session.map_err(|_| Failure::Tls)?.into_inner();
        Ok(Wire::tls(stream, session, self.tick).map_err(Trouble::Connect)?)
    }

    /// Tries the addresses of a name one by one, in any order, as servers spread over many expect it. Each gets its share
    /// of the time.
    async fn stream(&self, place: &Place) -> Result<TcpStream, Trouble> {
        let found = tokio::net::lookup_host((place.host.as_str(), place.port)).await.map_err(Trouble::Connect)?;
        let mut addresses: Vec<SocketAddr> = found.collect();
        addresses.shuffle(&mut rand::rng());
        let share = self.timeout / addresses.len().max(1) as u32;
        let mut trouble = Trouble::Connect(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        for address in addresses {
            trouble = match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => Trouble::Connect(error),
                Err(_) => Trouble::ConnectTimeout,
            };
        }
        Err(trouble)
    }
}

/// The system's certificates, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn tls_config() -> Result<ClientConfig, TlsError> {
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
    let verifier = Arc::new(Verifier::new(provider.clone())?);
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
