//! Multipart uploads.

use bytes::Bytes;
use longshore_types::{Code, Version};
use object_store::signer::{HeaderMap, HeaderValue, Method};

use super::documents::{self, Completion};
use super::parts::{self, Part, Sums};
use super::wire::Ask;
use super::writer::{Place, XmlWriter};
use crate::address::Address;
use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::write::{OpenUpload, PartId, UploadId};

/// Most uploads that one listing of them gives.
const OPEN_MAX: usize = 100_000;

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

impl XmlWriter {
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
        body: &Body,
    ) -> Attempt<PartId> {
        let call = self.call("send a part of", &place);
        let upload = Upload::parse(id, place.url)?;
        let sums = Sums::of(body, self.is_google()).await?;
        let number = (u64::from(index) + 1).to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", upload.id)];
        let ask = |with| {
            let mut headers = HeaderMap::new();
            if with {
                self.add_checksum(&mut headers, &sums);
            }
            Ask { method: Method::PUT, key: place.key, query: &query, headers, body: body.clone() }
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
            let body = Bytes::from(documents::complete(&parts, with && !self.is_google())).into();
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
}
