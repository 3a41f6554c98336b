//! What the daemon and a copier say to each other, over a socket between two of our own processes of one version.
//!
//! A message is its length (u32, little-endian) and a `postcard` encoding. Every request has a number, and gets one
//! [`Reply`] with that number, in no particular order. Descriptors travel with [`Request::Segments`] and belong to the
//! next [`Request::Start`], [`Request::Map`] or [`Request::OpenFile`]. A message that makes no sense ends the conversation.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use longshore_memory::fdpass::{FDS_PER_MESSAGE_MAX, recv_with_fds, send_with_fds};
use longshore_types::{Code, Error};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::steps::Step;

/// Longest message without its length.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Runs of one [`Request::Copy`], ranges of one [`Request::Zero`] at most: then a message is never too long.
pub(super) const RUNS_MAX: usize = 8192;
/// Segments of a region, or pieces of page-locked memory, at most.
pub(super) const SEGMENTS_MAX: usize = 4096;

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// So many descriptors come along, of memory of these lengths.
    Segments { lens_bytes: Vec<u64> },
    /// Page-locks the segments and opens the GPU. The first request that is answered, and only once.
    Start { id: u64, gpu: String },
    /// Maps the segments as a region with this number.
    Map { id: u64, region: u64 },
    /// Carries out all steps, from a page-locked piece to a region.
    Copy { id: u64, region: u64, piece: u32, steps: Vec<Step> },
    /// Zeroes ranges (offset, length) of a region.
    Zero { id: u64, region: u64, ranges: Vec<(u64, u64)> },
    /// Copies from a region to the front of a page-locked piece.
    Read { id: u64, region: u64, offset_bytes: u64, len_bytes: u64, piece: u32 },
    /// Unmaps a region that nothing is copied to or from any more.
    Unmap { id: u64, region: u64 },
    /// Asks for the memory of the GPU.
    Info { id: u64 },
    /// Asks whether the GPU can read files by itself.
    Storage { id: u64 },
    /// Makes one file, opened past the page cache, known by a number until the region is unmapped.
    OpenFile { id: u64, region: u64, file: u64 },
    /// Lets the GPU read a part of a file, from this offset on, to this place of the region.
    ReadFile { id: u64, region: u64, file: u64, from: u64, len_bytes: u64, to: u64 },
}

/// From the copier.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) result: Result<Answer, Fault>,
}

/// A request that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Memory { free_bytes: u64, total_bytes: u64 },
}

/// An error on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    pub(super) code: String,
    pub(super) message: String,
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Fault {
        Fault { code: error.code().as_str().into(), message: error.message().into() }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::new(Code::from_name(&fault.code), fault.message)
    }
}

/// Sends a message and all of `fds` with it.
pub(super) fn send<M: Serialize>(sock: impl AsFd, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let len = frame.len() - 4;
    if len > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {len} bytes")));
    }
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    let mut sent = send_with_fds(sock.as_fd(), &frame, fds)?;
    while sent < frame.len() {
        sent += send_with_fds(sock.as_fd(), &frame[sent..], &[])?;
    }
    Ok(())
}

/// The receiving end of a socket.
pub(super) struct Receiver<S> {
    sock: S,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl<S: AsFd> Receiver<S> {
    pub(super) fn new(sock: S) -> Receiver<S> {
        Receiver { sock, body: Vec::new(), fds: Vec::new() }
    }

    /// The next message; `None` when the other side is gone, also in the middle of a message.
    pub(super) fn receive<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let mut len = [0; 4];
        if !fill(self.sock.as_fd(), &mut len, &mut self.fds)? {
            return Ok(None);
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(invalid(format!("a message of {len} bytes, at most {MESSAGE_BYTES_MAX}")));
        }
        self.body.resize(len, 0);
        if !fill(self.sock.as_fd(), &mut self.body, &mut self.fds)? {
            return Ok(None);
        }
        let message = postcard::from_bytes(&self.body).map_err(|error| invalid(format!("no message: {error}")))?;
        Ok(Some(message))
    }

    /// The descriptors that came with the last message.
    pub(super) fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }
}

/// Receives until `buf` is full; false at the end of the stream.
fn fill(sock: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut at = 0;
    while at < buf.len() {
        match recv_with_fds(sock, &mut buf[at..], fds) {
            Ok(0) => return Ok(false),
            Ok(len) => at += len,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
        if fds.len() > FDS_PER_MESSAGE_MAX {
            return Err(invalid(format!("more than {FDS_PER_MESSAGE_MAX} descriptors with one message")));
        }
    }
    Ok(true)
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::super::steps::Run;
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (left, right) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&left, &Request::Segments { lens_bytes: vec![1, 2] }, &[file.as_fd(), file.as_fd()]).unwrap();
        let fault = Fault::from(&Error::new(Code::Exhausted, "full"));
        send(&left, &Reply { id: 7, result: Err(fault) }, &[]).unwrap();
        drop(left);
        let mut receiver = Receiver::new(&right);
        let request = receiver.receive::<Request>().unwrap().unwrap();
        assert!(matches!(request, Request::Segments { lens_bytes } if lens_bytes == [1, 2]));
        assert_eq!(receiver.take_fds().len(), 2);
        let reply = receiver.receive::<Reply>().unwrap().unwrap();
        let error = Error::from(reply.result.unwrap_err());
        assert_eq!((reply.id, error.code(), error.message()), (7, Code::Exhausted, "full"));
        assert!(receiver.receive::<Reply>().unwrap().is_none());
    }

    #[test]
    fn the_largest_messages_fit() {
        let run = Run { from: u64::MAX, row_bytes: u64::MAX, pitch_bytes: u64::MAX, rows: u64::MAX, to: u64::MAX };
        let steps = vec![Step::Copy(run); RUNS_MAX];
        let copy = Request::Copy { id: u64::MAX, region: u64::MAX, piece: u32::MAX, steps };
        let zero = Request::Zero { id: u64::MAX, region: u64::MAX, ranges: vec![(u64::MAX, u64::MAX); RUNS_MAX] };
        for request in [copy, zero] {
            assert!(postcard::to_allocvec(&request).unwrap().len() <= MESSAGE_BYTES_MAX);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&[0xff; 4][..], &[3, 0, 0, 0, 99, 1, 2], &[0; 4]] {
            let (mut left, right) = UnixStream::pair().unwrap();
            left.write_all(bytes).unwrap();
            let error = Receiver::new(&right).receive::<Request>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop(left);
        assert!(Receiver::new(&right).receive::<Request>().unwrap().is_none());
    }
}
