//! One connection of the server: head after head, until either side has enough.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use longshore_types::{Code, Error};

use crate::http::HEAD_BYTES_MAX;
use crate::http::request::{self, Refusal, RequestHead};
use crate::server::answer::{answer, refusal_answer};
use crate::server::shared::{Seat, Shared};
use crate::stream::{Stream, timed_out};

/// After a refusal, what the client is still sending is read for so long, and no more than this, before we close.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 << 10;

/// Serves one connection to its end. Runs on a thread of its own.
pub(crate) fn serve(shared: &Shared, seat: &Seat) {
    let stream = &*seat.stream;
    let timeouts = stream
        .set_write_timeout(shared.options.write_timeout)
        .and_then(|()| stream.set_read_timeout(shared.options.idle_timeout));
    if let Err(error) = timeouts {
        tracing::debug!(%error, "a connection ended before it was set up");
        return;
    }
    let mut heads = Heads { shared, stream, buffer: vec![0; HEAD_BYTES_MAX], start: 0, end: 0 };
    loop {
        match heads.next() {
            Next::Request(head) => {
                shared.counters.requests.fetch_add(1, Relaxed);
                match answer(shared, stream, &head, &mut |room| heads.body(room)) {
                    Ok(answered) => {
                        if answered.lent.is_some() && !heads.wait_done() {
                            shared.counters.cut.fetch_add(1, Relaxed);
                            return;
                        }
                        // Only now may it be used for something else.
                        drop(answered.lent);
                        if !answered.keep_alive {
                            return;
                        }
                    }
                    Err(error) => {
                        shared.counters.cut.fetch_add(1, Relaxed);
                        tracing::debug!(%error, path = head.path, "an answer was cut");
                        return;
                    }
                }
            }
            Next::Refuse(refusal) => {
                shared.counters.errors.fetch_add(1, Relaxed);
                refuse(stream, &refusal);
                return;
            }
            Next::End => return,
        }
    }
}

enum Next {
    Request(RequestHead),
    Refuse(Refusal),
    End,
}

/// The heads that come in, and what was read beyond the last one.
struct Heads<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Heads<'_> {
    /// The next head. It may take the idle timeout to begin, and the head timeout from there to its end.
    fn next(&mut self) -> Next {
        let mut deadline = None;
        let next = loop {
            self.skip_empty_lines();
            if self.start < self.end {
                match request::parse(&self.buffer[self.start..self.end]) {
                    Ok(Some((head, len))) => {
                        self.start += len;
                        break Next::Request(head);
                    }
                    Ok(None) => {}
                    Err(refusal) => break Next::Refuse(refusal),
                }
                let limit = self.shared.options.head_timeout;
                let left =
                    deadline.get_or_insert_with(|| Instant::now() + limit).saturating_duration_since(Instant::now());
                let slow = Refusal { status: 408, message: "the request head comes too slowly" };
                if left.is_zero() {
                    break Next::Refuse(slow);
                }
                if self.stream.set_read_timeout(left).is_err() {
                    break Next::End;
                }
                match self.fill() {
                    Err(e) if timed_out(&e) => break Next::Refuse(slow),
                    Ok(0) | Err(_) => break Next::End,
                    Ok(_) => {}
                }
            } else if !matches!(self.fill(), Ok(1..)) {
                // The end of the stream, an idle client, or a reset: nobody waits for an answer.
                break Next::End;
            }
        };
        if deadline.is_some() && self.stream.set_read_timeout(self.shared.options.idle_timeout).is_err() {
            return Next::End;
        }
        next
    }

    /// Waits until the client has said anything, or has closed the connection: then it reads no longer what it was lent.
    /// False when it takes longer than a reader may take.
    fn wait_done(&mut self) -> bool {
        if self.start < self.end {
            return true;
        }
        let options = &self.shared.options;
        let is_done = self.stream.set_read_timeout(options.write_timeout).is_ok()
            && !self.fill().is_err_and(|error| timed_out(&error));
        is_done && self.stream.set_read_timeout(options.idle_timeout).is_ok()
    }

    /// Such a line is what a client says when it has nothing to ask.
    fn skip_empty_lines(&mut self) {
        while self.buffer[self.start..self.end].starts_with(b"\r\n") {
            self.start += 2;
        }
    }

    /// Bytes of a body into `room`: those that were read beyond the head come first. 0 at the end of the stream.
    fn body(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let ahead = &self.buffer[self.start..self.end];
        if ahead.is_empty() {
            return self.stream.read(&mut [IoSliceMut::new(room)]);
        }
        let count = ahead.len().min(room.len());
        room[..count].copy_from_slice(&ahead[..count]);
        self.start += count;
        Ok(count)
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = self.stream.read(&mut [IoSliceMut::new(&mut self.buffer[self.end..])])?;
        self.end += count;
        Ok(count)
    }
}

/// Says why, then reads on a little: closing with unread bytes would reset the connection under the answer.
fn refuse(stream: &Stream, refusal: &Refusal) {
    let answer = refusal_answer(refusal.status, &Error::new(Code::InvalidArgument, refusal.message));
    dismiss(stream, &answer);
}

/// Sends the last answer of a connection whose client may still be sending.
pub(crate) fn dismiss(stream: &Stream, answer: &[u8]) {
    if stream.write_all(&mut [IoSlice::new(answer)]).is_err() || stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let mut scrap = vec![0; LINGER_BYTES_MAX / 4];
    let mut taken = 0;
    while taken < LINGER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(left).is_err() {
            return;
        }
        match stream.read(&mut [IoSliceMut::new(&mut scrap)]) {
            Ok(0) | Err(_) => return,
            Ok(count) => taken += count,
        }
    }
}
