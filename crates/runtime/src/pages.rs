//! The operations pages of a daemon (`/metrics`, `/healthz`, `/readyz`) over a small HTTP/1.1 server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use longshore_types::{Code, Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, Metrics};

/// Connections served at once; further ones wait.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer to a GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The body, a few hundred kilobytes at most.
    pub body: Vec<u8>,
}

impl Page {
    /// A page of plain text, ended by a line feed.
    pub fn text(status: u16, text: impl std::fmt::Display) -> Page {
        Page { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into_bytes() }
    }
}

/// Answers a path, or `None` for 404. It runs on a blocking thread: gauges may have to be asked for.
pub type Handler = Arc<dyn Fn(&str) -> Option<Page> + Send + Sync>;

/// Whether the daemon can do its work now: `Err` says why not.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The three pages every daemon has: `/metrics`, `/healthz` (the process answers) and `/readyz` (it can work).
pub fn standard(metrics: Metrics, ready: Ready) -> Handler {
    Arc::new(move |path| match path {
        "/metrics" => Some(match metrics.render() {
            Ok(body) => Page { status: 200, content_type: metrics::CONTENT_TYPE, body },
            Err(error) => Page::text(500, error),
        }),
        "/healthz" => Some(Page::text(200, "ok")),
        "/readyz" => Some(match ready() {
            Ok(()) => Page::text(200, "ready"),
            Err(reason) => Page::text(503, format_args!("not ready: {reason}")),
        }),
        _ => None,
    })
}

/// Binds the address of the pages, before serious work starts.
///
/// # Errors
/// [`Code::Unavailable`] naming the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address} for metrics and health pages: {error}");
        Error::new(Code::Unavailable, message).with_source(error)
    })
}

/// Serves pages until the token is cancelled.
pub async fn serve(listener: TcpListener, handler: Handler, token: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    token.clone().run_until_cancelled_owned(accept(listener, handler, slots, token)).await;
}

async fn accept(listener: TcpListener, handler: Handler, slots: Arc<Semaphore>, token: CancellationToken) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, handler.clone());
                let token = token.clone();
                tokio::spawn(async move {
                    token.run_until_cancelled_owned(connection).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, for instance: going round at once would only burn a core.
                tracing::warn!(%error, "cannot accept a connection for the pages");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, handler: Handler) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(answer(&request, handler).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a page connection ended abnormally");
    }
}

async fn answer(request: &Request<Incoming>, handler: Handler) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = Response::new(Full::from("only GET and HEAD are answered\n"));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let path = request.uri().path().to_owned();
    let page = match tokio::task::spawn_blocking(move || handler(&path)).await {
        Ok(page) => page.unwrap_or_else(|| Page::text(404, "no such page")),
        Err(error) => Page::text(500, format_args!("the page broke off: {error}")),
    };
    let mut response = Response::new(Full::from(page.body));
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(page.content_type));
    response
}

#[cfg(test)]
mod tests;
