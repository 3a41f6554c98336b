//! Opening an S3 bucket, for reading through `object_store` and for writing with requests of our own.

use std::sync::Arc;

use object_store::StaticCredentialProvider;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::client::ClientConfigKey;
use object_store::signer::{HeaderMap, HeaderName, HeaderValue};

use super::super::watch::Watcher;
use super::super::writing::Writer;
use super::super::xml::{Auth, Wire, XmlWriter};
use super::{Opened, client_of, connect_timeout, is_plain, is_true, no_retries, settings};
use crate::address::Cloud;
use crate::options::OriginOptions;

const DEFAULT_REGION: &str = "us-east-1";

/// Opens the bucket. Sends nothing.
pub(super) fn open(bucket: &str, options: &OriginOptions, watcher: Watcher) -> object_store::Result<Opened> {
    let builder = configured(bucket, options);
    let settings = Settings::of(&builder, bucket);
    let store = builder.with_http_connector(watcher.clone()).build()?;
    let writer = settings.writer(&store, &watcher)?;
    let store = Arc::new(store);
    Ok(Opened { store: store.clone(), pages: store, writer })
}

fn configured(bucket: &str, options: &OriginOptions) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (key, value) in settings::<AmazonS3ConfigKey>(options, "aws_") {
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = &options.s3_endpoint {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &options.s3_region {
        builder = builder.with_region(region);
    }
    if let (Some(key_id), Some(secret_key)) = (&options.s3_access_key_id, &options.s3_secret_access_key) {
        // Not through the builder: a session token from the environment belongs to other keys.
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(AwsCredential {
            key_id: key_id.clone(),
            secret_key: secret_key.expose().to_owned(),
            token: None,
        })));
    }
    if options.s3_skip_signature {
        builder = builder.with_skip_signature(true);
    }
    if is_plain(endpoint_of(&builder).as_ref()) {
        builder = builder.with_allow_http(true);
    }
    builder
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), connect_timeout(options))
        .with_retry(no_retries())
}

fn endpoint_of(builder: &AmazonS3Builder) -> Option<String> {
    builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint))
}

/// What the builder knows and the store does not tell.
struct Settings {
    bucket_url: String,
    region: String,
    is_unsigned: bool,
    request_payer: bool,
    encryption: Result<HeaderMap, &'static str>,
    is_express: bool,
}

impl Settings {
    fn of(builder: &AmazonS3Builder, bucket: &str) -> Settings {
        let value = |key| builder.get_config_value(&key);
        let region = value(AmazonS3ConfigKey::Region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let virtual_hosted = is_true(value(AmazonS3ConfigKey::VirtualHostedStyleRequest));
        // As `object_store` makes it: with virtual hosts an endpoint holds the bucket's name already.
        let bucket_url = match (endpoint_of(builder), virtual_hosted) {
            (Some(endpoint), true) => endpoint.trim_end_matches('/').to_owned(),
            (Some(endpoint), false) => format!("{}/{bucket}", endpoint.trim_end_matches('/')),
            (None, true) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
            (None, false) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
        };
        Settings {
            bucket_url,
            region,
            is_unsigned: is_true(value(AmazonS3ConfigKey::SkipSignature)),
            request_payer: is_true(value(AmazonS3ConfigKey::RequestPayer)),
            encryption: encryption(&value),
            is_express: is_true(value(AmazonS3ConfigKey::S3Express)),
        }
    }

    fn writer(self, store: &AmazonS3, watcher: &Watcher) -> object_store::Result<Writer> {
        if self.is_express {
            return Ok(Writer::None("directory buckets (S3 Express) are only read: use a general purpose bucket"));
        }
        let encryption = match self.encryption {
            Ok(encryption) => encryption,
            Err(reason) => return Ok(Writer::None(reason)),
        };
        let auth = if self.is_unsigned {
            Auth::Nothing
        } else {
            let (credentials, region) = (store.credentials().clone(), self.region);
            Auth::Aws { credentials, region, request_payer: self.request_payer }
        };
        let wire = Wire {
            cloud: Cloud::S3,
            bucket_url: self.bucket_url,
            client: client_of(watcher)?,
            auth,
            lane: watcher.lane.clone(),
        };
        Ok(Writer::Xml(Box::new(XmlWriter::new(wire, encryption))))
    }
}

/// The headers of server-side encryption that the settings ask for.
fn encryption(value: &impl Fn(AmazonS3ConfigKey) -> Option<String>) -> Result<HeaderMap, &'static str> {
    const UNKNOWN: &str = "its server-side encryption setting holds what no header can";
    let setting = |name: &str| value(name.parse().ok()?);
    let mut headers = HeaderMap::new();
    let Some(kind) = setting("aws_server_side_encryption") else { return Ok(headers) };
    if kind.eq_ignore_ascii_case("sse-c") {
        return Err("objects encrypted with customer keys (SSE-C) are only read: use SSE-KMS");
    }
    let mut add = |name: &'static str, text: String| {
        headers.insert(HeaderName::from_static(name), HeaderValue::try_from(text).map_err(|_| UNKNOWN)?);
        Ok::<(), &'static str>(())
    };
    add("x-amz-server-side-encryption", kind)?;
    if let Some(key_id) = setting("aws_sse_kms_key_id") {
        add("x-amz-server-side-encryption-aws-kms-key-id", key_id)?;
    }
    if let Some(enabled) = setting("aws_sse_bucket_key_enabled") {
        add("x-amz-server-side-encryption-bucket-key-enabled", is_true(Some(enabled)).to_string())?;
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings_of(pairs: &[(&str, &str)]) -> Settings {
        let with = |builder: AmazonS3Builder, (key, value): &(&str, &str)| {
            builder.with_config(key.parse::<AmazonS3ConfigKey>().unwrap(), *value)
        };
        Settings::of(&pairs.iter().fold(AmazonS3Builder::new(), with), "b")
    }

    #[test]
    fn where_a_bucket_is() {
        let url = |pairs: &[(&str, &str)]| settings_of(pairs).bucket_url;
        assert_eq!(url(&[]), "https://s3.us-east-1.amazonaws.com/b");
        assert_eq!(url(&[("aws_region", "eu-west-1")]), "https://s3.eu-west-1.amazonaws.com/b");
        let virtual_hosts = ("aws_virtual_hosted_style_request", "true");
        assert_eq!(url(&[virtual_hosts]), "https://b.s3.us-east-1.amazonaws.com");
        assert_eq!(url(&[("aws_endpoint_url", "http://h:1/")]), "http://h:1/b");
        assert_eq!(url(&[virtual_hosts, ("aws_endpoint_url", "http://b.h:1")]), "http://b.h:1");
    }

    #[test]
    fn encryption_goes_with_every_object() {
        let header = |settings: &Settings, name| {
            let headers = settings.encryption.as_ref().unwrap();
            headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert!(settings_of(&[]).encryption.unwrap().is_empty());
        let settings = settings_of(&[
            ("aws_server_side_encryption", "aws:kms"),
            ("aws_sse_kms_key_id", "key"),
            ("aws_sse_bucket_key_enabled", "true"),
        ]);
        assert_eq!(header(&settings, "x-amz-server-side-encryption").as_deref(), Some("aws:kms"));
        assert_eq!(header(&settings, "x-amz-server-side-encryption-aws-kms-key-id").as_deref(), Some("key"));
        assert_eq!(header(&settings, "x-amz-server-side-encryption-bucket-key-enabled").as_deref(), Some("true"));
        assert!(settings_of(&[("aws_server_side_encryption", "sse-c")]).encryption.is_err());
    }
}
