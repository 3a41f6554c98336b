//! Whole objects: put on a condition, looked at with the checksum that the store keeps, deleted.

use longshore_types::{BlockChecksum, Code, Version};
use object_store::signer::{HeaderMap, HeaderValue, Method};

use super::parts::{self, Crc32c, Sums};
use super::wire::{Answer, Ask};
use super::writer::{Place, XmlWriter};
use crate::body::Body;
use crate::bucket::version;
use crate::fault::{Attempt, Fault};
use crate::write::{PutHow, PutOutcome, Summary};

impl XmlWriter {
    fn condition(&self, headers: &mut HeaderMap, how: &PutHow, url: &str) -> Attempt<()> {
        let (name, value) = match (how, self.is_google()) {
            (PutHow::Overwrite, _) => return Ok(()),
            (PutHow::Create, false) => ("if-none-match", "*".to_owned()),
            (PutHow::Create, true) => ("x-goog-if-generation-match", "0".to_owned()),
            (PutHow::Replace(version), false) => match version::if_match(version) {
                Some(etag) => ("if-match", etag),
                None => return Err(other_kind(version, url)),
            },
            (PutHow::Replace(version), true) => match version::generation(version) {
                Some(generation) => ("x-goog-if-generation-match", generation),
                None => return Err(other_kind(version, url)),
            },
        };
        let value = HeaderValue::try_from(value);
        headers.insert(name, value.map_err(|_| Fault::fatal(Code::InvalidArgument, "a version is no header value"))?);
        Ok(())
    }

    pub(in super::super) async fn put(&self, place: Place<'_>, body: &Body, how: &PutHow) -> Attempt<PutOutcome> {
        let call = self.call("write", &place);
        let sums = Sums::of(body, self.is_google()).await?;
        let mut conditional = self.object_headers();
        self.condition(&mut conditional, how, place.url)?;
        let ask = |with| {
            let mut headers = conditional.clone();
            if with {
                self.add_checksum(&mut headers, &sums);
            }
            Ask { method: Method::PUT, key: place.key, headers, body: body.clone(), ..Ask::default() }
        };
        let (answer, _) = self.send_summed(&call, &self.counters().put_requests, true, ask).await?;
        if *how != PutHow::Overwrite && is_conflict(&answer, how) {
            return Ok(PutOutcome::Conflict);
        }
        let answer = answer.ok(&call)?;
        self.remember(place.key, sums);
        let version = self.version(&answer, answer.header("etag"));
        version.map(PutOutcome::Written).ok_or_else(|| answer.strange(&call, "it names no version"))
    }

    pub(in super::super) async fn delete(&self, place: Place<'_>) -> Attempt<bool> {
        let call = self.call("delete", &place);
        let ask = Ask { method: Method::DELETE, key: place.key, ..Ask::default() };
        let answer = self.send(&call, &self.counters().delete_requests, ask).await?;
        self.known.lock().remove(place.key);
        if answer.status == 404 && !answer.names_no_bucket() { Ok(false) } else { answer.ok(&call).map(|_| true) }
    }

    pub(in super::super) async fn summary(&self, place: Place<'_>) -> Attempt<Summary> {
        let call = self.call("look at", &place);
        let ask = |with: bool| {
            let mut headers = HeaderMap::new();
            if with && !self.is_google() {
                headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
            }
            Ask { method: Method::HEAD, key: place.key, headers, ..Ask::default() }
        };
        let counter = &self.counters().stat_requests;
        let mut answer = self.send(&call, counter, ask(true)).await?;
        // Not every store knows of checksums, and not everybody may see those of encrypted objects.
        if matches!(answer.status, 400 | 403 | 501) {
            answer = self.send(&call, counter, ask(false)).await?;
        }
        let answer = answer.ok(&call)?;
        let size = answer.header("content-length").and_then(|size| size.parse().ok());
        let size_bytes = size.ok_or_else(|| answer.strange(&call, "it has no Content-Length"))?;
        let version = self.version(&answer, answer.header("etag"));
        let version = version.ok_or_else(|| answer.strange(&call, "it names no version"))?;
        let checksum = if self.is_google() {
            self.known_to_google(&answer, place.key, size_bytes)
        } else {
            let is_composite = answer.header("x-amz-checksum-type").is_some_and(|kind| kind != "FULL_OBJECT");
            let text = answer.header("x-amz-checksum-crc64nvme").filter(|_| !is_composite);
            text.and_then(parts::from_base64)
        };
        Ok(Summary { version, size_bytes, checksum })
    }

    /// The CRC-64 of an object whose CRC-32C, as Google computed it, is that of the bytes that were sent.
    fn known_to_google(&self, answer: &Answer, key: &str, size_bytes: u64) -> Option<BlockChecksum> {
        let known = *self.known.lock().get(key)?;
        let hashes = answer.headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
        let found = hashes.filter_map(Crc32c::in_header).next()?;
        (known.crc32c == Some(found) && known.len_bytes == size_bytes).then_some(known.crc64)
    }
}

/// Whether a refusal says that the condition does not hold.
fn is_conflict(answer: &Answer, how: &PutHow) -> bool {
    match answer.status {
        304 | 412 => true,
        // Two conditional puts at once: S3 asks to come again, and then one of them is there.
        409 => !matches!(answer.code().as_str(), "ConditionalRequestConflict" | "OperationAborted"),
        404 => matches!(how, PutHow::Replace(_)) && !answer.names_no_bucket(),
        _ => false,
    }
}

fn other_kind(version: &Version, url: &str) -> Fault {
    Fault::fatal(Code::InvalidArgument, format!("{url} cannot be replaced at version {version}: it is of another kind"))
}
