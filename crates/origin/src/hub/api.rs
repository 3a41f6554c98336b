//! The JSON of the hub's routes, and how its URLs are written.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &PART.remove(b'/');

/// Longest commit id, in characters.
const COMMIT_LEN_MAX: usize = 64;

/// One file of the tree route.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    oid: String,
    #[serde(default)]
    size: u64,
    pub path: String,
    lfs: Option<Lfs>,
}

/// A file in large-file storage; `oid` is its SHA-256.
#[derive(Debug, Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Entry {
    /// What the resolve route gives as ETag.
    pub fn etag(&self) -> &str {
        self.lfs.as_ref().map_or(&self.oid, |lfs| &lfs.oid)
    }

    pub fn size_bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size, |lfs| lfs.size)
    }
}

/// The files of a page of the tree route; `None` when it is not one.
pub(super) fn files_of(body: &[u8]) -> Option<Vec<Entry>> {
    let entries: Vec<Entry> = serde_json::from_slice(body).ok()?;
    Some(entries.into_iter().filter(|entry| entry.kind == "file").collect())
}

/// The `sha` of the revision route.
pub(super) fn commit_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Revision {
        sha: String,
    }
    let sha = serde_json::from_slice::<Revision>(body).ok()?.sha;
    is_commit(&sha).then_some(sha)
}

/// Whether a commit id of the hub is one: it becomes part of URLs.
pub(super) fn is_commit(sha: &str) -> bool {
    (1..=COMMIT_LEN_MAX).contains(&sha.len()) && sha.chars().all(|c| c.is_ascii_alphanumeric())
}

/// The `rel="next"` URL of a `Link` header.
pub(super) fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then_some(url)
    })
}

/// The value of an ETag header without quotes and weakness, as listings write it.
pub(super) fn bare_etag(header: &str) -> String {
    header.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Total size and range of a `Content-Range` header, as `(start, end, size)` with an exclusive end.
pub(super) fn content_range(header: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, size.parse().ok()?))
}

/// Encodes one part of a URL's path, slashes too.
pub(super) fn encode_part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

/// Encodes a path, slashes not.
pub(super) fn encode_path(text: &str) -> String {
    utf8_percent_encode(text, PATH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_entries() {
        let body = br#"[{"type":"directory","oid":"d","size":0,"path":"sub"},
            {"type":"file","oid":"a1","size":7,"path":"config.json"},
            {"type":"file","oid":"b2","size":5,"path":"m.safetensors","lfs":{"oid":"5ha","size":5,"pointerSize":134},"xetHash":"x"}]"#;
        let files = files_of(body).unwrap();
        assert_eq!(
            files.iter().map(|f| (f.path.as_str(), f.etag(), f.size_bytes())).collect::<Vec<_>>(),
            [("config.json", "a1", 7), ("m.safetensors", "5ha", 5)]
        );
        assert!(files_of(b"{\"error\":\"x\"}").is_none());
    }

    #[test]
    fn commits_links_and_headers() {
        assert_eq!(commit_of(br#"{"id":"o/n","sha":"0a1b"}"#).as_deref(), Some("0a1b"));
        assert_eq!(commit_of(br#"{"sha":"../x"}"#), None);
        let header = r#"<https://h/p?cursor=a>; rel="prev", <https://h/p?cursor=b>; rel="next""#;
        assert_eq!(next_link(header), Some("https://h/p?cursor=b"));
        assert_eq!(next_link("<https://h/p>; rel=\"last\""), None);
        assert_eq!(bare_etag("W/\"x\""), "x");
        assert_eq!(content_range("bytes 5-9/20"), Some((5, 10, 20)));
        assert_eq!(content_range("bytes 5-18446744073709551615/20"), None);
        assert_eq!(encode_part("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode_path("a b/c.bin"), "a%20b/c.bin");
    }
}
