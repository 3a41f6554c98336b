//! The data plane: chunks over HTTP/1.1, by range, into memory which the caller owns.
//!
//! Bulk bytes take the shortest way the kernel has: `sendfile` from a file (or a write from memory) on the server,
//! `readv` straight into the caller's [`Landing`](longshore_memory::Landing) on the client, on plain blocking
//! threads. On one host the server hands over the file's descriptor instead; inside one process there is no socket
//! at all. Whatever the way, the client compares the checksum of every block where the block landed: bytes that were
//! not verified are never reported as fetched.
//!
//! Chunks of checkpoints also travel the other way ([`DataClient::put`]): from who saved them to who caches or holds them.
//!
//! A server is a [`ChunkService`] behind a [`DataServer`]; a client is a [`DataClient`] that asks an [`Endpoint`].
//! The protocol is plain enough for curl: see `src/http.rs`.

use std::ops::Range;

use longshore_types::BLOCK_BYTES;

mod client;
mod growing;
mod http;
mod put;
mod reader;
mod server;
mod service;
mod stats;
mod stream;

pub use client::{ClientOptions, DataClient, Endpoint, Fetched};
pub use growing::{GrowingChunk, GrowingWriter};
pub use reader::{AskAt, FileReader, ReaderOptions, ReaderStats};
pub use server::{DataServer, ServerHandle, ServerOptions};
pub use service::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, Incoming, Mode, Page, PutMode, PutRequest, PutStart, Tier,
};
pub use stats::{ClientStats, ServerStats};

/// The byte range of block `index` in a chunk of `len_bytes`.
fn block_range(index: usize, len_bytes: u64) -> Range<u64> {
    let start = index as u64 * BLOCK_BYTES;
    start..(start + BLOCK_BYTES).min(len_bytes)
}

/// The indices of the blocks that `range` touches.
fn block_span(range: &Range<u64>) -> Range<usize> {
    (range.start / BLOCK_BYTES) as usize..range.end.div_ceil(BLOCK_BYTES) as usize
}
