//! Starts a private loader as another process and waits until it is ready.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use longshore_runtime::env;
use longshore_types::{Code, Error, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long it may take to be ready: it may have a large cache folder to look through.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest line it may say.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// A private loader that is ready. It lives on when this is dropped.
pub struct PrivateLoader {
    /// Its process.
    pub process: Child,
    /// Its gRPC socket.
    pub loader_socket: PathBuf,
}

impl PrivateLoader {
    /// Asks it to end, which it does by itself, tidily.
    pub fn terminate(&self) {
        terminate(&self.process);
    }
}

/// SIGTERM, not SIGKILL: it has a folder to remove.
fn terminate(process: &Child) {
    let pid = process.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
    {
        tracing::warn!(%error, "cannot end the private loader");
    }
}

#[derive(serde::Deserialize)]
struct Ready {
    loader_socket: PathBuf,
}

/// Starts this very program as a private loader, with sockets in a folder of its own, which it removes.
///
/// # Errors
/// [`Code::Unavailable`] or [`Code::Timeout`] when it does not become ready; it has said why on stderr.
pub async fn start(environment: &[(String, OsString)]) -> Result<PrivateLoader> {
    let failed = |error: std::io::Error| {
        Error::new(Code::Unavailable, format!("cannot start a private loader: {error}")).with_source(error)
    };
    let program = std::env::current_exe().map_err(failed)?;
    let folder = std::env::temp_dir().join(format!("longshore-private-{}", uuid::Uuid::new_v4().simple()));
    let mut process = Command::new(program)
        .args(["loader", "--private", "--remove-socket-dir", "--socket-dir"])
        .arg(&folder)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(env::LOG_LEVEL, log_level(environment))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A group of its own: Ctrl-C at a terminal is the client's to handle.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let Some(stdout) = process.stdout.take() else {
        return Err(Error::new(Code::Internal, "a private loader has no stdout"));
    };
    let mut line = String::new();
    let mut reader = BufReader::new(stdout.take(LINE_BYTES_MAX));
    match tokio::time::timeout(START_TIMEOUT, reader.read_line(&mut line)).await {
        Ok(read) => read.map_err(failed)?,
        Err(_) => {
            terminate(&process);
            return Err(Error::new(Code::Timeout, format!("a private loader was not ready in {START_TIMEOUT:?}")));
        }
    };
    let ready: Ready = serde_json::from_str(&line).map_err(|_| {
        Error::new(Code::Unavailable, "the private loader did not start; it has said why above".to_owned())
    })?;
    Ok(PrivateLoader { process, loader_socket: ready.loader_socket })
}

/// Warnings only, unless the user said otherwise: its stderr is that of the program that will run.
fn log_level(environment: &[(String, OsString)]) -> OsString {
    let name = env::LOG_LEVEL;
    let given = environment.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone());
    let given = given.or_else(|| std::env::var_os(name)).filter(|level| !level.is_empty());
    given.unwrap_or_else(|| "warn".into())
}
