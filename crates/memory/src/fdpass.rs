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
/// `InvalidData` when the kernel had to drop descriptors (too many in the message, or the process is at its limit);
/// those that did arrive are closed. Otherwise what `recvmsg` reports.
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
    if message.flags.contains(ReturnFlags::CTRUNC) {
        let reason = format!(
            "descriptors were lost on receive: {} arrived; raise the limit of open files (ulimit -n)",
            received.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    fds.append(&mut received);
    Ok(message.bytes)
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
