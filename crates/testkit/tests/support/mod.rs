//! Clients for the tests of the fake origin: the library that the product uses, and requests by hand.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use longshore_testkit::FakeOrigin;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::{ClientOptions, RetryConfig};

pub const MIB: u64 = 1 << 20;

pub fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

pub fn s3_builder(origin: &FakeOrigin) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(origin.url())
        .with_allow_http(true)
        .with_bucket_name("bucket")
        .with_region("us-east-1")
        .with_access_key_id("id")
        .with_secret_access_key("secret")
        .with_retry(no_retry())
}

/// With checksums, as the product has it.
pub fn s3(origin: &FakeOrigin) -> AmazonS3 {
    s3_builder(origin).with_checksum_algorithm(Checksum::CRC64NVME).build().unwrap()
}

pub fn gcs(origin: &FakeOrigin) -> GoogleCloudStorage {
    GoogleCloudStorageBuilder::new()
        .with_base_url(&origin.url())
        .with_bucket_name("bucket")
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(no_retry())
        .with_bearer_token("t")
        .build()
        .unwrap()
}

pub fn azure(origin: &FakeOrigin) -> MicrosoftAzure {
    MicrosoftAzureBuilder::new()
        .with_account("test")
        .with_endpoint(origin.url())
        .with_allow_http(true)
        .with_container_name("bucket")
        .with_skip_signature(true)
        .with_retry(no_retry())
        .build()
        .unwrap()
}

/// An answer to a request by hand.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The texts of the elements of that name.
    pub fn elements(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let parts = self.body.split(&open).skip(1);
        parts.filter_map(|part| part.split_once(&close)).map(|(text, _)| text.replace("&quot;", "\"")).collect()
    }

    pub fn element(&self, name: &str) -> String {
        self.elements(name).into_iter().next().unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

/// A request by hand; an error when the connection ends without an answer.
pub fn send(
    origin: &FakeOrigin,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(origin.address())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let extra: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let len = body.len();
    let head = format!(
        "{method} /{target} HTTP/1.1\r\nhost: fake\r\nconnection: close\r\ncontent-length: {len}\r\n{extra}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A request by hand that is answered.
pub fn ask(origin: &FakeOrigin, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    send(origin, method, target, headers, body).unwrap_or_else(|error| panic!("{method} {target}: {error}"))
}

/// CRC-64/NVME as S3 writes it.
pub fn crc64(bytes: &[u8]) -> String {
    use base64::Engine;
    let checksum = longshore_types::BlockChecksum::of(bytes);
    base64::prelude::BASE64_STANDARD.encode(checksum.0.to_be_bytes())
}
