//! One connection of the client: a socket, the bytes read ahead of a head, and the descriptors that came with it.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use longshore_memory::fdpass::recv_with_fds;
use longshore_types::{Code, Error, Result};

use crate::client::patience::Patience;
use crate::client::receive::scatter;
use crate::http::HEAD_BYTES_MAX;
use crate::http::chunked::{self, LINE_BYTES_MAX};
use crate::http::response::{self, ResponseHead};
use crate::stream::{Stream, timed_out};

/// Bytes asked for at once while a head is read: heads are shorter, and what of the body comes along is copied.
const HEAD_READ_BYTES: usize = 2 << 10;

/// Why a request got no answer.
pub(crate) enum Failure {
    /// The connection ended before the first byte of the answer: a pooled one was dead all along.
    Dead(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Failed(error)
    }
}

pub(crate) struct Connection {
    stream: Stream,
    patience: Patience,
    buffer: Box<[u8; HEAD_BYTES_MAX]>,
    start: usize,
    end: usize,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Takes a connected socket. Reads and writes on it give up after the stall timeout without a byte.
    pub(crate) fn new(stream: Stream, patience: Patience) -> io::Result<Self> {
        stream.set_read_timeout(Patience::socket_timeout(patience.stall_timeout))?;
        stream.set_write_timeout(patience.stall_timeout)?;
        let buffer = Box::new([0; HEAD_BYTES_MAX]);
        Ok(Connection { stream, patience, buffer, start: 0, end: 0, fds: Vec::new() })
    }

    /// For the next request, whose caller may leave at another time.
    pub(crate) fn with(self, patience: Patience) -> Self {
        Connection { patience, ..self }
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.stream.is_unix()
    }

    /// Nothing is left over from the last answer, so that the next one begins where it should.
    pub(crate) fn is_clean(&self) -> bool {
        self.start == self.end && self.fds.is_empty()
    }

    /// Sends a request (or the body of one that was told to go on) and reads the head of its answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<ResponseHead, Failure> {
        if let Err(e) = self.stream.write_all(&mut [io::IoSlice::new(request)])
            && !closed(&e)
        {
            return Err(self.failed("sending the request", e).into());
        }
        // A server that closed early may still have said why: read on even when the request did not get through.
        let mut begun: Option<Instant> = None;
        loop {
            match self.receive(HEAD_READ_BYTES) {
                Ok(0) if begun.is_none() => return Err(Failure::Dead(broken_off())),
                Ok(0) => return Err(broken_off().into()),
                Ok(_) => {}
                Err(e) if begun.is_none() && closed(&e) => return Err(Failure::Dead(broken_off().with_source(e))),
                Err(e) => return Err(self.failed("waiting for the answer", e).into()),
            }
            match response::parse(&self.buffer[self.start..self.end]) {
                Ok(Some((head, len))) => {
                    self.start += len;
                    return Ok(head);
                }
                Ok(None) if begun.get_or_insert_with(Instant::now).elapsed() < self.patience.stall_timeout => {}
                Ok(None) => return Err(Error::new(Code::Timeout, "the head of the answer comes too slowly").into()),
                Err(why) => return Err(violation(why).into()),
            }
        }
    }

    /// Reads what is there of a body into `slices`, at least a byte.
    pub(crate) fn read(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<usize> {
        if self.start < self.end {
            let count = scatter(&self.buffer[self.start..self.end], slices);
            self.start += count;
            return Ok(count);
        }
        match self.patience.read(|| self.stream.read_full(slices)) {
            Ok(0) => Err(broken_off()),
            Ok(count) => Ok(count),
            Err(e) => Err(self.failed("reading the body", e)),
        }
    }

    /// Reads a line of a chunked body, without its end.
    pub(crate) fn line(&mut self) -> Result<&[u8]> {
        loop {
            let pending = &self.buffer[self.start..self.end];
            let searched = &pending[..pending.len().min(LINE_BYTES_MAX)];
            if let Some(len) = searched.windows(2).position(|two| two == b"\r\n") {
                let line = self.start..self.start + len;
                self.start += len + 2;
                return Ok(&self.buffer[line]);
            }
            if searched.len() == LINE_BYTES_MAX {
                return Err(violation("a chunk line is too long"));
            }
            match self.receive(LINE_BYTES_MAX) {
                Ok(0) => return Err(broken_off()),
                Ok(_) => {}
                Err(e) => return Err(self.failed("reading the body", e)),
            }
        }
    }

    /// Reads the line before the next piece of a chunked body.
    pub(crate) fn chunk_line(&mut self) -> Result<(u64, Option<longshore_types::BlockChecksum>)> {
        let line = self.line()?;
        chunked::parse(line).ok_or_else(|| violation("a chunk line is malformed"))
    }

    /// Tells the server that what it lent is read no longer.
    pub(crate) fn say_done(&self) {
        // A connection that ended meanwhile says so by its end, and is found dead by the next request.
        let _ = self.stream.write_all(&mut [io::IoSlice::new(b"\r\n")]);
    }

    /// Reads a piece of a chunked body that is nothing but the checksum of a block.
    pub(crate) fn checksum_piece(&mut self) -> Result<longshore_types::BlockChecksum> {
        let (len, _) = self.chunk_line()?;
        let line = self.line()?;
        let text = std::str::from_utf8(line).ok().filter(|text| text.len() as u64 == len);
        text.and_then(longshore_types::BlockChecksum::parse).ok_or_else(|| violation("a piece that is no checksum"))
    }

    /// The one descriptor that came with the last head.
    pub(crate) fn take_fd(&mut self) -> Result<OwnedFd> {
        match (self.fds.pop(), self.fds.is_empty()) {
            (Some(fd), true) => Ok(fd),
            _ => Err(violation("the answer should have come with one descriptor")),
        }
    }

    /// Reads up to `len` more bytes behind what is buffered; 0 at the end of the stream.
    fn receive(&mut self, len: usize) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let end = HEAD_BYTES_MAX.min(self.end + len);
        let room = &mut self.buffer[self.end..end];
        let fds = &mut self.fds;
        let count = self.patience.read(|| match &self.stream {
            Stream::Tcp(_) => self.stream.read(&mut [IoSliceMut::new(room)]),
            Stream::Unix(stream) => recv_with_fds(stream.as_fd(), room, fds),
        })?;
        if self.fds.len() > 1 {
            self.fds.clear();
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors came than an answer has"));
        }
        self.end += count;
        Ok(count)
    }

    fn failed(&self, doing: &str, error: io::Error) -> Error {
        if timed_out(&error) {
            if let Err(given_up) = self.patience.check() {
                return given_up;
            }
            return Error::new(Code::Timeout, format!("no byte for {:?} while {doing}", self.patience.stall_timeout));
        }
        Error::new(Code::Unavailable, format!("{doing}: {error}")).with_source(error)
    }
}

/// The peer does not speak our protocol, or something in between changed it.
pub(crate) fn violation(why: &str) -> Error {
    Error::new(Code::Unavailable, format!("the peer broke the protocol: {why}"))
}

fn broken_off() -> Error {
    Error::new(Code::Unavailable, "the peer closed the connection before the end of its answer")
}

fn closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted)
}
