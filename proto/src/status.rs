//! The one table between our error codes and gRPC's.

use longshore_types::{Code, Error};

/// Header in which the exact code travels: several of ours share one of gRPC's in other languages' eyes.
pub const CODE_HEADER: &str = "longshore-code";

/// Turns an error of ours into what a gRPC client gets. The message is sent, its sources are not.
pub fn to_status(error: &Error) -> tonic::Status {
    let mut status = tonic::Status::new(to_grpc(error.code()), error.message());
    if let Ok(value) = error.code().as_str().parse() {
        status.metadata_mut().insert(CODE_HEADER, value);
    }
    status
}

/// Turns what a gRPC server answered into an error of ours.
pub fn from_status(status: &tonic::Status) -> Error {
    let named = status.metadata().get(CODE_HEADER).and_then(|value| value.to_str().ok());
    let code = named.map_or_else(|| from_grpc(status.code()), Code::from_name);
    Error::new(code, status.message())
}

fn to_grpc(code: Code) -> tonic::Code {
    match code {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Corrupt => tonic::Code::DataLoss,
        Code::Exhausted => tonic::Code::ResourceExhausted,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::Timeout => tonic::Code::DeadlineExceeded,
        Code::Cancelled => tonic::Code::Cancelled,
        Code::Unsupported => tonic::Code::Unimplemented,
        Code::Internal => tonic::Code::Internal,
    }
}

fn from_grpc(code: tonic::Code) -> Code {
    Code::ALL.into_iter().find(|&ours| to_grpc(ours) == code).unwrap_or(Code::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for code in Code::ALL {
            let error = from_status(&to_status(&Error::new(code, "why")));
            assert_eq!((error.code(), error.message()), (code, "why"));
            assert_eq!(from_grpc(to_grpc(code)), code);
        }
    }
}
