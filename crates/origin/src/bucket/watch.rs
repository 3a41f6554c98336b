//! The HTTP layer under `object_store`: time limits with names, bounds on bodies that it would collect whole, and the
//! facts about a failed exchange that its errors do not carry.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use parking_lot::Mutex;

use crate::fault::Retry;
use crate::lane::Lane;
use crate::options::Limits;
use crate::straight::{Answer, Straight, StraightBody, Trouble};

/// Most bytes of one page of a listing.
pub(super) const LISTING_BYTES_MAX: usize = 32 << 20;
/// Most bytes of an error's body that are looked at.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a request's body that may take as long to be sent as a body may stall while it is read.
const SENT_BYTES_PER_STALL: u64 = 4 << 20;
/// How many times longer than a first byte the answer to the end of an upload may take: stores then put the parts
/// together.
const COMPLETION_PATIENCE: u32 = 8;
/// Longest error code of a store, in bytes.
const STORE_CODE_BYTES_MAX: usize = 64;

/// How long the reader of a body sleeps before it looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(200);

/// Marks the requests that are the call itself, as against those that fetch credentials for it.
#[derive(Clone)]
pub(super) struct Main;

/// What happened during one call, noted by the HTTP layer.
#[derive(Clone, Default)]
pub(super) struct Exchange {
    seen: Arc<Mutex<Seen>>,
    /// The body that was left on its connection, when the call asks for that.
    straight: Option<Arc<Mutex<Option<StraightBody>>>>,
}

/// The facts of the last request of a call.
#[derive(Default, Clone)]
pub(super) struct Seen {
    /// Status of the call's own response.
    pub status: Option<u16>,
    /// The `Retry-After` of that response.
    pub retry_after: Option<Duration>,
    /// The store's own word for the failure, such as `NoSuchBucket`.
    pub store_code: Option<String>,
    /// `x-amz-bucket-region` of a response from the wrong region.
    pub region: Option<String>,
    /// Host and port that was asked.
    pub host: String,
    /// A failure to get any response.
    pub transport: Option<Transport>,
    /// The request that failed was for credentials.
    pub of_credentials: bool,
    listing: Option<Bytes>,
}

/// Why there was no response.
#[derive(Clone)]
pub(super) enum Transport {
    ConnectTimeout,
    FirstByteTimeout,
    Connect(String),
    Other(String),
}

tokio::task_local! {
    static EXCHANGE: Exchange;
}

impl Exchange {
    /// Of a call that wants the body of its response left on the connection.
    pub(super) fn straight() -> Exchange {
        Exchange { straight: Some(Arc::default()), ..Exchange::default() }
    }

    /// The body that was left on the connection. `None` when it came in the library's way.
    pub(super) fn take_body(&self) -> Option<StraightBody> {
        self.straight.as_ref()?.lock().take()
    }

    /// Runs a call of `object_store` and notes what its requests do.
    pub(super) async fn watch<T>(&self, call: impl Future<Output = T>) -> T {
        EXCHANGE.scope(self.clone(), call).await
    }

    pub(super) fn status(&self) -> Option<u16> {
        self.seen.lock().status
    }

    pub(super) fn take_listing(&self) -> Option<Bytes> {
        self.seen.lock().listing.take()
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// Takes the error that came within a successful answer as its status. What the store cannot name is its own failure.
    pub(super) fn note_late_refusal(&self, code: &str) {
        self.note(|seen| {
            seen.status = Some(if matches!(code, "SlowDown" | "ServiceUnavailable") { 503 } else { 500 });
            seen.store_code = plain_code(code);
        });
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock());
    }
}

/// Makes clients that note what they do.
#[derive(Clone)]
pub(super) struct Watcher {
    pub lane: Arc<Lane>,
    pub connections_max: usize,
    /// The client that was made last: builders make the one of the store itself after those for credentials.
    pub made: Arc<Mutex<Option<HttpClient>>>,
    /// All requests are the call's own: a plain HTTP server needs no requests for credentials.
    pub all_main: bool,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

impl HttpConnector for Watcher {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // No limit on a whole request: a large range may take long. Its parts are limited here and by the reader.
        let options = options.clone().with_timeout_disabled().with_pool_max_idle_per_host(self.connections_max);
        let inner = ReqwestConnector::default().connect(&options)?;
        let limits = self.lane.limits;
        let straight = Straight::new(&options, limits.connect, self.connections_max, limits.stall.min(TICK));
        let client = HttpClient::new(Watched { inner, straight, watcher: self.clone() });
        *self.made.lock() = Some(client.clone());
        Ok(client)
    }
}

#[derive(Debug)]
struct Watched {
    inner: HttpClient,
    straight: Straight,
    watcher: Watcher,
}

impl Watched {
    /// Sends a request in the way that its call asks for.
    async fn send(
        &self,
        request: HttpRequest,
        straight: Option<&Mutex<Option<StraightBody>>>,
    ) -> Result<HttpResponse, Failed> {
        if let Some(slot) = straight {
            match self.straight.get(&request).await {
                Ok(Answer::Body(response, body)) => {
                    *slot.lock() = Some(body);
                    return Ok(response);
                }
                Ok(Answer::Whole(response)) => return Ok(response),
                Ok(Answer::Declined(reason)) => tracing::debug!(reason, "a body comes through the HTTP library"),
                Err(trouble) => return Err(Failed::of(trouble)),
            }
        }
        self.inner.execute(request).await.map_err(|error| Failed { transport: transport_of(&error), error })
    }
}

/// Why there is no response, for messages and for the library.
struct Failed {
    transport: Transport,
    error: HttpError,
}

impl Failed {
    fn of(trouble: Trouble) -> Failed {
        let (transport, kind, error) = match trouble {
            Trouble::ConnectTimeout => {
                (Transport::ConnectTimeout, HttpErrorKind::Timeout, std::io::ErrorKind::TimedOut.into())
            }
            Trouble::Connect(error) => (Transport::Connect(root_cause(&error)), HttpErrorKind::Connect, error),
            Trouble::Other(error) => (Transport::Other(root_cause(&error)), HttpErrorKind::Request, error),
        };
        Failed { transport, error: HttpError::new(kind, error) }
    }
}

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let exchange = EXCHANGE.try_with(Clone::clone).unwrap_or_default();
        let is_main = self.watcher.all_main || request.extensions().get::<Main>().is_some() || is_upload(&request);
        let is_listing = is_main && is_listing(&request);
        let host = request.uri().authority().map_or("", |authority| authority.as_str());
        let host = host.rsplit('@').next().unwrap_or_default().to_owned();
        exchange.note(|seen| *seen = Seen { host, of_credentials: !is_main, ..Seen::default() });

        let limits = self.watcher.lane.limits;
        let patience = patience(&request, limits);
        let is_read = is_main && request.method().as_str() == "GET" && !is_listing;
        let straight = exchange.straight.as_deref().filter(|_| is_read);
        let response = match tokio::time::timeout(patience, self.send(request, straight)).await {
            Ok(Ok(response)) => response,
            Ok(Err(Failed { transport, error })) => {
                exchange.note(|seen| seen.transport = Some(transport));
                return Err(error);
            }
            Err(elapsed) => {
                exchange.note(|seen| seen.transport = Some(Transport::FirstByteTimeout));
                return Err(HttpError::new(HttpErrorKind::Timeout, elapsed));
            }
        };
        if is_main {
            self.watcher.lane.reached();
        }
        exchange.note(|seen| seen.note_head(&response));
        if !response.status().is_success() {
            let (parts, body) = response.into_parts();
            // A body that cannot be read leaves the status, which says enough.
            let body = collect(body.bytes_stream(), ERROR_BYTES_MAX, limits.stall).await.unwrap_or_default();
            exchange.note(|seen| seen.note_error_body(&body));
            return Ok(HttpResponse::from_parts(parts, Bytes::new().into()));
        }
        if is_listing {
            let (parts, body) = response.into_parts();
            let body = collect(body.bytes_stream(), LISTING_BYTES_MAX, limits.stall).await.inspect_err(|error| {
                exchange.note(|seen| {
                    seen.status = None;
                    seen.transport = Some(Transport::Other(error.to_string()));
                });
            })?;
            exchange.note(|seen| seen.listing = Some(body.clone()));
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        Ok(response)
    }
}

/// How long to wait for the head of the response. The request's body is sent within that time, so it counts as well.
fn patience(request: &HttpRequest, limits: Limits) -> Duration {
    let body_bytes = request.body().content_length() as u64;
    let sending = limits.stall.saturating_mul(body_bytes.div_ceil(SENT_BYTES_PER_STALL).try_into().unwrap_or(u32::MAX));
    let query = request.uri().query().unwrap_or_default();
    let completes = query.contains("comp=blocklist")
        || (request.method().as_str() == "POST" && query.split('&').any(|pair| pair.starts_with("uploadId=")));
    let answering = if completes { limits.first_byte.saturating_mul(COMPLETION_PATIENCE) } else { limits.first_byte };
    answering.saturating_add(sending)
}

/// Whether this is a step of an upload or a deletion, which `object_store` sends without our mark. None of the services
/// that give credentials is asked in such words.
fn is_upload(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method().as_str() == "DELETE"
        || query.split('&').any(|pair| matches!(pair, "comp=block" | "comp=blocklist" | "comp=batch"))
}

fn is_listing(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method().as_str() == "PROPFIND" || query.split('&').any(|pair| matches!(pair, "list-type=2" | "comp=list"))
}

impl Seen {
    fn note_head(&mut self, response: &HttpResponse) {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        self.status = Some(response.status().as_u16());
        self.retry_after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
        self.region = header("x-amz-bucket-region").and_then(plain_code);
        self.store_code = header("x-ms-error-code").and_then(plain_code);
    }

    /// Takes the `<Code>` of an XML error. The rest of the body may repeat keys and signatures and is dropped.
    fn note_error_body(&mut self, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        if let Some(code) = code.and_then(|(code, _)| plain_code(code)) {
            self.store_code = Some(code);
        }
    }

    /// Whether the store says that the bucket itself is not there.
    pub(super) fn names_no_bucket(&self) -> bool {
        matches!(self.store_code.as_deref(), Some("NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName"))
    }

    /// Whether to try again: the server's wish when it gave one.
    pub(super) fn retry(&self) -> Retry {
        Retry::After(self.retry_after)
    }
}

/// A word that may be shown: it comes from the network.
fn plain_code(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let fits = (1..=STORE_CODE_BYTES_MAX).contains(&text.len()) && text.chars().all(plain);
    fits.then(|| text.to_owned())
}

/// Collects a body up to `bytes_max`, growing as bytes arrive and never from an announced length.
pub(super) async fn collect(
    mut body: futures::stream::BoxStream<'static, Result<Bytes, HttpError>>,
    bytes_max: usize,
    stall: Duration,
) -> Result<Bytes, HttpError> {
    let mut all = BytesMut::new();
    loop {
        match tokio::time::timeout(stall, body.next()).await {
            Ok(Some(piece)) => {
                let piece = piece?;
                if all.len() + piece.len() > bytes_max {
                    let text = format!("the answer is longer than {bytes_max} bytes");
                    return Err(HttpError::new(HttpErrorKind::Decode, std::io::Error::other(text)));
                }
                all.extend_from_slice(&piece);
            }
            Ok(None) => return Ok(all.freeze()),
            Err(elapsed) => return Err(HttpError::new(HttpErrorKind::Timeout, elapsed)),
        }
    }
}

fn transport_of(error: &HttpError) -> Transport {
    let is_connect =
        sources(error).any(|source| source.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect));
    match (error.kind(), is_connect) {
        (HttpErrorKind::Timeout, true) => Transport::ConnectTimeout,
        (HttpErrorKind::Timeout, false) => Transport::FirstByteTimeout,
        (HttpErrorKind::Connect, _) | (_, true) => Transport::Connect(root_cause(error)),
        _ => Transport::Other(root_cause(error)),
    }
}

fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The innermost message: "Connection refused", "dns error" and the like, which name no URL and hold no secret.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    sources(error).last().map(ToString::to_string).unwrap_or_default()
}
