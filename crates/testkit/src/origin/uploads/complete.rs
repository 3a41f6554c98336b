//! The end of an upload: its parts become an object.

use hyper::{Response, header};
use longshore_types::BlockChecksum;
use serde::Deserialize;

use super::super::Dialect;
use super::super::body::Body;
use super::super::checksums::{self, Algorithm, Stated};
use super::super::serve::Call;
use super::super::state::{NewObject, Object};
use super::super::stores::Failure;
use super::super::text::{encode_path, xml_escape};
use super::super::write::{Condition, check_bucket, malformed};
use super::{Part, Upload, document, finish, key_of, no_such_upload, upload_key, xml};
use crate::content::Content;

fn invalid_part() -> Failure {
    let message = "One or more of the specified parts could not be found. The part might not have been uploaded, or the \
                   specified entity tag might not have matched the part's entity tag.";
    Failure::new(400, "InvalidPart", message)
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

pub(in crate::origin) fn complete(call: Call) -> Response<Body> {
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
        if let Some(Ok(hash)) = object.stated.as_ref().map(|stated| stated.answer_header(Dialect::Gcs).1.try_into()) {
            response.headers_mut().insert(checksums::GOOGLE_HASH, hash);
        }
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
    // CRC-64/NVME is what every object has.
    let stated = upload.algorithm.filter(|algorithm| *algorithm != Algorithm::Crc64Nvme).map(|algorithm| {
        let of_parts =
            parts.iter().filter_map(|part| part.stated.as_ref().map(|stated| (stated, part.content.len_bytes())));
        match upload.is_composite {
            true => Stated::composite(algorithm, of_parts.map(|(stated, _)| stated).collect::<Vec<_>>().into_iter()),
            false => Stated::combined(algorithm, of_parts),
        }
    });
    let is = stated.clone().unwrap_or_else(|| Stated::crc64(checksum));
    // Of the object, and not of the body of this request.
    if let Some(given) = checksums::stated(&call.ask, &call.state.config.quirks)?
        && given != is
    {
        return Err(checksums::mismatch(given.algorithm));
    }
    let etags: String = parts.iter().map(|part| part.etag.as_str()).collect();
    let digest = BlockChecksum::of(etags.as_bytes());
    let etag = format!("\"{digest}{:016x}-{}\"", content.len_bytes(), parts.len());
    Ok(NewObject { content, etag, checksum, stated })
}
