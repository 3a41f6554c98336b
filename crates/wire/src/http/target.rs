//! The request target of a chunk: how a key is written into a query, and read back out of one.

use std::fmt::Write as _;
use std::sync::Arc;

use longshore_types::{Artifact, ChunkKey, Code, Error, Result, Version};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use longshore_types::checkpoint::AttemptId;

use crate::http::{CHUNK_PATH, HOLD_PATH, decimal};
use crate::service::{ChunkRequest, Mode, PutMode, PutRequest};

/// What is escaped in a query value; what stays is only what keeps URLs readable.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b':');

/// A chunk request without its range, as the query gives it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChunkTarget {
    pub(crate) key: ChunkKey,
    pub(crate) mode: Mode,
    pub(crate) recheck: bool,
    pub(crate) prefers_file: bool,
    /// Of a chunk that is put.
    pub(crate) hold: Option<AttemptId>,
}

/// Writes the target of `request`; the range goes into a header.
pub(crate) fn encode(request: &ChunkRequest) -> String {
    let mut target = encode_key(&request.key);
    match request.mode {
        Mode::Fill => {}
        Mode::OnlyIfCached => target.push_str("&mode=cached"),
        Mode::FromPeer => target.push_str("&mode=peer"),
    }
    if request.recheck {
        let _ = write!(target, "&recheck=1");
    }
    if request.prefers_file {
        let _ = write!(target, "&file=1");
    }
    target
}

/// Writes the target of a chunk to put.
pub(crate) fn encode_put(request: &PutRequest) -> String {
    let mut target = encode_key(&request.key);
    if let PutMode::Hold { attempt } = request.mode {
        let _ = write!(target, "&hold={attempt}");
    }
    target
}

/// Writes the target of what is held for an attempt.
pub(crate) fn encode_hold(attempt: &AttemptId) -> String {
    format!("{HOLD_PATH}?attempt={attempt}")
}

/// Reads the query of what is held for an attempt.
///
/// # Errors
/// [`Code::InvalidArgument`].
pub(crate) fn decode_hold(query: &str) -> Result<AttemptId> {
    let mut given = query.split('&').filter_map(|pair| pair.strip_prefix("attempt="));
    match (given.next(), given.next()) {
        (Some(attempt), None) => AttemptId::parse(attempt),
        _ => Err(Error::new(Code::InvalidArgument, "hold request: parameter attempt is missing or given twice")),
    }
}

fn encode_key(key: &ChunkKey) -> String {
    let artifact = key.artifact();
    let url = utf8_percent_encode(artifact.url(), ESCAPED);
    let version = utf8_percent_encode(artifact.version().as_str(), ESCAPED);
    let (size, index) = (artifact.size_bytes(), key.index());
    format!("{CHUNK_PATH}?url={url}&version={version}&size={size}&index={index}")
}

/// Reads the query of a chunk target. Parameters we do not know are skipped, so that newer clients are understood.
///
/// # Errors
/// [`Code::InvalidArgument`], naming the parameter that is missing, repeated or wrong.
pub(crate) fn decode(query: &str) -> Result<ChunkTarget> {
    let [mut url, mut version, mut size, mut index, mut mode, mut recheck, mut file, mut hold] = [const { None }; 8];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match name {
            "url" => &mut url,
            "version" => &mut version,
            "size" => &mut size,
            "index" => &mut index,
            "mode" => &mut mode,
            "recheck" => &mut recheck,
            "file" => &mut file,
            "hold" => &mut hold,
            _ => continue,
        };
        let decoded = percent_decode_str(value).decode_utf8().map_err(|_| wrong(name, "is not UTF-8"))?;
        if slot.replace(decoded.into_owned()).is_some() {
            return Err(wrong(name, "is given twice"));
        }
    }
    let url = url.ok_or_else(|| wrong("url", "is missing"))?;
    let version = version.ok_or_else(|| wrong("version", "is missing"))?;
    let size = size.as_deref().and_then(decimal).ok_or_else(|| wrong("size", "must be a number of bytes"))?;
    let index = index.as_deref().and_then(decimal).and_then(|index| u32::try_from(index).ok());
    let index = index.ok_or_else(|| wrong("index", "must be the number of a chunk"))?;
    let mode = match mode.as_deref() {
        None => Mode::Fill,
        Some("cached") => Mode::OnlyIfCached,
        Some("peer") => Mode::FromPeer,
        Some(_) => return Err(wrong("mode", "must be cached or peer")),
    };
    let is_set = |name, given: Option<String>| match given.as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(wrong(name, "must be 0 or 1")),
    };
    let (recheck, prefers_file) = (is_set("recheck", recheck)?, is_set("file", file)?);
    let hold = hold.as_deref().map(AttemptId::parse).transpose()?;
    let artifact = Artifact::new(url, Version::new(version)?, size)?;
    Ok(ChunkTarget { key: ChunkKey::new(Arc::new(artifact), index)?, mode, recheck, prefers_file, hold })
}

fn wrong(parameter: &str, why: &str) -> Error {
    Error::new(Code::InvalidArgument, format!("chunk request: parameter {parameter} {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn targets_round_trip(url in "[^\\p{Cc}]{1,300}", version in "[^\\p{Cc}]{1,100}", chunk in 0u32..9, recheck: bool, prefers_file: bool) {
            let artifact = Arc::new(Artifact::new(url, Version::new(version).unwrap(), 9 << 24).unwrap());
            for mode in [Mode::Fill, Mode::OnlyIfCached, Mode::FromPeer] {
                let key = ChunkKey::new(artifact.clone(), chunk).unwrap();
                let request = ChunkRequest { mode, recheck, prefers_file, ..ChunkRequest::whole(key.clone()) };
                let target = encode(&request);
                prop_assert!(target.bytes().all(|b| b.is_ascii_graphic()), "{}", target);
                let (path, query) = target.split_once('?').unwrap();
                prop_assert_eq!(path, CHUNK_PATH);
                prop_assert_eq!(decode(query).unwrap(), ChunkTarget { key, mode, recheck, prefers_file, hold: None });
            }
        }

        #[test]
        fn any_query_is_read_or_refused(query in "[a-z&=%0-9+\u{e9}]{0,80}") {
            let _ = decode(&query);
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        let good = "url=s3://b/k&version=etag:1&size=100&index=0";
        assert!(decode(good).is_ok());
        assert!(decode(&format!("{good}&from=the-future")).is_ok());
        for (query, named) in [
            ("version=v&size=1&index=0", "url is missing"),
            ("url=u&size=1&index=0", "version is missing"),
            ("url=u&version=v&size=-1&index=0", "size must"),
            ("url=u&version=v&size=1&index=4294967296", "index must"),
            ("url=u&version=v&size=1&index=1", "no chunk 1"),
            ("url=u&url=u&version=v&size=1&index=0", "url is given twice"),
            ("url=%ff&version=v&size=1&index=0", "url is not UTF-8"),
            ("url=u&version=%0a&size=1&index=0", "control character"),
            (&format!("{good}&mode=magic"), "mode must"),
            (&format!("{good}&recheck=yes"), "recheck must"),
        ] {
            let error = decode(query).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().contains(named), "{query}: {error}");
        }
    }
}
