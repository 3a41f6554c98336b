//! Bodies that go from a file to the socket without passing through this process.
//!
//! The HTTP library writes bytes only. So a body gives it a *stand-in* for what lies in a file: a slice of a static area
//! that nobody reads. The connection knows that area by its addresses and sends the file's bytes in its place, in the
//! order in which bodies queued them. That spares the copy into the kernel: the client, and not the
//! server, is to be what a benchmark measures.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::content::{Extent, PIECE_BYTES_MAX};

/// Never read, so that it never takes memory.
static STAND_IN: [u8; PIECE_BYTES_MAX as usize] = [0; PIECE_BYTES_MAX as usize];

/// What is to be sent in place of stand-ins, in order.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<VecDeque<Extent>>>);

impl Outbox {
    /// The stand-in of an extent, which the next writes must carry, whole.
    pub(super) fn queue(&self, extent: Extent) -> Bytes {
        let stand_in = Bytes::from_static(&STAND_IN).slice(..extent.len_bytes as usize);
        self.0.lock().push_back(extent);
        stand_in
    }

    fn front(&self, len_max: usize) -> io::Result<Extent> {
        let front = self.0.lock().front().cloned();
        let extent = front.ok_or_else(|| io::Error::other("a stand-in that nobody queued"))?;
        let len_bytes = extent.len_bytes.min(len_max as u64);
        Ok(Extent { len_bytes, ..extent })
    }

    fn sent(&self, len_bytes: u64) {
        let mut queue = self.0.lock();
        if let Some(front) = queue.front_mut() {
            front.offset_bytes += len_bytes;
            front.len_bytes -= len_bytes;
            if front.len_bytes == 0 {
                queue.pop_front();
            }
        }
    }
}

fn is_stand_in(bytes: &[u8]) -> bool {
    STAND_IN.as_ptr_range().contains(&bytes.as_ptr())
}

/// A connection that sends files in place of stand-ins.
pub(super) struct Connection {
    stream: TcpStream,
    outbox: Outbox,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, outbox: Outbox) -> Connection {
        Connection { stream, outbox }
    }

    fn poll_send_file(&self, cx: &mut Context<'_>, len_max: usize) -> Poll<io::Result<usize>> {
        let extent = self.outbox.front(len_max)?;
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut at = extent.offset_bytes;
                loop {
                    match rustix::fs::sendfile(&self.stream, &*extent.file, Some(&mut at), extent.len_bytes as usize) {
                        Err(Errno::INTR) => {}
                        other => return other.map_err(io::Error::from),
                    }
                }
            });
            match sent {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => {
                    self.outbox.sent(len as u64);
                    return Poll::Ready(Ok(len));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match is_stand_in(buf) {
            true => self.poll_send_file(cx, buf.len()),
            false => Pin::new(&mut self.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let from = bufs.iter().position(|buf| !buf.is_empty()).unwrap_or(0);
        let plain = bufs[from..].iter().take_while(|buf| !is_stand_in(buf)).count();
        match plain {
            0 if from < bufs.len() => self.poll_send_file(cx, bufs[from].len()),
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, &bufs[from..from + plain]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
