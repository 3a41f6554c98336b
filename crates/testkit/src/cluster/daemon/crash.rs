//! Daemons that are made to die, and what is waited for then.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{ASK_EVERY, Daemon, READY_TIMEOUT};

/// Where a debug build of the product ends itself by SIGKILL: `NAME`, or `NAME@N` for the N-th time it comes there.
const KILL_AT: &str = "LONGSHORE_KILL_AT";

impl Daemon {
    /// Runs another program than the product's, with the same arguments.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Daemon {
        self.program = Some(path.to_owned());
        self
    }

    /// Removes a variable for the next starts.
    pub fn unset_env(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// Adds arguments for the next starts.
    pub fn add_args(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    }

    /// From the next start on it kills itself at that point, for instance `after_intent` or `part_done@3`; `None` lets
    /// it live.
    pub fn kill_at(&mut self, point: Option<&str>) {
        self.unset_env(KILL_AT);
        if let Some(point) = point {
            self.set_env(KILL_AT, point);
        }
    }

    /// Kills it, when it runs, and starts it again with the same folders and ports, to be killed at that point. It may
    /// die before it is ready: whether it became ready is returned.
    ///
    /// # Panics
    /// When it ends in another way than by SIGKILL, or is not ready in time; with its log.
    pub fn start_again_to_die(&mut self, point: &str) -> bool {
        self.kill();
        self.kill_at(Some(point));
        self.spawn();
        match self.wait_ready_or_end() {
            None => true,
            Some(status) if is_killed(status) => false,
            Some(status) => panic!("{} ended with {status} instead of at {point}:\n{}", self.name, self.log_tail(60)),
        }
    }

    /// Kills it, when it runs, and starts it again with the same folders and ports and no point to die at; waits until
    /// it is ready.
    ///
    /// # Panics
    /// As [`Daemon::wait_ready`] does.
    pub fn start_again_to_live(&mut self) {
        self.kill();
        self.kill_at(None);
        self.start_again();
    }

    /// Waits until SIGKILL has ended it.
    ///
    /// # Panics
    /// When it ends in another way, or not in time; with its log.
    pub fn wait_killed(&self, timeout: Duration) {
        match self.wait_exit(timeout) {
            Some(status) if is_killed(status) => {}
            Some(status) => panic!("{} ended with {status} and not by SIGKILL:\n{}", self.name, self.log_tail(60)),
            None => panic!("{} still runs after {timeout:?}:\n{}", self.name, self.log_tail(60)),
        }
    }

    /// Whether SIGKILL has ended it.
    pub fn was_killed(&self) -> bool {
        self.exit_status().is_some_and(is_killed)
    }

    /// Waits until it is ready, or has ended; how, then.
    ///
    /// # Panics
    /// When neither comes in time; with its log.
    pub fn wait_ready_or_end(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            // In this order: another process may have got its port after its end.
            if let Some(status) = self.exit_status() {
                return Some(status);
            }
            if self.is_ready() {
                return None;
            }
            if Instant::now() > deadline {
                panic!("{} is not ready after {READY_TIMEOUT:?}:\n{}", self.name, self.log_tail(60));
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until its log holds this text.
    ///
    /// # Panics
    /// When it ends before, or the text does not come in time; with its log.
    pub fn wait_log(&self, text: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let runs = self.is_running();
            if self.log().contains(text) {
                return;
            }
            if !runs || Instant::now() > deadline {
                let state = if runs { "runs" } else { "has ended" };
                panic!("{} {state} and has not logged {text:?}:\n{}", self.name, self.log_tail(60));
            }
            std::thread::sleep(ASK_EVERY);
        }
    }
}

fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}
