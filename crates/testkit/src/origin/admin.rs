//! The server's own pages, for those who drive it from another process: no bucket name begins with an underscore.
//!
//! * `GET /_counters`: [`Counters`](super::Counters) as JSON; `?requests=0` leaves the list of requests out;
//! * `POST /_reset`: counts from zero;
//! * `POST /_fault`: a [`Fault`] as JSON; `DELETE /_fault` ends them all;
//! * `POST /_put?path=P&seed=N&size=N`: stores a generated object;
//! * `POST /_bucket?name=B`: makes an empty bucket;
//! * `GET /_objects?prefix=P`: path, size, ETag and checksum of the objects, as JSON;
//! * `DELETE /_object?path=P`: deletes an object;
//! * `POST /_flip?path=P&offset=N`: turns a bit of an object where it lies; with `&part=N`, of a part of its open upload;
//! * `GET /_uploads`: the open uploads as JSON; `DELETE /_uploads?path=P&id=I` forgets one;
//! * `POST /_bandwidth?bytes_per_second=N`: limits all uploads together; without a number, no longer.

use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::body::Body;
use super::faults::Fault;
use super::request::Ask;
use super::serve::plain;
use super::state::State;
use crate::content::Content;

pub(super) fn answer(state: &State, ask: &Ask, upload: &[u8]) -> Response<Body> {
    match (&ask.method, ask.path.as_str()) {
        (&Method::GET, "_counters") => counters(state, ask),
        (&Method::POST, "_reset") => {
            state.reset_counters();
            plain(StatusCode::OK, "")
        }
        (&Method::POST, "_fault") => match serde_json::from_slice::<Fault>(upload) {
            Ok(fault) => {
                state.faults.lock().push(fault);
                plain(StatusCode::OK, "")
            }
            Err(error) => plain(StatusCode::BAD_REQUEST, &format!("this is no fault: {error}")),
        },
        (&Method::DELETE, "_fault") => {
            state.faults.lock().clear();
            plain(StatusCode::OK, "")
        }
        (&Method::POST, "_put") => {
            let (Some(path), Some(seed), Some(size)) = (ask.param("path"), number(ask, "seed"), number(ask, "size"))
            else {
                return plain(StatusCode::BAD_REQUEST, "needs path, seed and size");
            };
            state.put(path, Content::generated(seed, size));
            plain(StatusCode::OK, "")
        }
        (&Method::POST, "_bandwidth") => {
            state.pacer.set(number(ask, "bytes_per_second"));
            plain(StatusCode::OK, "")
        }
        (&Method::GET, "_uploads") => json_of(&state.uploads.list()),
        _ => objects(state, ask),
    }
}

fn counters(state: &State, ask: &Ask) -> Response<Body> {
    let mut counters = state.counters.lock().clone();
    if ask.param("requests") == Some("0") {
        counters.requests.clear();
    }
    json_of(&counters)
}

/// Pages about what is stored.
fn objects(state: &State, ask: &Ask) -> Response<Body> {
    let done = match (&ask.method, ask.path.as_str()) {
        (&Method::GET, "_objects") => {
            let objects = state.objects_under(ask.param("prefix").unwrap_or_default(), "");
            let objects = objects.iter().map(|(path, object)| {
                let (size_bytes, checksum) = (object.content.len_bytes(), object.checksum().to_string());
                json!({ "path": path, "size_bytes": size_bytes, "etag": object.etag, "crc64nvme": checksum })
            });
            return json_of(&objects.collect::<Vec<_>>());
        }
        (&Method::POST, "_bucket") => ask.param("name").map(|name| {
            state.create_bucket(name);
            true
        }),
        (&Method::DELETE, "_object") => ask.param("path").map(|path| state.remove(path)),
        (&Method::DELETE, "_uploads") => {
            ask.param("path").zip(ask.param("id")).map(|(path, id)| state.uploads.remove(path, id))
        }
        (&Method::POST, "_flip") => ask.param("path").zip(number(ask, "offset")).map(|(path, offset)| {
            match number(ask, "part").and_then(|part| u32::try_from(part).ok()) {
                Some(part) => state.uploads.flip(path, part, offset),
                None => state.flip(path, offset),
            }
        }),
        _ => {
            let pages = "_counters, _reset, _fault, _put, _bucket, _objects, _object, _flip, _uploads and _bandwidth";
            return plain(StatusCode::NOT_FOUND, &format!("there are {pages}"));
        }
    };
    match done {
        Some(true) => plain(StatusCode::OK, ""),
        Some(false) => plain(StatusCode::NOT_FOUND, "it is not there"),
        None => plain(StatusCode::BAD_REQUEST, "a parameter is missing or no number"),
    }
}

fn number(ask: &Ask, name: &str) -> Option<u64> {
    ask.param(name).and_then(|text| text.parse().ok())
}

fn json_of(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_string(value) {
        Ok(json) => plain(StatusCode::OK, &json),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
