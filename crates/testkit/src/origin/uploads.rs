//! Multipart uploads, as S3 and the XML API of GCS have them.

mod blocks;
mod complete;
mod list;

use std::collections::BTreeMap;
use std::time::SystemTime;

use hyper::header;
use hyper::{Response, StatusCode};
use longshore_types::BlockChecksum;
use parking_lot::Mutex;
use serde::Serialize;

use super::body::{self, Body};
use super::checksums::{Algorithm, Stated};
use super::serve::{Call, built};
use super::stores::{Failure, XML};
use super::text::xml_escape;
use super::write::{check_bucket, etag};
use crate::content::{Content, mix};

pub(super) use blocks::{number_of_block, put_block, put_block_list};
pub(super) use complete::complete;
pub(super) use list::{list, list_parts};

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
    /// Of the checksums that its parts state; `None` when none was told, and they may not state any.
    algorithm: Option<Algorithm>,
    is_composite: bool,
    parts: BTreeMap<u32, Part>,
    /// Numbers of Azure's blocks by name, in the order in which they came first.
    blocks: BTreeMap<String, u32>,
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
    /// What the store calls it; `azure` for blocks that are no part of a blob yet.
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
        // Blocks that were all refused are no upload.
        infos.filter(|info| info.id != blocks::UPLOAD || !info.parts.is_empty()).collect()
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
    let is_google = call.keeps_google_hash();
    let algorithm = match is_google {
        true => Some(Algorithm::Crc32c),
        false => algorithm.map(Algorithm::parse).transpose()?,
    };
    let kind = call.ask.text("x-amz-checksum-type");
    let is_composite = match (algorithm, kind) {
        (Some(Algorithm::Sha256), Some("FULL_OBJECT")) | (Some(Algorithm::Crc64Nvme), Some("COMPOSITE")) => {
            let message = "The checksum type is not supported with this checksum algorithm.";
            return Err(Failure::new(400, "InvalidRequest", message));
        }
        _ if is_google => false,
        (None | Some(Algorithm::Crc64Nvme), _) | (_, Some("FULL_OBJECT")) => false,
        _ => true,
    };
    let number = call.state.next_number();
    let id = format!("{:016x}{:016x}", mix(number), mix(!number));
    let upload = Upload {
        number,
        begun: SystemTime::now(),
        algorithm,
        is_composite,
        parts: BTreeMap::new(),
        blocks: BTreeMap::new(),
    };
    call.state.uploads.open.lock().insert((call.path.clone(), id.clone()), upload);
    let (bucket, key) = key_of(&call.path);
    let inner = format!("<Bucket>{bucket}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>", xml_escape(key));
    let mut response = xml(document("InitiateMultipartUploadResult", &inner));
    if let Some(algorithm) = algorithm.filter(|_| !is_google) {
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
        let (name, value) = stated.answer_header(call.state.config.dialect);
        response = response.header(name, value);
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

pub(super) fn abort(call: Call) -> Response<Body> {
    let (path, id) = upload_key(&call);
    match call.state.uploads.remove(&path, &id) {
        true => call.text(StatusCode::NO_CONTENT, XML, String::new()),
        false => call.fail(no_such_upload()),
    }
}
