//! What every Longshore process needs around its work: configuration, telemetry, shutdown, metrics, exit codes.
//!
//! Nothing here knows what a worker or a loader does. Start reading at [`config`].

pub mod config;
pub mod env;
pub mod exit;
pub mod metrics;
pub mod pages;
pub mod shutdown;
pub mod telemetry;

pub use metrics::Metrics;
pub use pages::Page;
pub use telemetry::TelemetryArgs;
