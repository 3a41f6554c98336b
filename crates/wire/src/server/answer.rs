//! From a request to the head of its answer.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use longshore_memory::fdpass::send_with_fds;
use longshore_types::{BlockChecksum, Code, Error};
use std::fs::File;
use std::os::fd::AsFd;

use crate::growing::GrowingChunk;
use crate::http::request::{Method, RequestHead};
use crate::http::response::HeadWriter;
use crate::http::{CHUNK_PATH, CODE, FD, MEMORY, OFFSET, TIER, status, target};
use crate::server::shared::Shared;
use crate::server::{body, take};
use crate::service::{ChunkBody, ChunkReply, ChunkRequest};
use crate::stream::Stream;

/// What comes after an answer.
pub(crate) struct Answered {
    /// Whether the connection may go on.
    pub(crate) keep_alive: bool,
    /// What the client now reads out of memory that must stay until it has said that it is done.
    pub(crate) lent: Option<Arc<GrowingChunk>>,
}

/// Answers one request.
///
/// # Errors
/// When the answer could not be sent to its end: the connection must be cut.
pub(crate) fn answer(
    shared: &Shared,
    stream: &Stream,
    head: &RequestHead,
    body: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<Answered> {
    let keep_alive = head.keep_alive && !shared.is_draining();
    let exchange = Exchange { shared, stream, head, keep_alive };
    match head.method {
        Method::Put => return Ok(Answered { keep_alive: take::put(&exchange, body)?, lent: None }),
        Method::Delete => take::release(&exchange)?,
        Method::Get if head.path == CHUNK_PATH => return Ok(Answered { keep_alive, lent: exchange.chunk()? }),
        Method::Get => exchange.page()?,
    }
    Ok(Answered { keep_alive, lent: None })
}

/// One request and what is needed to answer it.
pub(crate) struct Exchange<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) stream: &'a Stream,
    pub(crate) head: &'a RequestHead,
    pub(crate) keep_alive: bool,
}

impl Exchange<'_> {
    fn page(&self) -> io::Result<()> {
        let Some(page) = self.shared.service.page(&self.head.path) else {
            return self.error(&Error::new(Code::NotFound, format!("there is no page {}", self.head.path)));
        };
        let status = if (200..600).contains(&page.status) { page.status } else { 500 };
        let content_type: String = page.content_type.chars().filter(|c| !c.is_control()).collect();
        let head = HeadWriter::new(status)
            .header("Content-Type", content_type)
            .header("Content-Length", page.body.len())
            .end(self.keep_alive);
        let body = if self.head.head_only { &[][..] } else { &page.body };
        self.stream.write_all(&mut [IoSlice::new(head.as_bytes()), IoSlice::new(body)])
    }

    /// Answers with a chunk; gives it back when the client now reads it in our memory.
    fn chunk(&self) -> io::Result<Option<Arc<GrowingChunk>>> {
        let target = match target::decode(&self.head.query) {
            Ok(target) => target,
            Err(error) => return self.error(&error).map(|()| None),
        };
        let len = target.key.len_bytes();
        let range = match self.head.range.map_or(Some(0..len), |range| range.within(len)) {
            Some(range) => range,
            None => return self.not_satisfiable(len).map(|()| None),
        };
        let expected = self.head.checksums.clone().map(Arc::from);
        let target::ChunkTarget { key, mode, recheck, prefers_file, .. } = target;
        let request = ChunkRequest { key, range, mode, recheck, expected, prefers_file };
        if request.expected.as_ref().is_some_and(|expected| expected.len() != request.blocks().len()) {
            let why = format!("{request} is asked for with not one checksum for each block");
            return self.error(&Error::new(Code::InvalidArgument, why)).map(|()| None);
        }
        let reply = match self.shared.service.get(&request) {
            Ok(reply) => reply,
            Err(error) => return self.error(&error).map(|()| None),
        };
        match &reply.body {
            ChunkBody::File { file, offset_bytes, checksums } => {
                self.file(&request, &reply, file, *offset_bytes, checksums).map(|()| None)
            }
            ChunkBody::Memory(chunk) => self.memory(&request, &reply, chunk),
        }
    }

    fn file(
        &self,
        request: &ChunkRequest,
        reply: &ChunkReply,
        file: &Arc<File>,
        offset_bytes: u64,
        checksums: &[BlockChecksum],
    ) -> io::Result<()> {
        let (Some(checksums), Some(start)) =
            (checksums.get(request.blocks()), offset_bytes.checked_add(request.range.start))
        else {
            return self.error(&Error::new(Code::Internal, format!("the stored copy of {request} is malformed")));
        };
        let head = self.chunk_head(request, reply).checksums(checksums);
        if self.head.accept_fd && self.stream.is_unix() && !self.head.head_only {
            let head = head.header("Content-Length", 0).header(FD, 1).header(OFFSET, offset_bytes).end(self.keep_alive);
            let sent = send_with_fds(self.stream.as_fd(), head.as_bytes(), &[file.as_fd()])?;
            self.shared.counters.files_handed_over.fetch_add(1, Relaxed);
            return self.stream.write_all(&mut [IoSlice::new(&head.as_bytes()[sent..])]);
        }
        let len = request.range.end - request.range.start;
        let head = head.header("Content-Length", len).end(self.keep_alive);
        if self.head.head_only {
            return self.stream.write_all(&mut [IoSlice::new(head.as_bytes())]);
        }
        body::send_file(self, request, head.as_bytes(), file, start)
    }

    /// Gives the chunk back when it is handed over.
    fn memory(
        &self,
        request: &ChunkRequest,
        reply: &ChunkReply,
        chunk: &Arc<GrowingChunk>,
    ) -> io::Result<Option<Arc<GrowingChunk>>> {
        if chunk.len_bytes() != request.key.len_bytes() {
            let error = Error::new(Code::Internal, format!("the copy of {request} has another length"));
            return self.error(&error).map(|()| None);
        }
        // Errors of a fill that never brings anything still become an answer: the head waits for what goes with it.
        if let Err(error) = self.wait_for_head(request, chunk) {
            return self.error(&error).map(|()| None);
        }
        let head = self.chunk_head(request, reply);
        let takes_it = self.head.accept_memory && self.head.chunked_ok && !self.head.head_only;
        if let Some(file) = chunk.file().filter(|_| takes_it && self.stream.is_unix()) {
            body::lend(self, request, head.header(MEMORY, 1).header(OFFSET, 0), file, chunk)?;
            return Ok(Some(chunk.clone()));
        }
        let len = request.range.end - request.range.start;
        let sent = match chunk.checksums() {
            Some(checksums) => {
                let checksums = checksums.get(request.blocks()).unwrap_or_default();
                let head = head.checksums(checksums).header("Content-Length", len).end(self.keep_alive);
                body::send_memory(self, request, head.as_bytes(), chunk)
            }
            // A client of HTTP/1.0 has waited for the whole range.
            None if !self.head.chunked_ok => {
                let head = head.header("Content-Length", len).end(self.keep_alive);
                body::send_memory(self, request, head.as_bytes(), chunk)
            }
            None => {
                let head = head.header("Transfer-Encoding", "chunked").end(self.keep_alive);
                body::send_growing(self, request, head.as_bytes(), chunk)
            }
        };
        sent.map(|()| None)
    }

    /// Waits for the first block of the range, or for all of it where the body cannot come in pieces.
    fn wait_for_head(&self, request: &ChunkRequest, chunk: &GrowingChunk) -> Result<(), Error> {
        let mut blocks = request.blocks();
        let wanted = if self.head.chunked_ok { blocks.next() } else { blocks.next_back() };
        if let Some(index) = wanted.filter(|_| !self.head.head_only) {
            chunk.block(index, self.shared.options.fill_timeout)?;
        }
        Ok(())
    }

    fn chunk_head(&self, request: &ChunkRequest, reply: &ChunkReply) -> HeadWriter {
        let status = if self.head.range.is_some() { 206 } else { 200 };
        let head = HeadWriter::new(status)
            .header("Content-Type", "application/octet-stream")
            .header("Accept-Ranges", "bytes")
            .header(TIER, reply.tier);
        if self.head.range.is_none() {
            return head;
        }
        let (first, last) = (request.range.start, request.range.end - 1);
        head.header("Content-Range", format_args!("bytes {first}-{last}/{}", request.key.len_bytes()))
    }

    pub(crate) fn error(&self, error: &Error) -> io::Result<()> {
        self.shared.counters.errors.fetch_add(1, Relaxed);
        let answer = error_answer(error, self.keep_alive, self.head.head_only);
        self.stream.write_all(&mut [IoSlice::new(&answer)])
    }

    fn not_satisfiable(&self, len: u64) -> io::Result<()> {
        self.shared.counters.errors.fetch_add(1, Relaxed);
        let head = HeadWriter::new(416)
            .header("Content-Range", format_args!("bytes */{len}"))
            .header(CODE, Code::InvalidArgument)
            .header("Content-Length", 0)
            .end(self.keep_alive);
        self.stream.write_all(&mut [IoSlice::new(head.as_bytes())])
    }
}

/// A whole answer that tells of an error.
pub(crate) fn error_answer(error: &Error, keep_alive: bool, head_only: bool) -> Vec<u8> {
    text_answer(status::of_code(error.code()), error, keep_alive, head_only)
}

/// The answer to a request that was not even looked at, with a status of its own.
pub(crate) fn refusal_answer(status: u16, error: &Error) -> Vec<u8> {
    text_answer(status, error, false, false)
}

fn text_answer(status: u16, error: &Error, keep_alive: bool, head_only: bool) -> Vec<u8> {
    let text = format!("{error}\n");
    let mut head = HeadWriter::new(status)
        .header("Content-Type", "text/plain; charset=utf-8")
        .header(CODE, error.code())
        .header("Content-Length", text.len());
    if status == 503 {
        head = head.header("Retry-After", 1);
    }
    if status == 405 {
        head = head.header("Allow", "GET, HEAD, PUT, DELETE");
    }
    let mut answer = head.end(keep_alive).into_bytes();
    if !head_only {
        answer.extend_from_slice(text.as_bytes());
    }
    answer
}
