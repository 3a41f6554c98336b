//! The words of S3, GCS and plain HTTP: who is let in, and errors.

use std::borrow::Cow;

use hyper::header;
use hyper::{Response, StatusCode};

use super::Dialect;
use super::azure;
use super::body::{self, Body};
use super::serve::{Call, Side, built};
use super::sigv4;
use super::text::xml_escape;

pub(super) const XML: &str = "application/xml";

/// An error answer.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: u16,
    /// In S3's words, or the hub's `X-Error-Code`.
    pub(super) code: Cow<'static, str>,
    pub(super) message: String,
    pub(super) retry_after_s: Option<u64>,
}

impl Failure {
    pub(super) fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Failure {
        Failure { status, code: code.into(), message: message.into(), retry_after_s: None }
    }

    pub(super) fn of_status(status: u16) -> Failure {
        let (code, message) = match status {
            304 => ("NotModified", "Not Modified"),
            400 => ("InvalidRequest", "The request is not valid."),
            401 => ("Unauthorized", "Credentials are missing or wrong."),
            403 => ("AccessDenied", "Access Denied"),
            404 => ("NoSuchKey", "The specified key does not exist."),
            405 => ("MethodNotAllowed", "The specified method is not allowed against this resource."),
            409 => {
                let message = "A conflicting conditional operation is currently in progress against this resource.";
                ("ConditionalRequestConflict", message)
            }
            412 => ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
            416 => ("InvalidRange", "The requested range is not satisfiable"),
            429 => ("TooManyRequests", "Please reduce your request rate."),
            503 => ("SlowDown", "Please reduce your request rate."),
            507 => ("InsufficientStorage", "There is no room left for this object."),
            _ => ("InternalError", "We encountered an internal error. Please try again."),
        };
        Failure::new(status, code, message)
    }
}

pub(super) fn failure(call: &Call, failure: Failure) -> Response<Body> {
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder().status(status);
    if let Some(seconds) = failure.retry_after_s {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    if status == StatusCode::NOT_MODIFIED || call.ask.is_head() && !call.ask.is_azure() {
        let response = response.header("x-error-code", failure.code.as_ref());
        return built(response.body(body::empty()));
    }
    if call.ask.is_azure() {
        return azure::failure(call, response, &failure);
    }
    let (code, message) = (failure.code.as_ref(), &failure.message);
    match call.state.config.dialect {
        Dialect::S3 | Dialect::Gcs => {
            let xml = error_text(&call.path, &failure);
            built(response.header(header::CONTENT_TYPE, XML).body(body::text(xml)))
        }
        Dialect::Hub => {
            let json = serde_json::json!({ "error": message }).to_string();
            let response = response.header("x-error-code", code).header("x-error-message", message.as_str());
            built(response.header(header::CONTENT_TYPE, "application/json").body(body::text(json)))
        }
        Dialect::Http => built(response.header(header::CONTENT_TYPE, "text/plain").body(body::text(message.clone()))),
    }
}

/// An error as S3 and GCS write it.
pub(super) fn error_text(path: &str, failure: &Failure) -> String {
    let (code, resource, message) = (&failure.code, xml_escape(path), xml_escape(&failure.message));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <Resource>/{resource}</Resource><RequestId>FAKE</RequestId></Error>"
    )
}

/// Whether the request may be answered at all.
pub(super) fn check_credentials(call: &Call, side: Side) -> Result<(), Failure> {
    let config = &call.state.config;
    let authorization = call.ask.header(header::AUTHORIZATION);
    if side == Side::Cdn {
        // The real one's addresses are signed, and a second kind of credentials is an error there.
        if authorization.is_some() {
            call.state.counters.lock().leaked_tokens += 1;
            return Err(Failure::new(400, "InvalidArgument", "Only one auth mechanism allowed"));
        }
        return Ok(());
    }
    if let (Dialect::S3, Some((id, secret)), false) = (config.dialect, &config.access_key, call.ask.is_azure()) {
        sigv4::check(&call.ask, call.received.sha256.as_deref(), id, secret)?;
    }
    let Some(token) = &config.token else { return Ok(()) };
    let given = authorization.and_then(|value| value.strip_prefix("Bearer "));
    match (config.dialect, given) {
        (Dialect::Gcs | Dialect::Hub, Some(given)) if given == token => Ok(()),
        (Dialect::Gcs, None) => {
            Err(Failure::new(403, "AccessDenied", "Anonymous caller does not have storage access."))
        }
        (Dialect::Gcs, Some(_)) => Err(Failure::new(401, "AuthenticationRequired", "Authentication required.")),
        (Dialect::Hub, None) => Err(Failure::new(401, "GatedRepo", "Access to this model is restricted.")),
        (Dialect::Hub, Some(_)) => {
            Err(Failure::new(401, "InvalidToken", "Invalid credentials in Authorization header"))
        }
        _ => Ok(()),
    }
}

pub(super) fn no_such_bucket() -> Failure {
    Failure::new(404, "NoSuchBucket", "The specified bucket does not exist")
}

pub(super) fn bucket_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

pub(super) fn missing(call: Call) -> Response<Body> {
    let is_store = matches!(call.state.config.dialect, Dialect::S3 | Dialect::Gcs);
    if is_store && !call.state.has_bucket(bucket_of(&call.path)) {
        return call.fail(no_such_bucket());
    }
    call.fail(Failure::of_status(404))
}

pub(super) fn bucket(call: Call) -> Response<Body> {
    if !call.state.has_bucket(&call.path) {
        return call.fail(no_such_bucket());
    }
    call.text(StatusCode::OK, XML, String::new())
}
