//! Errors of the file system with the code that tells a user what to do.

use std::io::{Error as IoError, ErrorKind};
use std::path::Path;

use longshore_types::{Code, Error};

/// `cannot <what> <path>: <why>`.
pub fn file_error(what: &str, path: &Path, error: IoError) -> Error {
    let code = match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Code::PermissionDenied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Code::Exhausted,
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory | ErrorKind::IsADirectory => Code::FailedPrecondition,
        ErrorKind::InvalidInput | ErrorKind::InvalidFilename => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Error::new(code, format!("cannot {what} {}: {error}", path.display())).with_source(error)
}
