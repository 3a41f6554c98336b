//! Bodies on their way out: from a file without passing through us, or from memory.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use longshore_memory::fdpass::send_with_fds;
use longshore_types::redact_url;
use rustix::net::SendFlags;

use crate::growing::GrowingChunk;
use crate::http::chunked;
use crate::http::response::HeadWriter;
use crate::server::answer::Exchange;
use crate::service::ChunkRequest;
use crate::stream::{restart, timed_out};

/// Sends `head` and the request's range of a file that holds it from `start_bytes` on.
pub(crate) fn send_file(
    exchange: &Exchange<'_>,
    request: &ChunkRequest,
    head: &[u8],
    file: &File,
    start_bytes: u64,
) -> io::Result<()> {
    // The head waits for the body to share its first packet.
    let mut rest = head;
    while !rest.is_empty() {
        let sent = restart(|| rustix::net::send(exchange.stream, rest, SendFlags::MORE | SendFlags::NOSIGNAL))?;
        rest = &rest[sent..];
    }
    let mut at = start_bytes;
    let end = start_bytes + (request.range.end - request.range.start);
    while at < end {
        let left = (end - at) as usize;
        match restart(|| rustix::fs::sendfile(exchange.stream, file, Some(&mut at), left)) {
            Ok(0) => return Err(unreadable(exchange, request, io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => drop(exchange.shared.counters.sent_bytes.fetch_add(count as u64, Relaxed)),
            Err(e) if timed_out(&e) || gone(&e) => return Err(e),
            Err(e) => return Err(unreadable(exchange, request, e)),
        }
    }
    Ok(())
}

/// Sends `head` and the range from memory, where all of it is.
pub(crate) fn send_memory(
    exchange: &Exchange<'_>,
    request: &ChunkRequest,
    head: &[u8],
    chunk: &GrowingChunk,
) -> io::Result<()> {
    let body = chunk.get(request.range.clone()).ok_or(io::ErrorKind::UnexpectedEof)?;
    let body = if exchange.head.head_only { &[] } else { body };
    exchange.stream.write_all(&mut [IoSlice::new(head), IoSlice::new(body)])?;
    exchange.shared.counters.sent_bytes.fetch_add(body.len() as u64, Relaxed);
    Ok(())
}

/// Sends `head` and the blocks of the range as they come. A fill that fails ends in an error: the caller cuts.
pub(crate) fn send_growing(
    exchange: &Exchange<'_>,
    request: &ChunkRequest,
    head: &[u8],
    chunk: &GrowingChunk,
) -> io::Result<()> {
    if exchange.head.head_only {
        return exchange.stream.write_all(&mut [IoSlice::new(head)]);
    }
    let mut before = head.to_vec();
    for index in request.blocks() {
        let (bytes, checksum) = chunk.block(index, exchange.shared.options.fill_timeout).map_err(io::Error::other)?;
        let block = crate::block_range(index, chunk.len_bytes());
        let piece = request.range.start.max(block.start)..request.range.end.min(block.end);
        let bytes = &bytes[(piece.start - block.start) as usize..(piece.end - block.start) as usize];
        before.extend_from_slice(chunked::line(bytes.len(), checksum).as_bytes());
        let parts = &mut [IoSlice::new(&before), IoSlice::new(bytes), IoSlice::new(chunked::PIECE_END)];
        exchange.stream.write_all(parts)?;
        exchange.shared.counters.sent_bytes.fetch_add(bytes.len() as u64, Relaxed);
        before.clear();
    }
    exchange.stream.write_all(&mut [IoSlice::new(chunked::LAST)])
}

/// Sends the descriptor of a chunk in memory with its head, and then what each block of the range must be, when it is there.
/// A fill that fails ends in an error: the caller cuts.
pub(crate) fn lend(
    exchange: &Exchange<'_>,
    request: &ChunkRequest,
    head: HeadWriter,
    file: BorrowedFd<'_>,
    chunk: &GrowingChunk,
) -> io::Result<()> {
    let mut files = &[file][..];
    let mut send = |bytes: &[u8]| {
        let sent = match std::mem::take(&mut files) {
            [] => 0,
            files => send_with_fds(exchange.stream.as_fd(), bytes, files)?,
        };
        exchange.stream.write_all(&mut [IoSlice::new(&bytes[sent..])])
    };
    exchange.shared.counters.memory_handed_over.fetch_add(1, Relaxed);
    if let Some(checksums) = chunk.checksums() {
        let checksums = checksums.get(request.blocks()).unwrap_or_default();
        let head = head.checksums(checksums).header("Content-Length", 0).end(exchange.keep_alive);
        return send(head.as_bytes());
    }
    let mut pending = head.header("Transfer-Encoding", "chunked").end(exchange.keep_alive).into_bytes();
    for index in request.blocks() {
        let checksum = match chunk.block(index, Duration::ZERO) {
            Ok((_, checksum)) => checksum,
            // What is known goes out before the wait for more.
            Err(_) => {
                send(&pending)?;
                pending.clear();
                chunk.block(index, exchange.shared.options.fill_timeout).map_err(io::Error::other)?.1
            }
        };
        pending.extend_from_slice(chunked::checksum_piece(checksum).as_bytes());
    }
    pending.extend_from_slice(chunked::LAST);
    send(&pending)
}

fn unreadable(exchange: &Exchange<'_>, request: &ChunkRequest, error: io::Error) -> io::Error {
    let url = redact_url(request.key.artifact().url());
    tracing::warn!(%error, url, index = request.key.index(), "a stored chunk cannot be read to its end");
    exchange.shared.service.unreadable(request);
    error
}

/// The reader closed its side.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
