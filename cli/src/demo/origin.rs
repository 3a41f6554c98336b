//! The demo's origin: one file over HTTP, by range, counted.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue, RANGE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use longshore_types::{Code, Error, Result};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const PATH: &str = "/model.safetensors";
const VERSION: HeaderValue = HeaderValue::from_static("\"demo\"");

/// A server on a free port of this machine; it ends when this is dropped.
pub struct Origin {
    address: SocketAddr,
    counts: Arc<Counts>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    served_bytes: AtomicU64,
}

impl Origin {
    /// Serves `file`.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when no port can be had.
    pub async fn start(file: Bytes) -> Result<Origin> {
        let failed = |error: std::io::Error| {
            Error::new(Code::Unavailable, format!("cannot listen on this machine: {error}")).with_source(error)
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let counts = Arc::new(Counts::default());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, file, counts.clone()));
        Ok(Origin { address, counts, _server: server })
    }

    /// Where the file is.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies so far.
    pub fn served_bytes(&self) -> u64 {
        self.counts.served_bytes.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, file: Bytes, counts: Arc<Counts>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (file, counts) = (file.clone(), counts.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(request.method(), request.uri().path(), request.headers().get(RANGE), &file);
            counts.requests.fetch_add(1, Ordering::Relaxed);
            if request.method() == Method::GET {
                counts.served_bytes.fetch_add(hyper::body::Body::size_hint(response.body()).lower(), Ordering::Relaxed);
            }
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that hangs up is no news.
        connections.spawn(async move { drop(connection.await) });
        while connections.try_join_next().is_some() {}
    }
}

fn answer(method: &Method, path: &str, range: Option<&HeaderValue>, file: &Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    response.headers_mut().insert(ETAG, VERSION);
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if path != PATH {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    if method == Method::HEAD {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(file.len()));
        return response;
    }
    let Some(range) = range else {
        *response.body_mut() = Full::new(file.clone());
        return response;
    };
    let Some((start, end)) = parse(range, file.len()) else {
        *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        return response;
    };
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    if let Ok(value) = HeaderValue::try_from(format!("bytes {start}-{}/{}", end - 1, file.len())) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    *response.body_mut() = Full::new(file.slice(start..end));
    response
}

/// `bytes=a-b` or `bytes=a-`, as a half-open range within the file.
fn parse(range: &HeaderValue, len: usize) -> Option<(usize, usize)> {
    let (start, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = if last.is_empty() { len } else { last.parse::<usize>().ok()?.checked_add(1)?.min(len) };
    (start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let parse = |text: &'static str| parse(&HeaderValue::from_static(text), 10);
        assert_eq!(parse("bytes=0-3"), Some((0, 4)));
        assert_eq!(parse("bytes=8-"), Some((8, 10)));
        assert_eq!(parse("bytes=8-99"), Some((8, 10)));
        for bad in ["bytes=10-", "bytes=3-2", "bytes=-1", "items=0-1", "bytes=a-b", "bytes=0-18446744073709551615"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
