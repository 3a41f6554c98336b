//! Requests and answers as messages.

use std::time::Duration;

use longshore_checkpoint::{SessionId, SlabGranted, SlabHello, SlabKey, SlabSession, SlabWelcome};
use longshore_proto::v1;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};
use v1::slab_request::Request;
use v1::slab_response::Answer;

/// The version of the protocol.
const PROTOCOL: u32 = 1;

/// What a client says first.
///
/// # Errors
/// [`Code::InvalidArgument`] for another request, [`Code::Unsupported`] for another protocol.
pub(super) fn hello(request: v1::SlabRequest, uid: u32) -> Result<SlabHello> {
    let Some(Request::Hello(hello)) = request.request else {
        return Err(wrong("the first request must be hello"));
    };
    if hello.protocol != PROTOCOL {
        let message =
            format!("slab protocol {} is not spoken here, {PROTOCOL} is: client and loader differ", hello.protocol);
        return Err(Error::new(Code::Unsupported, message));
    }
    let session = match hello.session.as_str() {
        "" => None,
        text => Some(SessionId::parse(text)?),
    };
    Ok(SlabHello { uid, session, expected_bytes: hello.expected_bytes, clients: hello.clients })
}

/// Does what a request asks for.
///
/// # Errors
/// What it fails with; the session goes on.
pub(super) async fn work(session: &SlabSession, request: v1::SlabRequest) -> Result<Option<SlabGranted>> {
    match request.request {
        Some(Request::Acquire(acquire)) => {
            let key = key(acquire.key.ok_or_else(|| wrong("an acquire needs a key"))?)?;
            session.acquire(key, Duration::from_millis(acquire.wait_ms)).await.map(Some)
        }
        Some(Request::Seal(seal)) => session.seal(seal.slab).map(|()| None),
        Some(Request::Discard(discard)) => session.discard(discard.slab).map(|()| None),
        Some(Request::Hello(_)) => Err(wrong("hello was said already")),
        None => Err(wrong("a request of a newer version, or none")),
    }
}

fn key(key: v1::SlabKey) -> Result<SlabKey> {
    Ok(SlabKey { attempt: AttemptId::parse(&key.attempt)?, file: key.file, slab_index: key.slab_index })
}

fn wrong(what: &str) -> Error {
    Error::new(Code::InvalidArgument, what)
}

/// `pieces` are those that come with it.
pub(super) fn welcome(welcome: &SlabWelcome, slab_bytes: u64, piece_bytes: Vec<u64>) -> v1::SlabResponse {
    let sealed = welcome.sealed.iter().map(|key| v1::SlabKey {
        attempt: key.attempt.to_string(),
        file: key.file,
        slab_index: key.slab_index,
    });
    v1::SlabResponse {
        // The control page comes first.
        fd_count: 1 + piece_bytes.len() as u32,
        answer: Some(Answer::Welcome(v1::SlabWelcome {
            session: welcome.session.to_string(),
            slab_bytes,
            piece_bytes,
            sealed: sealed.collect(),
        })),
        ..Default::default()
    }
}

/// `new_piece_bytes` are those that come with it.
pub(super) fn granted(granted: &SlabGranted, new_piece_bytes: Vec<u64>) -> v1::SlabResponse {
    let fd_count = new_piece_bytes.len() as u32;
    let grant = match *granted {
        SlabGranted::AlreadyDurable { length_bytes } => {
            v1::SlabGrant { length_bytes, already_durable: true, new_piece_bytes, ..Default::default() }
        }
        SlabGranted::Slab { slab, piece, offset_bytes, length_bytes } => {
            v1::SlabGrant { slab, piece, offset_bytes, length_bytes, new_piece_bytes, already_durable: false }
        }
    };
    v1::SlabResponse { fd_count, answer: Some(Answer::Grant(grant)), ..Default::default() }
}

/// The answer to a request that failed.
pub(super) fn failed(error: &Error) -> v1::SlabResponse {
    v1::SlabResponse {
        error_code: error.code().as_str().to_owned(),
        error_message: error.message().to_owned(),
        ..Default::default()
    }
}
