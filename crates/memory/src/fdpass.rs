//! Descriptors between processes: SCM_RIGHTS over a unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors of one message at most. The kernel's own limit is 253; ours bounds what a receiver must be ready for.
pub const FDS_PER_MESSAGE_MAX: usize = 64;

const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE_MAX));

/// Sends the front of `bytes`, and all of `fds` with its first byte. Returns how many bytes went out; send the rest
/// without the descriptors.
///
/// # Errors
/// `InvalidInput` when there are descriptors but no byte to carry them, or more than [`FDS_PER_MESSAGE_MAX`];
/// otherwise what `sendmsg` reports. Nothing was sent then.
pub fn send_with_fds(sock: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > FDS_PER_MESSAGE_MAX {
        return Err(invalid(format!("{} descriptors in one message, at most {FDS_PER_MESSAGE_MAX}", fds.len())));
    }
    if bytes.is_empty() && !fds.is_empty() {
        return Err(invalid("descriptors need at least one byte to travel with".into()));
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(invalid("descriptors do not fit in a control message".into()));
    }
    let parts = [IoSlice::new(bytes)];
    Ok(retry(|| sendmsg(sock, &parts, &mut control, SendFlags::NOSIGNAL))?)
}

/// Receives into `buf` and appends descriptors that came along to `fds`, each closed on exec. Zero is the end.
///
/// # Errors
/// `InvalidData` when the message holds more than [`FDS_PER_MESSAGE_MAX`] descriptors, or the kernel had to drop some
/// (the process is at its limit); those that did arrive are closed. Otherwise what `recvmsg` reports.
pub fn recv_with_fds(sock: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buf)];
    let message = retry(|| recvmsg(sock, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut received = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            received.extend(rights);
        }
    }
    let count = received.len();
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(corrupt(format!(
            "descriptors were lost on receive, {count} arrived: the limit of open files (ulimit -n) is too low, or the \
             peer sent more than {FDS_PER_MESSAGE_MAX}"
        )));
    }
    // The control buffer's alignment leaves room for a few more than we asked for.
    if count > FDS_PER_MESSAGE_MAX {
        return Err(corrupt(format!("{count} descriptors in one message, at most {FDS_PER_MESSAGE_MAX}")));
    }
    fds.append(&mut received);
    Ok(message.bytes)
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

fn corrupt(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    fn files(count: usize) -> Vec<File> {
        let make = |at: usize| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[at as u8]).unwrap();
            file
        };
        (0..count).map(make).collect()
    }

    fn borrowed(files: &[File]) -> Vec<BorrowedFd<'_>> {
        files.iter().map(AsFd::as_fd).collect()
    }

    #[test]
    fn descriptors_arrive_in_order_closed_on_exec_with_the_first_byte() {
        let (left, right) = UnixStream::pair().unwrap();
        let sent = files(FDS_PER_MESSAGE_MAX);
        assert_eq!(send_with_fds(left.as_fd(), b"hello", &borrowed(&sent)).unwrap(), 5);
        assert_eq!(send_with_fds(left.as_fd(), b"more", &[]).unwrap(), 4);
        drop(left);
        let (mut buf, mut fds) = ([0; 3], Vec::new());
        assert_eq!(recv_with_fds(right.as_fd(), &mut buf, &mut fds).unwrap(), 3);
        assert_eq!((&buf, fds.len()), (b"hel", FDS_PER_MESSAGE_MAX));
        let mut rest = Vec::new();
        loop {
            let mut buf = [0; 100];
            match recv_with_fds(right.as_fd(), &mut buf, &mut fds).unwrap() {
                0 => break,
                len => rest.extend_from_slice(&buf[..len]),
            }
        }
        assert_eq!((&rest[..], fds.len()), (&b"lomore"[..], FDS_PER_MESSAGE_MAX));
        for (at, fd) in fds.into_iter().enumerate() {
            assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
            let mut file = File::from(fd);
            let mut byte = [0];
            file.rewind().unwrap();
            file.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], at as u8);
        }
    }

    #[test]
    fn what_cannot_travel_is_refused() {
        let (left, _right) = UnixStream::pair().unwrap();
        let many = files(FDS_PER_MESSAGE_MAX + 1);
        let error = send_with_fds(left.as_fd(), b"x", &borrowed(&many)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = send_with_fds(left.as_fd(), b"", &borrowed(&many[..1])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_closed_peer_is_an_error_and_no_signal() {
        let (left, right) = UnixStream::pair().unwrap();
        drop(right);
        let error = send_with_fds(left.as_fd(), b"x", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn too_many_descriptors_are_an_error_and_those_that_came_are_closed() {
        const MANY: usize = FDS_PER_MESSAGE_MAX + 20;
        for count in [FDS_PER_MESSAGE_MAX + 1, MANY] {
            let (left, right) = UnixStream::pair().unwrap();
            let (mut observed, sent) = UnixStream::pair().unwrap();
            // Sent by hand, as a hostile peer would.
            let many = vec![sent.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            sendmsg(&left, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
            drop(many);
            drop(sent);
            let mut fds = Vec::new();
            let error = recv_with_fds(right.as_fd(), &mut [0; 8], &mut fds).unwrap_err();
            assert_eq!((error.kind(), fds.len()), (io::ErrorKind::InvalidData, 0));
            // The end of stream shows only once every copy of the other half is closed.
            assert_eq!(observed.read(&mut [0]).unwrap(), 0);
        }
    }
}
