//! What is asked of S3 and Google, and what their answers mean.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use longshore_types::{BlockChecksum, Code, Version};
use object_store::signer::{HeaderMap, HeaderValue, Method};
use parking_lot::Mutex;

use super::documents::{self, Completion};
use super::parts::{self, Crc32c, Part, Sums};
use super::wire::{Answer, Ask, Wire};
use crate::address::{Address, Cloud};
use crate::bucket::explain::Call;
use crate::bucket::version;
use crate::fault::{Attempt, Fault};
use crate::stats::{Counters, count};
use crate::write::{OpenUpload, PartId, PutHow, PutOutcome, Summary, UploadId};

/// Most objects whose two checksums are remembered, for Google; more of them are verified by reading back.
const KNOWN_MAX: usize = 4096;
/// Most uploads that one listing of them gives.
const OPEN_MAX: usize = 100_000;

/// Refusals that are about the bytes or the credentials, and not about the checksum header as such.
const NOT_ABOUT_CHECKSUMS: &[&str] = &[
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
    "RequestTimeout",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "EntityTooSmall",
    "EntityTooLarge",
    "KeyTooLongError",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidBucketName",
];

/// The writing side of one bucket.
pub(in super::super) struct XmlWriter {
    wire: Wire,
    /// Sent with every object, as the settings say.
    encryption: HeaderMap,
    /// Whether checksums are sent along: until the store is found to refuse them.
    checksums: AtomicBool,
    /// What the two checksums of an object are that went through here, by key. Google keeps a CRC-32C, our callers know
    /// the CRC-64.
    known: Mutex<HashMap<String, Sums>>,
}

/// The id of an upload with how it was begun: its parts must be sent in the same way.
struct Upload<'a> {
    has_checksums: bool,
    id: &'a str,
}

impl<'a> Upload<'a> {
    fn parse(id: &'a UploadId, url: &str) -> Attempt<Self> {
        match id.0.split_once(' ') {
            Some(("c", id)) if !id.is_empty() => Ok(Upload { has_checksums: true, id }),
            Some(("p", id)) if !id.is_empty() => Ok(Upload { has_checksums: false, id }),
            _ => Err(Fault::fatal(Code::InvalidArgument, format!("the upload of {url} is not one that a bucket gave"))),
        }
    }

    fn to_id(&self) -> UploadId {
        UploadId(format!("{} {}", if self.has_checksums { "c" } else { "p" }, self.id))
    }
}

/// Where something is written.
pub(in super::super) struct Place<'a> {
    pub key: &'a str,
    pub url: &'a str,
}

impl XmlWriter {
    pub(in super::super) fn new(wire: Wire, encryption: HeaderMap) -> Self {
        XmlWriter { wire, encryption, checksums: AtomicBool::new(true), known: Mutex::default() }
    }

    fn is_google(&self) -> bool {
        self.wire.cloud == Cloud::Gcs
    }

    fn counters(&self) -> &Counters {
        &self.wire.lane.counters
    }

    fn call<'a>(&self, doing: &'static str, place: &Place<'a>) -> Call<'a> {
        Call { doing, url: place.url, cloud: Some(self.wire.cloud), limits: self.wire.lane.limits }
    }

    async fn send(&self, call: &Call<'_>, counter: &AtomicU64, ask: Ask<'_>) -> Attempt<Answer> {
        count(counter, 1);
        self.wire.send(call, ask).await
    }

    /// Sends a request with checksums; when the store refuses that, without them, now and from then on. Says which.
    async fn send_summed<'a>(
        &self,
        call: &Call<'_>,
        counter: &AtomicU64,
        wanted: bool,
        ask: impl Fn(bool) -> Ask<'a>,
    ) -> Attempt<(Answer, bool)> {
        let with = wanted && self.checksums.load(Ordering::Relaxed);
        let answer = self.send(call, counter, ask(with)).await?;
        let may_refuse_them = matches!(answer.status, 400 | 501)
            && !NOT_ABOUT_CHECKSUMS.contains(&answer.code().as_str())
            && !answer.names_no_bucket();
        if !with || !may_refuse_them {
            return Ok((answer, with));
        }
        let plain = self.send(call, counter, ask(false)).await?;
        if matches!(plain.status, 400 | 501) {
            return Ok((answer, with));
        }
        if self.checksums.swap(false, Ordering::Relaxed) {
            count(&self.counters().checksums_refused, 1);
            tracing::warn!(
                url = call.url, code = %answer.code(),
                "this store refuses checksums with what it is sent; objects written to it are read back instead"
            );
        }
        Ok((plain, false))
    }

    fn object_headers(&self) -> HeaderMap {
        self.encryption.clone()
    }

    fn add_checksum(&self, headers: &mut HeaderMap, sums: &Sums) {
        let (name, text) = match sums.crc32c {
            Some(crc) => ("x-goog-hash", format!("crc32c={}", crc.base64())),
            None => ("x-amz-checksum-crc64nvme", parts::base64_of(sums.crc64)),
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }

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

    pub(in super::super) async fn put(&self, place: Place<'_>, bytes: &Bytes, how: &PutHow) -> Attempt<PutOutcome> {
        let call = self.call("write", &place);
        let sums = Sums::of(bytes, self.is_google()).await?;
        let mut conditional = self.object_headers();
        self.condition(&mut conditional, how, place.url)?;
        let ask = |with| {
            let mut headers = conditional.clone();
            if with {
                self.add_checksum(&mut headers, &sums);
            }
            Ask { method: Method::PUT, key: place.key, headers, body: bytes.clone(), ..Ask::default() }
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

    pub(in super::super) async fn start(&self, place: Place<'_>) -> Attempt<UploadId> {
        let call = self.call("begin an upload of", &place);
        let ask = |with| {
            let mut headers = self.object_headers();
            if with && !self.is_google() {
                headers.insert("x-amz-checksum-algorithm", HeaderValue::from_static("CRC64NVME"));
                headers.insert("x-amz-checksum-type", HeaderValue::from_static("FULL_OBJECT"));
            }
            Ask { method: Method::POST, key: place.key, query: &[("uploads", "")], headers, ..Ask::default() }
        };
        let (answer, has_checksums) = self.send_summed(&call, &self.counters().upload_requests, true, ask).await?;
        let answer = answer.ok(&call)?;
        let id = documents::begun(&answer.document).ok_or_else(|| answer.strange(&call, "it names no upload"))?;
        Ok(Upload { has_checksums, id: &id }.to_id())
    }

    pub(in super::super) async fn part(
        &self,
        place: Place<'_>,
        id: &UploadId,
        index: u32,
        bytes: &Bytes,
    ) -> Attempt<PartId> {
        let call = self.call("send a part of", &place);
        let upload = Upload::parse(id, place.url)?;
        let sums = Sums::of(bytes, self.is_google()).await?;
        let number = (u64::from(index) + 1).to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", upload.id)];
        let ask = |with| {
            let mut headers = HeaderMap::new();
            if with {
                self.add_checksum(&mut headers, &sums);
            }
            Ask { method: Method::PUT, key: place.key, query: &query, headers, body: bytes.clone() }
        };
        let (answer, with) =
            self.send_summed(&call, &self.counters().upload_requests, upload.has_checksums, ask).await?;
        let answer = answer.ok(&call)?;
        let etag = answer.header("etag").filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| answer.strange(&call, "it has no ETag"))?.to_owned();
        // A store that does not repeat the checksum has not kept it, and does not want to hear of it at the end.
        let kept = with && answer.header("x-amz-checksum-crc64nvme").and_then(parts::from_base64) == Some(sums.crc64);
        let crc64 = (kept || self.is_google()).then_some(sums.crc64);
        Ok(Part { crc64, crc32c: sums.crc32c, len_bytes: sums.len_bytes, etag }.to_id())
    }

    pub(in super::super) async fn complete(
        &self,
        place: Place<'_>,
        id: &UploadId,
        ids: &[PartId],
    ) -> Attempt<Option<Version>> {
        let call = self.call("complete the upload of", &place);
        let upload = Upload::parse(id, place.url)?;
        let parts = ids.iter().map(|id| Part::parse(id, place.url)).collect::<Attempt<Vec<_>>>()?;
        if parts.is_empty() {
            let text = format!("an upload of {} needs at least one part, which may be empty", place.url);
            return Err(Fault::fatal(Code::InvalidArgument, text));
        }
        let query = [("uploadId", upload.id)];
        let ask = |with: bool| {
            let body = Bytes::from(documents::complete(&parts, with && !self.is_google()));
            Ask { method: Method::POST, key: place.key, query: &query, body, ..Ask::default() }
        };
        let counter = &self.counters().upload_requests;
        let (answer, _) = self.send_summed(&call, counter, upload.has_checksums, ask).await?;
        if answer.status == 404 && !answer.names_no_bucket() {
            return Ok(None);
        }
        let answer = answer.ok(&call)?;
        let etag = match documents::completed(&answer.document) {
            Some(Completion::Done { etag }) => etag,
            Some(Completion::Refused { code }) if code == "NoSuchUpload" => return Ok(None),
            Some(Completion::Refused { code }) => return Err(answer.refused_late(&call, &code)),
            None => return Err(answer.strange(&call, "it is not the end of an upload")),
        };
        if let Some(sums) = parts::whole(&parts) {
            self.remember(place.key, sums);
        }
        match self.version(&answer, etag.as_deref()) {
            Some(version) => Ok(Some(version)),
            None => Ok(Some(self.summary(place).await?.version)),
        }
    }

    pub(in super::super) async fn abort(&self, place: Place<'_>, id: &UploadId) -> Attempt<()> {
        let call = self.call("abort the upload of", &place);
        let upload = Upload::parse(id, place.url)?;
        let query = [("uploadId", upload.id)];
        let ask = Ask { method: Method::DELETE, key: place.key, query: &query, ..Ask::default() };
        let answer = self.send(&call, &self.counters().upload_requests, ask).await?;
        if answer.status == 404 && !answer.names_no_bucket() { Ok(()) } else { answer.ok(&call).map(|_| ()) }
    }

    /// Keys and ids of the uploads that are open below a prefix; `None` when the store cannot list them.
    pub(in super::super) async fn open_uploads(
        &self,
        place: Place<'_>,
        url_of: impl Fn(&str) -> Option<Address>,
    ) -> Attempt<Option<Vec<OpenUpload>>> {
        let call = self.call("list the uploads below", &place);
        let prefix = if place.key.is_empty() { String::new() } else { format!("{}/", place.key) };
        let (mut key_marker, mut id_marker) = (String::new(), String::new());
        let mut open = Vec::new();
        loop {
            let mut query = vec![("uploads", ""), ("prefix", prefix.as_str())];
            if !key_marker.is_empty() {
                query.extend([("key-marker", key_marker.as_str()), ("upload-id-marker", id_marker.as_str())]);
            }
            let ask = Ask { query: &query, ..Ask::default() };
            let answer = self.send(&call, &self.counters().upload_requests, ask).await?;
            if matches!(answer.status, 405 | 501) {
                return Ok(None);
            }
            let answer = answer.ok(&call)?;
            let page = documents::open_page(&answer.document);
            let page = page.ok_or_else(|| answer.strange(&call, "it is not a list of uploads"))?;
            for upload in page.uploads {
                // What has not the form of a URL of ours was not begun by us.
                let Some(address) = upload.key.strip_prefix(&prefix).and_then(&url_of) else { continue };
                let id = Upload { has_checksums: false, id: &upload.upload_id }.to_id();
                let started_ms = documents::milliseconds(&upload.initiated).unwrap_or_default();
                open.push(OpenUpload { url: address.to_string(), id, started_ms });
            }
            let next = (page.next_key_marker.unwrap_or_default(), page.next_upload_id_marker.unwrap_or_default());
            let is_last = !page.is_truncated || next.0.is_empty() || next == (key_marker, id_marker);
            if is_last || open.len() > OPEN_MAX {
                return Ok(Some(open));
            }
            (key_marker, id_marker) = next;
        }
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
        if matches!(answer.status, 400 | 501) {
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

    fn remember(&self, key: &str, sums: Sums) {
        if !self.is_google() {
            return;
        }
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key.to_owned(), sums);
    }

    fn version(&self, answer: &Answer, etag: Option<&str>) -> Option<Version> {
        let generation = answer.header("x-goog-generation").filter(|_| self.is_google());
        version::written(etag, generation)
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
