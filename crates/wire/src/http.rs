//! The protocol, without any I/O: bytes in, checked values out. Nothing here allocates by a size the peer names.
//!
//! ```text
//! GET /v1/chunk?url=U&version=V&size=S&index=I[&mode=cached|peer][&recheck=1][&file=1] HTTP/1.1
//! Range: bytes=A-B                    within the chunk; without it the whole chunk
//! Longshore-Accept-Fd: 1              on a unix socket: the file itself will do
//! Longshore-Accept-Memory: 1          so will the memory, see below
//!
//! HTTP/1.1 206 Partial Content        (200 without Range)
//! Longshore-Tier: memory|disk|peer|origin
//! Longshore-Checksums: hex,hex,...    CRC-64/NVME of each whole block the range touches
//! Content-Length: N
//! ```
//!
//! A chunk that is still filling has no checksums yet. It comes with `Transfer-Encoding: chunked`, one HTTP chunk a
//! block, and the block's checksum as the extension `;crc64nvme=<hex>`; a fill that fails cuts the connection before
//! the last chunk. A file handed over comes as `Longshore-Fd: 1`, `Longshore-Offset: <where the chunk begins>` and an
//! empty body, the descriptor attached to the head.
//!
//! Memory is handed over in the same way, as `Longshore-Memory: 1`. A complete chunk has its checksums and an empty body. Of
//! one that is filling, the body (again one HTTP chunk a block) is the checksum of each block, in hex, sent when the block
//! is there to be read. The memory stays what it is until the client sends its next bytes, which is an empty line when it
//! has no other request, or closes the connection, or takes longer than a reader may; what it reads later has other
//! checksums. An error is its status, `Longshore-Code` and a text body.
//!
//! ```text
//! PUT /v1/chunk?url=U&version=V&size=S&index=I[&hold=attempt] HTTP/1.1
//! Content-Length: N                   of the whole chunk
//! Longshore-Checksums: hex,hex,...    of each of its blocks
//! Expect: 100-continue                a chunk that is there is answered with 200, and never sent
//! Longshore-Waits: 1                  the body is sent after `100 Continue` only, however long that takes
//!
//! HTTP/1.1 201 Created                verified, and kept as asked for
//!
//! DELETE /v1/hold?attempt=A HTTP/1.1  what is held for that attempt is let go
//! ```
//!
//! With `file=1` a chunk that is in memory and in a file comes as the file.
//! With `recheck=1`, `Longshore-Checksums` in a GET says what the blocks of the range must be.

use std::fmt::Write as _;

use longshore_types::{BLOCKS_PER_CHUNK, BlockChecksum};

pub(crate) mod chunked;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod status;
pub(crate) mod target;

/// The longest head that is read, request or response: two percent-encoded texts of 2 KiB and some headers.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most headers of a head.
pub(crate) const HEADERS_MAX: usize = 64;
/// The path of the chunk route.
pub(crate) const CHUNK_PATH: &str = "/v1/chunk";

/// The path of what is held.
pub(crate) const HOLD_PATH: &str = "/v1/hold";

pub(crate) const CHECKSUMS: &str = "Longshore-Checksums";
pub(crate) const TIER: &str = "Longshore-Tier";
pub(crate) const CODE: &str = "Longshore-Code";
pub(crate) const FD: &str = "Longshore-Fd";
pub(crate) const MEMORY: &str = "Longshore-Memory";
pub(crate) const ACCEPT_MEMORY: &str = "Longshore-Accept-Memory";
pub(crate) const ACCEPT_FD: &str = "Longshore-Accept-Fd";
pub(crate) const OFFSET: &str = "Longshore-Offset";
pub(crate) const WAITS: &str = "Longshore-Waits";

/// Adds the header with checksums.
fn write_checksums(head: &mut String, checksums: &[BlockChecksum]) {
    let _ = write!(head, "{CHECKSUMS}: ");
    for (i, checksum) in checksums.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(head, "{comma}{checksum}");
    }
    head.push_str("\r\n");
}

/// Its value; at most one a block of a chunk.
fn parse_checksums(value: &str) -> Option<Vec<BlockChecksum>> {
    let mut checksums = Vec::with_capacity(BLOCKS_PER_CHUNK);
    for item in value.split(',') {
        if checksums.len() == BLOCKS_PER_CHUNK {
            return None;
        }
        checksums.push(BlockChecksum::parse(item.trim())?);
    }
    Some(checksums)
}

/// The value of a header as text, trimmed; `None` when it is not ASCII text.
fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().map(str::trim)
}

/// Decimal digits only: no sign, no spaces.
fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Whether a comma-separated header value names `token`.
fn names_token(value: &str, token: &str) -> bool {
    value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token))
}
