//! An object store that is fast, counts what it serves, and misbehaves on demand.
//!
//! One engine speaks four dialects ([`Dialect`]), and those of S3 and GCS answer requests in the words of Azure as well. Objects are named by path: `bucket/key` for S3 and GCS,
//! `org/repo/file` for the Hugging Face hub, any path for plain HTTP. The server runs on threads of its own and ends
//! when the handle is dropped.

mod admin;
mod azure;
mod body;
mod checksums;
mod chunked;
mod counters;
mod faults;
mod hub;
mod listing;
mod receive;
mod request;
mod serve;
mod sigv4;
mod state;
mod stores;
mod text;
mod uploads;
mod write;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use counters::{Counters, KeyCounters, PartCounters, RequestRecord};
pub use faults::{Fault, FaultKind, Verb};
pub use uploads::UploadInfo;

use crate::content::Content;
use state::State;

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
        }
    }
}

/// A running server.
pub struct FakeOrigin {
    state: Arc<State>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl FakeOrigin {
    /// An S3 server that lets everybody in.
    pub fn start() -> FakeOrigin {
        FakeOrigin::with(OriginConfig::default())
    }

    /// A server of that dialect that lets everybody in.
    pub fn speaking(dialect: Dialect) -> FakeOrigin {
        FakeOrigin::with(OriginConfig { dialect, ..OriginConfig::default() })
    }

    /// A server as configured.
    ///
    /// # Panics
    /// When the address cannot be bound.
    pub fn with(config: OriginConfig) -> FakeOrigin {
        let listen = config.listen;
        FakeOrigin::try_with(config).unwrap_or_else(|error| panic!("fake origin cannot listen on {listen}: {error}"))
    }

    /// A server as configured.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn try_with(config: OriginConfig) -> io::Result<FakeOrigin> {
        let listener = TcpListener::bind(config.listen)?;
        let cdn = TcpListener::bind(("127.0.0.1", 0))?;
        let (address, cdn_address) = (listener.local_addr()?, cdn.local_addr()?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-origin")
            .enable_all()
            .build()?;
        let state = Arc::new(State::new(config, cdn_address));
        {
            // Entered and not blocked on: a caller may be on a runtime of its own.
            let _entered = runtime.enter();
            serve::spawn(listener, state.clone(), serve::Side::Front)?;
            serve::spawn(cdn, state.clone(), serve::Side::Cdn)?;
        }
        Ok(FakeOrigin { state, address, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stores an object; its bucket comes into being.
    pub fn put(&self, path: &str, content: impl Into<Content>) {
        self.state.put(path, content.into());
    }

    /// Stores an object of `size_bytes` generated bytes: [`Content::generated`] says which.
    pub fn generate(&self, path: &str, seed: u64, size_bytes: u64) {
        self.put_content(path, Content::generated(seed, size_bytes));
    }

    /// Stores an object by the description of its content.
    pub fn put_content(&self, path: &str, content: Content) {
        self.state.put(path, content);
    }

    /// Stores every file under a folder of the disk, below `prefix`. They are read when they are asked for.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn put_folder(&self, prefix: &str, folder: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
            let name = name.trim_start_matches('/');
            match std::fs::metadata(entry.path())?.is_dir() {
                true => self.put_folder(name, &entry.path())?,
                false => self.put_content(name, Content::file(&entry.path())?),
            }
        }
        Ok(())
    }

    /// Makes a bucket with nothing in it.
    pub fn create_bucket(&self, name: &str) {
        self.state.create_bucket(name);
    }

    /// Deletes an object; whether it was there.
    pub fn remove(&self, path: &str) -> bool {
        self.state.remove(path)
    }

    /// Turns a bit of the byte at `offset_bytes` of an object where it lies: its version and the checksum that the store
    /// tells stay as they were. Whether there is such a byte.
    pub fn flip_byte(&self, path: &str, offset_bytes: u64) -> bool {
        self.state.flip(path, offset_bytes)
    }

    /// The same in a part of the latest open upload of an object.
    pub fn flip_part_byte(&self, path: &str, part: u32, offset_bytes: u64) -> bool {
        self.state.uploads.flip(path, part, offset_bytes)
    }

    /// The paths of all objects that begin with `prefix`, sorted.
    pub fn paths(&self, prefix: &str) -> Vec<String> {
        self.state.objects_under(prefix, "").into_iter().map(|(path, _)| path).collect()
    }

    /// The uploads that are open.
    pub fn uploads(&self) -> Vec<UploadInfo> {
        self.state.uploads.list()
    }

    /// Forgets an open upload and its parts, as the rules of a bucket do with old ones; whether it was there.
    pub fn forget_upload(&self, path: &str, id: &str) -> bool {
        self.state.uploads.remove(path, id)
    }

    /// Lets all uploads together come in at that many bytes a second from now on; `None` lifts it.
    pub fn limit_uploads(&self, bytes_per_second: Option<u64>) {
        self.state.pacer.set(bytes_per_second);
    }

    /// The content of an object.
    pub fn content(&self, path: &str) -> Option<Content> {
        self.state.object(path).map(|object| object.content.clone())
    }

    /// The commit that `main` of a hub repository is at.
    pub fn hub_commit(&self, repo: &str) -> Option<String> {
        hub::commit(&self.state, repo)
    }

    /// Misbehaves from now on.
    pub fn fault(&self, fault: Fault) {
        self.state.faults.lock().push(fault);
    }

    /// Behaves from now on.
    pub fn clear_faults(&self) {
        self.state.faults.lock().clear();
    }

    /// What was asked and served since the start or the last reset.
    pub fn counters(&self) -> Counters {
        self.state.counters.lock().clone()
    }

    /// Counts from zero.
    pub fn reset_counters(&self) {
        self.state.reset_counters();
    }

    /// Waits until no request is being answered; false after `timeout`.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        self.state.wait_idle(timeout)
    }

    /// Whether any request that arrived at the redirect target carried a token, which a client must not send there.
    pub fn token_leaked(&self) -> bool {
        self.state.counters.lock().leaked_tokens > 0
    }

    /// Environment variables with which a client finds this server and is let in.
    pub fn client_env(&self) -> Vec<(String, String)> {
        let config = &self.state.config;
        let pairs = match config.dialect {
            Dialect::S3 => {
                let (id, secret) = config.access_key.clone().unwrap_or(("test".to_owned(), "test-secret".to_owned()));
                vec![
                    ("AWS_ENDPOINT_URL", self.url()),
                    ("AWS_ALLOW_HTTP", "true".to_owned()),
                    ("AWS_REGION", "us-east-1".to_owned()),
                    ("AWS_ACCESS_KEY_ID", id),
                    ("AWS_SECRET_ACCESS_KEY", secret),
                ]
            }
            Dialect::Gcs => {
                let mut pairs = vec![("GOOGLE_BASE_URL", self.url())];
                match &config.token {
                    Some(token) => pairs.push(("GOOGLE_BEARER_TOKEN", token.clone())),
                    None => pairs.push(("GOOGLE_SKIP_SIGNATURE", "true".to_owned())),
                }
                pairs
            }
            Dialect::Hub => {
                let mut pairs = vec![("HF_ENDPOINT", self.url())];
                pairs.extend(config.token.clone().map(|token| ("HF_TOKEN", token)));
                pairs
            }
            Dialect::Http => Vec::new(),
        };
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Environment variables with which a client of Azure finds this server, which must be of S3 or GCS: what is
    /// `bucket/key` for those is `container/blob` for this one, `az://container/blob`.
    pub fn azure_env(&self) -> Vec<(String, String)> {
        let mut pairs = vec![
            ("AZURE_STORAGE_ACCOUNT_NAME", "test".to_owned()),
            ("AZURE_STORAGE_ENDPOINT", self.url()),
            ("AZURE_ALLOW_HTTP", "true".to_owned()),
        ];
        match &self.state.config.token {
            Some(token) => pairs.push(("AZURE_STORAGE_TOKEN", token.clone())),
            None => pairs.push(("AZURE_SKIP_SIGNATURE", "true".to_owned())),
        }
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The URL by which Longshore knows the object or folder at `path`.
    pub fn model_url(&self, path: &str) -> String {
        match self.state.config.dialect {
            Dialect::S3 => format!("s3://{path}"),
            Dialect::Gcs => format!("gs://{path}"),
            Dialect::Hub => format!("hf://{path}"),
            Dialect::Http => format!("{}/{path}", self.url()),
        }
    }
}

impl Drop for FakeOrigin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
