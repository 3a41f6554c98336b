//! The reference page, made from the command itself so that it cannot be out of date.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::{Arg, Command};

use super::key_of;
use crate::env;

/// Markdown: one table of settings for each command, one of those that several commands share, then the variables.
pub fn reference(command: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let subs: Vec<&Command> =
        command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help").collect();
    let mut users: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for sub in &subs {
        for row in rows(sub, false) {
            users.entry(row).or_default().push(sub.get_name());
        }
    }
    let mut text = String::new();
    table(&mut text, &format!("## `{}`", command.get_name()), &command, &rows(&command, true));
    for sub in &subs {
        let own: Vec<String> = rows(sub, false).into_iter().filter(|row| users[row].len() == 1).collect();
        table(&mut text, &format!("## `{} {}`", command.get_name(), sub.get_name()), sub, &own);
    }
    let _ = writeln!(text, "## Settings of several commands\n");
    let _ = writeln!(text, "| key | flag | variable | default | meaning | commands |\n|---|---|---|---|---|---|");
    for (row, commands) in users.iter().filter(|(_, commands)| commands.len() > 1) {
        let _ = writeln!(text, "{row} {} |", commands.join(", "));
    }
    let _ = writeln!(text, "\n## Variables\n\n| variable | meaning |\n|---|---|");
    for (name, meaning) in env::ALL {
        let _ = writeln!(text, "| `{name}` | {} |", cell(meaning.trim()));
    }
    text
}

/// The settings of one command; the global ones are those of the root.
fn rows(command: &Command, is_root: bool) -> Vec<String> {
    let own = |arg: &&Arg| !arg.is_hide_set() && (is_root || !arg.is_global_set());
    command.get_arguments().filter(own).filter_map(row).collect()
}

fn table(text: &mut String, title: &str, command: &Command, rows: &[String]) {
    let _ = writeln!(text, "{title}\n");
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
