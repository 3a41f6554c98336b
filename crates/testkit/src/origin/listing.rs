//! Listings of a bucket, in the words of S3 (which GCS speaks as well), of Azure and of WebDAV.

use std::sync::Arc;

use hyper::{Response, StatusCode};

use super::Dialect;
use super::body::Body;
use super::serve::Call;
use super::state::{Object, State};
use super::stores::{Failure, XML, bucket_of, no_such_bucket};
use super::text::{encode_path, http_date, iso_date, xml_escape};

enum Entry {
    Object(String, Arc<Object>),
    /// With the delimiter at its end.
    Folder(String),
}

/// What is listed, all without the name of the bucket.
struct Query<'a> {
    bucket: &'a str,
    prefix: &'a str,
    /// Folders end with it; empty lists everything.
    delimiter: &'a str,
    /// From the first key behind this one.
    after: &'a str,
    page_size: usize,
}

struct Page {
    entries: Vec<Entry>,
    /// The last key of it, when there are more.
    next: Option<String>,
}

fn page(state: &State, query: &Query<'_>) -> Page {
    let Query { bucket, prefix, delimiter, after, page_size } = *query;
    let after = if after.is_empty() { String::new() } else { format!("{bucket}/{after}") };
    let (mut entries, mut last, mut folder) = (Vec::new(), String::new(), String::new());
    for (path, object) in state.objects_under(&format!("{bucket}/{prefix}"), &after) {
        let key = &path[bucket.len() + 1..];
        if !folder.is_empty() && key.starts_with(&folder) {
            last = key.to_owned();
            continue;
        }
        if entries.len() == page_size {
            return Page { entries, next: Some(last) };
        }
        last = key.to_owned();
        let inner = &key[prefix.len()..];
        match inner.find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(cut) => {
                folder = format!("{prefix}{}", &inner[..cut + delimiter.len()]);
                entries.push(Entry::Folder(folder.clone()));
            }
            None => entries.push(Entry::Object(key.to_owned(), object)),
        }
    }
    Page { entries, next: None }
}

/// The bucket of a listing and the size of its pages.
fn begin(call: &Call, size_param: &str) -> Result<(String, usize), Failure> {
    let bucket = bucket_of(&call.ask.path).to_owned();
    if !call.state.has_bucket(&bucket) {
        return Err(no_such_bucket());
    }
    let asked = call.ask.param(size_param).and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    Ok((bucket, asked.min(call.state.config.page_size).max(1)))
}

/// ListObjectsV2.
pub(super) fn s3(call: Call) -> Response<Body> {
    let (bucket, page_size) = match begin(&call, "max-keys") {
        Ok(begun) => begun,
        Err(failure) => return call.fail(failure),
    };
    let param = |name| call.ask.param(name).unwrap_or_default();
    let after = match param("continuation-token") {
        "" => param("start-after"),
        token => token,
    };
    let (prefix, delimiter) = (param("prefix"), param("delimiter"));
    let Page { entries, next } = page(&call.state, &Query { bucket: &bucket, prefix, delimiter, after, page_size });
    let encodes = param("encoding-type") == "url";
    let name = |key: &str| if encodes { encode_path(key) } else { xml_escape(key) };
    let mut xml = String::new();
    for entry in &entries {
        xml += &match entry {
            Entry::Folder(folder) => format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", name(folder)),
            Entry::Object(key, object) => contents(call.state.config.dialect, &name(key), object),
        };
    }
    if let Some(next) = &next {
        xml += &format!("<NextContinuationToken>{}</NextContinuationToken>", xml_escape(next));
    }
    if encodes {
        xml += "<EncodingType>url</EncodingType>";
    }
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{bucket}</Name>\
         <Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>{page_size}</MaxKeys>\
         <IsTruncated>{}</IsTruncated>{xml}</ListBucketResult>",
        name(prefix),
        entries.len(),
        next.is_some(),
    );
    call.text(StatusCode::OK, XML, xml)
}

fn contents(dialect: Dialect, name: &str, object: &Object) -> String {
    // As Google's: https://cloud.google.com/storage/docs/xml-api/get-bucket-list
    let generation = match dialect {
        Dialect::Gcs => format!("<Generation>{}</Generation><MetaGeneration>1</MetaGeneration>", object.generation),
        _ => String::new(),
    };
    format!(
        "<Contents><Key>{name}</Key>{generation}<LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>\
         <StorageClass>STANDARD</StorageClass></Contents>",
        iso_date(object.modified),
        xml_escape(&object.etag),
        object.content.len_bytes(),
    )
}

/// List Blobs.
pub(super) fn azure(call: Call) -> Response<Body> {
    let (bucket, page_size) = match begin(&call, "maxresults") {
        Ok(begun) => begun,
        Err(failure) => return call.fail(failure),
    };
    let param = |name| call.ask.param(name).unwrap_or_default();
    let (prefix, delimiter, after) = (param("prefix"), param("delimiter"), param("marker"));
    let Page { entries, next } = page(&call.state, &Query { bucket: &bucket, prefix, delimiter, after, page_size });
    let mut xml = String::new();
    for entry in &entries {
        xml += &match entry {
            Entry::Folder(folder) => format!("<BlobPrefix><Name>{}</Name></BlobPrefix>", xml_escape(folder)),
            // This one is the first that is wanted.
            Entry::Object(key, _) if key.as_str() < param("startFrom") => String::new(),
            Entry::Object(key, object) => format!(
                "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag>\
                 <Content-Length>{}</Content-Length><Content-Type>application/octet-stream</Content-Type>\
                 <BlobType>BlockBlob</BlobType></Properties></Blob>",
                xml_escape(key),
                http_date(object.modified),
                // Without the quotes that it has elsewhere.
                object.etag.trim_matches('"'),
                object.content.len_bytes(),
            ),
        };
    }
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"{bucket}\"><Prefix>{}</Prefix>\
         <MaxResults>{page_size}</MaxResults><Blobs>{xml}</Blobs><NextMarker>{}</NextMarker></EnumerationResults>",
        xml_escape(prefix),
        xml_escape(next.as_deref().unwrap_or_default()),
    );
    call.text(StatusCode::OK, XML, xml)
}

/// WebDAV's listing, of everything below the path.
pub(super) fn prop_find(call: Call) -> Response<Body> {
    let prefix = call.path.trim_end_matches('/').to_owned();
    let below = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let mut found = call.state.objects_under(&below, "");
    if let Some(object) = call.state.object(&prefix) {
        found.push((prefix, object));
    }
    if found.is_empty() {
        return call.fail(Failure::of_status(404));
    }
    let mut xml = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:multistatus xmlns:D=\"DAV:\">".to_owned();
    for (path, object) in found {
        xml += &format!(
            "<D:response><D:href>/{}</D:href><D:propstat><D:prop><D:getcontentlength>{}</D:getcontentlength>\
             <D:getlastmodified>{}</D:getlastmodified><D:getetag>{}</D:getetag><D:resourcetype></D:resourcetype>\
             </D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>",
            encode_path(&path),
            object.content.len_bytes(),
            http_date(object.modified),
            xml_escape(&object.etag),
        );
    }
    xml += "</D:multistatus>";
    call.text(StatusCode::MULTI_STATUS, XML, xml)
}
