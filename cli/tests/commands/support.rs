//! A model on disk, and the real binary with an environment of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

/// Folders that are gone after the test: a model, a cache, sockets, temporary files.
pub struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let bench = Bench { root: tempfile::tempdir().unwrap() };
        for folder in ["model", "cache", "run", "tmp"] {
            std::fs::create_dir(bench.path(folder)).unwrap();
        }
        std::fs::write(bench.path("model/model.safetensors"), safetensors(20 << 20)).unwrap();
        std::fs::write(bench.path("model/config.json"), r#"{"layers": 2}"#).unwrap();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The binary, told apart from everything else on this machine.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_longshore")), args)
    }

    /// As [`Bench::command`], of a copy of the binary.
    pub fn command_of(&self, binary: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(args).current_dir(self.root.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LONGSHORE_") {
                command.env_remove(name);
            }
        }
        command.env("LONGSHORE_CACHE_DIR", self.path("cache"));
        command.env("LONGSHORE_SOCKET_DIR", self.path("run"));
        command.env("LONGSHORE_LOADER_MEMORY", "256MiB");
        // Budgets, so that how full the machine's disk is does not matter.
        command.env("LONGSHORE_WORKER_DISK", "4GiB");
        command.env("LONGSHORE_CHECKPOINT_DISK", "4GiB");
        command.env("TMPDIR", self.path("tmp"));
        // Where the user's own folders would be, when nothing else is said.
        command.env("XDG_CACHE_HOME", self.path("home"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The JSON that a successful command prints.
    pub fn json(&self, args: &[&str]) -> Value {
        json_of(&self.run(args))
    }
}

pub fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two tensors that fill about `size` bytes.
pub fn safetensors(size: usize) -> Vec<u8> {
    let half = size / 8 * 4;
    let header = json!({
        "first": {"dtype": "F32", "shape": [half / 4], "data_offsets": [0, half]},
        "second": {"dtype": "U8", "shape": [2, half / 2], "data_offsets": [half, 2 * half]},
    })
    .to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..2 * half).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]));
    file
}

/// A daemon that has said it is ready. It is ended with the test.
pub struct Daemon {
    child: Child,
    /// The line of its log that said so.
    pub ready: Value,
}

impl Daemon {
    /// Starts it and reads its log until `message`.
    pub fn start(mut command: Command, message: &str) -> Daemon {
        command.args(["--log-format", "json"]).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        let ready = loop {
            let line = log.next().unwrap_or_else(|| panic!("the daemon ended: {seen}")).unwrap();
            seen.push_str(&line);
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value["message"] == message => break value,
                _ => {}
            }
        };
        // Its pipe must not fill up.
        std::thread::spawn(move || log.for_each(drop));
        Daemon { child, ready }
    }

    /// Sends SIGTERM and gives the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `done`, for things that no event tells of: the end of a process that is not a child of the test.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

pub fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}
