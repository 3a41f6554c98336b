//! The `longshore` binary: composes loader and worker, and is the command line.
//!
//! Start reading at [`args`] (what can be said), then [`commands`] (who does it). [`embedded`] is the cache and the
//! loader inside this process, for when no daemon runs.

mod args;
mod attach;
mod checkpoints;
mod chunks;
mod commands;
mod connect;
mod control;
mod daemon;
mod demo;
mod embedded;
mod exec;
mod files;
mod holder;
mod load;
mod ls;
mod node;
mod output;
mod parallel;
mod progress;
mod pull;
mod reference;
mod report;
mod ring;
mod save;
mod saver;
mod saves;
mod status;
mod trace;
mod warm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;
use longshore_runtime::config::{self, ParseError, Parsed};
use longshore_runtime::exit::{Style, report};
use longshore_runtime::telemetry;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Known before anything is parsed, so that even a wrong command line fails as the program asked.
    let style = style(&arguments);
    match config::parse(args::command(), arguments) {
        Ok(mut parsed) => match args::contradiction(&mut parsed) {
            Some(error) => usage(&error, style),
            None => run(&parsed, style).unwrap_or_else(|error| report(&error, style)),
        },
        Err(ParseError::Config(error)) => report(&error.into(), style),
        Err(ParseError::Usage(error)) => usage(&error, style),
    }
}

fn run(parsed: &Parsed, style: Style) -> anyhow::Result<ExitCode> {
    let cli = match Cli::from_arg_matches(&parsed.matches) {
        Ok(cli) => cli,
        Err(error) => return Ok(usage(&error, style)),
    };
    if cli.config.print_config {
        output::Output { json: false }.line(config::effective(parsed).trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    if matches!(cli.command, Command::HugeMemory) {
        // Before anything starts a thread: a user namespace is entered by a process as a whole.
        holder::huge_memory()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (service, level) = match &cli.command {
        Command::Worker(_) => ("longshore-worker", "info"),
        Command::Loader(_) => ("longshore-loader", "info"),
        Command::Holder(_) => ("longshore-holder", "info"),
        Command::Copier => ("longshore-copier", "warn"),
        _ => ("longshore", "warn"),
    };
    let telemetry = telemetry::init(&cli.telemetry, service, level)?;
    if matches!(cli.command, Command::Copier) {
        // Fewer threads beside the driver's own; and it ends when its socket does, not by a token.
        holder::copier()?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("longshore").build()?;
    let outcome = runtime.block_on(commands::run(cli, &args::environment(parsed)));
    // It runs on until the process ends. Waiting for threads that are stuck in a read would keep who has given up, and
    // taking the runtime from under them would make them panic.
    std::mem::forget(runtime);
    let Some(program) = outcome? else { return Ok(ExitCode::SUCCESS) };
    // The last spans leave before this process becomes another one.
    drop(telemetry);
    Err(program.run().into())
}

/// `--json` anywhere before `--`.
fn style(arguments: &[OsString]) -> Style {
    let own = arguments.iter().skip(1).take_while(|argument| *argument != "--");
    if own.into_iter().any(|argument| argument == "--json") { Style::Json } else { Style::Text }
}

/// clap's own message, to where it belongs: help and version are results, not failures.
fn usage(error: &clap::Error, style: Style) -> ExitCode {
    // Nobody may be reading: then only the exit code is left to tell.
    let _ = error.print();
    if error.use_stderr() && style == Style::Json {
        let message = error.render().to_string();
        let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let object = serde_json::json!({"error": {"code": "invalid_argument", "message": message}});
        let _ = output::Output { json: true }.line(&object.to_string());
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
