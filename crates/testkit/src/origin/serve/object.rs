//! The bytes of objects, and what is told of them.

use std::sync::Arc;

use hyper::{Response, StatusCode, header};

use super::super::body::{self, Body};
use super::super::request::Span;
use super::super::state::Object;
use super::super::text::http_date;
use super::super::{Dialect, stores};
use super::{Call, built};

impl Call {
    /// The checksum of the whole object, for those who ask for it and for all of it.
    pub(super) async fn checksum_headers(&self, object: &Arc<Object>) -> Vec<(&'static str, String)> {
        let asks = self.ask.text("x-amz-checksum-mode").is_some_and(|mode| mode.eq_ignore_ascii_case("enabled"));
        if !asks || !self.keeps_checksums() || self.ask.span(object.content.len_bytes()) != Span::Whole {
            return Vec::new();
        }
        let object = object.clone();
        // Of an object that no client put it is computed now, from all its bytes.
        let stated = tokio::task::spawn_blocking(move || object.checksum_text()).await;
        let Ok(stated) = stated else { return Vec::new() };
        vec![("x-amz-checksum-type", stated.kind().to_owned()), (stated.algorithm.header(), stated.text)]
    }

    /// Answers with the bytes of an object, or with what its conditions and range make of it.
    pub(in crate::origin) fn object(self, object: Arc<Object>, extra: Vec<(&'static str, String)>) -> Response<Body> {
        let quirks = &self.state.config.quirks;
        let size = object.content.len_bytes();
        let etag = extra.iter().find(|(name, _)| *name == "etag").map_or(&object.etag, |(_, value)| value).clone();
        if !quirks.ignores_conditions
            && let Err(failure) = self.check_conditions(&object, &etag)
        {
            return self.fail(failure);
        }
        let span = if quirks.ignores_ranges { Span::Whole } else { self.ask.span(size) };
        if span == Span::Unsatisfiable {
            return self.fail(stores::Failure::of_status(416));
        }
        let range = span.range(size);
        let mut response = Response::builder()
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::LAST_MODIFIED, http_date(object.modified))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, range.end - range.start);
        if let Span::Part(range) = &span {
            let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, text);
        }
        if !quirks.has_no_etag && !extra.iter().any(|(name, _)| *name == "etag") {
            response = response.header(header::ETAG, etag);
        }
        if self.state.config.dialect == Dialect::Gcs {
            response = response.header("x-goog-generation", object.generation);
        }
        if let Some(stated) = object.stated.as_ref().filter(|_| self.keeps_google_hash()) {
            let (name, value) = stated.answer_header(Dialect::Gcs);
            response = response.header(name, value);
        }
        response = extra.into_iter().fold(response, |response, (name, value)| response.header(name, value));
        let status = if matches!(span, Span::Part(_)) { 206 } else { 200 };
        self.ticket.status(status);
        let body = match self.ask.is_head() {
            true => body::empty(),
            false => body::object(object, range, self.bad, self.ticket, self.way),
        };
        built(response.body(body))
    }

    fn check_conditions(&self, object: &Object, etag: &str) -> Result<(), stores::Failure> {
        let names = |list: &str| list.split(',').any(|one| matches!(one.trim(), "*") || one.trim() == etag);
        if self.ask.header(header::IF_MATCH).is_some_and(|list| !names(list)) {
            return Err(stores::Failure::of_status(412));
        }
        if self.ask.header(header::IF_NONE_MATCH).is_some_and(names) {
            return Err(stores::Failure::of_status(304));
        }
        if self.state.config.dialect == Dialect::Gcs {
            let generation = object.generation.to_string();
            if self.ask.param("generation").is_some_and(|wanted| wanted != generation) {
                return Err(stores::Failure::of_status(404));
            }
            let wanted = self.ask.headers.get("x-goog-if-generation-match");
            if wanted.is_some_and(|wanted| wanted.as_bytes() != generation.as_bytes()) {
                return Err(stores::Failure::of_status(412));
            }
        }
        Ok(())
    }
}
