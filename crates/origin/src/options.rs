//! What a user can set about origins: endpoints, credentials, time limits and the retry budget.
//!
//! Everything here adds to the standard environment variables of each store (`AWS_*`, `GOOGLE_*`, `AZURE_*`,
//! `HF_ENDPOINT`, `HF_TOKEN`), which are read when [`crate::Origins`] is made; a value given here wins.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use longshore_types::{Code, Error};

/// A value that is never printed: `Debug` and `Display` show `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret::new(text)
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Secret::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One `KEY=VALUE` for a cloud store, for instance `aws_request_payer=true`. The keys are those of the environment
/// variables in lower case; the value may be a secret and is not printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOption {
    /// `aws_...`, `google_...` or `azure_...`.
    pub key: String,
    /// Its value.
    pub value: Secret,
}

impl FromStr for StoreOption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(StoreOption { key: key.to_ascii_lowercase(), value: value.into() })
            }
            // The text may hold a secret, so it is not repeated.
            _ => Err(Error::new(Code::InvalidArgument, "an origin option must have the form KEY=VALUE")),
        }
    }
}

/// Endpoints, credentials, time limits and retry budget of all origins.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Origins")]
pub struct OriginOptions {
    /// Time limit for opening a connection to an origin, in milliseconds
    #[arg(
        id = "origin_connect_timeout_ms",
        long = "origin-connect-timeout-ms",
        value_name = "MS",
        env = "LONGSHORE_ORIGIN_CONNECT_TIMEOUT_MS",
        default_value_t = 5_000
    )]
    pub connect_timeout_ms: u64,

    /// Time limit from sending a request to the head of its response, in milliseconds
    #[arg(
        id = "origin_first_byte_timeout_ms",
        long = "origin-first-byte-timeout-ms",
        value_name = "MS",
        env = "LONGSHORE_ORIGIN_FIRST_BYTE_TIMEOUT_MS",
        default_value_t = 30_000
    )]
    pub first_byte_timeout_ms: u64,

    /// Longest time without a single byte while a body is being read, in milliseconds
    #[arg(
        id = "origin_stall_timeout_ms",
        long = "origin-stall-timeout-ms",
        value_name = "MS",
        env = "LONGSHORE_ORIGIN_STALL_TIMEOUT_MS",
        default_value_t = 30_000
    )]
    pub stall_timeout_ms: u64,

    /// Most attempts of one request without progress in between, the first one included
    #[arg(
        id = "origin_attempts_max",
        long = "origin-attempts-max",
        value_name = "COUNT",
        env = "LONGSHORE_ORIGIN_ATTEMPTS_MAX",
        default_value_t = 8
    )]
    pub attempts_max: u32,

    /// Longest time that one request is repeated without progress, in milliseconds
    #[arg(
        id = "origin_retry_time_ms_max",
        long = "origin-retry-time-ms-max",
        value_name = "MS",
        env = "LONGSHORE_ORIGIN_RETRY_TIME_MS_MAX",
        default_value_t = 120_000
    )]
    pub retry_time_ms_max: u64,

    /// Upper bound of the random pause before the first retry, in milliseconds; it doubles with each further one
    #[arg(
        id = "origin_retry_pause_ms",
        long = "origin-retry-pause-ms",
        value_name = "MS",
        env = "LONGSHORE_ORIGIN_RETRY_PAUSE_MS",
        default_value_t = 100
    )]
    pub retry_pause_ms: u64,

    /// Most connections that are open to one bucket or server at a time
    #[arg(
        id = "origin_connections_max",
        long = "origin-connections-max",
        value_name = "COUNT",
        env = "LONGSHORE_ORIGIN_CONNECTIONS_MAX",
        default_value_t = 64
    )]
    pub connections_max: u32,

    /// URL of an S3-compatible server; else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or Amazon's
    #[arg(id = "origin_s3_endpoint", long = "origin-s3-endpoint", value_name = "URL", env = "LONGSHORE_ORIGIN_S3_ENDPOINT", value_parser = NonEmptyStringValueParser::new())]
    pub s3_endpoint: Option<String>,

    /// S3 region; else AWS_REGION, AWS_DEFAULT_REGION, or us-east-1
    #[arg(
        id = "origin_s3_region",
        long = "origin-s3-region",
        value_name = "REGION",
        env = "LONGSHORE_ORIGIN_S3_REGION"
    )]
    pub s3_region: Option<String>,

    /// S3 access key; else AWS_ACCESS_KEY_ID, a web identity, or the instance's role
    #[arg(
        id = "origin_s3_access_key_id",
        long = "origin-s3-access-key-id",
        value_name = "KEY",
        env = "LONGSHORE_ORIGIN_S3_ACCESS_KEY_ID"
    )]
    pub s3_access_key_id: Option<String>,

    /// S3 secret key; else AWS_SECRET_ACCESS_KEY
    #[arg(
        id = "origin_s3_secret_access_key",
        long = "origin-s3-secret-access-key",
        value_name = "KEY",
        env = "LONGSHORE_ORIGIN_S3_SECRET_ACCESS_KEY",
        hide_env_values = true
    )]
    pub s3_secret_access_key: Option<Secret>,

    /// Send no signature to S3, for public buckets; also AWS_SKIP_SIGNATURE
    #[arg(
        id = "origin_s3_skip_signature",
        long = "origin-s3-skip-signature",
        env = "LONGSHORE_ORIGIN_S3_SKIP_SIGNATURE"
    )]
    pub s3_skip_signature: bool,

    /// URL of a server that speaks Google's XML API; else GOOGLE_BASE_URL, or Google's
    #[arg(id = "origin_gcs_endpoint", long = "origin-gcs-endpoint", value_name = "URL", env = "LONGSHORE_ORIGIN_GCS_ENDPOINT", value_parser = NonEmptyStringValueParser::new())]
    pub gcs_endpoint: Option<String>,

    /// Send no token to Google Cloud Storage, for public buckets; also GOOGLE_SKIP_SIGNATURE
    #[arg(
        id = "origin_gcs_skip_signature",
        long = "origin-gcs-skip-signature",
        env = "LONGSHORE_ORIGIN_GCS_SKIP_SIGNATURE"
    )]
    pub gcs_skip_signature: bool,

    /// URL of an Azure blob account or emulator; else AZURE_STORAGE_ENDPOINT, or Microsoft's
    #[arg(id = "origin_azure_endpoint", long = "origin-azure-endpoint", value_name = "URL", env = "LONGSHORE_ORIGIN_AZURE_ENDPOINT", value_parser = NonEmptyStringValueParser::new())]
    pub azure_endpoint: Option<String>,

    /// Azure storage account; else AZURE_STORAGE_ACCOUNT_NAME
    #[arg(
        id = "origin_azure_account",
        long = "origin-azure-account",
        value_name = "NAME",
        env = "LONGSHORE_ORIGIN_AZURE_ACCOUNT"
    )]
    pub azure_account: Option<String>,

    /// Azure access key; else AZURE_STORAGE_ACCOUNT_KEY and the other AZURE_* credentials
    #[arg(
        id = "origin_azure_access_key",
        long = "origin-azure-access-key",
        value_name = "KEY",
        env = "LONGSHORE_ORIGIN_AZURE_ACCESS_KEY",
        hide_env_values = true
    )]
    pub azure_access_key: Option<Secret>,

    /// URL of a server with the Hugging Face layout, for hf:// URLs; https://huggingface.co when not set
    #[arg(id = "origin_hf_endpoint", long = "origin-hf-endpoint", value_name = "URL", env = "HF_ENDPOINT", value_parser = NonEmptyStringValueParser::new())]
    pub hf_endpoint: Option<String>,

    /// Hugging Face access token; sent to the endpoint only, never to the host it redirects to
    #[arg(
        id = "origin_hf_token",
        long = "origin-hf-token",
        value_name = "TOKEN",
        env = "HF_TOKEN",
        hide_env_values = true
    )]
    pub hf_token: Option<Secret>,

    /// Any other setting of a cloud store as KEY=VALUE (aws_..., google_..., azure_...); may be repeated
    #[arg(
        id = "origin_store_option",
        long = "origin-store-option",
        env = "LONGSHORE_ORIGIN_STORE_OPTIONS",
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub store_options: Vec<StoreOption>,
}

impl Default for OriginOptions {
    fn default() -> Self {
        OriginOptions {
            connect_timeout_ms: 5_000,
            first_byte_timeout_ms: 30_000,
            stall_timeout_ms: 30_000,
            attempts_max: 8,
            retry_time_ms_max: 120_000,
            retry_pause_ms: 100,
            connections_max: 64,
            s3_endpoint: None,
            s3_region: None,
            s3_access_key_id: None,
            s3_secret_access_key: None,
            s3_skip_signature: false,
            gcs_endpoint: None,
            gcs_skip_signature: false,
            azure_endpoint: None,
            azure_account: None,
            azure_access_key: None,
            hf_endpoint: None,
            hf_token: None,
            store_options: Vec::new(),
        }
    }
}

/// The time limits of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub connect: Duration,
    pub first_byte: Duration,
    pub stall: Duration,
}

impl OriginOptions {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connect: Duration::from_millis(self.connect_timeout_ms.max(1)),
            first_byte: Duration::from_millis(self.first_byte_timeout_ms.max(1)),
            stall: Duration::from_millis(self.stall_timeout_ms.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        origin: OriginOptions,
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_library() {
        let parsed = <Program as clap::Parser>::parse_from(["program"]).origin;
        let built = OriginOptions { hf_endpoint: parsed.hf_endpoint.clone(), ..OriginOptions::default() };
        assert_eq!(format!("{parsed:?}"), format!("{built:?}"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let parsed = <Program as clap::Parser>::parse_from([
            "program",
            "--origin-s3-secret-access-key=geheim",
            "--origin-hf-token=geheim",
            "--origin-azure-access-key=geheim",
            "--origin-store-option=AWS_SESSION_TOKEN=geheim",
        ])
        .origin;
        assert_eq!(parsed.store_options[0].key, "aws_session_token");
        assert_eq!(parsed.store_options[0].value.expose(), "geheim");
        assert!(!format!("{parsed:?}").contains("geheim"));
        assert!(!"geheim".parse::<StoreOption>().unwrap_err().to_string().contains("geheim"));
    }
}
