//! An exporter that says when traces are lost: the SDK drops them without a word.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// Passes spans on, and logs the first failure after a success.
#[derive(Debug)]
pub(super) struct Reported<E> {
    inner: E,
    is_failing: AtomicBool,
}

impl<E> Reported<E> {
    pub(super) fn new(inner: E) -> Self {
        Reported { inner, is_failing: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was_failing => {
                tracing::warn!(%error, spans, "traces are lost: the collector does not take them")
            }
            Err(error) => tracing::debug!(%error, spans, "traces are lost"),
            Ok(()) if was_failing => tracing::info!("the collector takes traces again"),
            Ok(()) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
