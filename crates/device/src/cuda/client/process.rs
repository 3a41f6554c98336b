//! What runs at the other end of a link.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use longshore_types::{Code, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cuda::copier::copier_main;
use crate::cuda::storage;

/// A copier gives everything back within this time, or is killed.
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// How the copier is started.
#[derive(Debug, Clone)]
pub enum CopierStart {
    /// As a thread of this process, whose context it then shares the fate of: for tests and tools.
    Thread,
    /// As a process. Its standard input is the socket that [`crate::cuda::copier_main`] takes.
    Process {
        /// The executable.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
}

/// A copier that was started. It ends when the other end of its socket is closed.
pub(super) enum Running {
    Thread(JoinHandle<Result<()>>),
    Process(Child),
}

impl Running {
    pub(super) fn start(start: &CopierStart, socket: OwnedFd) -> Result<Running> {
        match start {
            CopierStart::Thread => {
                let thread = thread::Builder::new().name("copier".into()).spawn(move || copier_main(socket));
                thread.map(Running::Thread).map_err(|error| {
                    Error::new(Code::Exhausted, format!("cannot start a thread for the copier: {error}"))
                })
            }
            CopierStart::Process { program, args } => {
                let mut command = Command::new(program);
                command.args(args).stdin(Stdio::from(socket)).stdout(Stdio::null());
                let (name, value) = storage::STRICT;
                command.env(name, value);
                // SAFETY: the closure makes two system calls and allocates nothing, as is required after a fork.
                unsafe { command.pre_exec(ignore_termination) };
                command.spawn().map(Running::Process).map_err(|error| {
                    let message = format!("cannot start the copier {}: {error}", program.display());
                    Error::new(Code::Unavailable, message).with_source(error)
                })
            }
        }
    }

    /// The process, if it is one.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Running::Thread(_) => None,
            Running::Process(child) => Some(child.id()),
        }
    }

    /// Waits for its end, which it was asked for, and says how it ended.
    pub(super) fn wait(self) -> String {
        match self {
            Running::Thread(thread) => match thread.join() {
                Ok(Ok(())) => "it was closed".into(),
                Ok(Err(error)) => error.message().into(),
                Err(_) => "it panicked".into(),
            },
            Running::Process(mut child) => {
                let mut killed = "";
                if !ends_within(&child, END_TIME_MAX) && child.kill().is_ok() {
                    killed = "it did not end by itself, ";
                }
                match child.wait() {
                    Ok(status) => format!("{killed}{status}"),
                    Err(error) => format!("{killed}it cannot be waited for: {error}"),
                }
            }
        }
    }
}

/// A terminal's interrupt and a service manager's signal go to every process of a group. The copier stays until the
/// daemon has finished with it. Ignored signals stay ignored in the new program.
fn ignore_termination() -> std::io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: ignoring a signal has no handler that could be wrong.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits for the end of a child without reaping it; false when it takes longer, or cannot be waited for this way.
fn ends_within(child: &Child, timeout: Duration) -> bool {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let timeout = Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout))), Ok(1))
}
