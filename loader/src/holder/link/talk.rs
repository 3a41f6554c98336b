//! One connection to a holder process: a request, its answer, and the descriptors with either.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use longshore_memory::fdpass::{FDS_PER_MESSAGE_MAX, recv_with_fds, send_with_fds};
use longshore_proto::v1;
use longshore_proto::v1::holder_request::Request;
use longshore_proto::v1::holder_response::Answer;
use longshore_types::{Code, Error, Result};
use prost::Message;

use crate::VERSION;
use crate::holder::frame::{self, left};
use crate::holder::keep::SEGMENTS_MAX;
use crate::holder::message::{CONTROL_BYTES_MAX, PROTOCOL, strange};
use crate::holder::uses::Uses;

/// How long an answer may take: making and freeing a card's memory takes seconds at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection, spoken over in turns.
pub(super) struct Talk {
    pub stream: UnixStream,
    /// Number of the connection.
    pub epoch: u64,
}

impl Talk {
    pub(super) fn open(path: &Path, role: v1::HolderRole) -> Result<(Talk, v1::HolderWelcome, Uses)> {
        let stream = UnixStream::connect(path).map_err(|error| connect_error(path, error))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(left)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(left)?;
        check_peer(&stream, path)?;
        let mut talk = Talk { stream, epoch: 0 };
        let hello = v1::HolderHello { protocol: PROTOCOL, role: role.into(), version: VERSION.to_owned() };
        let (response, _) = talk.exchange(Request::Hello(hello), &[])?;
        if let Some(error) = error_of(&response.error_code, response.error_message) {
            return Err(error);
        }
        let Some(Answer::Welcome(welcome)) = response.answer else { return Err(strange("the greeting")) };
        if welcome.protocol != PROTOCOL {
            let message = format!(
                "the holder at {} (version {}) speaks protocol {}, this loader {PROTOCOL}; restart the holder",
                path.display(),
                welcome.version,
                welcome.protocol
            );
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        Ok((talk, welcome, response.state.map_or_else(Uses::none, Uses::from)))
    }

    pub(super) fn exchange(
        &mut self,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(v1::HolderResponse, Vec<OwnedFd>)> {
        let message = v1::HolderRequest { fd_count: fds.len() as u32, request: Some(request) };
        let bytes = frame::encode(&message, CONTROL_BYTES_MAX)?;
        self.stream.write_all(&bytes).map_err(left)?;
        for batch in fds.chunks(FDS_PER_MESSAGE_MAX) {
            send_with_fds(self.stream.as_fd(), &[0], batch).map_err(left)?;
        }
        self.receive()
    }

    pub(super) fn receive(&mut self) -> Result<(v1::HolderResponse, Vec<OwnedFd>)> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(left)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > CONTROL_BYTES_MAX {
            return Err(strange("the length of a message"));
        }
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).map_err(left)?;
        let response = v1::HolderResponse::decode(bytes.as_slice()).map_err(|_| strange("a message"))?;
        let count = response.fd_count as usize;
        if count > SEGMENTS_MAX {
            return Err(strange("the number of descriptors"));
        }
        let mut fds = Vec::new();
        while fds.len() < count {
            let before = fds.len();
            let bytes = recv_with_fds(self.stream.as_fd(), &mut [0; 1], &mut fds).map_err(left)?;
            frame::check_batch(bytes, before, fds.len(), count)?;
        }
        Ok((response, fds))
    }
}

fn connect_error(path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind;
    let code = match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Code::NotFound,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        _ => Code::Unavailable,
    };
    Error::new(code, format!("cannot connect to the holder at {}: {error}", path.display())).with_source(error)
}

/// A holder is given models: it is this user's, or root's.
fn check_peer(stream: &UnixStream, path: &Path) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(|error| left(error.into()))?;
    match peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        true => Ok(()),
        false => {
            let (path, uid) = (path.display(), peer.uid.as_raw());
            let message =
                format!("the holder at {path} belongs to user {uid}; choose another one with --holder-socket");
            Err(Error::new(Code::PermissionDenied, message))
        }
    }
}

/// The error in an answer.
pub(super) fn error_of(code: &str, message: String) -> Option<Error> {
    (!code.is_empty()).then(|| Error::new(Code::from_name(code), message))
}
