//! From a parsed command line to the module that carries it out.

use std::ffi::OsString;

use longshore_runtime::shutdown;
use longshore_types::Result;

use crate::args::{Cli, Command};
use crate::output::Output;
use crate::{checkpoints, daemon, demo, exec, holder, load, ls, pull, reference, ring, save, saves, status, warm};

/// The variables that say what the flags and the file of a command line say, for a process that is started.
pub type Environment = Vec<(String, OsString)>;

/// Runs the command; SIGTERM and SIGINT end it early. Gives the program to become, for `exec`.
///
/// # Errors
/// Those of the command.
pub async fn run(cli: Cli, environment: &Environment) -> Result<Option<exec::Prepared>> {
    let output = Output { json: cli.json };
    let token = shutdown::token()?;
    match cli.command {
        Command::Load(args) => Box::pin(load::run(args, output, token)).await,
        Command::Pull(args) => Box::pin(pull::run(args, output, token)).await,
        Command::Ls(args) => Box::pin(ls::list(args, output, token)).await,
        Command::Stat(args) => Box::pin(ls::stat(args, output, token)).await,
        Command::Warm(args) => Box::pin(warm::warm(args, output, token)).await,
        Command::Free(args) => Box::pin(warm::free(args, output, token)).await,
        Command::Save(args) => Box::pin(save::run(*args, output, token)).await,
        Command::Saves(args) => Box::pin(saves::run(*args, output, token)).await,
        Command::Checkpoints(args) => Box::pin(checkpoints::run(*args, output, token)).await,
        Command::Status(args) => Box::pin(status::run(args, output, token)).await,
        Command::Ring(args) => Box::pin(ring::run(args, output, token)).await,
        Command::Worker(args) => Box::pin(daemon::worker(*args, token)).await,
        Command::Loader(args) => Box::pin(daemon::loader(*args, output, token)).await,
        Command::Holder(args) => Box::pin(holder::run(args, token)).await,
        // They need no runtime: main.rs runs them without one.
        Command::Copier => holder::copier(),
        Command::HugeMemory => holder::huge_memory(),
        Command::Exec(args) => return Box::pin(exec::prepare(args, environment, output, token)).await.map(Some),
        Command::Demo(args) => Box::pin(demo::run(args, output, token)).await,
        Command::Reference => output.line(reference::page()?.trim_end()),
    }
    .map(|()| None)
}
