//! Request heads, as the server reads and the client writes them.

use std::fmt::Write as _;
use std::ops::Range;

use longshore_types::BlockChecksum;

use crate::http::{
    ACCEPT_FD, ACCEPT_MEMORY, CHECKSUMS, CHUNK_PATH, HEAD_BYTES_MAX, HEADERS_MAX, HOLD_PATH, WAITS, decimal,
    names_token, parse_checksums, text, write_checksums,
};
use crate::service::{ChunkRequest, PutRequest};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// GET or HEAD.
    Get,
    /// PUT of a chunk.
    Put,
    /// DELETE of what is held.
    Delete,
}

/// What a request asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    /// HEAD: the same head, no body.
    pub(crate) head_only: bool,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) range: Option<ByteRange>,
    /// The client takes a descriptor instead of a body.
    pub(crate) accept_fd: bool,
    /// Also that of memory, and says when it is done with it.
    pub(crate) accept_memory: bool,
    /// HTTP/1.1 clients understand `Transfer-Encoding: chunked`; HTTP/1.0 ones do not.
    pub(crate) chunked_ok: bool,
    pub(crate) keep_alive: bool,
    /// Bytes of the body; only a PUT has one.
    pub(crate) body_bytes: Option<u64>,
    /// Of the chunk that is put; or what the blocks of the range must be.
    pub(crate) checksums: Option<Vec<BlockChecksum>>,
    /// The client would like to be told to go on before it sends the body.
    pub(crate) expects_continue: bool,
    /// It never sends the body before.
    pub(crate) waits: bool,
}

/// A request that is not even looked at: answered with `status`, then the connection closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) message: &'static str,
}

/// The one range of a `Range` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// `bytes=A-B`, both included.
    FromTo(u64, u64),
    /// `bytes=A-`.
    From(u64),
    /// `bytes=-N`: the last N.
    Last(u64),
}

impl ByteRange {
    /// `None` for what RFC 9110 lets a server ignore: another unit, several ranges, nonsense.
    pub(crate) fn parse(value: &str) -> Option<ByteRange> {
        let (first, last) = value.strip_prefix("bytes=")?.trim().split_once('-')?;
        match (first, last) {
            ("", last) => decimal(last).map(ByteRange::Last),
            (first, "") => decimal(first).map(ByteRange::From),
            (first, last) => {
                let (first, last) = (decimal(first)?, decimal(last)?);
                (first <= last).then_some(ByteRange::FromTo(first, last))
            }
        }
    }

    /// The bytes it means in a body of `len` bytes; `None` when it has none of them (status 416).
    pub(crate) fn within(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            ByteRange::FromTo(first, last) => first..last.saturating_add(1).min(len),
            ByteRange::From(first) => first..len,
            ByteRange::Last(count) => len.saturating_sub(count)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Parses the head at the front of `bytes`: `None` while it is incomplete, else the head and its length.
///
/// # Errors
/// The refusal to answer with.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(RequestHead, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let too_large = Refusal { status: 431, message: "the request head is too large" };
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_BYTES_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(too_large),
        Err(_) => return Err(Refusal { status: 400, message: "the request is not HTTP/1" }),
    };
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (method, head_only) = match request.method {
        Some("GET") => (Method::Get, false),
        Some("HEAD") => (Method::Get, true),
        Some("PUT") if path == CHUNK_PATH => (Method::Put, false),
        Some("DELETE") if path == HOLD_PATH => (Method::Delete, false),
        _ => return Err(Refusal { status: 405, message: "this method is not served here" }),
    };
    let chunked_ok = request.version == Some(1);
    let mut head = RequestHead {
        method,
        head_only,
        path: path.to_owned(),
        query: query.to_owned(),
        range: None,
        accept_fd: false,
        accept_memory: false,
        chunked_ok,
        keep_alive: chunked_ok,
        body_bytes: None,
        checksums: None,
        expects_continue: false,
        waits: false,
    };
    for header in request.headers.iter() {
        apply(&mut head, header)?;
    }
    if method == Method::Put && head.body_bytes.is_none() {
        return Err(Refusal { status: 411, message: "a chunk is put with its length" });
    }
    Ok(Some((head, len)))
}

fn apply(head: &mut RequestHead, header: &httparse::Header<'_>) -> Result<(), Refusal> {
    let has_body = Refusal { status: 400, message: "a request body is not accepted" };
    let value = text(header.value).unwrap_or_default();
    let is = |name: &str| header.name.eq_ignore_ascii_case(name);
    if is("range") {
        head.range = ByteRange::parse(value);
    } else if is("connection") {
        if names_token(value, "close") {
            head.keep_alive = false;
        } else if names_token(value, "keep-alive") {
            head.keep_alive = true;
        }
    } else if is(ACCEPT_FD) {
        head.accept_fd = value == "1";
    } else if is(ACCEPT_MEMORY) {
        head.accept_memory = value == "1";
    } else if is(CHECKSUMS) {
        let malformed = Refusal { status: 400, message: "the list of checksums is malformed" };
        head.checksums = Some(parse_checksums(value).ok_or(malformed)?);
    } else if is("expect") {
        head.expects_continue = value.eq_ignore_ascii_case("100-continue");
    } else if is(WAITS) {
        head.waits = value == "1";
    } else if is("content-length") && head.method == Method::Put {
        let malformed = Refusal { status: 400, message: "the length of the body is not told, or told twice" };
        let length = decimal(value).ok_or(malformed.clone())?;
        if head.body_bytes.replace(length).is_some() {
            return Err(malformed);
        }
    } else if is("transfer-encoding") || (is("content-length") && decimal(value) != Some(0)) {
        // Where the body of one request ended, the next would begin: refuse rather than guess.
        return Err(has_body);
    }
    Ok(())
}

/// What a client takes instead of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accept {
    /// Nothing.
    Bytes,
    /// A file, for as long as it likes.
    File,
    /// Also memory, until it has read it.
    FileOrMemory,
}

/// The head of a chunk request.
pub(crate) fn encode_chunk(target: &str, host: &str, request: &ChunkRequest, accept: Accept) -> String {
    let mut head = encode_get(target, host);
    // Cut the empty line that ends the head, add to it, and end it again.
    head.truncate(head.len() - 2);
    let Range { start, end } = request.range;
    let _ = write!(head, "Range: bytes={start}-{}\r\n", end.saturating_sub(1));
    if accept != Accept::Bytes {
        let _ = write!(head, "{ACCEPT_FD}: 1\r\n");
    }
    if accept == Accept::FileOrMemory {
        let _ = write!(head, "{ACCEPT_MEMORY}: 1\r\n");
    }
    if let Some(expected) = request.expected.as_deref().filter(|_| request.recheck) {
        write_checksums(&mut head, expected);
    }
    head.push_str("\r\n");
    head
}

/// The head of a chunk to put. The body follows only when the server says so.
pub(crate) fn encode_put(target: &str, host: &str, request: &PutRequest) -> String {
    let mut head = encode("PUT", target, host);
    let _ = write!(head, "Content-Length: {}\r\nExpect: 100-continue\r\n{WAITS}: 1\r\n", request.key.len_bytes());
    write_checksums(&mut head, &request.checksums);
    head.push_str("\r\n");
    head
}

/// The head of a request without more to say, the empty line included.
pub(crate) fn encode_delete(target: &str, host: &str) -> String {
    encode("DELETE", target, host) + "\r\n"
}

/// The head of a plain GET. The host is ours to write: what is no visible ASCII in it is left out.
pub(crate) fn encode_get(target: &str, host: &str) -> String {
    encode("GET", target, host) + "\r\n"
}

fn encode(method: &str, target: &str, host: &str) -> String {
    let host: String = host.chars().filter(char::is_ascii_graphic).collect();
    format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: longshore\r\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heads_of_curl_and_of_old_clients() {
        let bytes = b"GET /v1/chunk?a=b HTTP/1.1\r\nHost: h\r\nRange: bytes=0-99\r\nAccept: */*\r\n\r\nGET /next";
        let (head, len) = parse(bytes).unwrap().unwrap();
        assert_eq!(&bytes[len..], b"GET /next");
        assert_eq!((head.path.as_str(), head.query.as_str()), ("/v1/chunk", "a=b"));
        assert_eq!(head.range, Some(ByteRange::FromTo(0, 99)));
        assert!(head.keep_alive && head.chunked_ok && !head.head_only && !head.accept_fd);

        let (head, _) = parse(b"HEAD / HTTP/1.0\r\nContent-Length: 0\r\n\r\n").unwrap().unwrap();
        assert!(head.head_only && !head.keep_alive && !head.chunked_ok);
    }

    #[test]
    fn refusals() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_BYTES_MAX));
        for (bytes, status) in [
            (&b"POST / HTTP/1.1\r\n\r\n"[..], 405),
            (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01", 400),
            (many.as_bytes(), 431),
            (long.as_bytes(), 431),
        ] {
            assert_eq!(parse(bytes).unwrap_err().status, status);
        }
    }

    #[test]
    fn ranges() {
        for (value, len, wanted) in [
            ("bytes=0-99", 1000, Some(0..100)),
            ("bytes=10-", 1000, Some(10..1000)),
            ("bytes=-10", 1000, Some(990..1000)),
            ("bytes=-2000", 1000, Some(0..1000)),
            ("bytes=0-18446744073709551615", 1000, Some(0..1000)),
            ("bytes=1000-", 1000, None),
            ("bytes=-0", 1000, None),
        ] {
            assert_eq!(ByteRange::parse(value).unwrap().within(len), wanted, "{value}");
        }
        for ignored in ["bytes=9-0", "bytes=0-1,5-6", "lines=0-1", "bytes=", "bytes=-", "bytes=+1-2", "bytes=a-b"] {
            assert_eq!(ByteRange::parse(ignored), None, "{ignored}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_head_cut_anywhere_is_incomplete_and_then_whole(cut in 0usize..1000, value in "[ -~]{0,60}") {
            let bytes = format!("GET /a?b HTTP/1.1\r\nHost: x\r\nX-Any: {value}\r\n\r\n");
            let cut = cut % bytes.len();
            prop_assert_eq!(parse(&bytes.as_bytes()[..cut]), Ok(None));
            prop_assert_eq!(parse(bytes.as_bytes()).unwrap().unwrap().1, bytes.len());
        }
    }
}
