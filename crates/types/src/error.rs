//! One error type that crosses every wall of the system, and the table of its codes.
//!
//! A [`Code`] says what the caller can do about it; the message says what was being done, to what, and why it
//! failed. The same code becomes a gRPC status, an exit code and a Python exception, so it is defined once.

use std::fmt;

/// What went wrong, as far as a caller can act on it. Mirrors the gRPC canonical codes of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request itself is wrong: repeating it cannot help.
    InvalidArgument,
    /// The object, bucket, model or file does not exist.
    NotFound,
    /// Credentials are missing, wrong or expired.
    Unauthenticated,
    /// The credentials are known but do not allow this.
    PermissionDenied,
    /// The object changed since it was resolved, or the state does not allow the call: resolve again.
    FailedPrecondition,
    /// Bytes are not what they should be: checksum mismatch, malformed header, truncated object.
    Corrupt,
    /// A budget, a disk or a quota is full.
    Exhausted,
    /// The other side cannot be reached or asks to come back later.
    Unavailable,
    /// A deadline passed; the message names what timed out.
    Timeout,
    /// The caller went away or the daemon is shutting down.
    Cancelled,
    /// The feature is not in this build or on this machine.
    Unsupported,
    /// A defect of ours or an unexpected failure of the machine.
    Internal,
}

impl Code {
    /// Every code, in the order of the reference page.
    pub const ALL: [Code; 12] = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::FailedPrecondition,
        Code::Corrupt,
        Code::Exhausted,
        Code::Unavailable,
        Code::Timeout,
        Code::Cancelled,
        Code::Unsupported,
        Code::Internal,
    ];

    /// The stable name used in JSON output, HTTP headers and metric labels, for instance `not_found`.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "invalid_argument",
            Code::NotFound => "not_found",
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "permission_denied",
            Code::FailedPrecondition => "failed_precondition",
            Code::Corrupt => "corrupt",
            Code::Exhausted => "exhausted",
            Code::Unavailable => "unavailable",
            Code::Timeout => "timeout",
            Code::Cancelled => "cancelled",
            Code::Unsupported => "unsupported",
            Code::Internal => "internal",
        }
    }

    /// The inverse of [`Code::as_str`]; an unknown name is [`Code::Internal`], so that a newer peer's code still fails.
    pub fn from_name(name: &str) -> Code {
        Code::ALL.into_iter().find(|code| code.as_str() == name).unwrap_or(Code::Internal)
    }

    /// The process exit code of the command line: 2 for wrong use, 3..=13 for the rest.
    pub fn exit_code(self) -> i32 {
        match self {
            Code::InvalidArgument => 2,
            Code::NotFound => 3,
            Code::Unauthenticated => 4,
            Code::PermissionDenied => 5,
            Code::FailedPrecondition => 6,
            Code::Corrupt => 7,
            Code::Exhausted => 8,
            Code::Unavailable => 9,
            Code::Timeout => 10,
            Code::Cancelled => 11,
            Code::Unsupported => 12,
            Code::Internal => 13,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure with its [`Code`], a message made for the user, and the error it came from.
///
/// Crates with errors of their own (memory, wire, origin) convert into this one at their edge.
#[derive(Debug, Clone)]
pub struct Error {
    code: Code,
    message: String,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything that can fail with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error; `message` is lower case, without a full stop, and says what the user can do.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), source: None }
    }

    /// Keeps the error this one came from.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(std::sync::Arc::new(source));
        self
    }

    /// Puts `context` in front of the message: `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// What the caller can do about it.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message without its sources.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same call may succeed when repeated, perhaps at another source.
    pub fn is_retryable(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::Timeout | Code::Corrupt)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_exit_codes_differ() {
        let mut exits = std::collections::HashSet::new();
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.as_str()), code);
            assert!(exits.insert(code.exit_code()), "{code} shares its exit code");
        }
        assert_eq!(Code::from_name("from_the_future"), Code::Internal);
    }
}
