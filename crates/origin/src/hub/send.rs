//! Requests to a hub: redirects followed by hand, because the token must not go along to another host, and the facts
//! about a file are spread over the hops.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longshore_types::{Code, Error, Result};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, redirect};
use url::Url;

use super::api;
use crate::fault::{Attempt, Fault, Retry};
use crate::lane::Lane;
use crate::options::OriginOptions;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Most redirects of one request.
const HOPS_MAX: usize = 8;
/// Most bytes of one JSON answer.
const JSON_BYTES_MAX: usize = 32 << 20;

/// The `X-Error-Code`s that say more than the status; others are not shown, since they come from the network.
const HUB_CODES: [&str; 5] = ["RepoNotFound", "RevisionNotFound", "EntryNotFound", "GatedRepo", "DisabledRepo"];

/// What is being done, for messages.
pub(super) struct Call<'a> {
    pub doing: &'static str,
    pub url: &'a str,
}

impl Call<'_> {
    /// An answer that is not what the layout promises.
    pub fn strange(&self, reason: &str) -> Fault {
        let text = format!("cannot {} {}: the answer of the hub is not understood: {reason}", self.doing, self.url);
        Fault::fatal(Code::Unsupported, text)
    }

    /// Checks that a response carries exactly the bytes that were asked for.
    pub fn check_range(&self, reply: &Reply, range: &Range<u64>, is_whole: bool) -> Attempt<()> {
        match (reply.response.status().as_u16(), is_whole) {
            (200, true) => Ok(()),
            (206, false) if reply.range.as_ref() == Some(range) => Ok(()),
            (200, false) => {
                let text = format!("cannot read a part of {}: the server ignores byte ranges", self.url);
                Err(Fault::fatal(Code::Unsupported, text))
            }
            _ => Err(self.strange("it carries another range than was asked for")),
        }
    }
}

/// The last response of a request, and what all its hops said about the file.
pub(super) struct Reply {
    pub response: Response,
    pub commit: Option<String>,
    pub etag: Option<String>,
    /// Size of the whole file.
    pub size_bytes: Option<u64>,
    /// The bytes that a partial response carries.
    pub range: Option<Range<u64>>,
}

/// The HTTP side of a hub.
pub(super) struct Sender {
    client: Client,
    endpoint: Url,
    token: Option<HeaderValue>,
    lane: Arc<Lane>,
}

impl Sender {
    pub fn new(options: &OriginOptions, lane: Arc<Lane>) -> Result<Self> {
        let from_env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = options.hf_endpoint.clone().or_else(|| from_env("HF_ENDPOINT"));
        let endpoint = Url::parse(endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/'))
            .map_err(|error| Error::new(Code::InvalidArgument, format!("HF_ENDPOINT is not a URL: {error}")))?;
        let token = options.hf_token.as_ref().map(|token| token.expose().to_owned()).or_else(|| from_env("HF_TOKEN"));
        let token = token.map(|token| bearer(&token)).transpose()?;
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(lane.limits.connect)
            .pool_max_idle_per_host(options.connections_max.clamp(1, 4096) as usize)
            .http1_only()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                Error::new(Code::Internal, format!("cannot set up the HTTP client: {}", root_cause(&error)))
            })?;
        Ok(Sender { client, endpoint, token, lane })
    }

    /// The URL of a route of the endpoint.
    pub fn route(&self, route: &str) -> String {
        format!("{}/{route}", self.endpoint.as_str().trim_end_matches('/'))
    }

    /// Sends a request and follows its redirects.
    pub async fn send(&self, call: &Call<'_>, method: Method, url: &str, range: Option<Range<u64>>) -> Attempt<Reply> {
        let mut url = Url::parse(url).map_err(|_| call.strange("it leads to something that is no URL"))?;
        let mut facts = Facts::default();
        for _ in 0..HOPS_MAX {
            let is_hub = url.origin() == self.endpoint.origin();
            if self.endpoint.scheme() == "https" && url.scheme() != "https" {
                return Err(call.strange("it leads from https to an unencrypted URL"));
            }
            let response = self.hop(call, method.clone(), &url, range.as_ref(), is_hub).await?;
            facts.take(response.headers(), is_hub);
            if !response.status().is_redirection() {
                return finish(call, response, facts, &url);
            }
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let target = target.ok_or_else(|| call.strange("it is a redirect to nowhere"))?;
            url = url.join(target).map_err(|_| call.strange("it leads to something that is no URL"))?;
        }
        Err(call.strange(&format!("it has more than {HOPS_MAX} redirects")))
    }

    async fn hop(
        &self,
        call: &Call<'_>,
        method: Method,
        url: &Url,
        range: Option<&Range<u64>>,
        is_hub: bool,
    ) -> Attempt<Response> {
        // Compression would change lengths and ETags.
        let mut request = self.client.request(method, url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let limits = self.lane.limits;
        let (doing, what, host) = (call.doing, call.url, url.authority());
        match tokio::time::timeout(limits.first_byte, request.send()).await {
            Ok(Ok(response)) => {
                self.lane.reached();
                Ok(response)
            }
            Ok(Err(error)) if error.is_connect() && error.is_timeout() => Err(Fault::passing(
                Code::Timeout,
                format!(
                    "cannot {doing} {what}: connecting to {host} timed out after {:.1} s; check HF_ENDPOINT and the network",
                    limits.connect.as_secs_f64()
                ),
            )),
            Ok(Err(error)) => {
                let verb = if error.is_connect() { "cannot connect to" } else { "the exchange broke off with" };
                let text = format!(
                    "cannot {doing} {what}: {verb} {host}: {}; check HF_ENDPOINT",
                    root_cause(&error.without_url())
                );
                Err(Fault::passing(Code::Unavailable, text))
            }
            Err(_) => Err(Fault::passing(
                Code::Timeout,
                format!(
                    "cannot {doing} {what}: {host} sent no first byte within {:.1} s",
                    limits.first_byte.as_secs_f64()
                ),
            )),
        }
    }

    /// Gets a JSON answer, at most [`JSON_BYTES_MAX`] long, and the URL of the next page.
    pub async fn json(&self, call: &Call<'_>, url: &str) -> Attempt<(Bytes, Option<String>)> {
        let mut reply = self.send(call, Method::GET, url, None).await?;
        let link = reply.response.headers().get("link").and_then(|value| value.to_str().ok());
        let next = match link.and_then(api::next_link) {
            Some(next) => Some(self.same_host(call, reply.response.url(), next)?),
            None => None,
        };
        let mut body = BytesMut::new();
        let stall = self.lane.limits.stall;
        loop {
            let piece = match tokio::time::timeout(stall, reply.response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ok((body.freeze(), next)),
                Ok(Err(error)) => {
                    let text = format!("the answer for {} broke off: {}", call.url, root_cause(&error.without_url()));
                    return Err(Fault::passing(Code::Unavailable, text));
                }
                Err(_) => {
                    let text = format!("the answer for {} stalled at byte {}", call.url, body.len());
                    return Err(Fault::passing(Code::Timeout, text));
                }
            };
            if body.len() + piece.len() > JSON_BYTES_MAX {
                return Err(call.strange(&format!("it is longer than {JSON_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&piece);
        }
    }

    /// The next page is asked for with the token, so it must be on the hub.
    fn same_host(&self, call: &Call<'_>, from: &Url, next: &str) -> Attempt<String> {
        match from.join(next) {
            Ok(url) if url.origin() == self.endpoint.origin() => Ok(url.into()),
            _ => Err(call.strange("its next page is on another host")),
        }
    }
}

/// What the hops said so far.
#[derive(Default)]
struct Facts {
    commit: Option<String>,
    linked_etag: Option<String>,
    linked_size: Option<u64>,
    hub_etag: Option<String>,
}

impl Facts {
    fn take(&mut self, headers: &HeaderMap, is_hub: bool) {
        if !is_hub {
            // Another host's ETag is its own business.
            self.hub_etag = None;
            return;
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(commit) = header("x-repo-commit") {
            self.commit = Some(commit.to_owned());
        }
        if let Some(etag) = header("x-linked-etag") {
            self.linked_etag = Some(api::bare_etag(etag));
        }
        if let Some(size) = header("x-linked-size").and_then(|size| size.parse().ok()) {
            self.linked_size = Some(size);
        }
        self.hub_etag = header("etag").map(api::bare_etag).filter(|etag| !etag.is_empty());
    }
}

fn finish(call: &Call<'_>, response: Response, facts: Facts, url: &Url) -> Attempt<Reply> {
    if !response.status().is_success() {
        return Err(refused(call, &response, url));
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let part = header("content-range").and_then(api::content_range);
    let size = part.map(|(_, _, size)| size).or_else(|| header("content-length").and_then(|size| size.parse().ok()));
    Ok(Reply {
        commit: facts.commit,
        etag: facts.linked_etag.or(facts.hub_etag),
        // What carries the bytes knows best; a HEAD that is answered without a length leaves the redirect's word.
        size_bytes: size.or(facts.linked_size),
        range: part.map(|(start, end, _)| start..end),
        response,
    })
}

/// A status that is not a success, with the hub's own `X-Error-Code` where it sends one.
fn refused(call: &Call<'_>, response: &Response, url: &Url) -> Fault {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let status = response.status().as_u16();
    let hub_code = header("x-error-code").filter(|code| HUB_CODES.contains(code)).unwrap_or_default();
    let (code, advice) = match (status, hub_code) {
        (_, "RevisionNotFound") => (Code::NotFound, "there is no such revision"),
        (_, "EntryNotFound") => (Code::NotFound, "there is no such file at this revision"),
        (_, "GatedRepo") => (Code::PermissionDenied, "ask for access on the model's page and set HF_TOKEN"),
        (401, "") => (Code::Unauthenticated, "set HF_TOKEN to a valid token, or check the name of the repository"),
        (_, "RepoNotFound") => {
            (Code::NotFound, "there is no such repository, or it is private and HF_TOKEN does not open it")
        }
        (403, _) => (Code::PermissionDenied, "HF_TOKEN does not allow it"),
        (404 | 410, _) => (Code::NotFound, "there is no such repository, revision or file"),
        (416, _) => (Code::FailedPrecondition, "the file is shorter than when it was resolved"),
        (408 | 425 | 429, _) | (500 | 502.., _) => (Code::Unavailable, ""),
        _ => (Code::Unsupported, "check HF_ENDPOINT"),
    };
    let space = if hub_code.is_empty() { "" } else { " " };
    let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
    let text =
        format!("cannot {} {}: {} answered {status}{space}{hub_code}{advice}", call.doing, call.url, url.authority());
    let after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let retry = if code == Code::Unavailable { Retry::After(after) } else { Retry::Never };
    Fault { error: Error::new(code, text), retry }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| Error::new(Code::InvalidArgument, "HF_TOKEN holds characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The innermost message of an error whose URL has been taken out.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
