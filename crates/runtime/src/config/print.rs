//! `--print-config`: what is in force, as a file that could be loaded again.

use std::fmt::Write;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

use super::{Parsed, key_of};

/// What stands in the place of a secret.
const HIDDEN: &str = "\"***\"";

/// The effective configuration of the subcommand that was given, as TOML. Arguments marked `hide_env_values` are
/// secrets: they show as `***`.
pub fn effective(parsed: &Parsed) -> String {
    let mut text = String::new();
    let Some((name, matches)) = parsed.matches.subcommand() else {
        parsed.command.get_arguments().for_each(|arg| line(&mut text, arg, &parsed.matches));
        return text;
    };
    // Global arguments are known to the root and valued in the subcommand's matches.
    let root = parsed.command.get_arguments().filter(|arg| arg.is_global_set());
    root.for_each(|arg| line(&mut text, arg, matches));
    let _ = writeln!(text, "\n[{name}]");
    let command = parsed.command.find_subcommand(name).unwrap_or(&parsed.command);
    let own = command.get_arguments().filter(|arg| !arg.is_global_set());
    own.for_each(|arg| line(&mut text, arg, matches));
    text
}

fn line(text: &mut String, arg: &Arg, matches: &ArgMatches) {
    let (Some(key), id) = (key_of(arg), arg.get_id().as_str()) else { return };
    let source = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => "flag",
        Some(ValueSource::EnvVariable) => "environment",
        Some(_) => "default or file",
        None => {
            let _ = writeln!(text, "# {key} is not set");
            return;
        }
    };
    let value = if arg.is_hide_env_values_set() { HIDDEN.to_owned() } else { value(arg, id, matches) };
    let _ = writeln!(text, "{key} = {value}  # {source}");
}

fn value(arg: &Arg, id: &str, matches: &ArgMatches) -> String {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return matches.get_flag(id).to_string();
    }
    if matches!(arg.get_action(), ArgAction::Count) {
        return matches.get_count(id).to_string();
    }
    let raw: Vec<String> =
        matches.get_raw(id).into_iter().flatten().map(|value| literal(&value.to_string_lossy())).collect();
    let is_list = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    if is_list { format!("[{}]", raw.join(", ")) } else { raw.into_iter().next().unwrap_or_default() }
}

/// A TOML value: whole numbers and truth values bare, all else as a basic string.
fn literal(text: &str) -> String {
    let is_number = text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    if is_number || matches!(text, "true" | "false") {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
