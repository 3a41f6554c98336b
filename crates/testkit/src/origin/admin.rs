//! The server's own pages, for those who drive it from another process: no bucket name begins with an underscore.
//!
//! * `GET /_counters`: [`Counters`](super::Counters) as JSON; `?requests=0` leaves the list of requests out;
//! * `POST /_reset`: counts from zero;
//! * `POST /_fault`: a [`Fault`] as JSON; `DELETE /_fault` ends them all;
//! * `POST /_put?path=P&seed=N&size=N`: stores a generated object.

use hyper::{Method, Response, StatusCode};

use super::body::Body;
use super::faults::Fault;
use super::request::Ask;
use super::serve::plain;
use super::state::State;
use crate::content::Content;

pub(super) fn answer(state: &State, ask: &Ask, upload: &[u8]) -> Response<Body> {
    match (&ask.method, ask.path.as_str()) {
        (&Method::GET, "_counters") => {
            let mut counters = state.counters.lock().clone();
            if ask.param("requests") == Some("0") {
                counters.requests.clear();
            }
            match serde_json::to_string(&counters) {
                Ok(json) => plain(StatusCode::OK, &json),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            }
        }
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
            let number = |name| ask.param(name).and_then(|text| text.parse::<u64>().ok());
            let (Some(path), Some(seed), Some(size)) = (ask.param("path"), number("seed"), number("size")) else {
                return plain(StatusCode::BAD_REQUEST, "needs path, seed and size");
            };
            state.put(path, Content::generated(seed, size));
            plain(StatusCode::OK, "")
        }
        _ => plain(StatusCode::NOT_FOUND, "there are _counters, _reset, _fault and _put"),
    }
}
