//! What all requests to one bucket share: encryption, checksums as far as the store takes them, and what is remembered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use longshore_types::Version;
use object_store::signer::{HeaderMap, HeaderValue};
use parking_lot::Mutex;

use super::parts::{self, Sums};
use super::wire::{Answer, Ask, Wire};
use crate::address::Cloud;
use crate::bucket::explain::Call;
use crate::bucket::version;
use crate::fault::Attempt;
use crate::stats::{Counters, count};

/// Most objects whose two checksums are remembered, for Google; more of them are verified by reading back.
const KNOWN_MAX: usize = 4096;

/// Refusals that are about the bytes or the credentials, and not about the checksum header as such.
const NOT_ABOUT_CHECKSUMS: &[&str] = &[
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
    "RequestTimeout",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "EntityTooSmall",
    "EntityTooLarge",
    "KeyTooLongError",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidBucketName",
];

/// The writing side of one bucket.
pub(in super::super) struct XmlWriter {
    wire: Wire,
    /// Sent with every object, as the settings say.
    encryption: HeaderMap,
    /// Whether checksums are sent along: until the store is found to refuse them.
    checksums: AtomicBool,
    /// What the two checksums of an object are that went through here, by key. Google keeps a CRC-32C, our callers know
    /// the CRC-64.
    pub(super) known: Mutex<HashMap<String, Sums>>,
}

/// Where something is written.
pub(in super::super) struct Place<'a> {
    pub key: &'a str,
    pub url: &'a str,
}

impl XmlWriter {
    pub(in super::super) fn new(wire: Wire, encryption: HeaderMap) -> Self {
        XmlWriter { wire, encryption, checksums: AtomicBool::new(true), known: Mutex::default() }
    }

    pub(super) fn is_google(&self) -> bool {
        self.wire.cloud == Cloud::Gcs
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.wire.lane.counters
    }

    pub(super) fn call<'a>(&self, doing: &'static str, place: &Place<'a>) -> Call<'a> {
        Call { doing, url: place.url, cloud: Some(self.wire.cloud), limits: self.wire.lane.limits }
    }

    pub(super) async fn send(&self, call: &Call<'_>, counter: &AtomicU64, ask: Ask<'_>) -> Attempt<Answer> {
        count(counter, 1);
        self.wire.send(call, ask).await
    }

    /// Sends a request with checksums; when the store refuses that, without them, now and from then on. Says which.
    pub(super) async fn send_summed<'a>(
        &self,
        call: &Call<'_>,
        counter: &AtomicU64,
        wanted: bool,
        ask: impl Fn(bool) -> Ask<'a>,
    ) -> Attempt<(Answer, bool)> {
        let with = wanted && self.checksums.load(Ordering::Relaxed);
        let answer = self.send(call, counter, ask(with)).await?;
        let may_refuse_them = matches!(answer.status, 400 | 501)
            && !NOT_ABOUT_CHECKSUMS.contains(&answer.code().as_str())
            && !answer.names_no_bucket();
        if !with || !may_refuse_them {
            return Ok((answer, with));
        }
        let plain = self.send(call, counter, ask(false)).await?;
        match plain.status {
            // It was not about the checksums.
            400 | 501 => return Ok((answer, with)),
            // An answer to the request itself: done, or what a condition or an id that is not there comes to.
            200..300 | 304 | 404 | 409 | 412 => {}
            _ => return Ok((plain, false)),
        }
        if self.checksums.swap(false, Ordering::Relaxed) {
            count(&self.counters().checksums_refused, 1);
            tracing::warn!(
                url = call.url, code = %answer.code(),
                "this store refuses checksums with what it is sent; objects written to it are read back instead"
            );
        }
        Ok((plain, false))
    }

    pub(super) fn object_headers(&self) -> HeaderMap {
        self.encryption.clone()
    }

    pub(super) fn add_checksum(&self, headers: &mut HeaderMap, sums: &Sums) {
        let (name, text) = match sums.crc32c {
            Some(crc) => ("x-goog-hash", format!("crc32c={}", crc.base64())),
            None => ("x-amz-checksum-crc64nvme", parts::base64_of(sums.crc64)),
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }

    pub(super) fn remember(&self, key: &str, sums: Sums) {
        if !self.is_google() {
            return;
        }
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key.to_owned(), sums);
    }

    pub(super) fn version(&self, answer: &Answer, etag: Option<&str>) -> Option<Version> {
        let generation = answer.header("x-goog-generation").filter(|_| self.is_google());
        version::written(etag, generation)
    }
}
