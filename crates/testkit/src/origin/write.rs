//! Objects that are put and deleted, on conditions.

use std::collections::HashMap;

use hyper::header;
use hyper::{Response, StatusCode};
use serde::Deserialize;

use super::Dialect;
use super::body::{self, Body};
use super::checksums::{Algorithm, Stated};
use super::receive::Received;
use super::serve::{Call, built};
use super::state::{NewObject, Object};
use super::stores::{Failure, XML, bucket_of, no_such_bucket};
use super::text::xml_escape;

/// Most keys of one request to delete, as in S3.
const DELETES_MAX: usize = 1000;

/// What must be so of the object that is there for a write to be done.
pub(super) enum Condition {
    None,
    Absent,
    Etag(String),
    Generation(u64),
}

impl Condition {
    pub(super) fn of(call: &Call) -> Result<Condition, Failure> {
        let (config, ask) = (&call.state.config, &call.ask);
        if config.quirks.ignores_conditions || config.quirks.ignores_conditional_puts {
            return Ok(Condition::None);
        }
        if config.dialect == Dialect::Gcs {
            let Some(text) = ask.text("x-goog-if-generation-match") else { return Ok(Condition::None) };
            let generation = text.parse::<u64>();
            let generation = generation.map_err(|_| Failure::new(400, "InvalidArgument", "Invalid argument."))?;
            return Ok(if generation == 0 { Condition::Absent } else { Condition::Generation(generation) });
        }
        match (ask.header(header::IF_MATCH), ask.header(header::IF_NONE_MATCH)) {
            (None, None) => Ok(Condition::None),
            (None, Some("*")) => Ok(Condition::Absent),
            (Some(etag), None) => Ok(Condition::Etag(etag.to_owned())),
            _ => {
                let message = "A header you provided implies functionality that is not implemented";
                Err(Failure::new(501, "NotImplemented", message))
            }
        }
    }

    pub(super) fn holds(&self, current: Option<&Object>) -> Result<(), Failure> {
        let holds = match (self, current) {
            (Condition::None, _) => true,
            (Condition::Absent, current) => current.is_none(),
            // https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
            (Condition::Etag(_), None) => return Err(Failure::of_status(404)),
            (Condition::Etag(etag), Some(object)) => etag == "*" || *etag == object.etag,
            (Condition::Generation(generation), object) => object.is_some_and(|o| o.generation == *generation),
        };
        if holds { Ok(()) } else { Err(Failure::of_status(412)) }
    }
}

/// The version of a text that came in: equal ones have equal versions, as with S3's MD5.
pub(super) fn etag(received: &Received) -> String {
    format!("\"{}{:016x}\"", received.checksum, received.content.len_bytes())
}

pub(super) fn check_bucket(call: &Call) -> Result<(), Failure> {
    let is_store = matches!(call.state.config.dialect, Dialect::S3 | Dialect::Gcs);
    if is_store && !call.state.has_bucket(bucket_of(&call.path)) {
        return Err(no_such_bucket());
    }
    if call.ask.text("x-amz-copy-source").or(call.ask.text("x-goog-copy-source")).is_some() {
        return Err(Failure::new(501, "NotImplemented", "copies are not implemented here"));
    }
    Ok(())
}

pub(super) fn put(call: Call) -> Response<Body> {
    match try_put(&call) {
        Ok(object) => {
            call.ticket.status(200);
            let mut response = Response::builder().header(header::ETAG, &object.etag);
            if call.state.config.dialect == Dialect::Gcs {
                response = response.header("x-goog-generation", object.generation);
            }
            if let Some(stated) = object.stated.as_ref().filter(|_| call.keeps_google_hash()) {
                let (name, value) = stated.answer_header(Dialect::Gcs);
                response = response.header(name, value);
            }
            if let Some(stated) = call.keeps_checksums().then(|| object.checksum_text()) {
                response = response.header(stated.algorithm.header(), stated.text.as_str());
                response = response.header("x-amz-checksum-type", stated.kind());
            }
            built(response.body(body::empty()))
        }
        Err(failure) => call.fail(failure),
    }
}

fn try_put(call: &Call) -> Result<std::sync::Arc<Object>, Failure> {
    check_bucket(call)?;
    let condition = Condition::of(call)?;
    let received = &call.received;
    let new = NewObject {
        content: received.content.clone(),
        etag: etag(received),
        checksum: received.checksum,
        stated: received.stated.clone().filter(|stated| stated.algorithm != Algorithm::Crc64Nvme),
    };
    if call.state.config.dialect == Dialect::Http {
        call.state.create_bucket(bucket_of(&call.path));
    }
    call.state.put_if(&call.path, new, |current| condition.holds(current))
}

pub(super) fn delete(call: Call) -> Response<Body> {
    let done = check_bucket(&call).and_then(|()| Condition::of(&call)).and_then(|condition| {
        let is_s3 = call.state.config.dialect == Dialect::S3;
        call.state.remove_if(&call.path, |current| match current {
            // S3 deletes what is not there; the others say so.
            None if !is_s3 => Err(Failure::of_status(404)),
            current => condition.holds(current),
        })
    });
    match done {
        Ok(_) => call.text(StatusCode::NO_CONTENT, XML, String::new()),
        Err(failure) => call.fail(failure),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteRequest {
    #[serde(default)]
    object: Vec<DeleteEntry>,
    #[serde(default)]
    quiet: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteEntry {
    key: String,
}

/// The keys that a request for many deletes, as it says so in its body.
#[derive(Default)]
pub(super) struct Deletes {
    pub(super) keys: Vec<String>,
    quiet: bool,
}

impl Deletes {
    pub(super) fn of(keys: Vec<String>) -> Deletes {
        Deletes { keys, quiet: false }
    }

    pub(super) fn parse(body: &[u8]) -> Result<Deletes, Failure> {
        let request: DeleteRequest = quick_xml::de::from_reader(body).map_err(|_| malformed())?;
        if request.object.is_empty() || request.object.len() > DELETES_MAX {
            return Err(malformed());
        }
        Ok(Deletes { keys: request.object.into_iter().map(|entry| entry.key).collect(), quiet: request.quiet })
    }
}

pub(super) fn malformed() -> Failure {
    let message = "The XML you provided was not well-formed or did not validate against our published schema";
    Failure::new(400, "MalformedXML", message)
}

/// Deletes many; those in `refused` are not, for that reason each.
pub(super) fn delete_many(call: Call, deletes: Deletes, refused: &HashMap<String, Failure>) -> Response<Body> {
    if let Err(failure) = check_bucket(&call) {
        return call.fail(failure);
    }
    // https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    if call.ask.text("content-md5").is_none() && call.received.stated.is_none() {
        let message = "Missing required header for this request: Content-MD5 OR x-amz-checksum-*";
        return call.fail(Failure::new(400, "InvalidRequest", message));
    }
    let mut xml = String::new();
    for key in &deletes.keys {
        let (path, name) = (format!("{}/{key}", call.path), xml_escape(key));
        call.ticket.deletes(&path);
        if let Some(failure) = refused.get(key) {
            let (code, message) = (&failure.code, xml_escape(&failure.message));
            xml += &format!("<Error><Key>{name}</Key><Code>{code}</Code><Message>{message}</Message></Error>");
            continue;
        }
        call.state.remove(&path);
        if !deletes.quiet {
            xml += &format!("<Deleted><Key>{name}</Key></Deleted>");
        }
    }
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{xml}</DeleteResult>"
    );
    call.text(StatusCode::OK, XML, xml)
}

impl Object {
    /// The checksum that the store tells of it.
    pub(super) fn checksum_text(&self) -> Stated {
        self.stated.clone().unwrap_or_else(|| Stated::crc64(self.checksum()))
    }
}
