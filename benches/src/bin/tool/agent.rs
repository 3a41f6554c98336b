//! Limits on command: one JSON object a line, so that buffers stay warm from one round to the next.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::{self, Files, Limits, Object};
use crate::times::Sample;

/// A line of the input.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Memcpy { bytes: u64 },
    ReadWarm { files: Vec<PathBuf>, threads: usize },
    ReadKept { files: Vec<PathBuf>, threads: usize },
    Read { files: Vec<PathBuf>, threads: usize },
    ReadShared { files: Vec<PathBuf>, threads: usize },
    Tcp { files: Vec<PathBuf>, threads: usize },
    Get { address: String, objects: Vec<Object>, threads: usize },
    GetKept { address: String, objects: Vec<Object>, threads: usize },
    TouchMemory { bytes: u64 },
    End,
}

/// Threads of a limit at most.
const THREADS_MAX: usize = 64;

/// Answers until the input ends.
pub fn run() -> anyhow::Result<()> {
    let mut limits = Limits::default();
    say(&json!({ "ready": true, "subject": "limits", "version": env!("CARGO_PKG_VERSION") }))?;
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(Request::End) => return Ok(()),
            Ok(request) => measured(&mut limits, &request),
            Err(error) => Err(error.into()),
        };
        say(&answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })))?;
    }
    Ok(())
}

fn say(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn measured(limits: &mut Limits, request: &Request) -> anyhow::Result<Value> {
    let bounded = |threads: usize| threads.clamp(1, THREADS_MAX);
    let sample: Sample = match request {
        Request::Memcpy { bytes } => limits.memcpy(*bytes)?,
        Request::ReadWarm { files, threads } => limits.read_warm(&Files::open(files)?, bounded(*threads))?,
        Request::ReadKept { files, threads } => limits::read_kept(&Files::open(files)?, bounded(*threads))?,
        Request::Read { files, threads } => limits::read(&Files::open(files)?, bounded(*threads))?,
        Request::ReadShared { files, threads } => limits::read_shared(&Files::open(files)?, bounded(*threads))?,
        Request::Tcp { files, threads } => limits.tcp(&Files::open(files)?, bounded(*threads))?,
        Request::Get { address, objects, threads } => limits.get(address, objects, bounded(*threads))?,
        Request::GetKept { address, objects, threads } => limits::get_kept(address, objects, bounded(*threads))?,
        Request::TouchMemory { bytes } => limits::touch_memory(*bytes)?,
        Request::End => Sample { seconds: 0.0, cpu_seconds: 0.0 },
    };
    Ok(serde_json::to_value(sample)?)
}
