//! One authorized request, and its answer.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequest};
use object_store::gcp::GcpCredentialProvider;
use object_store::signer::{HeaderMap, HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::explain::{Call, explain};
use super::super::watch::{Exchange, LISTING_BYTES_MAX, Main, collect};
use crate::address::Cloud;
use crate::body::Body;
use crate::fault::Attempt;
use crate::lane::Lane;

/// Bodies up to here are signed as well; larger ones are parts and objects, which have checksums of their own.
const SIGNED_BYTES_MAX: u64 = 64 << 10;

/// As signatures want it: everything but the unreserved characters.
const STRICT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const STRICT_PATH: AsciiSet = STRICT.remove(b'/');

/// How requests are authorized.
pub(in super::super) enum Auth {
    Aws { credentials: AwsCredentialProvider, region: String, request_payer: bool },
    Google(GcpCredentialProvider),
    Nothing,
}

/// The bucket that requests go to.
pub(in super::super) struct Wire {
    pub cloud: Cloud,
    /// Scheme, host and whatever names the bucket, without a slash at the end.
    pub bucket_url: String,
    pub client: HttpClient,
    pub auth: Auth,
    pub lane: Arc<Lane>,
}

/// One request.
#[derive(Default)]
pub(super) struct Ask<'a> {
    pub method: Method,
    /// Empty for the bucket itself.
    pub key: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: HeaderMap,
    pub body: Body,
}

/// Whatever the store answered.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub document: Bytes,
    exchange: Exchange,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The store's word for a refusal.
    pub fn code(&self) -> String {
        self.exchange.seen().store_code.unwrap_or_default()
    }

    pub fn names_no_bucket(&self) -> bool {
        self.exchange.seen().names_no_bucket()
    }

    /// The answer when it is a success, else what it means.
    pub fn ok(self, call: &Call<'_>) -> Attempt<Answer> {
        if self.is_success() { Ok(self) } else { Err(explain(call, no_more_to_say(), &self.exchange)) }
    }

    /// What an error within a successful answer means: S3 begins to answer before it is done.
    pub fn refused_late(self, call: &Call<'_>, code: &str) -> crate::fault::Fault {
        self.exchange.note_late_refusal(code);
        explain(call, no_more_to_say(), &self.exchange)
    }

    /// An answer that is not understood.
    pub fn strange(&self, call: &Call<'_>, what: &'static str) -> crate::fault::Fault {
        explain(call, generic(std::io::Error::other(what)), &self.exchange)
    }
}

impl Wire {
    /// Sends a request; any status is an answer.
    pub(super) async fn send(&self, call: &Call<'_>, ask: Ask<'_>) -> Attempt<Answer> {
        let exchange = Exchange::default();
        match exchange.watch(self.exchange(ask)).await {
            Ok((status, headers, document)) => Ok(Answer { status, headers, document, exchange }),
            Err(error) => Err(explain(call, error, &exchange)),
        }
    }

    async fn exchange(&self, ask: Ask<'_>) -> object_store::Result<(u16, HeaderMap, Bytes)> {
        let mut url = self.bucket_url.clone();
        url.push('/');
        url.extend(utf8_percent_encode(ask.key, &STRICT_PATH));
        for (i, (name, value)) in ask.query.iter().enumerate() {
            let separator = if i == 0 { '?' } else { '&' };
            // Writing to a string cannot fail.
            let _ = write!(url, "{separator}{name}={}", utf8_percent_encode(value, &STRICT));
        }
        let sign_payload = ask.body.len_bytes() <= SIGNED_BYTES_MAX;
        let mut headers = ask.headers;
        if matches!(ask.method, Method::PUT | Method::POST) {
            headers.insert("content-length", HeaderValue::from(ask.body.len_bytes()));
        }
        // Only what is in one piece can be signed; a small body is.
        let body = match ask.body.pieces() {
            [] => Bytes::new().into(),
            [piece] => piece.clone().into(),
            _ => ask.body.payload().into(),
        };
        let mut request = HttpRequest::new(body);
        *request.method_mut() = ask.method;
        *request.uri_mut() = url.parse().map_err(generic)?;
        *request.headers_mut() = headers;
        self.authorize(&mut request, sign_payload).await?;
        request.extensions_mut().insert(Main);
        let response = self.client.execute(request).await.map_err(generic)?;
        let (parts, body) = response.into_parts();
        let document = collect(body.bytes_stream(), LISTING_BYTES_MAX, self.lane.limits.stall).await;
        Ok((parts.status.as_u16(), parts.headers, document.map_err(generic)?))
    }

    async fn authorize(&self, request: &mut HttpRequest, sign_payload: bool) -> object_store::Result<()> {
        match &self.auth {
            Auth::Nothing => Ok(()),
            Auth::Google(credentials) => {
                let credential = credentials.get_credential().await?;
                if !credential.bearer.is_empty() {
                    let mut value = HeaderValue::try_from(format!("Bearer {}", credential.bearer)).map_err(generic)?;
                    value.set_sensitive(true);
                    request.headers_mut().insert("authorization", value);
                }
                Ok(())
            }
            Auth::Aws { credentials, region, request_payer } => {
                let credential = credentials.get_credential().await?;
                AwsAuthorizer::new(&credential, "s3", region)
                    .with_sign_payload(sign_payload)
                    .with_request_payer(*request_payer)
                    .try_authorize(request, None)
            }
        }
    }
}

fn generic(error: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic { store: "bucket", source: Box::new(error) }
}

/// Where what the HTTP layer noted says it all.
fn no_more_to_say() -> object_store::Error {
    generic(std::io::Error::other("refused"))
}
