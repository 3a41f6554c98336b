//! Opening a store: the standard environment variables first, then our options over them.

mod s3;

use std::sync::Arc;
use std::time::Duration;

use longshore_types::{Code, Error, Result, redact_url};
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpClient;
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::signer::HeaderMap;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider};
use url::Url;

use super::azure::AzureWriter;
use super::watch::{Watcher, root_cause};
use super::writing::Writer;
use super::xml::{Auth, Wire, XmlWriter};
use crate::address::Cloud;
use crate::lane::Lane;
use crate::options::OriginOptions;

/// Google's own endpoint of the XML language.
const GCS_URL: &str = "https://storage.googleapis.com";

/// A bucket in the three ways in which it is used.
pub(super) struct Opened {
    pub store: Arc<dyn ObjectStore>,
    pub pages: Arc<dyn PaginatedListStore>,
    pub writer: Writer,
}

/// Checks what can be checked before any store is opened: endpoints and the names of store options.
pub(crate) fn check_options(options: &OriginOptions) -> Result<()> {
    let endpoints = [&options.s3_endpoint, &options.gcs_endpoint, &options.azure_endpoint, &options.hf_endpoint];
    for endpoint in endpoints.into_iter().flatten() {
        let valid = Url::parse(endpoint).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
        });
        if !valid {
            let text = format!(
                "origin endpoint {:?} is not of the form http(s)://host:port, without credentials",
                redact_url(endpoint)
            );
            return Err(Error::new(Code::InvalidArgument, text));
        }
    }
    if options.s3_access_key_id.is_some() != options.s3_secret_access_key.is_some() {
        let text = "of the S3 access key and the S3 secret key only one is set: set both or neither";
        return Err(Error::new(Code::InvalidArgument, text));
    }
    for option in &options.store_options {
        let key = option.key.as_str();
        let known = match key.split('_').next() {
            Some("aws") => key.parse::<AmazonS3ConfigKey>().is_ok(),
            Some("google") => key.parse::<GoogleConfigKey>().is_ok(),
            Some("azure") => key.parse::<AzureConfigKey>().is_ok(),
            _ => false,
        };
        if !known {
            let text = format!(
                "origin option {key:?} is not known: use the aws_, google_ and azure_ settings of object_store"
            );
            return Err(Error::new(Code::InvalidArgument, text));
        }
    }
    Ok(())
}

/// Opens a bucket. Sends nothing.
pub(super) fn cloud(cloud: Cloud, bucket: &str, options: &OriginOptions, lane: Arc<Lane>) -> Result<Opened> {
    let watcher = watcher(options, lane, false);
    let opened = match cloud {
        Cloud::S3 => s3::open(bucket, options, watcher),
        Cloud::Gcs => gcs(bucket, options, watcher),
        Cloud::Azure => azure(bucket, options, watcher),
    };
    opened.map_err(|error| {
        let text = format!("cannot open {}://{bucket}: {}; check its settings", cloud.scheme(), root_cause(&error));
        Error::new(Code::InvalidArgument, text)
    })
}

fn watcher(options: &OriginOptions, lane: Arc<Lane>, all_main: bool) -> Watcher {
    let connections_max = options.connections_max.clamp(1, 4096) as usize;
    Watcher { lane, connections_max, made: Arc::default(), all_main }
}

/// Retries are ours alone.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

fn connect_timeout(options: &OriginOptions) -> String {
    format!("{}ms", options.limits().connect.as_millis())
}

/// An endpoint that is given as `http://` is meant so.
fn is_plain(endpoint: Option<&String>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.to_ascii_lowercase().starts_with("http://"))
}

fn gcs(bucket: &str, options: &OriginOptions, watcher: Watcher) -> object_store::Result<Opened> {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    for (key, value) in settings::<GoogleConfigKey>(options, "google_") {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = &options.gcs_endpoint {
        builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint.trim_end_matches('/'));
    }
    if options.gcs_skip_signature {
        builder = builder.with_skip_signature(true);
    }
    let is_unsigned = is_true(builder.get_config_value(&GoogleConfigKey::SkipSignature));
    if is_unsigned {
        // Else the metadata service of a machine is asked, for what is not sent.
        let nothing = GcpCredential { bearer: String::new() };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(nothing)));
    }
    let base_url = builder.get_config_value(&GoogleConfigKey::BaseUrl);
    if is_plain(builder.get_config_value(&GoogleConfigKey::BaseUrl).as_ref()) {
        builder = builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    }
    let store = builder
        .with_config(GoogleConfigKey::Client(ClientConfigKey::ConnectTimeout), connect_timeout(options))
        .with_retry(no_retries())
        .with_http_connector(watcher.clone())
        .build()?;
    let base_url = base_url.as_deref().unwrap_or(GCS_URL).trim_end_matches('/');
    let wire = Wire {
        cloud: Cloud::Gcs,
        bucket_url: format!("{base_url}/{bucket}"),
        client: client_of(&watcher)?,
        auth: if is_unsigned { Auth::Nothing } else { Auth::Google(store.credentials().clone()) },
        lane: watcher.lane.clone(),
    };
    let writer = Writer::Xml(Box::new(XmlWriter::new(wire, HeaderMap::new())));
    let store = Arc::new(store);
    Ok(Opened { store: store.clone(), pages: store, writer })
}

fn azure(container: &str, options: &OriginOptions, watcher: Watcher) -> object_store::Result<Opened> {
    let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
    for (key, value) in settings::<AzureConfigKey>(options, "azure_") {
        builder = builder.with_config(key, value);
    }
    if let Some(account) = &options.azure_account {
        builder = builder.with_account(account);
    }
    if let Some(key) = &options.azure_access_key {
        builder = builder.with_access_key(key.expose());
    }
    if let Some(endpoint) = &options.azure_endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if is_plain(builder.get_config_value(&AzureConfigKey::Endpoint).as_ref()) {
        builder = builder.with_allow_http(true);
    }
    let store = builder
        .with_config(AzureConfigKey::Client(ClientConfigKey::ConnectTimeout), connect_timeout(options))
        .with_retry(no_retries())
        .with_http_connector(watcher.clone())
        .build()?;
    let store = Arc::new(store);
    let writer = Writer::Azure(AzureWriter { store: store.clone(), lane: watcher.lane.clone() });
    Ok(Opened { store: store.clone(), pages: store, writer })
}

/// The client of the store that was built with this watcher.
fn client_of(watcher: &Watcher) -> object_store::Result<HttpClient> {
    let made = watcher.made.lock().clone();
    made.ok_or_else(|| object_store::Error::Generic { store: "bucket", source: "it has made no HTTP client".into() })
}

/// Whether a setting of a store is switched on.
fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on" | "y"))
}

/// Opens a plain HTTP server. Sends nothing.
pub(super) fn web(server: &str, options: &OriginOptions, lane: Arc<Lane>) -> Result<Arc<dyn ObjectStore>> {
    let client = ClientOptions::new().with_allow_http(true).with_connect_timeout(options.limits().connect);
    let store = HttpBuilder::new()
        .with_url(server)
        .with_client_options(client)
        .with_retry(no_retries())
        .with_http_connector(watcher(options, lane, true))
        .build();
    match store {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => {
            let text = format!("cannot open {}: {}", redact_url(server), root_cause(&error));
            Err(Error::new(Code::InvalidArgument, text))
        }
    }
}

/// The store options of one cloud, with their keys parsed; names were checked before.
fn settings<K: std::str::FromStr>(options: &OriginOptions, prefix: &str) -> Vec<(K, String)> {
    let of_cloud = options.store_options.iter().filter(|option| option.key.starts_with(prefix));
    of_cloud.filter_map(|option| Some((option.key.parse().ok()?, option.value.expose().to_owned()))).collect()
}
