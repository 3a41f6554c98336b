//! What requests want, by method and address.

use hyper::Method;

use super::super::faults::Verb;
use super::super::request::Ask;
use super::super::state::State;
use super::super::{Dialect, azure, hub};
use super::Side;

/// What a request wants.
pub(in crate::origin) enum Route {
    Object,
    List,
    Bucket,
    Put,
    Delete,
    DeleteMany,
    CreateUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    ListUploads,
    ListParts,
    PropFind,
    Hub(hub::HubRoute),
    Azure(azure::AzureRoute),
    Unknown,
}

pub(super) fn route(state: &State, ask: &Ask, side: Side) -> (Route, Verb, String) {
    let verb = if ask.is_head() { Verb::Head } else { Verb::Get };
    match state.config.dialect {
        Dialect::Hub => {
            let (route, verb, path) = hub::route(state, ask, side, verb);
            (Route::Hub(route), verb, path)
        }
        Dialect::Http => match ask.method.as_str() {
            "GET" | "HEAD" => (Route::Object, verb, ask.path.clone()),
            "PROPFIND" => (Route::PropFind, Verb::List, ask.path.clone()),
            "PUT" => (Route::Put, Verb::Put, ask.path.clone()),
            "DELETE" => (Route::Delete, Verb::Delete, ask.path.clone()),
            _ => (Route::Unknown, verb, ask.path.clone()),
        },
        Dialect::S3 | Dialect::Gcs if ask.is_azure() => azure::route(ask, verb),
        Dialect::S3 | Dialect::Gcs => route_of_store(ask, verb),
    }
}

fn route_of_store(ask: &Ask, reads: Verb) -> (Route, Verb, String) {
    let (bucket, key) = ask.path.split_once('/').unwrap_or((&ask.path, ""));
    let has = |name| ask.param(name).is_some();
    let path = ask.path.clone();
    let listed = || format!("{bucket}/{}", ask.param("prefix").unwrap_or_default());
    if key.is_empty() {
        return match ask.method {
            Method::GET if has("uploads") => (Route::ListUploads, Verb::ListUploads, listed()),
            Method::GET => (Route::List, Verb::List, listed()),
            Method::HEAD => (Route::Bucket, Verb::List, bucket.to_owned()),
            Method::POST if has("delete") => (Route::DeleteMany, Verb::Delete, bucket.to_owned()),
            _ => (Route::Unknown, reads, path),
        };
    }
    match ask.method {
        Method::GET if has("uploadId") => (Route::ListParts, Verb::ListUploads, path),
        Method::GET | Method::HEAD => (Route::Object, reads, path),
        Method::PUT if has("uploadId") => (Route::UploadPart, Verb::UploadPart, path),
        Method::PUT => (Route::Put, Verb::Put, path),
        Method::DELETE if has("uploadId") => (Route::AbortUpload, Verb::AbortUpload, path),
        Method::DELETE => (Route::Delete, Verb::Delete, path),
        Method::POST if has("uploads") => (Route::CreateUpload, Verb::CreateUpload, path),
        Method::POST if has("uploadId") => (Route::CompleteUpload, Verb::CompleteUpload, path),
        _ => (Route::Unknown, reads, path),
    }
}
