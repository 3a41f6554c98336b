//! A connected socket of either family, and the few calls both sides need on it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

/// A blocking stream socket. Its timeouts are the socket's own, so that every call on it is bounded.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self, Stream::Unix(_))
    }

    /// How long one read may wait for its first byte.
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// How long one write may wait for the other side to make room.
    pub(crate) fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(timeout),
            Stream::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        }
    }

    /// Reads what is there into `slices`; 0 at the end of the stream.
    pub(crate) fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        restart(|| rustix::io::readv(self, slices))
    }

    /// Fills `slices`, as far as bytes come before the read timeout or the end of the stream; 0 at that end. Waiting inside
    /// the kernel costs less than coming back for each packet. Descriptors that come along are closed.
    pub(crate) fn read_full(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        restart(|| {
            let mut control = RecvAncillaryBuffer::default();
            recvmsg(self, slices, &mut control, RecvFlags::WAITALL).map(|message| message.bytes)
        })
    }

    /// Writes all of `parts`. A peer that closed is an error, never a signal.
    pub(crate) fn write_all(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let written = restart(|| rustix::io::writev(self, parts))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut parts, written);
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn restart<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Whether a socket timeout made the call give up.
pub(crate) fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    fn check(stream: &Stream, mut peer: impl Write) {
        stream.set_read_timeout(Duration::from_millis(20)).unwrap();
        let mut memory = [0; 10];
        let mut read = |len: usize| {
            let (front, back) = memory[..len].split_at_mut(len / 2);
            let count = stream.read_full(&mut [IoSliceMut::new(front), IoSliceMut::new(back)]);
            count.map(|count| memory[..count].to_vec())
        };
        assert!(timed_out(&read(10).unwrap_err()), "nothing came");
        peer.write_all(b"abc").unwrap();
        assert_eq!(read(10).unwrap(), b"abc", "what came is given when no more does");
        peer.write_all(b"defghijkl").unwrap();
        assert_eq!(read(8).unwrap(), b"defghijk", "no more than there is room for");
        drop(peer);
        assert_eq!(read(10).unwrap(), b"l", "the end comes before the memory is full");
        assert_eq!(read(10).unwrap(), b"");
    }

    #[test]
    fn full_reads_end_with_the_bytes_the_time_or_the_stream() {
        let (near, far) = UnixStream::pair().unwrap();
        check(&Stream::Unix(near), far);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        check(&Stream::Tcp(listener.accept().unwrap().0), far);
    }
}
