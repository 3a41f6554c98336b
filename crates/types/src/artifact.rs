//! The identity of bytes: an artifact is one immutable object of an origin, its URL at one version.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checkpoint::AttemptId;
use crate::error::{Code, Error, Result};

/// The longest URL or version that is accepted, in bytes: both travel in HTTP request lines and file trailers.
pub const URL_BYTES_MAX: usize = 2048;

/// What tells two contents under one URL apart, as the origin gives it.
///
/// Written `etag:<value>` (the header's value with its quotes), `generation:<n>` (GCS), `mtime:<size>-<nanoseconds>`
/// (local files), `sha:<commit>/<etag>` (Hugging Face layout) or `attempt:<uuid>` (objects of a checkpoint). Two versions are
/// compared as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    /// Takes a version as the origin crate wrote it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when it is empty, too long or holds control characters.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        check_text("version", &text)?;
        Ok(Version(text))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One immutable object: URL, version and size. Cheap to compare, clone behind an `Arc`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Artifact {
    url: String,
    version: Version,
    size_bytes: u64,
}

impl Artifact {
    /// Builds an artifact from what an origin said.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when the URL is empty, longer than [`URL_BYTES_MAX`] or holds control characters.
    pub fn new(url: impl Into<String>, version: Version, size_bytes: u64) -> Result<Self> {
        let url = url.into();
        check_text("URL", &url)?;
        Ok(Artifact { url, version, size_bytes })
    }

    /// The canonical URL of the object, without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The version seen at resolve; every later read is conditional on it.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Whether this is an object of a checkpoint, known by the attempt that wrote it (`attempt:<uuid>`): it has no version
    /// that an origin would tell, and is compared with the commit's checksums instead.
    pub fn is_of_attempt(&self) -> bool {
        let attempt = self.version.as_str().strip_prefix("attempt:");
        attempt.is_some_and(|attempt| AttemptId::parse(attempt).is_ok())
    }

    /// Size of the whole object in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

fn check_text(what: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > URL_BYTES_MAX {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("{what} has {} bytes, must have 1 to {URL_BYTES_MAX}", text.len()),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::new(Code::InvalidArgument, format!("{what} {text:?} holds a control character")));
    }
    Ok(())
}
