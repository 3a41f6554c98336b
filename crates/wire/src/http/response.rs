//! Response heads, as the client reads them and the server writes them.

use std::fmt::Write as _;

use longshore_types::{BlockChecksum, Code};

use crate::http::{
    CHECKSUMS, CODE, FD, HEAD_BYTES_MAX, HEADERS_MAX, MEMORY, OFFSET, TIER, decimal, names_token, parse_checksums,
    status, text, write_checksums,
};
use crate::service::Tier;

/// The status that asks for the body.
pub(crate) const CONTINUE: u16 = 100;

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
}

/// A response head, checked as far as it can be without the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) code: Option<Code>,
    pub(crate) tier: Option<Tier>,
    /// At most one a block of a chunk.
    pub(crate) checksums: Option<Vec<BlockChecksum>>,
    /// What came with the head.
    pub(crate) handed_over: Option<HandedOver>,
}

/// A descriptor in the place of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandedOver {
    /// Where the chunk begins in it.
    pub(crate) offset_bytes: u64,
    /// It is memory of the server, lent until the client says that it is done.
    pub(crate) is_memory: bool,
}

/// Parses the head at the front of `bytes`: `None` while it is incomplete, else the head and its length.
///
/// # Errors
/// What is wrong with it, for the message.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_BYTES_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err("the head of the answer is too large"),
        Err(_) => return Err("the answer is not HTTP/1"),
    };
    let known = |code: &u16| *code == CONTINUE || (200..600).contains(code);
    let status = response.code.filter(known).ok_or("the status has no meaning here")?;
    let mut fields = Fields { keep_alive: response.version == Some(1), ..Fields::default() };
    for header in response.headers.iter() {
        fields.apply(header)?;
    }
    let framing = match (fields.chunked, fields.length) {
        (false, None) if status == CONTINUE => Framing::Length(0),
        _ if status == CONTINUE => return Err("an answer that asks for more has a body"),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (true, Some(_)) => return Err("the answer has two lengths"),
        (false, None) => return Err("the answer does not say how long it is"),
    };
    let handed_over = match (fields.fd || fields.memory, fields.offset) {
        (false, _) => None,
        (true, Some(offset_bytes)) => Some(HandedOver { offset_bytes, is_memory: fields.memory }),
        (true, None) => return Err("a file without an offset"),
    };
    let Fields { keep_alive, code, tier, checksums, .. } = fields;
    Ok(Some((ResponseHead { status, framing, keep_alive, code, tier, checksums, handed_over }, len)))
}

/// The headers we know, while they are read.
#[derive(Default)]
struct Fields {
    keep_alive: bool,
    chunked: bool,
    length: Option<u64>,
    code: Option<Code>,
    tier: Option<Tier>,
    checksums: Option<Vec<BlockChecksum>>,
    fd: bool,
    memory: bool,
    offset: Option<u64>,
}

impl Fields {
    fn apply(&mut self, header: &httparse::Header<'_>) -> Result<(), &'static str> {
        let value = text(header.value).unwrap_or_default();
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let length = decimal(value).ok_or("the length is no number")?;
            if self.length.replace(length).is_some() {
                return Err("the answer has two lengths");
            }
        } else if is("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err("the transfer encoding is not known");
            }
            self.chunked = true;
        } else if is("connection") {
            self.keep_alive &= !names_token(value, "close");
        } else if is(CODE) {
            self.code = Some(Code::from_name(value));
        } else if is(TIER) {
            self.tier = Some(Tier::from_name(value).ok_or("the tier is not known")?);
        } else if is(CHECKSUMS) {
            self.checksums = Some(parse_checksums(value).ok_or("the list of checksums is malformed")?);
        } else if is(FD) {
            self.fd = value == "1";
        } else if is(MEMORY) {
            self.memory = value == "1";
        } else if is(OFFSET) {
            self.offset = Some(decimal(value).ok_or("the offset is no number")?);
        }
        Ok(())
    }
}

/// A response head in the making.
pub(crate) struct HeadWriter(String);

impl HeadWriter {
    pub(crate) fn new(status: u16) -> Self {
        let reason = status::reason(status);
        HeadWriter(format!("HTTP/1.1 {status} {reason}\r\nServer: longshore\r\n"))
    }

    /// Adds a header. Values are ours or checked: a line break cannot be in them.
    pub(crate) fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let _ = write!(self.0, "{name}: {value}\r\n");
        self
    }

    pub(crate) fn checksums(mut self, checksums: &[BlockChecksum]) -> Self {
        write_checksums(&mut self.0, checksums);
        self
    }

    /// Ends the head.
    pub(crate) fn end(mut self, keep_alive: bool) -> String {
        if !keep_alive {
            self.0.push_str("Connection: close\r\n");
        }
        self.0.push_str("\r\n");
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_types::BLOCKS_PER_CHUNK;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_round_trips() {
        let checksums = [BlockChecksum(1), BlockChecksum(u64::MAX)];
        let written = HeadWriter::new(206)
            .header("Content-Length", 7)
            .header(TIER, Tier::Peer)
            .header(CODE, Code::Corrupt)
            .header(FD, 1)
            .header(OFFSET, 4096)
            .checksums(&checksums)
            .end(false);
        let (head, len) = parse(written.as_bytes()).unwrap().unwrap();
        assert_eq!(len, written.len());
        let wanted = ResponseHead {
            status: 206,
            framing: Framing::Length(7),
            keep_alive: false,
            code: Some(Code::Corrupt),
            tier: Some(Tier::Peer),
            checksums: Some(checksums.to_vec()),
            handed_over: Some(HandedOver { offset_bytes: 4096, is_memory: false }),
        };
        assert_eq!(head, wanted);
        for cut in 0..written.len() {
            assert_eq!(parse(&written.as_bytes()[..cut]), Ok(None));
        }
    }

    #[test]
    fn a_server_that_wants_the_body_says_no_more() {
        let (head, len) = parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201").unwrap().unwrap();
        assert_eq!((head.status, head.framing, len), (CONTINUE, Framing::Length(0), 25));
    }

    #[test]
    fn malformed_heads_are_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(HEAD_BYTES_MAX));
        let sums = "0123456789abcdef,".repeat(BLOCKS_PER_CHUNK + 1);
        let many = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nLongshore-Checksums: {sums}\r\n\r\n");
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 100 Continue\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nLongshore-Checksums: 12\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nLongshore-Fd: 1\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
            &long,
            &many,
        ] {
            assert!(parse(head.as_bytes()).is_err(), "{head:.60}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), http: bool) {
            let mut head = if http { b"HTTP/1.1 200 OK\r\n".to_vec() } else { Vec::new() };
            head.extend(bytes);
            let _ = parse(&head);
        }
    }
}
