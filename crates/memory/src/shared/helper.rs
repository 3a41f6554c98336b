//! A mount for a process that may not mount: a short-lived process enters a user namespace of its own, where it may, and
//! hands over what it made.
//!
//! It has to be a process: a namespace can only be entered before there are threads. What it mounts belongs to the
//! caller's user all the same, who is mapped to itself, and stays when it ends.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use longshore_types::{Code, Error, Result};
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::mount::PrivateMount;
use crate::fdpass;

/// The helper makes a few system calls; after so long it is taken to be stuck.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest answer; a longer one is cut.
const ANSWER_BYTES_MAX: usize = 512;

/// A program that calls [`mount_helper_main`] with its standard input.
#[derive(Debug, Clone)]
pub struct MountHelper {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl MountHelper {
    /// Starts it and waits for its answer.
    pub(super) fn ask(&self) -> io::Result<PrivateMount> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.program.display())))?;
        let answer = receive(&ours);
        // Whatever it said, it has nothing more to do; the mount is not its own.
        let _ = child.kill();
        child.wait()?;
        answer
    }
}

fn receive(socket: &UnixStream) -> io::Result<PrivateMount> {
    socket.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let (mut text, mut fds) = ([0; ANSWER_BYTES_MAX], Vec::new());
    let len = match fdpass::recv_with_fds(socket.as_fd(), &mut text, &mut fds) {
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let seconds = ANSWER_TIME_MAX.as_secs();
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {seconds} s")));
        }
        Err(error) => return Err(error),
    };
    match (<[OwnedFd; 2]>::try_from(fds), len) {
        (Ok([writable, read_only]), _) => Ok(PrivateMount::of(writable, read_only)),
        (Err(_), 0) => Err(io::Error::other("the helper ended without an answer")),
        (Err(_), len) => Err(io::Error::other(String::from_utf8_lossy(&text[..len]).into_owned())),
    }
}

/// The other side: makes a private mount in namespaces of its own, and sends it, or why there is none, over `socket`. The
/// process must have one thread.
///
/// # Errors
/// [`Code::Unavailable`] when there was nobody to answer.
pub fn mount_helper_main(socket: OwnedFd) -> Result<()> {
    let sent = match in_own_namespaces() {
        Ok(mount) => fdpass::send_with_fds(socket.as_fd(), b"made", &mount.fds().map(AsFd::as_fd)),
        Err(error) => {
            let text = error.to_string();
            fdpass::send_with_fds(socket.as_fd(), &text.as_bytes()[..text.len().min(ANSWER_BYTES_MAX)], &[])
        }
    };
    sent.map(drop).map_err(|error| {
        Error::new(Code::Unavailable, format!("nobody took the private mount: {error}")).with_source(error)
    })
}

fn in_own_namespaces() -> io::Result<PrivateMount> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: the table of descriptors stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(|errno| io::Error::other(format!("unshare: {errno}")))?;
    // Groups may only be mapped by who has given up changing them.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{user} {user} 1")),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    }
    PrivateMount::make()
}
