//! The engine: accepts, routes, lets faults strike, answers.

mod object;
mod route;

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::azure::{self, AzureRoute};
use super::body::{self, Body, Way};
use super::checksums::Algorithm;
use super::counters::{Arrival, Ticket};
use super::faults::{Misbehaviour, Verb, strike};
use super::outbox::{Connection, Outbox};
use super::pace::Pacer;
use super::receive::{Broken, Plan, Received, receive};
use super::request::Ask;
use super::state::{Object, State};
use super::write::Deletes;
use super::{Dialect, admin, checksums, hub, listing, sigv4, stores, uploads, write};

pub(super) use route::Route;
use route::route;

/// Largest body of a request of the server's own pages, in bytes.
const ADMIN_BYTES_MAX: usize = 1 << 20;

/// Which of the two listeners a request came in at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Front,
    /// The target of the hub's redirects.
    Cdn,
}

/// A request on its way to an answer.
pub(super) struct Call {
    pub(super) state: Arc<State>,
    pub(super) ask: Ask,
    /// Path of the object, or the prefix of the listing.
    pub(super) path: String,
    pub(super) ticket: Ticket,
    pub(super) bad: Misbehaviour,
    /// Number of the part that it is about.
    pub(super) part: Option<u32>,
    pub(super) received: Received,
    pub(super) way: Way,
}

pub(super) fn spawn(listener: TcpListener, state: Arc<State>, side: Side) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // Some systems have BBR as their default, which paces by timers: nothing that loopback needs, and not the same everywhere.
    let _ = rustix::net::sockopt::set_tcp_congestion(&listener, "reno");
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        loop {
            // Accepting fails for a moment when descriptors run out; the connection waits in the backlog.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            state.counters.lock().connections += 1;
            let state = state.clone();
            tokio::spawn(async move {
                let pacer = Arc::new(Pacer::new(state.config.connection_bytes_per_second));
                let way = Way { state, pacer, outbox: Outbox::default() };
                let io = TokioIo::new(Connection::new(stream, way.outbox.clone()));
                let service = service_fn(|request| answer(way.clone(), side, request));
                let http = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
                // Clients that go away and faults that cut are both errors here, and both are meant.
                let _ = http.await;
            });
        }
    });
    Ok(())
}

async fn answer(way: Way, side: Side, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let state = way.state.clone();
    let (parts, incoming) = request.into_parts();
    let ask = Ask::of(parts);
    if side == Side::Front && ask.path.starts_with('_') {
        let body = Limited::new(incoming, ADMIN_BYTES_MAX).collect().await.map_err(io::Error::other)?;
        return Ok(admin::answer(&state, &ask, &body.to_bytes()));
    }
    let (route, verb, path) = route(&state, &ask, side);
    let size = object_at(&state, &route, &path).map(|object| object.content.len_bytes());
    let range = size.filter(|_| verb == Verb::Get).map(|size| ask.span(size).range(size));
    let part = match &route {
        Route::UploadPart => ask.param("partNumber").and_then(|text| text.parse().ok()),
        Route::Azure(AzureRoute::PutBlock) => Some(uploads::number_of_block(&state, &ask, &path)),
        _ => None,
    };
    let brought = ask.content_length().filter(|_| verb.brings_content()).map(|len| 0..len);
    let bad = strike(&mut state.faults.lock(), verb, &path, range.as_ref().or(brought.as_ref()));
    let reply_lost = bad.reply_lost || bad.reply_hangs;
    let arrival = Arrival { verb, path: &path, range, part, faults: bad.count, reply_lost };
    let ticket = Ticket::enter(&state, arrival);
    if !state.config.first_byte.is_zero() {
        tokio::time::sleep(state.config.first_byte).await;
    }
    bad.wait().await;
    let mut call = Call { state, ask, path, ticket, bad, part, received: Received::default(), way };
    match call.receive(verb, incoming).await {
        Ok(received) => call.received = received,
        Err(Broken::Connection(error)) => return Err(error),
        Err(Broken::Refused(failure)) => {
            let failure = call.bad.answer.take().unwrap_or(failure);
            return Ok(call.fail(failure));
        }
    }
    call.answer(route, side).await
}

fn object_at(state: &State, route: &Route, path: &str) -> Option<Arc<Object>> {
    match route {
        Route::Object => state.object(path),
        Route::Hub(hub::HubRoute::File { object, .. }) => Some(object.clone()),
        _ => None,
    }
}

impl Call {
    /// Whether the store has checksums of its objects and tells them.
    pub(super) fn keeps_checksums(&self) -> bool {
        let config = &self.state.config;
        config.dialect == Dialect::S3
            && !self.ask.is_azure()
            && !config.quirks.has_no_checksums
            && !config.quirks.rejects_checksums
    }

    /// Whether the store has Google's checksums of its objects and tells them.
    pub(super) fn keeps_google_hash(&self) -> bool {
        let config = &self.state.config;
        config.dialect == Dialect::Gcs && !self.ask.is_azure() && !config.quirks.has_no_checksums
    }

    async fn receive(&self, verb: Verb, incoming: Incoming) -> Result<Received, Broken> {
        let config = &self.state.config;
        let is_write = !matches!(verb, Verb::Get | Verb::Head | Verb::List | Verb::ListUploads);
        let is_google = self.keeps_google_hash();
        let (stated, trailer) = match is_write {
            true if is_google => (Ok(checksums::stated_to_google(&self.ask)), Ok(None)),
            true => (checksums::stated(&self.ask, &config.quirks), checksums::trailer(&self.ask, &config.quirks)),
            false => (Ok(None), Ok(None)),
        };
        // Of a completion it is the checksum of the object.
        let stated = stated.map(|stated| stated.filter(|_| verb != Verb::CompleteUpload));
        let (stated, trailer) = match trailer {
            Ok(trailer) => (stated, trailer),
            Err(failure) => (Err(failure), None),
        };
        let plan = Plan {
            is_content: verb.brings_content(),
            len_bytes: self.ask.content_length(),
            stated,
            is_chunked: self.ask.is_chunked(),
            trailer,
            keeps: (is_google && verb.brings_content()).then_some(Algorithm::Crc32c),
            hashes: config.access_key.is_some() && sigv4::signs_body(&self.ask),
            folder: config.data_dir.as_deref(),
            budget: &self.state.budget,
            pacer: &self.state.pacer,
            bad: &self.bad,
            ticket: &self.ticket,
        };
        receive(incoming, plan).await
    }

    /// An error is a connection that is closed without an answer.
    async fn answer(mut self, route: Route, side: Side) -> io::Result<Response<Body>> {
        if let Some(failure) = self.bad.answer.take() {
            return Ok(self.fail(failure));
        }
        if let Err(failure) = stores::check_credentials(&self, side) {
            return Ok(self.fail(failure));
        }
        if self.bad.replace {
            self.state.replace(&self.path);
        }
        if self.bad.remove {
            self.state.remove(&self.path);
        }
        if self.bad.error_in_body {
            let text = stores::error_text(&self.path, &stores::Failure::of_status(500));
            return Ok(self.text(StatusCode::OK, stores::XML, text));
        }
        let deletes = match route {
            Route::DeleteMany => Deletes::parse(&self.received.content.to_vec()),
            Route::Azure(AzureRoute::Batch) => azure::parse_batch(&self),
            _ => Ok(Deletes::default()),
        };
        let deletes = match deletes {
            Ok(deletes) => deletes,
            Err(failure) => return Ok(self.fail(failure)),
        };
        let refused = self.strike_each(&deletes).await;
        let (hangs, lost) = (self.bad.reply_hangs, self.bad.reply_lost);
        let response = self.route(route, deletes, &refused).await;
        if hangs {
            pending::<()>().await;
        }
        if lost { Err(io::Error::other("reply lost, as told")) } else { Ok(response) }
    }

    /// Lets faults strike each key of a request that deletes many. What they answer is the answer for that key alone.
    async fn strike_each(&mut self, deletes: &Deletes) -> HashMap<String, stores::Failure> {
        let mut refused = HashMap::new();
        for key in &deletes.keys {
            let path = format!("{}/{key}", self.path);
            let bad = strike(&mut self.state.faults.lock(), Verb::Delete, &path, None);
            self.ticket.struck(bad.count);
            self.bad.reply_lost |= bad.reply_lost;
            self.bad.reply_hangs |= bad.reply_hangs;
            bad.wait().await;
            refused.extend(bad.answer.map(|failure| (key.clone(), failure)));
        }
        refused
    }

    async fn route(self, route: Route, deletes: Deletes, refused: &HashMap<String, stores::Failure>) -> Response<Body> {
        match route {
            Route::Object => match self.state.object(&self.path) {
                Some(object) => {
                    let extra = self.checksum_headers(&object).await;
                    self.object(object, extra)
                }
                None => stores::missing(self),
            },
            Route::List => listing::s3(self),
            Route::Bucket => stores::bucket(self),
            Route::Put => write::put(self),
            Route::Delete => write::delete(self),
            Route::DeleteMany => write::delete_many(self, deletes, refused),
            Route::CreateUpload => uploads::create(self),
            Route::UploadPart => uploads::put_part(self),
            Route::CompleteUpload => uploads::complete(self),
            Route::AbortUpload => uploads::abort(self),
            Route::ListUploads => uploads::list(self),
            Route::ListParts => uploads::list_parts(self),
            Route::PropFind => listing::prop_find(self),
            Route::Hub(route) => hub::answer(self, route),
            Route::Azure(route) => azure::answer(self, route, deletes, refused),
            Route::Unknown => self.fail(stores::Failure::of_status(405)),
        }
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
