//! The file's keys, matched against the arguments of the command.

use clap::{Arg, Command};
use longshore_types::{Code, Error, Result};
use toml::{Table, Value};

use super::key_of;

/// Applies the text of a file; `name` names it in errors.
pub(super) fn apply(mut command: Command, text: &str, name: &str) -> Result<Command> {
    let file: Table = text.parse().map_err(|error: toml::de::Error| {
        Error::new(Code::InvalidArgument, format!("configuration file {name} is not valid TOML: {error}"))
    })?;
    let (tables, common): (Vec<_>, Vec<_>) = file.into_iter().partition(|(_, value)| value.is_table());
    for (key, value) in &common {
        let values = values(key, value, name)?;
        let mut found = false;
        command = set(command, key, &values, &mut found);
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for sub in names {
            command = command.mut_subcommand(sub, |sub| set(sub, key, &values, &mut found));
        }
        if !found {
            return Err(unknown(&format!("key {key:?}"), name));
        }
    }
    for (section, table) in tables {
        if command.find_subcommand(&section).is_none() {
            return Err(unknown(&format!("table [{section}]"), name));
        }
        for (key, value) in table.as_table().into_iter().flatten() {
            let values = values(&format!("{section}.{key}"), value, name)?;
            let mut found = false;
            command = command.mut_subcommand(&section, |sub| set(sub, key, &values, &mut found));
            if !found {
                return Err(unknown(&format!("key {key:?} in [{section}]"), name));
            }
        }
    }
    Ok(command)
}

/// Gives the argument with that key its new defaults, if the command has one.
fn set(command: Command, key: &str, values: &[String], found: &mut bool) -> Command {
    let wanted = key.replace('-', "_");
    let Some(id) =
        command.get_arguments().find(|arg| key_of(arg).as_ref() == Some(&wanted)).map(|arg| arg.get_id().clone())
    else {
        return command;
    };
    *found = true;
    let values = values.to_vec();
    command.mut_arg(id, |arg: Arg| arg.required(false).default_values(values))
}

/// The value as the flag would be given: once for a scalar, several times for an array.
fn values(key: &str, value: &Value, name: &str) -> Result<Vec<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    };
    let values: Option<Vec<String>> = match value {
        Value::Array(items) => items.iter().map(scalar).collect(),
        other => scalar(other).map(|text| vec![text]),
    };
    values.ok_or_else(|| {
        let message =
            format!("key {key:?} in configuration file {name} must be text, a number, true, false or a list of these");
        Error::new(Code::InvalidArgument, message)
    })
}

fn unknown(what: &str, name: &str) -> Error {
    let message = format!("{what} in configuration file {name} is unknown; `longshore help` lists the settings");
    Error::new(Code::InvalidArgument, message)
}
