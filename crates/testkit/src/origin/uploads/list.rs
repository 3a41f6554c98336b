//! Listings of open uploads and of their parts.

use hyper::Response;

use super::super::body::Body;
use super::super::checksums::Stated;
use super::super::serve::Call;
use super::super::stores::Failure;
use super::super::text::{encode_path, iso_date, xml_escape};
use super::super::write::check_bucket;
use super::{document, finish, key_of, no_such_upload, upload_key, xml};

/// ListMultipartUploads.
pub(in crate::origin) fn list(call: Call) -> Response<Body> {
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
pub(in crate::origin) fn list_parts(call: Call) -> Response<Body> {
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
