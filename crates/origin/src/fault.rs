//! A failed attempt: the error as the user will see it, and whether trying again can help.

use std::time::Duration;

use longshore_types::{Code, Error};

/// Whether and when an attempt may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    Never,
    /// After our own pause, or the server's `Retry-After` when that is longer.
    After(Option<Duration>),
}

/// One failed attempt.
#[derive(Debug)]
pub(crate) struct Fault {
    pub error: Error,
    pub retry: Retry,
}

/// The result of one attempt.
pub(crate) type Attempt<T> = std::result::Result<T, Fault>;

impl Fault {
    /// A failure that repeating cannot help.
    pub(crate) fn fatal(code: Code, message: impl Into<String>) -> Self {
        Fault { error: Error::new(code, message), retry: Retry::Never }
    }

    /// A failure that may pass.
    pub(crate) fn passing(code: Code, message: impl Into<String>) -> Self {
        Fault { error: Error::new(code, message), retry: Retry::After(None) }
    }

    pub(crate) fn code(&self) -> Code {
        self.error.code()
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault { error, retry: Retry::Never }
    }
}
