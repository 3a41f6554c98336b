//! Bodies, as they should be and as faults make them.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

use super::counters::Ticket;
use super::faults::Misbehaviour;
use super::outbox::Outbox;
use super::pace::{PORTION_BYTES, Pacer};
use super::state::{Object, State};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Throttled bodies go out in so many portions a second.
const PORTIONS_PER_SECOND: u64 = 50;

pub(super) fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(super) fn empty() -> Body {
    text(Bytes::new())
}

/// The bytes of an object, from a range of it.
pub(super) fn object(object: Arc<Object>, range: Range<u64>, bad: Misbehaviour, ticket: Ticket, way: Way) -> Body {
    let flow = Flow { at: range.start, object, range, bad, ticket, way };
    let frames = stream::unfold(flow, |mut flow| async move { flow.next().await.map(|frame| (frame, flow)) });
    StreamBody::new(frames).boxed_unsync()
}

/// How bodies leave.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) state: Arc<State>,
    /// That of the connection.
    pub(super) pacer: Arc<Pacer>,
    pub(super) outbox: Outbox,
}

impl Way {
    /// Waits until `bytes` more may leave.
    async fn pass(&self, bytes: u64) {
        self.pacer.pass(bytes).await;
        self.state.out_pacer.pass(bytes).await;
    }

    fn is_paced(&self) -> bool {
        self.pacer.is_set() || self.state.out_pacer.is_set()
    }
}

struct Flow {
    object: Arc<Object>,
    range: Range<u64>,
    at: u64,
    bad: Misbehaviour,
    ticket: Ticket,
    way: Way,
}

impl Flow {
    async fn next(&mut self) -> Option<io::Result<Frame<Bytes>>> {
        let mut len_max = self.range.end - self.at;
        if len_max == 0 {
            return None;
        }
        let sent = self.at - self.range.start;
        if let Some(limit) = self.bad.cut_after {
            len_max = len_max.min(limit.saturating_sub(sent));
            if len_max == 0 {
                return Some(Err(io::Error::other("cut off, as told")));
            }
        }
        if let Some(limit) = self.bad.hang_after {
            len_max = len_max.min(limit.saturating_sub(sent));
            if len_max == 0 {
                pending::<()>().await;
            }
        }
        if let Some(rate) = self.bad.bytes_per_second {
            let portion = (rate / PORTIONS_PER_SECOND).max(1);
            len_max = len_max.min(portion);
            tokio::time::sleep(Duration::from_secs_f64(len_max as f64 / rate as f64)).await;
        }
        if self.way.is_paced() {
            len_max = len_max.min(PORTION_BYTES);
            self.way.pass(len_max).await;
        }
        Some(self.read(len_max).await.map(Frame::data))
    }

    async fn read(&mut self, len_max: u64) -> io::Result<Bytes> {
        let at = self.at;
        if self.bad.flips.is_empty()
            && let Some(extent) = self.object.content.extent(at, len_max)
        {
            self.at += extent.len_bytes;
            self.ticket.sent(extent.len_bytes);
            return Ok(self.way.outbox.queue(extent));
        }
        let piece = if self.object.content.is_on_disk() {
            let object = self.object.clone();
            tokio::task::spawn_blocking(move || object.content.piece(at, len_max)).await.map_err(io::Error::other)??
        } else {
            self.object.content.piece(at, len_max)?
        };
        if piece.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "content is shorter than its size"));
        }
        self.at += piece.len() as u64;
        self.ticket.sent(piece.len() as u64);
        Ok(self.bad.spoil(piece, at))
    }
}
