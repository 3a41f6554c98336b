//! Bodies straight from the connection into the caller's memory.
//!
//! The library that builds, signs and checks requests hands bodies out as pieces of its own memory, through the
//! runtime: each byte is copied once more, and each piece costs an allocation and two wakeups. For bodies of objects it
//! only makes the request and checks the head of the response here; the body is received by the thread that wants it,
//! on a blocking socket, into memory that the [`Sink`](crate::Sink) points out.
//!
//! Only what is plain takes this way: HTTP/1.1 without a proxy, a body with a length, no redirect. Everything else is
//! declined, before or after it was sent, and goes through the library.
//!
//! Invariants: no byte beyond the announced length is taken off a connection; nothing is allocated by an announced
//! length; a connection that may hold anything unread is never used again.

mod body;
mod connect;
mod head;
mod pool;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::client::{HttpRequest, HttpResponse};
use object_store::{ClientConfigKey, ClientOptions};

pub(crate) use body::StraightBody;
use connect::Connector;
use head::{Framing, Head};
use pool::{Place, Pool};
use wire::Wire;

/// Most bytes of an error's body that are looked at.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// How an exchange failed without a response.
#[derive(Debug)]
pub(crate) enum Trouble {
    ConnectTimeout,
    Connect(std::io::Error),
    Other(std::io::Error),
}

/// What became of a request.
pub(crate) enum Answer {
    /// A response whose body is still on the connection.
    Body(HttpResponse, StraightBody),
    /// Another response, complete.
    Whole(HttpResponse),
    /// This is not for here: the reason.
    Declined(&'static str),
}

/// The connections of one client.
pub(crate) struct Straight {
    connector: Connector,
    pool: Arc<Pool>,
    user_agent: Option<String>,
    /// Why no request may take this way.
    never: Option<&'static str>,
    allows_http: bool,
    /// A server would not speak with us and may speak with the library.
    refused: AtomicBool,
}

impl Straight {
    /// As the library's client with these options. `tick` is how long a body's reader sleeps before it looks up.
    pub(crate) fn new(options: &ClientOptions, connect_timeout: Duration, idle_max: usize, tick: Duration) -> Straight {
        let value = |key| options.get_config_value(&key);
        let is_set = |key| value(key).is_some_and(|value| value == "true");
        let never = if !is_set(ClientConfigKey::Http1Only) {
            Some("HTTP/2 may be spoken")
        } else if value(ClientConfigKey::ProxyUrl).is_some() {
            Some("a proxy is set")
        } else if is_set(ClientConfigKey::AllowInvalidCertificates) || is_set(ClientConfigKey::NoSystemCertificates) {
            Some("certificates are checked in another way")
        } else {
            None
        };
        Straight {
            connector: Connector::new(connect_timeout, tick),
            pool: Arc::new(Pool::new(idle_max)),
            user_agent: value(ClientConfigKey::UserAgent),
            never,
            allows_http: is_set(ClientConfigKey::AllowHttp),
            refused: AtomicBool::new(false),
        }
    }

    /// Sends a GET and reads the head of its response. Nothing was sent when it is declined for what it is; the library
    /// sends it (again) then. An idle connection that turns out to be closed is replaced.
    pub(crate) async fn get(&self, request: &HttpRequest) -> Result<Answer, Trouble> {
        let place = match self.place(request) {
            Ok(place) => place,
            Err(reason) => return Ok(Answer::Declined(reason)),
        };
        let head = head::write(request, self.user_agent.as_deref());
        while let Some(wire) = self.pool.take(&place) {
            if let Ok((wire, head, early)) = wire.exchange(&head).await {
                return self.answer(place, wire, head, early).await;
            }
        }
        let wire = match self.connector.connect(&place).await {
            Ok(wire) => wire,
            Err(connect::Failure::Tls) => {
                self.refused.store(true, Ordering::Relaxed);
                return Ok(Answer::Declined("TLS could not be agreed on"));
            }
            Err(connect::Failure::Trouble(trouble)) => return Err(trouble),
        };
        let (wire, head, early) = wire.exchange(&head).await.map_err(Trouble::Other)?;
        self.answer(place, wire, head, early).await
    }

    /// Where a request goes, or why it cannot go from here.
    fn place(&self, request: &HttpRequest) -> Result<Place, &'static str> {
        if let Some(reason) = self.never {
            return Err(reason);
        }
        if self.refused.load(Ordering::Relaxed) {
            return Err("TLS could not be agreed on before");
        }
        let place = Place::of(request.uri()).ok_or("its URL has no host")?;
        if !place.is_tls && !self.allows_http {
            return Err("it is not encrypted");
        }
        if self.connector.is_proxied(request) {
            return Err("a proxy is set");
        }
        Ok(place)
    }

    async fn answer(&self, place: Place, wire: Wire, head: Head, early: Vec<u8>) -> Result<Answer, Trouble> {
        let pool = head.keep_alive.then(|| (self.pool.clone(), place));
        if head.is_redirect() {
            return Ok(Answer::Declined("it is redirected"));
        }
        if head.status.is_success() {
            let Framing::Length(len) = head.framing else { return Ok(Answer::Declined("its body has no length")) };
            let body = StraightBody::new(wire, early, len, pool);
            return Ok(Answer::Body(head.into_response(Bytes::new()), body));
        }
        // A body that cannot be read leaves the status, which says enough.
        let collected = wire.collect(early, head.framing, ERROR_BYTES_MAX).await;
        let (body, wire) = collected.unwrap_or_default();
        if let (Some(wire), Some((pool, place))) = (wire, pool) {
            pool.put(place, wire);
        }
        Ok(Answer::Whole(head.into_response(body.into())))
    }
}

impl std::fmt::Debug for Straight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Straight").field("never", &self.never).finish_non_exhaustive()
    }
}
