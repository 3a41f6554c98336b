//! From a failed call of `object_store` to a message for the user: what was done, to what, why it failed, what to check.
//!
//! The library's own texts are not repeated: they may show signed URLs. The facts come from [`Exchange`].

use longshore_types::{Code, Error, redact_url};

use super::watch::{Exchange, Seen, Transport, root_cause};
use crate::address::Cloud;
use crate::fault::{Fault, Retry};
use crate::options::Limits;

/// What was being done.
pub(super) struct Call<'a> {
    pub doing: &'static str,
    pub url: &'a str,
    pub cloud: Option<Cloud>,
    pub limits: Limits,
}

/// Error codes of the stores that say the credentials themselves are wrong, although the status is 400 or 403.
const BAD_CREDENTIALS: &[&str] = &[
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "AuthenticationRequired",
    "InvalidSecurity",
    "CredentialsNotSupported",
    "MissingSecurityHeader",
];

/// Error codes that say the store is full, whatever the status.
const OUT_OF_ROOM: &[&str] = &[
    "QuotaExceeded",
    "QuotaExceededException",
    "InsufficientStorage",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "StorageQuotaExceeded",
    "AccountStorageLimitExceeded",
];

/// Error codes that say the bytes changed on their way: sending them again helps.
const DAMAGED: &[&str] = &[
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
    "Md5Mismatch",
    "Crc64Mismatch",
];

/// Explains a failed request.
pub(super) fn explain(call: &Call<'_>, error: object_store::Error, exchange: &Exchange) -> Fault {
    let seen = exchange.seen();
    if let Some(transport) = &seen.transport {
        return if seen.of_credentials {
            no_credentials(call, &seen, Retry::Never)
        } else {
            unreached(call, &seen, transport)
        };
    }
    match seen.status {
        Some(status) if seen.of_credentials && !(200..300).contains(&status) => {
            let retry = if status == 429 || status >= 500 { seen.retry() } else { Retry::Never };
            no_credentials(call, &seen, retry)
        }
        Some(status) if !(200..300).contains(&status) => refused(call, &seen, status),
        Some(_) => strange(call, &seen, error),
        // No request was made: credentials could not be built, for instance from a key file.
        None => Fault::fatal(
            Code::Unauthenticated,
            format!("cannot {} {}: {}; {}", call.doing, call.url, root_cause(&error), credentials_advice(call.cloud)),
        ),
    }
}

/// Explains a body that broke off.
pub(super) fn explain_body(url: &str, error: &object_store::Error) -> Fault {
    Fault::passing(Code::Unavailable, format!("the answer for {url} broke off: {}", root_cause(error)))
}

fn unreached(call: &Call<'_>, seen: &Seen, transport: &Transport) -> Fault {
    let (doing, url, host) = (call.doing, call.url, &seen.host);
    match transport {
        Transport::ConnectTimeout => Fault::passing(
            Code::Timeout,
            format!(
                "cannot {doing} {url}: connecting to {host} timed out after {:.1} s; check the endpoint and the network",
                call.limits.connect.as_secs_f64()
            ),
        ),
        Transport::FirstByteTimeout => Fault::passing(
            Code::Timeout,
            format!(
                "cannot {doing} {url}: {host} sent no first byte within {:.1} s",
                call.limits.first_byte.as_secs_f64()
            ),
        ),
        Transport::Connect(cause) => Fault::passing(
            Code::Unavailable,
            format!("cannot {doing} {url}: cannot connect to {host}: {cause}; check {}", endpoint_setting(call.cloud)),
        ),
        Transport::Other(cause) => Fault::passing(
            Code::Unavailable,
            format!("cannot {doing} {url}: the exchange with {host} broke off: {cause}"),
        ),
    }
}

fn no_credentials(call: &Call<'_>, seen: &Seen, retry: Retry) -> Fault {
    let text = format!(
        "cannot {} {}: no credentials were given and none came from {}; {}",
        call.doing,
        call.url,
        seen.host,
        credentials_advice(call.cloud)
    );
    Fault { error: Error::new(Code::Unauthenticated, text), retry }
}

/// A response with a status that is not a success.
fn refused(call: &Call<'_>, seen: &Seen, status: u16) -> Fault {
    let store_code = seen.store_code.as_deref().unwrap_or_default();
    let (code, advice) = meaning(call, seen, status, store_code);
    let said = if store_code.is_empty() { String::new() } else { format!(" {store_code}") };
    let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
    let text = format!("cannot {} {}: {} answered {status}{said}{advice}", call.doing, call.url, seen.host);
    let retry = if code == Code::Unavailable { seen.retry() } else { Retry::Never };
    Fault { error: Error::new(code, text), retry }
}

fn meaning(call: &Call<'_>, seen: &Seen, status: u16, store_code: &str) -> (Code, String) {
    if BAD_CREDENTIALS.contains(&store_code) {
        return (
            Code::Unauthenticated,
            format!("the credentials are wrong or expired: {}", credentials_advice(call.cloud)),
        );
    }
    if seen.names_no_bucket() {
        return (Code::NotFound, "there is no such bucket: check its name and the endpoint".to_owned());
    }
    if OUT_OF_ROOM.contains(&store_code) {
        return (Code::Exhausted, "the store is full: make room or raise its quota".to_owned());
    }
    if DAMAGED.contains(&store_code) {
        return (Code::Unavailable, "the bytes were changed on their way".to_owned());
    }
    match (status, store_code) {
        (507, _) => (Code::Exhausted, "the store is full: make room or raise its quota".to_owned()),
        (_, "NoSuchUpload") => {
            (Code::NotFound, "there is no such upload any more: it was completed or aborted".to_owned())
        }
        (_, "InvalidPart" | "InvalidPartOrder" | "InvalidBlockList" | "InvalidBlobOrBlock") => {
            (Code::FailedPrecondition, "parts of the upload are not there (any more): send them again".to_owned())
        }
        (_, "EntityTooSmall") => (Code::InvalidArgument, "a part is smaller than this store allows".to_owned()),
        (409, "ConditionalRequestConflict" | "OperationAborted") => (Code::Unavailable, String::new()),
        (400, "RequestTimeout") => (Code::Unavailable, String::new()),
        (300..400, _) | (400, "AuthorizationHeaderMalformed") if call.cloud == Some(Cloud::S3) => {
            let region = seen.region.as_deref().map(|region| format!(" {region}")).unwrap_or_default();
            (Code::InvalidArgument, format!("the bucket is in another region{region}: set AWS_REGION"))
        }
        (401, _) => (Code::Unauthenticated, credentials_advice(call.cloud).to_owned()),
        (403, _) => (
            Code::PermissionDenied,
            format!("the credentials do not allow it, or are wrong: {}", credentials_advice(call.cloud)),
        ),
        (404 | 410, _) => (Code::NotFound, "there is no such object, or no such bucket".to_owned()),
        (405 | 501 | 505, _) if call.doing == "list" && call.cloud.is_none() => (
            Code::Unsupported,
            "this server cannot list folders (it does not know PROPFIND): give the URL of one file".to_owned(),
        ),
        (405 | 501 | 505, _) => (Code::Unsupported, "the server does not know this request".to_owned()),
        (408 | 425 | 429, _) | (500.., _) => (Code::Unavailable, String::new()),
        (409, _) => (Code::FailedPrecondition, String::new()),
        (412, _) => (Code::FailedPrecondition, "the object changed".to_owned()),
        _ => (Code::InvalidArgument, format!("the request was not understood: check {}", endpoint_setting(call.cloud))),
    }
}

/// A successful response that is not what was asked for.
fn strange(call: &Call<'_>, seen: &Seen, error: object_store::Error) -> Fault {
    let (doing, url, host) = (call.doing, call.url, &seen.host);
    if seen.status == Some(200) && doing == "read" {
        let text = format!("cannot read a part of {url}: {host} ignores byte ranges and sends the whole object");
        return Fault::fatal(Code::Unsupported, text);
    }
    // The innermost texts of these are about a header or a line of XML.
    let cause = redact_url(&root_cause(&error));
    Fault::fatal(Code::Unsupported, format!("cannot {doing} {url}: the answer of {host} is not understood: {cause}"))
}

fn credentials_advice(cloud: Option<Cloud>) -> &'static str {
    match cloud {
        Some(Cloud::S3) => {
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or set AWS_SKIP_SIGNATURE=true for a \
             public bucket"
        }
        Some(Cloud::Gcs) => {
            "check GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, or set GOOGLE_SKIP_SIGNATURE=true for a \
             public bucket"
        }
        Some(Cloud::Azure) => {
            "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or another AZURE_* credential), or set \
             AZURE_SKIP_SIGNATURE=true for a public container"
        }
        None => "this server wants credentials, which plain http(s) URLs do not carry",
    }
}

fn endpoint_setting(cloud: Option<Cloud>) -> &'static str {
    match cloud {
        Some(Cloud::S3) => "AWS_ENDPOINT_URL",
        Some(Cloud::Gcs) => "GOOGLE_BASE_URL",
        Some(Cloud::Azure) => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
        None => "the host and port of the URL",
    }
}
