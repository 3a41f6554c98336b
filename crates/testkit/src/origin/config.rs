//! How a server is told to be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// S3 with path-style addresses: objects on conditions, multipart uploads, checksums, deletes of many, listings.
    #[default]
    S3,
    /// The XML API of Google Cloud Storage, with generations, multipart uploads and bearer tokens.
    Gcs,
    /// The Hugging Face hub: model information, tree, resolve.
    Hub,
    /// Static files, with WebDAV's PROPFIND for listings.
    Http,
}

/// What real servers get wrong, to be tried against.
#[derive(Debug, Clone, Default)]
pub struct Quirks {
    /// `If-Match` and `If-None-Match` are not looked at.
    pub ignores_conditions: bool,
    /// `Range` is answered with the whole object and 200.
    pub ignores_ranges: bool,
    /// No `ETag` is sent.
    pub has_no_etag: bool,
    /// Conditions of PUT, of DELETE and of completing an upload are not looked at; those of GET are.
    pub ignores_conditional_puts: bool,
    /// Checksums that clients send are neither checked nor kept, and none are told.
    pub has_no_checksums: bool,
    /// Writes that carry a checksum header are refused with 501.
    pub rejects_checksums: bool,
    /// Listing the open uploads is refused with 501.
    pub cannot_list_uploads: bool,
}

/// How the server behaves from its start.
#[derive(Debug, Clone)]
pub struct OriginConfig {
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Access key id and secret that S3 requests must be signed with; `None` lets everybody in.
    pub access_key: Option<(String, String)>,
    /// Bearer token that GCS and hub requests must carry.
    pub token: Option<String>,
    /// Most entries of a page of a listing.
    pub page_size: usize,
    /// The hub redirects large files to a second server, as the real one does; that one refuses requests that carry a token.
    pub redirects_large_files: bool,
    /// Deviations.
    pub quirks: Quirks,
    /// What is uploaded lies in files without a name in this folder, and in memory when there is none.
    pub data_dir: Option<PathBuf>,
    /// Most memory for what is uploaded, in bytes; more is refused with 507.
    pub memory_bytes_max: u64,
    /// Smallest part of a multipart upload, except for the last, in bytes.
    pub part_bytes_min: u64,
    /// Most bytes a second of all uploads together.
    pub upload_bytes_per_second: Option<u64>,
    /// Most bytes a second of all objects that go out together, as a link has it.
    pub bytes_per_second: Option<u64>,
    /// Most bytes a second that go out on one connection, as cloud stores have it.
    pub connection_bytes_per_second: Option<u64>,
    /// How much later every answer begins.
    pub first_byte: Duration,
}

const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// That of S3 and GCS.
const PART_BYTES_MIN: u64 = 5 << 20;

impl Default for OriginConfig {
    fn default() -> Self {
        OriginConfig {
            dialect: Dialect::S3,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            access_key: None,
            token: None,
            page_size: 1000,
            redirects_large_files: false,
            quirks: Quirks::default(),
            data_dir: None,
            memory_bytes_max: MEMORY_BYTES_MAX,
            part_bytes_min: PART_BYTES_MIN,
            upload_bytes_per_second: None,
            bytes_per_second: None,
            connection_bytes_per_second: None,
            first_byte: Duration::ZERO,
        }
    }
}
