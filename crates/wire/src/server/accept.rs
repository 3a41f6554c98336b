//! Takes connections in, each on a thread of its own, and turns away those that are too many.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use longshore_types::{Code, Error, Result};
use socket2::SockRef;
use tokio_util::sync::CancellationToken;

use crate::server::answer::error_answer;
use crate::server::bell::{Next, wait_loop};
use crate::server::connection;
use crate::server::listen::{BoundTcp, BoundUnix};
use crate::server::shared::Shared;
use crate::stream::Stream;

/// Connections turned away that are kept a moment, so that their 503 is read before the socket closes.
const REFUSED_MAX: usize = 64;
const REFUSED_KEPT: Duration = Duration::from_secs(1);
/// The pause after an accept that failed because the process is out of descriptors or memory.
const STARVED_PAUSE_MS: u32 = 100;
/// Bytes of an answer that wait in the kernel until the network takes them; what is on its way is not counted, so that this
/// limits no connection. Without it the kernel copies megabytes ahead for each, into memory that it first has to get, and
/// that is out of the cores' caches before it is sent: the time of a load then varies more. The sum of the CPU is about the
/// same; more of it is the sender's.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// Accepts until `token` is cancelled.
pub(crate) fn until_cancelled(
    tcp: Option<&BoundTcp>,
    unix: Option<&BoundUnix>,
    shared: &Arc<Shared>,
    token: &CancellationToken,
) -> Result<()> {
    let fds = [tcp.map(|tcp| tcp.listener.as_fd()), unix.map(|unix| unix.listener.as_fd())];
    let fds: Vec<_> = fds.into_iter().flatten().collect();
    let mut acceptor = Acceptor { shared, refused: VecDeque::new(), starved: false };
    wait_loop(&fds, token, |ready| {
        acceptor.starved = false;
        let mut ready = ready.readable.into_iter();
        if let Some(tcp) = tcp
            && ready.next() == Some(true)
        {
            acceptor.take_all(|| {
                let (stream, _) = tcp.listener.accept()?;
                prepare(&stream)?;
                Ok(Stream::Tcp(stream))
            });
        }
        if let Some(unix) = unix
            && ready.next() == Some(true)
        {
            acceptor.take_all(|| unix.listener.accept().map(|(stream, _)| Stream::Unix(stream)));
        }
        acceptor.next()
    })
    .map_err(|e| Error::new(Code::Internal, format!("cannot wait for connections: {e}")).with_source(e))
}

/// Answers leave at once, and the kernel takes no more of them than it can soon send.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A system that does not know it queues more: slower, and nothing else.
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    Ok(())
}

struct Acceptor<'a> {
    shared: &'a Arc<Shared>,
    refused: VecDeque<(Stream, Instant)>,
    starved: bool,
}

impl Acceptor<'_> {
    /// Takes in all that wait at one listener.
    fn take_all(&mut self, accept: impl Fn() -> io::Result<Stream>) {
        loop {
            match accept() {
                Ok(stream) => self.take(stream),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if starved(&e) => {
                    tracing::warn!(error = %e, "cannot accept connections, pausing");
                    self.starved = true;
                    return;
                }
                // The client was gone before it was taken in.
                Err(e) => tracing::debug!(error = %e, "a connection was lost while it was accepted"),
            }
        }
    }

    fn take(&mut self, stream: Stream) {
        let seat = match self.shared.seat(stream) {
            Ok(seat) => seat,
            Err(stream) => return self.refuse(stream),
        };
        self.shared.counters.accepted.fetch_add(1, Relaxed);
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("data".into());
        if let Err(e) = thread.spawn(move || connection::serve(&shared, &seat)) {
            tracing::warn!(error = %e, "no thread for a connection, closing it");
            self.shared.counters.refused.fetch_add(1, Relaxed);
        }
    }

    /// Answers 503 without waiting for the request, and keeps the socket a moment.
    fn refuse(&mut self, stream: Stream) {
        self.shared.counters.refused.fetch_add(1, Relaxed);
        let error = Error::new(Code::Unavailable, "too many connections, come back in a second");
        // Fits in an empty send buffer: cannot block.
        let answer = error_answer(&error, false, false);
        if stream.write_all(&mut [IoSlice::new(&answer)]).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
            if self.refused.len() == REFUSED_MAX
                && let Some((stream, _)) = self.refused.pop_front()
            {
                dismiss(&stream);
            }
            self.refused.push_back((stream, Instant::now()));
        }
    }

    /// Lets go of those turned away long enough ago, and says when to look again.
    fn next(&mut self) -> Next {
        while let Some((stream, since)) = self.refused.front() {
            let left = REFUSED_KEPT.saturating_sub(since.elapsed());
            if !left.is_zero() {
                break;
            }
            dismiss(stream);
            self.refused.pop_front();
        }
        if self.starved {
            return Next { wait_ms_max: Some(STARVED_PAUSE_MS), watch: false };
        }
        let wait_ms_max = self.refused.front().map(|(_, since)| {
            let left = REFUSED_KEPT.saturating_sub(since.elapsed());
            u32::try_from(left.as_millis()).unwrap_or(u32::MAX).saturating_add(1)
        });
        Next { wait_ms_max, watch: true }
    }
}

/// Takes what the client sent, since closing with unread bytes would reset the connection under its answer.
fn dismiss(stream: &Stream) {
    let mut scrap = [0; 4096];
    let _ = stream.set_read_timeout(Duration::from_millis(1));
    let _ = stream.read(&mut [IoSliceMut::new(&mut scrap)]);
}

fn starved(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let starving = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| starving.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn little_of_an_answer_waits_in_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        prepare(&stream).unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().unwrap(), UNSENT_BYTES_MAX);
    }
}
