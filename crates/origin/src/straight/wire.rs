//! One connection, plain or with TLS: heads on the runtime, bodies on the thread that wants them.

use std::io::{self, IoSliceMut, Read};
use std::net::TcpStream;
use std::time::Duration;

use tokio_rustls::rustls::ClientConnection;

use super::head::{self, Framing, HEAD_BYTES_MAX, Head};

/// Read at once while the end of a head is looked for: what comes of the body with it is copied.
const HEAD_READ_BYTES: usize = 4 << 10;
/// Read at once from a socket with TLS; the session alone asks for 4 KiB at a time.
const TLS_READ_BYTES: usize = 64 << 10;

/// An open connection. Its socket does not block while it is idle and while heads are exchanged.
pub(super) struct Wire {
    stream: TcpStream,
    tls: Option<Box<Tls>>,
}

/// A TLS session, and what was read from its socket and not yet taken by it.
struct Tls {
    session: ClientConnection,
    read: Vec<u8>,
    at: usize,
}

impl Tls {
    fn has_unread(&self) -> bool {
        self.at < self.read.len()
    }

    /// Takes plaintext. `None`: more must be read from the socket first.
    fn take(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.session.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.map(Some),
            }
            if !self.has_unread() {
                return Ok(None);
            }
            let mut unread = &self.read[self.at..];
            let before = unread.len();
            self.session.read_tls(&mut unread)?;
            self.at += before - unread.len();
            self.session.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Reads from the socket, or whatever `from` is. 0 at its end.
    fn fill(&mut self, mut from: impl Read) -> io::Result<usize> {
        self.read.resize(TLS_READ_BYTES, 0);
        self.at = TLS_READ_BYTES;
        let len = from.read(&mut self.read)?;
        self.read.truncate(len);
        self.at = 0;
        if len == 0 {
            self.session.read_tls(&mut io::empty())?;
        }
        Ok(len)
    }

    fn is_quiet(&mut self) -> bool {
        let state = self.session.process_new_packets();
        !self.has_unread() && !self.session.wants_write() && state.is_ok_and(|s| s.plaintext_bytes_to_read() == 0)
    }
}

impl Wire {
    pub(super) fn plain(stream: tokio::net::TcpStream, tick: Duration) -> io::Result<Wire> {
        Wire::new(stream, None, tick)
    }

    pub(super) fn tls(stream: tokio::net::TcpStream, session: ClientConnection, tick: Duration) -> io::Result<Wire> {
        Wire::new(stream, Some(Box::new(Tls { session, read: Vec::new(), at: 0 })), tick)
    }

    fn new(stream: tokio::net::TcpStream, tls: Option<Box<Tls>>, tick: Duration) -> io::Result<Wire> {
        let stream = stream.into_std()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(tick))?;
        Ok(Wire { stream, tls })
    }

    /// Whether it is open and nobody has sent anything that was not asked for.
    pub(super) fn is_quiet(&self) -> bool {
        let peeked = self.stream.peek(&mut [0; 1]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Makes an idle connection of it; `None` when there is something on it.
    pub(super) fn into_idle(mut self) -> Option<Wire> {
        let is_quiet = self.tls.as_mut().is_none_or(|tls| tls.is_quiet());
        (is_quiet && self.stream.set_nonblocking(true).is_ok()).then_some(self)
    }

    /// Sends the head of a request and reads that of its response; what came with it is the front of the body.
    pub(super) async fn exchange(self, request: &[u8]) -> io::Result<(Wire, Head, Vec<u8>)> {
        let mut open = Open { stream: tokio::net::TcpStream::from_std(self.stream)?, tls: self.tls };
        open.send(request).await?;
        let mut bytes = Vec::with_capacity(HEAD_READ_BYTES);
        loop {
            if let Some((head, len)) = head::parse(&bytes).map_err(io::Error::other)? {
                bytes.drain(..len);
                match head.status.as_u16() {
                    101 => return Err(io::Error::other("the server switched to a protocol that was not asked for")),
                    // More is to come.
                    100..200 => continue,
                    _ => return Ok((open.close()?, head, bytes)),
                }
            }
            debug_assert!(bytes.len() < HEAD_BYTES_MAX);
            if open.receive(&mut bytes, HEAD_READ_BYTES).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed before message completed"));
            }
        }
    }

    /// Collects a short body, at most `len_max` bytes of it. The connection comes back when the body was complete.
    pub(super) async fn collect(
        self,
        early: Vec<u8>,
        framing: Framing,
        len_max: usize,
    ) -> io::Result<(Vec<u8>, Option<Wire>)> {
        let mut open = Open { stream: tokio::net::TcpStream::from_std(self.stream)?, tls: self.tls };
        let mut bytes = early;
        let wanted = match framing {
            Framing::Length(len) => len_max.min(usize::try_from(len).unwrap_or(len_max)),
            Framing::Chunked | Framing::Close => len_max,
        };
        let is_last = |bytes: &[u8]| framing == Framing::Chunked && bytes.ends_with(b"0\r\n\r\n");
        while bytes.len() < wanted && !is_last(&bytes) {
            let room = HEAD_READ_BYTES.min(wanted - bytes.len());
            if open.receive(&mut bytes, room).await? == 0 {
                break;
            }
        }
        let is_complete = matches!(framing, Framing::Length(len) if len == bytes.len() as u64);
        let wire = if is_complete { open.close()?.into_idle() } else { None };
        let bytes = if framing == Framing::Chunked { head::dechunked(&bytes) } else { bytes };
        Ok((bytes, wire))
    }

    /// From now on, reads wait for bytes.
    pub(super) fn block(&self) -> io::Result<()> {
        self.stream.set_nonblocking(false)
    }

    /// Receives bytes into the front of `slices`; 0 at the end of the connection. Fails with `WouldBlock` after a tick
    /// without any.
    pub(super) fn receive(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.stream).read_vectored(slices) };
        let Some(slice) = slices.iter_mut().find(|slice| !slice.is_empty()) else { return Ok(0) };
        let mut filled = 0;
        loop {
            match tls.take(&mut slice[filled..])? {
                Some(0) => return Ok(filled),
                Some(len) => {
                    filled += len;
                    if filled == slice.len() {
                        return Ok(filled);
                    }
                }
                None if filled > 0 => return Ok(filled),
                None => {
                    while tls.session.wants_write() {
                        tls.session.write_tls(&mut &self.stream)?;
                    }
                    tls.fill(&self.stream)?;
                }
            }
        }
    }
}

/// A connection on the runtime.
struct Open {
    stream: tokio::net::TcpStream,
    tls: Option<Box<Tls>>,
}

/// Reads and writes what can be read and written now.
struct Now<'a>(&'a tokio::net::TcpStream);

impl Read for Now<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl io::Write for Now<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Open {
    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        use io::Write as _;
        if let Some(tls) = &mut self.tls {
            tls.session.writer().write_all(bytes)?;
            return self.flush_tls().await;
        }
        while !bytes.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn flush_tls(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.session.wants_write() {
            self.stream.writable().await?;
            match tls.session.write_tls(&mut Now(&self.stream)) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Appends at most `len_max` bytes; 0 at the end of the connection.
    async fn receive(&mut self, bytes: &mut Vec<u8>, len_max: usize) -> io::Result<usize> {
        let start = bytes.len();
        bytes.resize(start + len_max, 0);
        let received = self.receive_into(&mut bytes[start..]).await;
        bytes.truncate(start + *received.as_ref().unwrap_or(&0));
        received
    }

    async fn receive_into(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(tls) = &mut self.tls
                && let Some(len) = tls.take(buf)?
            {
                return Ok(len);
            }
            self.flush_tls().await?;
            self.stream.readable().await?;
            let read = match &mut self.tls {
                Some(tls) => tls.fill(Now(&self.stream)),
                None => self.stream.try_read(buf),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // With TLS, what came is taken in the next round.
                Ok(len) if self.tls.is_none() => return Ok(len),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn close(self) -> io::Result<Wire> {
        Ok(Wire { stream: self.stream.into_std()?, tls: self.tls })
    }
}
