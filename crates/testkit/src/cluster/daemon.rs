//! One daemon: how it is started, watched, killed and started again.

mod crash;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::metrics::Metrics;
use super::net::{free_port, http_get};
use super::procfs::{Memory, memory_of};

/// How long a daemon may take until it is ready, in a debug build on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a state that only the other process knows is asked for.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// The binary of the product: `LONGSHORE_TEST_BINARY`, else `longshore` in the folder that this test was built to.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LONGSHORE_TEST_BINARY") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("the path of this program");
    // target/debug/deps/test-0123 or target/debug/program
    let found = exe.ancestors().skip(1).take(2).map(|folder| folder.join("longshore")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no longshore binary beside {}: build it first with `cargo build -p longshore-cli`", exe.display())
    })
}

/// A command of the product with nothing of the surrounding environment that could change what it does.
pub(super) fn clean_command(home: &Path) -> Command {
    clean_command_of(&binary(), home)
}

fn clean_command_of(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    let foreign = ["LONGSHORE_", "AWS_", "GOOGLE_", "AZURE_", "HF_", "XDG_", "OTEL_", "HTTP_PROXY", "http_proxy"];
    for (name, _) in std::env::vars_os() {
        if foreign.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env("HOME", home).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// A worker or a loader.
pub struct Daemon {
    kind: String,
    name: String,
    folder: PathBuf,
    ops_address: String,
    data_address: String,
    env: Vec<(String, String)>,
    args: Vec<String>,
    /// Another program than the product's.
    program: Option<PathBuf>,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// `longshore KIND`, with its log at `FOLDER/NAME.log`. Not started yet.
    pub fn new(kind: &str, name: &str, folder: &Path) -> Daemon {
        let ops_address = format!("127.0.0.1:{}", free_port());
        Daemon {
            kind: kind.to_owned(),
            name: name.to_owned(),
            folder: folder.to_owned(),
            env: vec![(format!("LONGSHORE_{}_OPS_LISTEN", kind.to_uppercase()), ops_address.clone())],
            ops_address,
            data_address: String::new(),
            args: Vec::new(),
            program: None,
            child: Mutex::new(None),
        }
    }

    /// With this variable; a later value wins.
    #[must_use]
    pub fn env(mut self, name: &str, value: String) -> Daemon {
        self.env.push((name.to_owned(), value));
        self
    }

    /// With these variables.
    #[must_use]
    pub fn envs(mut self, env: &[(String, String)]) -> Daemon {
        self.env.extend_from_slice(env);
        self
    }

    /// With these arguments.
    #[must_use]
    pub fn args(mut self, args: &[String]) -> Daemon {
        self.args.extend_from_slice(args);
        self
    }

    pub(super) fn data_address(mut self, data_address: String) -> Daemon {
        self.data_address = data_address;
        self
    }

    /// Its name, for instance `worker-0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `host:port` of its metrics and health pages.
    pub fn ops_address(&self) -> &str {
        &self.ops_address
    }

    /// `host:port` of a worker's data plane.
    pub fn data_plane(&self) -> &str {
        &self.data_address
    }

    /// Sets a variable for the next start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the process.
    ///
    /// # Panics
    /// When it cannot be started, or runs already.
    pub fn spawn(&mut self) {
        assert!(!self.is_running(), "{} runs already", self.name);
        let log = || OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let log: (File, File) = (log(), log());
        let mut command = clean_command_of(&self.program.clone().unwrap_or_else(binary), &self.folder);
        command.arg(&self.kind).args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        let child = command.stdout(log.0).stderr(log.1).spawn();
        *self.child.lock() = Some(child.unwrap_or_else(|error| panic!("{} does not start: {error}", self.name)));
    }

    /// Whether `/readyz` says 200.
    pub fn is_ready(&self) -> bool {
        matches!(http_get(&self.ops_address, "/readyz"), Ok((200, _)))
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Panics
    /// When the process ends or is not ready in time; with its log.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if self.is_ready() {
                return;
            }
            if let Some(status) = self.exit_status() {
                panic!("{} ended with {status} before it was ready:\n{}", self.name, self.log_tail(60));
            }
            if Instant::now() > deadline {
                panic!("{} is not ready after {READY_TIMEOUT:?}:\n{}", self.name, self.log_tail(60));
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Starts the process again, with the same folders and ports, and waits until it is ready.
    pub fn start_again(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Process id.
    ///
    /// # Panics
    /// When it was never started.
    pub fn pid(&self) -> u32 {
        self.child.lock().as_ref().expect("a started daemon").id()
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        let mut child = self.child.lock();
        child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// How it ended, when it did.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.lock().as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(child) = self.child.lock().as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; how it ended, `None` when it has not after `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw)?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok()?;
        self.wait_exit(timeout)
    }

    /// Waits for the end.
    pub fn wait_exit(&self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Some(status) = self.exit_status() {
                return Some(status);
            }
            std::thread::sleep(ASK_EVERY);
        }
        None
    }

    /// What the operating system counts as its memory.
    ///
    /// # Panics
    /// When it does not run.
    pub fn memory(&self) -> Memory {
        memory_of(self.pid()).unwrap_or_else(|error| panic!("memory of {}: {error}", self.name))
    }

    /// Its metrics now.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn metrics(&self) -> Metrics {
        match http_get(&self.ops_address, "/metrics") {
            Ok((200, text)) => Metrics::parse(&text),
            answer => panic!("metrics of {}: {answer:?}", self.name),
        }
    }

    /// Path of its log.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    /// All it has logged, over all its starts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let lines = log.lines().rev().take(lines).collect::<Vec<_>>();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
