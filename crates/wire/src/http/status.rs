//! One table between our codes and HTTP status.

use longshore_types::Code;

/// The status an error is answered with.
pub(crate) fn of_code(code: Code) -> u16 {
    match code {
        Code::InvalidArgument => 400,
        Code::NotFound => 404,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::FailedPrecondition => 412,
        Code::Corrupt => 502,
        Code::Exhausted => 507,
        Code::Unavailable | Code::Cancelled => 503,
        Code::Timeout => 504,
        Code::Unsupported => 501,
        Code::Internal => 500,
    }
}

/// The code of an answer without `Longshore-Code`: not one of our servers, or something in between.
pub(crate) fn to_code(status: u16) -> Code {
    match status {
        400 | 405 | 411 | 413 | 414 | 416 | 431 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        412 => Code::FailedPrecondition,
        501 => Code::Unsupported,
        504 => Code::Timeout,
        507 => Code::Exhausted,
        500 => Code::Internal,
        _ => Code::Unavailable,
    }
}

/// The reason phrase, for people who read the head.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        206 => "Partial Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        507 => "Insufficient Storage",
        _ => "Other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_with_a_reason() {
        for code in Code::ALL {
            assert_ne!(reason(of_code(code)), "Other", "{code}");
        }
    }
}
