//! How a process says why it failed: one line (or one JSON object) and the exit code of the error's [`Code`].

use std::io::Write;
use std::process::ExitCode;

use longshore_types::{Code, Error};
use serde_json::json;

/// Where and how to report a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `error: ...` on stderr.
    Text,
    /// The line on stderr, and `{"error": {"code", "message"}}` on stdout for the program that reads it.
    Json,
}

/// Prints the failure and gives the exit code: that of the first [`Error`] in the chain, else [`Code::Internal`]'s.
pub fn report(error: &anyhow::Error, style: Style) -> ExitCode {
    let (code, message) = (code_of(error), message_of(error));
    // Nobody may be reading any more: then only the exit code is left to tell.
    let _ = writeln!(std::io::stderr(), "error: {message}");
    if style == Style::Json {
        let object = json!({"error": {"code": code.as_str(), "message": message}});
        let _ = writeln!(std::io::stdout(), "{object}");
    }
    ExitCode::from(u8::try_from(code.exit_code()).unwrap_or(1))
}

/// The code of the first [`Error`] in the chain.
pub fn code_of(error: &anyhow::Error) -> Code {
    error.chain().find_map(|cause| cause.downcast_ref::<Error>()).map_or(Code::Internal, Error::code)
}

/// The messages of the chain, joined with `: `; a cause whose text is already there is left out.
pub fn message_of(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if message.is_empty() {
            message = text;
        } else if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_told_once_and_the_code_is_found() {
        let io = std::io::Error::other("no space left on device");
        let inner = Error::new(Code::Exhausted, format!("cannot write /x: {io}")).with_source(io);
        let outer = anyhow::Error::new(inner).context("while pulling s3://b/m");
        assert_eq!(code_of(&outer), Code::Exhausted);
        assert_eq!(message_of(&outer), "while pulling s3://b/m: cannot write /x: no space left on device");
        assert_eq!(code_of(&anyhow::anyhow!("plain")), Code::Internal);
    }
}
