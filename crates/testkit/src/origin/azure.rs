//! The words of Azure's blob service, as far as `object_store` uses them. Shared keys are not checked.
//!
//! Its errors differ from those of S3 in their codes and in some statuses: a blob that must not be there and is there
//! is a conflict, and what is deleted must be there.

use std::collections::HashMap;

use hyper::http::response::Builder;
use hyper::{Method, Response, StatusCode, header};

use super::body::{self, Body};
use super::faults::Verb;
use super::request::Ask;
use super::serve::{Call, Route, built};
use super::state::{NewObject, Object, State};
use super::stores::{Failure, XML, error_text};
use super::text::decode;
use super::write::{Condition, Deletes, check_bucket, malformed};
use super::{listing, uploads};

/// Most deletions of a batch.
const BATCH_MAX: usize = 256;

pub(super) enum AzureRoute {
    List,
    PutBlob,
    PutBlock,
    PutBlockList,
    Delete,
    Batch,
}

pub(super) fn route(ask: &Ask, reads: Verb) -> (Route, Verb, String) {
    let (container, blob) = ask.path.split_once('/').unwrap_or((&ask.path, ""));
    let component = ask.param("comp").unwrap_or_default();
    let (route, verb) = match (&ask.method, blob.is_empty(), component) {
        (&Method::GET, true, "list") => {
            let path = format!("{container}/{}", ask.param("prefix").unwrap_or_default());
            return (Route::Azure(AzureRoute::List), Verb::List, path);
        }
        (&Method::POST, true, "batch") => {
            return (Route::Azure(AzureRoute::Batch), Verb::Delete, container.to_owned());
        }
        (&Method::PUT, false, "") => (AzureRoute::PutBlob, Verb::Put),
        (&Method::PUT, false, "block") => (AzureRoute::PutBlock, Verb::UploadPart),
        (&Method::PUT, false, "blocklist") => (AzureRoute::PutBlockList, Verb::CompleteUpload),
        (&Method::DELETE, false, "") => (AzureRoute::Delete, Verb::Delete),
        (&Method::GET | &Method::HEAD, false, "") => return (Route::Object, reads, ask.path.clone()),
        _ => return (Route::Unknown, reads, ask.path.clone()),
    };
    (Route::Azure(route), verb, ask.path.clone())
}

pub(super) fn answer(
    call: Call,
    route: AzureRoute,
    deletes: Deletes,
    refused: &HashMap<String, Failure>,
) -> Response<Body> {
    match route {
        AzureRoute::List => listing::azure(call),
        AzureRoute::PutBlob => put_blob(call),
        AzureRoute::PutBlock => uploads::put_block(call),
        AzureRoute::PutBlockList => uploads::put_block_list(call),
        AzureRoute::Delete => match delete(&call, &call.path) {
            Ok(()) => call.text(StatusCode::ACCEPTED, XML, String::new()),
            Err(failure) => call.fail(failure),
        },
        AzureRoute::Batch => batch(call, &deletes, refused),
    }
}

/// Every write has another, also of the same bytes.
pub(super) fn new_etag(state: &State) -> String {
    format!("\"0x{:016X}\"", state.next_number())
}

pub(super) fn holds(condition: &Condition, current: Option<&Object>) -> Result<(), Failure> {
    condition.holds(current).map_err(|_| match condition {
        Condition::Absent => Failure::new(409, "BlobAlreadyExists", "The specified blob already exists."),
        _ => Failure::of_status(412),
    })
}

fn put_blob(call: Call) -> Response<Body> {
    let done = check_bucket(&call).and_then(|()| Condition::of(&call)).and_then(|condition| {
        let (content, checksum) = (call.received.content.clone(), call.received.checksum);
        let new = NewObject { content, etag: new_etag(&call.state), checksum, stated: None };
        call.state.put_if(&call.path, new, |current| holds(&condition, current))
    });
    match done {
        Ok(object) => {
            call.ticket.status(201);
            let response = Response::builder().status(StatusCode::CREATED).header(header::ETAG, &object.etag);
            built(response.body(body::empty()))
        }
        Err(failure) => call.fail(failure),
    }
}

fn delete(call: &Call, path: &str) -> Result<(), Failure> {
    check_bucket(call)?;
    let condition = Condition::of(call)?;
    let done = call.state.remove_if(path, |current| match current {
        None => Err(Failure::of_status(404)),
        current => holds(&condition, current),
    });
    done.map(|_| ())
}

/// The keys of the deletions that a batch consists of, in their order.
pub(super) fn parse_batch(call: &Call) -> Result<Deletes, Failure> {
    let body = call.received.content.to_vec();
    let text = String::from_utf8_lossy(&body);
    let targets = text.lines().filter_map(|line| line.strip_prefix("DELETE /")?.strip_suffix(" HTTP/1.1"));
    let container = format!("{}/", call.path);
    let keys = targets.map(|target| {
        let path = decode(target.split('?').next().unwrap_or_default());
        path.strip_prefix(&container).map(str::to_owned)
    });
    let keys: Option<Vec<String>> = keys.collect();
    let keys = keys.filter(|keys| !keys.is_empty() && keys.len() <= BATCH_MAX).ok_or_else(malformed)?;
    Ok(Deletes::of(keys))
}

/// Each part of the answer is an answer.
fn batch(call: Call, deletes: &Deletes, refused: &HashMap<String, Failure>) -> Response<Body> {
    const BOUNDARY: &str = "batchresponse_fake";
    let mut text = String::new();
    for (index, key) in deletes.keys.iter().enumerate() {
        let path = format!("{}/{key}", call.path);
        call.ticket.deletes(&path);
        let done = refused.get(key).cloned().map_or_else(|| delete(&call, &path), Err);
        let status = match done {
            Ok(()) => "202 Accepted".to_owned(),
            Err(failure) => format!("{} {}\r\nx-ms-error-code: {}", failure.status, failure.code, code_of(&failure)),
        };
        text += &format!(
            "--{BOUNDARY}\r\nContent-Type: application/http\r\nContent-ID: {index}\r\n\r\nHTTP/1.1 {status}\r\n\
             x-ms-request-id: fake\r\n\r\n"
        );
    }
    text += &format!("--{BOUNDARY}--\r\n");
    call.text(StatusCode::ACCEPTED, &format!("multipart/mixed; boundary={BOUNDARY}"), text)
}

/// What Azure calls an error that S3 calls so.
fn code_of(failure: &Failure) -> &str {
    match failure.code.as_ref() {
        "NoSuchKey" => "BlobNotFound",
        "NoSuchBucket" => "ContainerNotFound",
        "PreconditionFailed" => "ConditionNotMet",
        "AccessDenied" => "AuthorizationFailure",
        "SlowDown" => "ServerBusy",
        "MalformedXML" => "InvalidXmlDocument",
        code => code,
    }
}

pub(super) fn failure(call: &Call, response: Builder, failure: &Failure) -> Response<Body> {
    let code = code_of(failure).to_owned();
    let response = response.header("x-ms-error-code", &code);
    if call.ask.is_head() {
        return built(response.body(body::empty()));
    }
    let failure = Failure { code: code.into(), ..failure.clone() };
    built(response.header(header::CONTENT_TYPE, XML).body(body::text(error_text(&call.path, &failure))))
}
