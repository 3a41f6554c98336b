//! A request as far as the dialects look at it.

use std::ops::Range;

use hyper::Method;
use hyper::header::{HeaderMap, HeaderName};
use hyper::http::request::Parts;

use super::text::{decode, query_pairs};

/// The head of a request.
pub(super) struct Ask {
    pub(super) method: Method,
    /// Decoded, without the slash in front.
    pub(super) path: String,
    /// As it came, with the slash.
    pub(super) raw_path: String,
    pub(super) raw_query: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
}

impl Ask {
    pub(super) fn of(parts: Parts) -> Ask {
        let raw_path = parts.uri.path().to_owned();
        let raw_query = parts.uri.query().unwrap_or_default().to_owned();
        Ask {
            method: parts.method,
            path: decode(raw_path.strip_prefix('/').unwrap_or(&raw_path)),
            query: query_pairs(&raw_query),
            raw_path,
            raw_query,
            headers: parts.headers,
        }
    }

    pub(super) fn header(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.headers.get(name.into()).and_then(|value| value.to_str().ok())
    }

    /// A header by its name in lower case.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Length of what it brings, when it says so.
    pub(super) fn content_length(&self) -> Option<u64> {
        let decoded = self.text("x-amz-decoded-content-length");
        decoded.or_else(|| self.header(hyper::header::CONTENT_LENGTH)).and_then(|text| text.parse().ok())
    }

    /// Whether it is in the words of Azure, whose clients all send this.
    pub(super) fn is_azure(&self) -> bool {
        self.headers.contains_key("x-ms-version")
    }

    /// Whether its body is in the coding `aws-chunked`.
    pub(super) fn is_chunked(&self) -> bool {
        self.text("x-amz-content-sha256").is_some_and(|payload| payload.starts_with("STREAMING-"))
    }

    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// The bytes that a request for an object of `size_bytes` asks for.
    pub(super) fn span(&self, size_bytes: u64) -> Span {
        let Some(text) = self.header(hyper::header::RANGE) else { return Span::Whole };
        let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
            return Span::Whole;
        };
        let range = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => first..(last.saturating_add(1)).min(size_bytes),
            (Ok(first), Err(_)) if last.is_empty() => first..size_bytes,
            (Err(_), Ok(suffix)) if first.is_empty() => size_bytes.saturating_sub(suffix)..size_bytes,
            _ => return Span::Whole,
        };
        if range.start >= range.end { Span::Unsatisfiable } else { Span::Part(range) }
    }
}

/// Which bytes are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Span {
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
}

impl Span {
    pub(super) fn range(&self, size_bytes: u64) -> Range<u64> {
        match self {
            Span::Whole => 0..size_bytes,
            Span::Part(range) => range.clone(),
            Span::Unsatisfiable => 0..0,
        }
    }
}
