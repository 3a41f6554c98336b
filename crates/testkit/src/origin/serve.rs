//! The engine: accepts, routes, lets faults strike, answers.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::body::{self, Body};
use super::faults::{Misbehaviour, Verb, strike};
use super::request::{Ask, Span};
use super::state::{Object, State, Ticket};
use super::text::http_date;
use super::{Dialect, admin, hub, stores};

/// Largest upload, in bytes.
const UPLOAD_BYTES_MAX: usize = 1 << 30;

/// Which of the two listeners a request came in at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Front,
    /// The target of the hub's redirects.
    Cdn,
}

/// What a request wants.
pub(super) enum Route {
    Object,
    List,
    Bucket,
    Put,
    Delete,
    PropFind,
    Hub(hub::HubRoute),
    Unknown,
}

/// A request on its way to an answer.
pub(super) struct Call {
    pub(super) state: Arc<State>,
    pub(super) ask: Ask,
    /// Path of the object, or the prefix of the listing.
    pub(super) path: String,
    pub(super) ticket: Ticket,
    pub(super) bad: Misbehaviour,
    pub(super) upload: Bytes,
}

pub(super) fn spawn(listener: TcpListener, state: Arc<State>, side: Side) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        loop {
            // Accepting fails for a moment when descriptors run out; the connection waits in the backlog.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            state.counters.lock().connections += 1;
            let state = state.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(state.clone(), side, request));
                let http = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // Clients that go away and faults that cut are both errors here, and both are meant.
                let _ = http.await;
            });
        }
    });
    Ok(())
}

async fn answer(state: Arc<State>, side: Side, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, incoming) = request.into_parts();
    let ask = Ask::of(parts);
    let Ok(upload) = Limited::new(incoming, UPLOAD_BYTES_MAX).collect().await.map(|body| body.to_bytes()) else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "upload is too large or was cut off"));
    };
    if side == Side::Front && ask.path.starts_with('_') {
        return Ok(admin::answer(&state, &ask, &upload));
    }
    let (route, verb, path) = route(&state, &ask, side);
    let size = object_at(&state, &route, &path).map(|object| object.content.len_bytes());
    let range = size.filter(|_| verb == Verb::Get).map(|size| ask.span(size).range(size));
    let bad = strike(&mut state.faults.lock(), verb, &path, range.as_ref());
    let ticket = state.enter(verb, &path, range, bad.count);
    let call = Call { state, ask, path, ticket, bad, upload };
    Ok(call.answer(route, side).await)
}

fn route(state: &State, ask: &Ask, side: Side) -> (Route, Verb, String) {
    let verb = if ask.is_head() { Verb::Head } else { Verb::Get };
    match state.config.dialect {
        Dialect::Hub => {
            let (route, verb, path) = hub::route(state, ask, side, verb);
            (Route::Hub(route), verb, path)
        }
        Dialect::Http => match ask.method.as_str() {
            "GET" | "HEAD" => (Route::Object, verb, ask.path.clone()),
            "PROPFIND" => (Route::PropFind, Verb::List, ask.path.clone()),
            "PUT" => (Route::Put, Verb::Put, ask.path.clone()),
            _ => (Route::Unknown, verb, ask.path.clone()),
        },
        Dialect::S3 | Dialect::Gcs => {
            let (bucket, key) = ask.path.split_once('/').unwrap_or((&ask.path, ""));
            let listed = || format!("{bucket}/{}", ask.param("prefix").unwrap_or_default());
            match (&ask.method, key.is_empty()) {
                (&Method::GET, true) => (Route::List, Verb::List, listed()),
                (&Method::HEAD, true) => (Route::Bucket, Verb::List, bucket.to_owned()),
                (&Method::GET | &Method::HEAD, false) => (Route::Object, verb, ask.path.clone()),
                (&Method::PUT, false) => (Route::Put, Verb::Put, ask.path.clone()),
                (&Method::DELETE, false) => (Route::Delete, Verb::Delete, ask.path.clone()),
                _ => (Route::Unknown, verb, ask.path.clone()),
            }
        }
    }
}

fn object_at(state: &State, route: &Route, path: &str) -> Option<Arc<Object>> {
    match route {
        Route::Object => state.object(path),
        Route::Hub(hub::HubRoute::File { object, .. }) => Some(object.clone()),
        _ => None,
    }
}

impl Call {
    async fn answer(self, route: Route, side: Side) -> Response<Body> {
        tokio::time::sleep(self.bad.latency).await;
        if self.bad.hang {
            pending::<()>().await;
        }
        if let Some(status) = self.bad.status {
            return self.fail(stores::Failure::of_status(status));
        }
        if let Err(failure) = stores::check_credentials(&self, side) {
            return self.fail(failure);
        }
        if self.bad.replace {
            self.state.replace(&self.path);
        }
        if self.bad.remove {
            self.state.remove(&self.path);
        }
        match route {
            Route::Object => match self.state.object(&self.path) {
                Some(object) => self.object(object, Vec::new()),
                None => stores::missing(self),
            },
            Route::List => stores::list(self),
            Route::Bucket => stores::bucket(self),
            Route::Put => stores::put(self),
            Route::Delete => stores::delete(self),
            Route::PropFind => stores::prop_find(self),
            Route::Hub(route) => hub::answer(self, route),
            Route::Unknown => self.fail(stores::Failure::of_status(405)),
        }
    }

    /// Answers with the bytes of an object, or with what its conditions and range make of it.
    pub(super) fn object(self, object: Arc<Object>, extra: Vec<(&'static str, String)>) -> Response<Body> {
        let quirks = &self.state.config.quirks;
        let size = object.content.len_bytes();
        let etag = extra.iter().find(|(name, _)| *name == "etag").map_or(&object.etag, |(_, value)| value).clone();
        if !quirks.ignores_conditions
            && let Err(failure) = self.check_conditions(&object, &etag)
        {
            return self.fail(failure);
        }
        let span = if quirks.ignores_ranges { Span::Whole } else { self.ask.span(size) };
        if span == Span::Unsatisfiable {
            return self.fail(stores::Failure::of_status(416));
        }
        let range = span.range(size);
        let mut response = Response::builder()
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::LAST_MODIFIED, http_date(object.modified))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, range.end - range.start);
        if let Span::Part(range) = &span {
            let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, text);
        }
        if !quirks.has_no_etag && !extra.iter().any(|(name, _)| *name == "etag") {
            response = response.header(header::ETAG, etag);
        }
        if self.state.config.dialect == Dialect::Gcs {
            response = response.header("x-goog-generation", object.generation);
        }
        response = extra.into_iter().fold(response, |response, (name, value)| response.header(name, value));
        let status = if matches!(span, Span::Part(_)) { 206 } else { 200 };
        self.ticket.status(status);
        let body = match self.ask.is_head() {
            true => body::empty(),
            false => body::object(object, range, self.bad, self.ticket),
        };
        built(response.body(body))
    }

    fn check_conditions(&self, object: &Object, etag: &str) -> Result<(), stores::Failure> {
        let names = |list: &str| list.split(',').any(|one| matches!(one.trim(), "*") || one.trim() == etag);
        if self.ask.header(header::IF_MATCH).is_some_and(|list| !names(list)) {
            return Err(stores::Failure::of_status(412));
        }
        if self.ask.header(header::IF_NONE_MATCH).is_some_and(names) {
            return Err(stores::Failure::of_status(304));
        }
        if self.state.config.dialect == Dialect::Gcs {
            let generation = object.generation.to_string();
            if self.ask.param("generation").is_some_and(|wanted| wanted != generation) {
                return Err(stores::Failure::of_status(404));
            }
            let wanted = self.ask.headers.get("x-goog-if-generation-match");
            if wanted.is_some_and(|wanted| wanted.as_bytes() != generation.as_bytes()) {
                return Err(stores::Failure::of_status(412));
            }
        }
        Ok(())
    }

    /// Answers with a text.
    pub(super) fn text(self, status: StatusCode, content_type: &str, text: String) -> Response<Body> {
        self.ticket.status(status.as_u16());
        let response = Response::builder().status(status).header(header::CONTENT_TYPE, content_type);
        built(response.body(body::text(text)))
    }

    /// Answers with an error in the words of the dialect.
    pub(super) fn fail(self, failure: stores::Failure) -> Response<Body> {
        self.ticket.status(failure.status);
        stores::failure(&self, failure)
    }
}

pub(super) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    built(Response::builder().status(status).body(body::text(text.to_owned())))
}

/// Headers are made from our own words and from what came in as a header, so that building cannot fail.
pub(super) fn built(response: Result<Response<Body>, hyper::http::Error>) -> Response<Body> {
    response.unwrap_or_else(|error| {
        let mut response = Response::new(body::text(error.to_string()));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
