//! Configuration in layers: defaults < file < environment < flag, over any clap command.
//!
//! There is no second list of settings: the values of a TOML file become the defaults of the command's own
//! arguments, so whatever has a flag has a key, is checked by the same parser and shows in the same help. A key at
//! the top of the file applies to every subcommand that knows it; a table `[worker]` to that subcommand alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{ArgMatches, Command};
use longshore_types::{Code, Error, Result};

use crate::env;

mod file;
mod print;
mod reference;

pub use print::effective;
pub use reference::reference;

/// The two options every command has. Flatten it into the root of the command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// Configuration file (TOML): keys are the names of the flags, a table `[worker]` is for that command alone
    #[arg(long, env = env::CONFIG, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration as TOML, with secrets hidden, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
}

/// A command line that has been parsed over a configuration file.
#[derive(Debug)]
pub struct Parsed {
    /// What clap found.
    pub matches: ArgMatches,
    /// The command with the file's values as defaults: [`effective`] needs it.
    pub command: Command,
    /// The file, when there is one.
    pub file: Option<PathBuf>,
}

/// Why a command line was not accepted.
#[derive(Debug)]
pub enum ParseError {
    /// clap's own: wrong use, or `--help` and `--version`, which it prints and exits with.
    Usage(Box<clap::Error>),
    /// The configuration file is unreadable, malformed, or holds an unknown key.
    Config(Error),
}

/// Parses `args` (the first is the program's name) with the values of the file named by `--config` or
/// `LONGSHORE_CONFIG` as defaults.
///
/// # Errors
/// [`ParseError`].
pub fn parse(command: Command, args: Vec<OsString>) -> Result<Parsed, ParseError> {
    let file = find(&args, std::env::var_os(env::CONFIG));
    let mut command = match &file {
        Some(path) => layer(command, path).map_err(ParseError::Config)?,
        None => command,
    };
    // What is parsed with knows fewer variables than what is reported on.
    let matches = ignore_empty_variables(command.clone()).try_get_matches_from_mut(args);
    command.build();
    match matches {
        Ok(matches) => Ok(Parsed { matches, command, file }),
        Err(error) => Err(ParseError::Usage(Box::new(error))),
    }
}

/// Takes variables that are set and empty for unset, as who writes `NAME=` into a manifest or a unit file means them.
/// [`parse`] does so; this is for a command that is parsed without it.
#[must_use]
pub fn ignore_empty_variables(command: Command) -> Command {
    let forget = |arg: clap::Arg| match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(forget).mut_subcommands(ignore_empty_variables)
}

/// Makes the values in the file at `path` the defaults of the command's arguments.
///
/// # Errors
/// [`Code::NotFound`] or [`Code::PermissionDenied`] for the file, [`Code::InvalidArgument`] naming the file and the
/// key that is unknown or malformed.
pub fn layer(command: Command, path: &Path) -> Result<Command> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            _ => Code::InvalidArgument,
        };
        Error::new(code, format!("cannot read configuration file {}: {error}", path.display())).with_source(error)
    })?;
    file::apply(command, &text, &path.display().to_string())
}

/// `--config FILE` or `--config=FILE` among the arguments before `--`, else the variable. It has to be known before
/// clap parses, because the file gives clap its defaults.
fn find(args: &[OsString], variable: Option<OsString>) -> Option<PathBuf> {
    let own = args.iter().skip(1).take_while(|arg| *arg != "--");
    let mut found = None;
    let mut is_value = false;
    for arg in own {
        if is_value {
            found = Some(PathBuf::from(arg));
            is_value = false;
        } else if arg == "--config" {
            is_value = true;
        } else if let Some(path) = arg.to_str().and_then(|text| text.strip_prefix("--config=")) {
            found = Some(PathBuf::from(path));
        }
    }
    found.or_else(|| variable.filter(|value| !value.is_empty()).map(PathBuf::from))
}

/// The name of an argument in a file: that of its flag, with underscores. `None` for what a file cannot set.
fn key_of(arg: &clap::Arg) -> Option<String> {
    let long = arg.get_long()?;
    let settable = matches!(
        arg.get_action(),
        clap::ArgAction::Set | clap::ArgAction::Append | clap::ArgAction::SetTrue | clap::ArgAction::Count
    );
    (settable && !matches!(long, "config" | "print-config" | "help" | "version")).then(|| long.replace('-', "_"))
}

#[cfg(test)]
mod tests;
