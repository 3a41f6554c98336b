//! Prometheus helpers: a registry of our own (never the global one), so that tests and embedded parts do not collide.
//!
//! Each crate declares its metrics once, in a file `metrics.rs`, through these constructors. Names follow
//! Prometheus: `longshore_worker_fill_seconds`, counters end in `_total`.

use std::sync::Arc;

use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

mod process;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Buckets for durations from a millisecond to two minutes, in seconds.
pub const SECONDS: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0];

/// A registry. Clone = the same registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    described: Arc<Mutex<Vec<Description>>>,
}

/// A metric as the reference page lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Description {
    /// Full name.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// Names of its labels.
    pub labels: Vec<String>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Metrics { registry: Registry::new(), described: Arc::default() }
    }

    /// A registry with the standard `process_*` metrics and `<service>_build_info{version}`, for a daemon.
    ///
    /// # Errors
    /// [`Code::Internal`] when `service` is not a metric name.
    pub fn for_process(service: &str, version: &str) -> Result<Self> {
        let metrics = Metrics::new();
        metrics.register(process::ProcessCollector::new().map_err(invalid)?)?;
        let build = metrics.int_gauge_vec(&format!("{service}_build_info"), "Version of the binary.", &["version"])?;
        build.with_label_values(&[version]).set(1);
        Ok(metrics)
    }

    /// A counter; its name ends in `_total`.
    ///
    /// # Errors
    /// [`Code::Internal`] when the name is malformed or taken; so do all constructors here.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.register(IntCounter::new(name, help).map_err(invalid)?)
    }

    /// A counter with labels; their values must come from a bounded set.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels).map_err(invalid)?)
    }

    /// A whole number that goes up and down.
    pub fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.register(IntGauge::new(name, help).map_err(invalid)?)
    }

    /// Whole numbers that go up and down, with labels.
    pub fn int_gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels).map_err(invalid)?)
    }

    /// A number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        self.register(Gauge::new(name, help).map_err(invalid)?)
    }

    /// Numbers that go up and down, with labels.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), labels).map_err(invalid)?)
    }

    /// A histogram; for durations in seconds use [`SECONDS`].
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts).map_err(invalid)?)
    }

    /// Histograms with labels.
    pub fn histogram_vec(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels).map_err(invalid)?)
    }

    /// Registers a collector of one's own.
    pub fn register<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C> {
        self.registry.register(Box::new(collector.clone())).map_err(invalid)?;
        self.described.lock().extend(collector.desc().into_iter().map(|desc| Description {
            name: desc.fq_name.clone(),
            help: desc.help.clone(),
            labels: desc.variable_labels.clone(),
        }));
        Ok(collector)
    }

    /// Every metric that is registered, by name, those without a value yet among them.
    pub fn describe(&self) -> Vec<Description> {
        let mut all = self.described.lock().clone();
        all.sort();
        all
    }

    /// Everything in the text exposition format.
    ///
    /// # Errors
    /// [`Code::Internal`] when a metric cannot be written, which would be a defect of its collector.
    pub fn render(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(invalid)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn invalid(error: prometheus::Error) -> Error {
    Error::new(Code::Internal, format!("metrics: {error}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_separate_and_names_are_unique_in_each() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.counter("longshore_x_total", "X.").unwrap().inc_by(3);
        two.counter("longshore_x_total", "X.").unwrap();
        assert!(one.counter("longshore_x_total", "X.").is_err());
        let text = String::from_utf8(one.render().unwrap()).unwrap();
        assert!(text.contains("longshore_x_total 3"), "{text}");
    }

    #[test]
    fn process_metrics_tell_about_this_process() {
        let metrics = Metrics::for_process("longshore_test", "1.2.3").unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let value = |name: &str| -> f64 {
            let line =
                text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
            line.split_once(' ').unwrap().1.parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((value("process_start_time_seconds") - now).abs() < 3600.0);
        assert!(text.contains("longshore_test_build_info{version=\"1.2.3\"} 1"));
    }
}
