//! Wakes a thread in `poll` when a token is cancelled: a waker that writes to an event descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio_util::sync::CancellationToken;

struct Bell(OwnedFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // A full counter has rung already, and no other error is possible.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// What [`wait_loop`] found.
pub(crate) struct Ready {
    /// One flag a descriptor, in their order.
    pub(crate) readable: Vec<bool>,
}

/// Calls `round` with the descriptors that are readable, again and again until `token` is cancelled. What `round`
/// returns says how long the next wait may be at most, in milliseconds, and whether the descriptors count in it.
pub(crate) fn wait_loop(
    fds: &[BorrowedFd<'_>],
    token: &CancellationToken,
    mut round: impl FnMut(Ready) -> Next,
) -> io::Result<()> {
    let bell = Arc::new(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
    let waker = Waker::from(bell.clone());
    let mut cancelled = pin!(token.cancelled());
    let mut next = Next { wait_ms_max: None, watch: true };
    while cancelled.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
        let mut polled = vec![PollFd::from_borrowed_fd(bell.0.as_fd(), PollFlags::IN)];
        if next.watch {
            polled.extend(fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        }
        let timeout = next
            .wait_ms_max
            .map(|ms| Timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut readable: Vec<bool> = polled[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        readable.resize(fds.len(), false);
        next = round(Ready { readable });
    }
    Ok(())
}

/// How to wait for the next round.
pub(crate) struct Next {
    pub(crate) wait_ms_max: Option<u32>,
    pub(crate) watch: bool,
}
