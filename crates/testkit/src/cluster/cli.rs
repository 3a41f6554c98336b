//! The command line, run to its end.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::daemon::clean_command;

/// Longest run of a command, in a debug build on a busy machine.
const RUN_TIMEOUT: Duration = Duration::from_secs(180);

/// A command of the product that is about to run.
pub struct Cli {
    command: Command,
}

impl Cli {
    /// `longshore`, with `home` as home folder and an environment that says nothing else.
    pub fn new(home: &Path) -> Cli {
        Cli { command: clean_command(home) }
    }

    /// With these arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(mut self, args: I) -> Cli {
        self.command.args(args);
        self
    }

    /// With this variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Cli {
        self.command.env(name, value);
        self
    }

    /// With these variables.
    #[must_use]
    pub fn envs(mut self, env: &[(String, String)]) -> Cli {
        self.command.envs(env.iter().map(|(name, value)| (name, value)));
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, does not end in three minutes, or panicked itself.
    pub fn run(self) -> CliOutput {
        self.spawn().wait()
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(mut self) -> RunningCli {
        let what = format!("{:?}", self.command.get_args().collect::<Vec<_>>());
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("longshore starts");
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        RunningCli { what, child, stdout, stderr }
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A stream that breaks ends here; what came before is shown.
        let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A command that runs.
pub struct RunningCli {
    what: String,
    child: Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

impl RunningCli {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in three minutes, or panicked itself.
    pub fn wait(mut self) -> CliOutput {
        let deadline = Instant::now() + RUN_TIMEOUT;
        let status = loop {
            match self.child.try_wait().expect("the state of a child") {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let text = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
        let (stdout, stderr) = (text(self.stdout), text(self.stderr));
        assert!(!stderr.contains("panicked at"), "longshore {} panicked:\n{stdout}\n{stderr}", self.what);
        match status {
            Some(status) => CliOutput { what: self.what, status, stdout, stderr },
            None => panic!("longshore {} does not end:\n{stdout}\n{stderr}", self.what),
        }
    }
}

/// What a command gave.
#[derive(Debug, Clone)]
pub struct CliOutput {
    what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl CliOutput {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Its exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Its output as JSON: the whole of it, else its last line.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        let last = self.stdout.trim().lines().last().unwrap_or_default();
        let parsed = serde_json::from_str(&self.stdout).or_else(|_| serde_json::from_str(last));
        parsed.unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl fmt::Display for CliOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "longshore {}: {}\n{}\n{}", self.what, self.status, self.stdout, self.stderr)
    }
}
