//! Heads of requests and responses: text in, checked values out.

use bytes::Bytes;
use object_store::client::{HttpRequest, HttpResponse};
use reqwest::StatusCode;
use reqwest::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, TRANSFER_ENCODING,
    USER_AGENT,
};

/// The longest head of a response.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;
/// The most headers of one.
const HEADERS_MAX: usize = 128;

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// The connection is closed.
    Close,
}

/// A response without its body.
#[derive(Debug)]
pub(super) struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub framing: Framing,
    pub keep_alive: bool,
}

impl Head {
    /// Whether the answer is at another place, which it names.
    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.status.as_u16(), 301 | 302 | 303 | 307 | 308) && self.headers.contains_key(LOCATION)
    }

    pub(super) fn into_response(self, body: Bytes) -> HttpResponse {
        let mut response = HttpResponse::new(body.into());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// The head of a request without a body.
pub(super) fn write(request: &HttpRequest, user_agent: Option<&str>) -> Vec<u8> {
    let mut head = Vec::with_capacity(1024);
    let uri = request.uri();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    head.extend_from_slice(format!("{} {target} HTTP/1.1\r\n", request.method()).as_bytes());
    let mut add = |name: &HeaderName, value: &[u8]| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    };
    let headers = request.headers();
    if !headers.contains_key(HOST)
        && let Some(authority) = uri.authority()
    {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        add(&HOST, host.as_bytes());
    }
    // Values cannot hold line breaks.
    headers.iter().for_each(|(name, value)| add(name, value.as_bytes()));
    if !headers.contains_key(ACCEPT) {
        add(&ACCEPT, b"*/*");
    }
    if let Some(user_agent) = user_agent.filter(|_| !headers.contains_key(USER_AGENT)) {
        add(&USER_AGENT, user_agent.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Parses the head at the front of `bytes`: `None` while it is incomplete, else the head and its length.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_BYTES_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err("the head of the answer is too large"),
        Err(_) => return Err("the answer is not HTTP/1"),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("the answer has no status")?;
    let mut map = HeaderMap::with_capacity(response.headers.len());
    for header in response.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| "a header of the answer has no name")?;
        let value = HeaderValue::from_bytes(header.value).map_err(|_| "a header of the answer is malformed")?;
        map.append(name, value);
    }
    let framing = framing(status, &map)?;
    let names = |token: &str| {
        let values = map.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    let keep_alive = match response.version {
        Some(1) => !names("close"),
        _ => names("keep-alive"),
    };
    let keep_alive = keep_alive && framing != Framing::Close;
    Ok(Some((Head { status, headers: map, framing, keep_alive }, len)))
}

fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, &'static str> {
    if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        return Ok(Framing::Length(0));
    }
    if let Some(coding) = headers.get(TRANSFER_ENCODING) {
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        return Ok(if is_chunked { Framing::Chunked } else { Framing::Close });
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(Framing::Close) };
    if lengths.any(|other| other != first) {
        return Err("the answer has two lengths");
    }
    let digits = first.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse().ok()).ok_or("the length of the answer is no number")?;
    Ok(Framing::Length(length))
}

/// The content of a body in chunks, as far as it is there: only a text to look at comes this way.
pub(super) fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Ok(httparse::Status::Complete((start, len))) = httparse::parse_chunk_size(bytes) {
        let rest = &bytes[start..];
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
        content.extend_from_slice(&rest[..len]);
        bytes = rest[len..].strip_prefix(b"\r\n").unwrap_or_default();
        if len == 0 {
            break;
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Head {
        parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn heads_of_responses() {
        let text = "HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nETag: \"e\"\r\n\r\nbody";
        let (parsed, len) = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((parsed.status.as_u16(), parsed.framing, parsed.keep_alive), (206, Framing::Length(10), true));
        assert_eq!(len, text.len() - 4);
        for cut in 0..len {
            assert!(parse(&text.as_bytes()[..cut]).unwrap().is_none());
        }
        assert_eq!(head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").framing, Framing::Chunked);
        assert!(!head("HTTP/1.1 200 OK\r\n\r\n").keep_alive, "it ends with the connection");
        assert!(!head("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\n").keep_alive);
        assert!(!head("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n").keep_alive);
        assert!(head("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n").keep_alive);
        assert_eq!(head("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n").framing, Framing::Length(0));
        assert!(head("HTTP/1.1 307 Temporary\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").is_redirect());
        assert!(!head("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n").is_redirect(), "nowhere to go");
    }

    #[test]
    fn malformed_heads_are_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(HEAD_BYTES_MAX));
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
            &long,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:.60}");
        }
    }

    #[test]
    fn requests() {
        let mut request = HttpRequest::new(object_store::client::HttpRequestBody::empty());
        *request.uri_mut() = "http://user@host:80/a%20b?c=d".parse().unwrap();
        request.headers_mut().insert("range", HeaderValue::from_static("bytes=0-1"));
        let text = String::from_utf8(write(&request, Some("agent"))).unwrap();
        let wanted =
            "GET /a%20b?c=d HTTP/1.1\r\nhost: host:80\r\nrange: bytes=0-1\r\naccept: */*\r\nuser-agent: agent\r\n\r\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn chunks() {
        assert_eq!(dechunked(b"5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n"), b"abcdefgh");
        assert_eq!(dechunked(b"5\r\nabc"), b"abc");
        assert_eq!(dechunked(b"ffffffffffffffff\r\nabc"), b"abc");
        assert_eq!(dechunked(b"nonsense"), b"");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), http: bool) {
            let mut head = if http { b"HTTP/1.1 200 OK\r\n".to_vec() } else { Vec::new() };
            head.extend(&bytes);
            let _ = parse(&head);
            dechunked(&bytes);
        }
    }
}
