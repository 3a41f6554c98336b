//! The slab socket, as `docs/checkpoint-protocol.md` has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use longshore_memory::fdpass;
use longshore_proto::v1;
use longshore_testkit::Content;
use longshore_types::{Code, Error, Result};
use prost::Message;
use v1::slab_request::Request;
use v1::slab_response::Answer;

const PROTOCOL: u32 = 1;
/// Longest answer of the loader, in bytes.
const ANSWER_BYTES_MAX: u32 = 1 << 20;
/// How much longer than a slab is waited for an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of a record in the control page, and its word when it is sealed.
const RECORD_BYTES: u64 = 128;
const SEALED: u32 = 2;

/// A session: the shared memory of the loader, as a training process has it.
pub struct SlabClient {
    stream: UnixStream,
    /// To come back with.
    pub session: String,
    /// What was sealed and not durable when the session was gone on with.
    pub sealed: Vec<v1::SlabKey>,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    control: File,
    pieces: Vec<(File, u64)>,
}

impl SlabClient {
    /// Says hello at the socket in that folder: as a new session, or to go on with an earlier one.
    ///
    /// # Errors
    /// Those of the loader, and [`Code::Unavailable`] when it is not there.
    pub fn begin(folder: &Path, session: &str) -> Result<SlabClient> {
        SlabClient::hello(folder, v1::SlabHello { session: session.to_owned(), ..Default::default() })
    }

    /// Says hello with these words; the version of the protocol is filled in.
    ///
    /// # Errors
    /// As [`SlabClient::begin`].
    pub fn hello(folder: &Path, hello: v1::SlabHello) -> Result<SlabClient> {
        let mut stream = UnixStream::connect(folder.join("slabs.sock")).map_err(gone)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(gone)?;
        send(&mut stream, Request::Hello(v1::SlabHello { protocol: PROTOCOL, ..hello }))?;
        let (response, fds) = receive(&mut stream)?;
        let Some(Answer::Welcome(welcome)) = response.answer else { return Err(unexpected("no welcome")) };
        let mut files = fds.into_iter().map(File::from);
        let control = files.next().ok_or_else(|| unexpected("no control page"))?;
        let pieces: Vec<(File, u64)> = files.zip(welcome.piece_bytes.iter().copied()).collect();
        if pieces.len() != welcome.piece_bytes.len() {
            return Err(unexpected("fewer files than pieces"));
        }
        let v1::SlabWelcome { session, slab_bytes, sealed, .. } = welcome;
        Ok(SlabClient { stream, session, sealed, slab_bytes, control, pieces })
    }

    /// A slab for these bytes; waits for one.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn acquire(&mut self, key: v1::SlabKey, wait: Duration) -> Result<v1::SlabGrant> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.stream.set_read_timeout(Some(wait + ANSWER_TIMEOUT)).map_err(gone)?;
        send(&mut self.stream, Request::Acquire(v1::AcquireSlab { key: Some(key), wait_ms }))?;
        let (response, fds) = receive(&mut self.stream)?;
        let Some(Answer::Grant(grant)) = response.answer else { return Err(unexpected("no grant")) };
        if fds.len() != grant.new_piece_bytes.len() {
            return Err(unexpected("another number of files than of pieces"));
        }
        self.pieces.extend(fds.into_iter().map(File::from).zip(grant.new_piece_bytes.iter().copied()));
        Ok(grant)
    }

    /// Copies the first `share` of the slab's bytes: those of `content` from `at` on.
    ///
    /// # Errors
    /// When the grant is outside of the pieces, and those of the file system.
    pub fn copy(&self, grant: &v1::SlabGrant, content: &Content, at: u64, share: f64) -> Result<()> {
        let (piece, bytes) = self.pieces.get(grant.piece as usize).ok_or_else(|| unexpected("no such piece"))?;
        if grant.offset_bytes.checked_add(grant.length_bytes).is_none_or(|end| end > *bytes) {
            return Err(unexpected("a slab outside of its piece"));
        }
        let end = at + (grant.length_bytes as f64 * share) as u64;
        let mut to = grant.offset_bytes;
        for bytes in content.pieces(at..end.min(content.len_bytes())) {
            let bytes = bytes.map_err(gone)?;
            piece.write_all_at(&bytes, to).map_err(gone)?;
            to += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes the seal into the control page, and tells nobody.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn mark(&self, slab: u32) -> Result<()> {
        // One aligned word; the kernel orders it behind the copy.
        self.control.write_all_at(&SEALED.to_le_bytes(), u64::from(slab) * RECORD_BYTES).map_err(gone)
    }

    /// Seals a slab that was copied.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn seal(&mut self, slab: u32) -> Result<()> {
        self.mark(slab)?;
        send(&mut self.stream, Request::Seal(v1::SealSlab { slab }))?;
        receive(&mut self.stream).map(drop)
    }

    /// Gives a slab back.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn discard(&mut self, slab: u32) -> Result<()> {
        send(&mut self.stream, Request::Discard(v1::DiscardSlab { slab }))?;
        receive(&mut self.stream).map(drop)
    }

    /// Acquires, copies and seals one slab of a file; false when it was durable already.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn stage(&mut self, key: v1::SlabKey, content: &Content, wait: Duration) -> Result<bool> {
        let at = u64::from(key.slab_index) * self.slab_bytes;
        let grant = self.acquire(key, wait)?;
        if grant.already_durable {
            return Ok(false);
        }
        self.copy(&grant, content, at, 1.0)?;
        self.seal(grant.slab)?;
        Ok(true)
    }

    /// Bytes of all pieces together.
    pub fn piece_bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| bytes).sum()
    }
}

fn send(stream: &mut UnixStream, request: Request) -> Result<()> {
    let message = v1::SlabRequest { request: Some(request) }.encode_to_vec();
    let mut frame = (message.len() as u32).to_le_bytes().to_vec();
    frame.extend(message);
    stream.write_all(&frame).map_err(gone)
}

fn receive(stream: &mut UnixStream) -> Result<(v1::SlabResponse, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(gone)?;
    let length = u32::from_le_bytes(length);
    if length > ANSWER_BYTES_MAX {
        return Err(unexpected("an answer that is too long"));
    }
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).map_err(gone)?;
    let response = v1::SlabResponse::decode(answer.as_slice()).map_err(|error| unexpected(&error.to_string()))?;
    let mut fds = Vec::new();
    while fds.len() < response.fd_count as usize {
        // One byte a batch, so that a batch is never split.
        if fdpass::recv_with_fds(stream.as_fd(), &mut [0], &mut fds).map_err(gone)? == 0 {
            return Err(Error::new(Code::Unavailable, "the loader closed the slab socket amid descriptors"));
        }
    }
    match response.error_code.as_str() {
        "" => Ok((response, fds)),
        code => Err(Error::new(Code::from_name(code), response.error_message)),
    }
}

fn gone(error: io::Error) -> Error {
    Error::new(Code::Unavailable, format!("the slab socket: {error}")).with_source(error)
}

fn unexpected(what: &str) -> Error {
    Error::new(Code::Internal, format!("the slab socket answers with {what}"))
}
