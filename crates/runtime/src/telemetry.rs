//! Logs to stderr as text or JSON, and traces to an OTLP/HTTP collector when one is named.
//!
//! Ids and URLs live in spans and log fields; levels mean: ERROR a person should look, WARN a fallback was taken,
//! INFO the daemon's life and each load, DEBUG what it takes to find a fault.

use std::time::Duration;

use longshore_types::{Code, Error, Result};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::env;
use export::Reported;

mod export;

/// How long the last spans may take to leave when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The options of logging and tracing, the same for every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logging and tracing")]
pub struct TelemetryArgs {
    /// Format of log lines on stderr
    #[arg(long, env = env::LOG_FORMAT, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Log level or filter, for instance `debug` or `warn,longshore_worker=debug` [default: info for daemons, else warn]
    #[arg(long, env = env::LOG_LEVEL, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Send traces to this OTLP/HTTP endpoint, for instance `http://collector:4318/v1/traces`
    #[arg(long, env = env::OTLP_ENDPOINT, global = true, value_name = "URL", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
}

/// Keeps telemetry going; the last spans are sent when it is dropped.
#[derive(Debug)]
#[must_use = "traces end when the guard is dropped"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.provider.as_ref().map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT)) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Starts logging, and tracing where an endpoint is given, for the whole process. `service` names it in traces,
/// `default_level` applies without `--log-level`. Call it once, before the async runtime starts.
///
/// # Errors
/// [`Code::InvalidArgument`] for a malformed level or endpoint, [`Code::Internal`] when it was started already.
pub fn init(args: &TelemetryArgs, service: &str, default_level: &str) -> Result<Guard> {
    let level = args.log_level.as_deref().unwrap_or(default_level);
    let filter = EnvFilter::try_new(level)
        .map_err(|error| invalid(format!("log level {level:?} is not understood: {error}")))?;
    let logs = log_layer(args.log_format).with_filter(filter);
    let provider = args.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, service)).transpose()?;
    let traces = provider.as_ref().map(trace_layer);
    tracing_subscriber::registry().with(logs).with(traces).try_init().map_err(|error| {
        Error::new(Code::Internal, format!("telemetry is running already: {error}")).with_source(error)
    })?;
    Ok(Guard { provider })
}

fn log_layer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_ansi(false).boxed(),
    }
}

/// Only our own spans: those of the HTTP client that carries them would beget each other.
fn trace_layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let ours = Targets::new().with_target("longshore", LevelFilter::INFO);
    tracing_opentelemetry::layer().with_tracer(provider.tracer("longshore")).with_filter(ours)
}

fn provider(endpoint: &str, service: &str) -> Result<SdkTracerProvider> {
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        return Err(invalid("the OTLP endpoint must start with http:// or https://".to_owned()));
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| invalid(format!("the OTLP endpoint cannot be used: {error}")))?;
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(Reported::new(exporter)).with_resource(resource).build())
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests;
