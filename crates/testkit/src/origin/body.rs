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
use super::state::Object;

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
pub(super) fn object(object: Arc<Object>, range: Range<u64>, bad: Misbehaviour, ticket: Ticket) -> Body {
    let flow = Flow { at: range.start, object, range, bad, ticket };
    let frames = stream::unfold(flow, |mut flow| async move { flow.next().await.map(|frame| (frame, flow)) });
    StreamBody::new(frames).boxed_unsync()
}

struct Flow {
    object: Arc<Object>,
    range: Range<u64>,
    at: u64,
    bad: Misbehaviour,
    ticket: Ticket,
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
        Some(self.read(len_max).await.map(Frame::data))
    }

    async fn read(&mut self, len_max: u64) -> io::Result<Bytes> {
        let at = self.at;
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
