//! Chunks that come in, and the end of what is held.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use longshore_types::{Code, Error, Result};

use crate::http::response::{CONTINUE, HeadWriter};
use crate::http::target;
use crate::put::land;
use crate::server::answer::{Exchange, error_answer};
use crate::server::connection::dismiss;
use crate::service::{Incoming, PutMode, PutRequest, PutStart};
use crate::stream::timed_out;

/// Reads bytes of the body into memory, at least one unless it has ended.
type Body<'a> = &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>;

/// Takes a chunk in. The result says whether the connection may go on: not when a body was refused, unless its sender is
/// known to wait until it is asked for.
///
/// # Errors
/// When the answer could not be sent.
pub(crate) fn put(exchange: &Exchange<'_>, body: Body<'_>) -> io::Result<bool> {
    let head = exchange.head;
    let unsent = head.expects_continue && head.waits;
    let incoming = request(exchange).and_then(|request| Ok((exchange.shared.service.put(&request)?, request)));
    let (mut incoming, request) = match incoming {
        Ok((PutStart::Take(incoming), request)) => (incoming, request),
        Ok((PutStart::There, _)) if unsent => return small(exchange, 200).map(|()| exchange.keep_alive),
        Ok((PutStart::There, _)) => {
            dismiss(exchange.stream, empty(200, false).as_bytes());
            return Ok(false);
        }
        Err(error) if unsent => return exchange.error(&error).map(|()| exchange.keep_alive),
        Err(error) => return Ok(refuse(exchange, &error)),
    };
    if head.expects_continue {
        let go_on = format!("HTTP/1.1 {CONTINUE} Continue\r\n\r\n");
        exchange.stream.write_all(&mut [IoSlice::new(go_on.as_bytes())])?;
    }
    if let Err(error) = receive(exchange, &request, incoming.as_mut(), body) {
        // The rest of the body would be taken for the next request.
        return Ok(refuse(exchange, &error));
    }
    match incoming.keep() {
        Ok(()) => {
            exchange.shared.counters.puts.fetch_add(1, Relaxed);
            small(exchange, 201)?;
        }
        Err(error) => exchange.error(&error)?,
    }
    Ok(exchange.keep_alive)
}

/// Lets go of what is held for an attempt.
///
/// # Errors
/// When the answer could not be sent.
pub(crate) fn release(exchange: &Exchange<'_>) -> io::Result<()> {
    let attempt = target::decode_hold(&exchange.head.query);
    match attempt.and_then(|attempt| exchange.shared.service.release(&attempt)) {
        Ok(()) => small(exchange, 200),
        Err(error) => exchange.error(&error),
    }
}

fn request(exchange: &Exchange<'_>) -> Result<PutRequest> {
    let head = exchange.head;
    let target = target::decode(&head.query)?;
    let mode = target.hold.map_or(PutMode::Cache, |attempt| PutMode::Hold { attempt });
    let checksums = head.checksums.clone().unwrap_or_default();
    let request = PutRequest::new(target.key, checksums.into(), mode)?;
    let (wanted, given) = (request.key.len_bytes(), head.body_bytes.unwrap_or_default());
    if wanted != given {
        return Err(Error::new(Code::InvalidArgument, format!("{request} has {wanted} bytes, not {given}")));
    }
    Ok(request)
}

/// Reads the body, within both limits of time.
fn receive(exchange: &Exchange<'_>, request: &PutRequest, incoming: &mut dyn Incoming, body: Body<'_>) -> Result<()> {
    let (options, stream) = (&exchange.shared.options, exchange.stream);
    let deadline = Instant::now() + options.put_timeout;
    let slow =
        |waited: Duration| Error::new(Code::Timeout, format!("{request} comes too slowly: gave up after {waited:?}"));
    let broken = |error: io::Error| {
        Error::new(Code::Unavailable, format!("the body of {request} broke off: {error}")).with_source(error)
    };
    let received = land(incoming, request, |room| {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(slow(options.put_timeout));
        }
        stream.set_read_timeout(left.min(options.put_stall_timeout)).map_err(broken)?;
        match body(room) {
            Ok(0) => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                exchange.shared.counters.received_bytes.fetch_add(count as u64, Relaxed);
                Ok(count)
            }
            Err(error) if timed_out(&error) => Err(slow(left.min(options.put_stall_timeout))),
            Err(error) => Err(broken(error)),
        }
    });
    received.and_then(|()| stream.set_read_timeout(options.idle_timeout).map_err(broken))
}

/// Says why, and ends the connection.
fn refuse(exchange: &Exchange<'_>, error: &Error) -> bool {
    exchange.shared.counters.errors.fetch_add(1, Relaxed);
    dismiss(exchange.stream, &error_answer(error, false, false));
    false
}

fn small(exchange: &Exchange<'_>, status: u16) -> io::Result<()> {
    exchange.stream.write_all(&mut [IoSlice::new(empty(status, exchange.keep_alive).as_bytes())])
}

fn empty(status: u16, keep_alive: bool) -> String {
    HeadWriter::new(status).header("Content-Length", 0).end(keep_alive)
}
