//! The reference page, made from the command itself so that it cannot be out of date.

use std::fmt::Write;

use clap::{Arg, Command};

use super::key_of;
use crate::env;

/// Markdown: one table of settings for each command, then the variables.
pub fn reference(command: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let mut text = String::new();
    section(&mut text, &command, command.get_name());
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        section(&mut text, sub, &format!("{} {}", command.get_name(), sub.get_name()));
    }
    let _ = writeln!(text, "## Variables\n\n| variable | meaning |\n|---|---|");
    for (name, meaning) in env::ALL {
        let _ = writeln!(text, "| `{name}` | {} |", cell(meaning.trim()));
    }
    text
}

fn section(text: &mut String, command: &Command, title: &str) {
    let is_root = !title.contains(' ');
    let own = |arg: &&Arg| !arg.is_hide_set() && (is_root || !arg.is_global_set());
    let rows: Vec<String> = command.get_arguments().filter(own).filter_map(row).collect();
    let _ = writeln!(text, "## `{title}`\n");
    if let Some(about) = command.get_about() {
        let _ = writeln!(text, "{about}\n");
    }
    if !rows.is_empty() {
        let _ = writeln!(text, "| key | flag | variable | default | meaning |\n|---|---|---|---|---|");
        let _ = writeln!(text, "{}\n", rows.join("\n"));
    }
}

fn row(arg: &Arg) -> Option<String> {
    let key = key_of(arg)?;
    let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = if defaults.is_empty() { String::new() } else { format!("`{}`", defaults.join(", ")) };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    Some(format!("| `{key}` | `--{}` | {variable} | {} | {} |", arg.get_long()?, cell(&default), cell(&help)))
}

/// Text that stays within its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
