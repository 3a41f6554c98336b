//! Multipart uploads, as S3 and the XML API of GCS have them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hyper::header;
use hyper::{Response, StatusCode};
use longshore_types::BlockChecksum;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Dialect;
use super::body::{self, Body};
use super::checksums::{Algorithm, Stated};
use super::serve::{Call, built};
use super::state::{NewObject, Object};
use super::stores::{Failure, XML};
use super::text::{encode_path, iso_date, xml_escape};
use super::write::{Condition, check_bucket, etag, malformed};
use crate::content::{Content, mix};

/// Most parts of an object, in all stores.
const PARTS_MAX: u32 = 10_000;

/// The uploads that are open.
#[derive(Default)]
pub(super) struct Uploads {
    /// By path and id, which is how they are listed.
    open: Mutex<BTreeMap<(String, String), Upload>>,
}

struct Upload {
    number: u64,
    begun: SystemTime,
    /// Of the checksums that its parts may state; none was told.
    algorithm: Option<Algorithm>,
    is_composite: bool,
    parts: BTreeMap<u32, Part>,
}

#[derive(Clone)]
struct Part {
    content: Content,
    etag: String,
    checksum: BlockChecksum,
    stated: Option<Stated>,
    received: SystemTime,
}

/// An upload that was begun and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadInfo {
    /// Path of the object.
    pub path: String,
    /// What the store calls it.
    pub id: String,
    /// Sizes of the parts that are there, by number.
    pub parts: BTreeMap<u32, u64>,
}

impl Uploads {
    pub(super) fn list(&self) -> Vec<UploadInfo> {
        let open = self.open.lock();
        let infos = open.iter().map(|((path, id), upload)| UploadInfo {
            path: path.clone(),
            id: id.clone(),
            parts: upload.parts.iter().map(|(number, part)| (*number, part.content.len_bytes())).collect(),
        });
        infos.collect()
    }

    /// Forgets one, as a rule of the bucket about old ones does; whether it was there.
    pub(super) fn remove(&self, path: &str, id: &str) -> bool {
        self.open.lock().remove(&(path.to_owned(), id.to_owned())).is_some()
    }

    /// As [`super::FakeOrigin::flip_part_byte`].
    pub(super) fn flip(&self, path: &str, part: u32, offset_bytes: u64) -> bool {
        let mut open = self.open.lock();
        let uploads = open.iter_mut().filter(|((of, _), _)| of == path);
        let latest = uploads.map(|(_, upload)| upload).max_by_key(|upload| upload.number);
        let part = latest.and_then(|upload| upload.parts.get_mut(&part));
        let Some(part) = part.filter(|part| offset_bytes < part.content.len_bytes()) else { return false };
        part.content = part.content.flipped(offset_bytes);
        true
    }
}

fn no_such_upload() -> Failure {
    let message = "The specified multipart upload does not exist. The upload ID might be invalid, or the multipart upload \
                   might have been aborted or completed.";
    Failure::new(404, "NoSuchUpload", message)
}

fn invalid_part() -> Failure {
    let message = "One or more of the specified parts could not be found. The part might not have been uploaded, or the \
                   specified entity tag might not have matched the part's entity tag.";
    Failure::new(400, "InvalidPart", message)
}

fn key_of(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}

fn document(name: &str, inner: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <{name} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{inner}</{name}>"
    )
}

/// The answer, or the failure in the words of the store.
fn finish(call: Call, done: Result<Response<Body>, Failure>) -> Response<Body> {
    match done {
        Ok(response) => {
            call.ticket.status(response.status().as_u16());
            response
        }
        Err(failure) => call.fail(failure),
    }
}

fn xml(text: String) -> Response<Body> {
    built(Response::builder().header(header::CONTENT_TYPE, XML).body(body::text(text)))
}

pub(super) fn create(call: Call) -> Response<Body> {
    let done = try_create(&call);
    finish(call, done)
}

fn try_create(call: &Call) -> Result<Response<Body>, Failure> {
    check_bucket(call)?;
    let algorithm = call.ask.text("x-amz-checksum-algorithm").filter(|_| call.keeps_checksums());
    let algorithm = algorithm.map(Algorithm::parse).transpose()?;
    let kind = call.ask.text("x-amz-checksum-type");
    let is_composite = match (algorithm, kind) {
        (Some(Algorithm::Sha256), Some("FULL_OBJECT")) | (Some(Algorithm::Crc64Nvme), Some("COMPOSITE")) => {
            let message = "The checksum type is not supported with this checksum algorithm.";
            return Err(Failure::new(400, "InvalidRequest", message));
        }
        (None | Some(Algorithm::Crc64Nvme), _) | (_, Some("FULL_OBJECT")) => false,
        _ => true,
    };
    let number = call.state.next_number();
    let id = format!("{:016x}{:016x}", mix(number), mix(!number));
    let upload = Upload { number, begun: SystemTime::now(), algorithm, is_composite, parts: BTreeMap::new() };
    call.state.uploads.open.lock().insert((call.path.clone(), id.clone()), upload);
    let (bucket, key) = key_of(&call.path);
    let inner = format!("<Bucket>{bucket}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>", xml_escape(key));
    let mut response = xml(document("InitiateMultipartUploadResult", &inner));
    if let Some(algorithm) = algorithm {
        let headers = response.headers_mut();
        headers.insert("x-amz-checksum-algorithm", header::HeaderValue::from_static(algorithm.name()));
        let kind = if is_composite { "COMPOSITE" } else { "FULL_OBJECT" };
        headers.insert("x-amz-checksum-type", header::HeaderValue::from_static(kind));
    }
    Ok(response)
}

pub(super) fn put_part(call: Call) -> Response<Body> {
    let done = try_put_part(&call);
    finish(call, done)
}

fn try_put_part(call: &Call) -> Result<Response<Body>, Failure> {
    check_bucket(call)?;
    let number = call.part.filter(|number| (1..=PARTS_MAX).contains(number)).ok_or_else(|| {
        let message = "Part number must be an integer between 1 and 10000, inclusive";
        Failure::new(400, "InvalidArgument", message)
    })?;
    let received = &call.received;
    let part = Part {
        content: received.content.clone(),
        etag: etag(received),
        checksum: received.checksum,
        stated: received.stated.clone(),
        received: SystemTime::now(),
    };
    let mut response = Response::builder().header(header::ETAG, &part.etag);
    if let Some(stated) = &part.stated {
        response = response.header(stated.algorithm.header(), stated.text.as_str());
    }
    let mut open = call.state.uploads.open.lock();
    let upload = open.get_mut(&upload_key(call)).ok_or_else(no_such_upload)?;
    let (wanted, given) = (upload.algorithm, part.stated.as_ref().map(|stated| stated.algorithm));
    if given != wanted && (given.is_some() || wanted != Some(Algorithm::Crc64Nvme)) {
        let name = |algorithm: Option<Algorithm>| algorithm.map_or("null".to_owned(), |a| a.name().to_lowercase());
        let message = format!(
            "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
            name(wanted),
            name(given)
        );
        return Err(Failure::new(400, "InvalidRequest", message));
    }
    upload.parts.insert(number, part);
    drop(open);
    call.ticket.part_stored();
    Ok(built(response.body(body::empty())))
}

fn upload_key(call: &Call) -> (String, String) {
    (call.path.clone(), call.ask.param("uploadId").unwrap_or_default().to_owned())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CompleteRequest {
    #[serde(default)]
    part: Vec<CompletePart>,
}

#[derive(Deserialize)]
struct CompletePart {
    #[serde(rename = "PartNumber")]
    number: u32,
    #[serde(rename = "ETag")]
    etag: String,
    #[serde(rename = "ChecksumCRC64NVME")]
    crc64nvme: Option<String>,
    #[serde(rename = "ChecksumCRC32")]
    crc32: Option<String>,
    #[serde(rename = "ChecksumCRC32C")]
    crc32c: Option<String>,
    #[serde(rename = "ChecksumSHA256")]
    sha256: Option<String>,
}

impl CompletePart {
    fn names(&self, part: &Part) -> bool {
        let stated = |algorithm| part.stated.as_ref().filter(|s| s.algorithm == algorithm).map(|s| &s.text);
        let checksums = [
            (&self.crc64nvme, Algorithm::Crc64Nvme),
            (&self.crc32, Algorithm::Crc32),
            (&self.crc32c, Algorithm::Crc32c),
            (&self.sha256, Algorithm::Sha256),
        ];
        self.etag.trim_matches('"') == part.etag.trim_matches('"')
            && checksums.iter().all(|(given, algorithm)| given.is_none() || given.as_ref() == stated(*algorithm))
    }
}

pub(super) fn complete(call: Call) -> Response<Body> {
    let done = try_complete(&call);
    finish(call, done)
}

fn try_complete(call: &Call) -> Result<Response<Body>, Failure> {
    check_bucket(call)?;
    let body = call.received.content.to_vec();
    let request: CompleteRequest = quick_xml::de::from_reader(&body[..]).map_err(|_| malformed())?;
    let condition = match call.state.config.dialect {
        // Its XML API has no conditions here.
        Dialect::Gcs => Condition::None,
        _ => Condition::of(call)?,
    };
    let mut open = call.state.uploads.open.lock();
    let upload = open.get(&upload_key(call)).ok_or_else(no_such_upload)?;
    let new = assemble(call, upload, &request.part)?;
    let object = call.state.put_if(&call.path, new, |current| condition.holds(current))?;
    open.remove(&upload_key(call));
    drop(open);
    Ok(completed(call, &object))
}

fn completed(call: &Call, object: &Object) -> Response<Body> {
    let (bucket, key) = key_of(&call.path);
    let mut inner = format!(
        "<Location>http://{}/{}</Location><Bucket>{bucket}</Bucket><Key>{}</Key><ETag>{}</ETag>",
        call.ask.header(header::HOST).unwrap_or_default(),
        encode_path(&call.path),
        xml_escape(key),
        xml_escape(&object.etag),
    );
    if call.keeps_checksums() {
        let stated = object.checksum_text();
        inner += &stated.element();
        inner += &format!("<ChecksumType>{}</ChecksumType>", stated.kind());
    }
    let mut response = xml(document("CompleteMultipartUploadResult", &inner));
    if call.state.config.dialect == Dialect::Gcs {
        response.headers_mut().insert("x-goog-generation", object.generation.into());
    }
    response
}

/// The object that the listed parts make.
fn assemble(call: &Call, upload: &Upload, listed: &[CompletePart]) -> Result<NewObject, Failure> {
    if listed.is_empty() {
        return Err(malformed());
    }
    if listed.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        let message =
            "The list of parts was not in ascending order. The parts list must be specified in order by part number.";
        return Err(Failure::new(400, "InvalidPartOrder", message));
    }
    let find = |wanted: &CompletePart| upload.parts.get(&wanted.number).filter(|part| wanted.names(part));
    let parts: Option<Vec<&Part>> = listed.iter().map(find).collect();
    let parts = parts.ok_or_else(invalid_part)?;
    let len_min = call.state.config.part_bytes_min;
    if parts.iter().rev().skip(1).any(|part| part.content.len_bytes() < len_min) {
        let message = "Your proposed upload is smaller than the minimum allowed object size.";
        return Err(Failure::new(400, "EntityTooSmall", message));
    }
    let content = Content::concat(parts.iter().map(|part| part.content.clone()));
    let checksum =
        parts.iter().fold(BlockChecksum::of(b""), |sum, part| sum.combine(part.checksum, part.content.len_bytes()));
    let size = call.ask.text("x-amz-mp-object-size");
    if size.is_some_and(|size| size != content.len_bytes().to_string()) {
        let message = "The provided 'x-amz-mp-object-size' header does not match what was computed.";
        return Err(Failure::new(400, "InvalidRequest", message));
    }
    let stated = upload.algorithm.filter(|_| upload.is_composite).map(|algorithm| {
        Stated::composite(
            algorithm,
            parts.iter().filter_map(|part| part.stated.as_ref()).collect::<Vec<_>>().into_iter(),
        )
    });
    let is = stated.clone().unwrap_or_else(|| Stated::crc64(checksum));
    // Of the object, and not of the body of this request.
    if let Some(given) = super::checksums::stated(&call.ask, &call.state.config.quirks)?
        && given != is
    {
        return Err(super::checksums::mismatch(given.algorithm));
    }
    let etags: String = parts.iter().map(|part| part.etag.as_str()).collect();
    let digest = BlockChecksum::of(etags.as_bytes());
    let etag = format!("\"{digest}{:016x}-{}\"", content.len_bytes(), parts.len());
    Ok(NewObject { content, etag, checksum, stated })
}

pub(super) fn abort(call: Call) -> Response<Body> {
    let (path, id) = upload_key(&call);
    match call.state.uploads.remove(&path, &id) {
        true => call.text(StatusCode::NO_CONTENT, XML, String::new()),
        false => call.fail(no_such_upload()),
    }
}

/// ListMultipartUploads.
pub(super) fn list(call: Call) -> Response<Body> {
    let done = try_list(&call);
    finish(call, done)
}

fn try_list(call: &Call) -> Result<Response<Body>, Failure> {
    check_bucket(call)?;
    if call.state.config.quirks.cannot_list_uploads {
        return Err(Failure::new(501, "NotImplemented", "ListMultipartUploads is not implemented"));
    }
    let param = |name| call.ask.param(name).unwrap_or_default();
    let bucket = key_of(&call.ask.path).0;
    let page_size = page_size(call, "max-uploads");
    let (after_key, after_id) = (param("key-marker"), param("upload-id-marker"));
    let after = format!("{bucket}/{after_key}");
    let open = call.state.uploads.open.lock();
    let mut found: Vec<_> = open.iter().filter(|((path, _), _)| path.starts_with(&call.path)).collect();
    // Those of one key come in the order in which they were begun.
    found.sort_by_key(|((path, _), upload)| (path.as_str(), upload.number));
    let mark = found.iter().position(|((path, id), _)| *path == after && id == after_id);
    let from = match mark {
        Some(mark) => mark + 1,
        None if after_key.is_empty() => 0,
        None => found.partition_point(|((path, _), _)| *path <= after),
    };
    let (mut inner, page) = (String::new(), &found[from.min(found.len())..]);
    for ((path, id), upload) in page.iter().take(page_size) {
        inner += &format!(
            "<Upload><Key>{}</Key><UploadId>{id}</UploadId><StorageClass>STANDARD</StorageClass>\
             <Initiated>{}</Initiated></Upload>",
            name_in(call, key_of(path).1),
            iso_date(upload.begun),
        );
    }
    let more = page.len() > page_size;
    if more && let Some(((path, id), _)) = page.get(page_size - 1) {
        let key = name_in(call, key_of(path).1);
        inner += &format!("<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>");
    }
    let inner = format!(
        "<Bucket>{bucket}</Bucket><Prefix>{}</Prefix><MaxUploads>{page_size}</MaxUploads>\
         <IsTruncated>{more}</IsTruncated>{inner}",
        name_in(call, param("prefix")),
    );
    Ok(xml(document("ListMultipartUploadsResult", &inner)))
}

fn name_in(call: &Call, key: &str) -> String {
    if call.ask.param("encoding-type") == Some("url") { encode_path(key) } else { xml_escape(key) }
}

fn page_size(call: &Call, param: &str) -> usize {
    let asked = call.ask.param(param).and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    asked.min(call.state.config.page_size).max(1)
}

/// ListParts.
pub(super) fn list_parts(call: Call) -> Response<Body> {
    let done = try_list_parts(&call);
    finish(call, done)
}

fn try_list_parts(call: &Call) -> Result<Response<Body>, Failure> {
    check_bucket(call)?;
    let (path, id) = upload_key(call);
    let after = call.ask.param("part-number-marker").and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let page_size = page_size(call, "max-parts");
    let open = call.state.uploads.open.lock();
    let upload = open.get(&(path.clone(), id.clone())).ok_or_else(no_such_upload)?;
    let mut parts = upload.parts.range(after.saturating_add(1)..);
    let (mut inner, mut last) = (String::new(), after);
    for (number, part) in parts.by_ref().take(page_size) {
        last = *number;
        inner += &format!(
            "<Part><PartNumber>{number}</PartNumber><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>{}</Part>",
            iso_date(part.received),
            xml_escape(&part.etag),
            part.content.len_bytes(),
            part.stated.as_ref().map(Stated::element).unwrap_or_default(),
        );
    }
    let more = parts.next().is_some();
    let (bucket, key) = key_of(&path);
    let inner = format!(
        "<Bucket>{bucket}</Bucket><Key>{}</Key><UploadId>{id}</UploadId><PartNumberMarker>{after}</PartNumberMarker>\
         <NextPartNumberMarker>{last}</NextPartNumberMarker><MaxParts>{page_size}</MaxParts>\
         <IsTruncated>{more}</IsTruncated>{inner}",
        name_in(call, key),
    );
    Ok(xml(document("ListPartsResult", &inner)))
}
