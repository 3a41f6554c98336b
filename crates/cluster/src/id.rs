//! A worker's identity: a UUID in its cache folder, so that the chunks it holds stay its own wherever it runs.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use longshore_runtime::env;
use longshore_types::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Name of the file in the cache folder that holds the id.
pub const ID_FILE: &str = "member-id";

/// The name of a worker on the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(Uuid);

impl MemberId {
    /// A new random id.
    pub fn random() -> Self {
        MemberId(Uuid::new_v4())
    }

    /// An id with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        MemberId(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes that are hashed on to the ring.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for MemberId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text)
            .map(MemberId)
            .map_err(|error| Error::new(Code::InvalidArgument, format!("{text:?} is not a member id: {error}")))
    }
}

/// Reads the id of the worker that owns `cache_dir`, or makes one and writes it there, durable and in one step.
///
/// # Errors
/// [`Code::Corrupt`] when the file holds no id; else the code of the failed read or write, naming the file.
pub fn load_or_create_id(cache_dir: &Path) -> Result<MemberId> {
    let path = cache_dir.join(ID_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => return parse(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("read", &path, error)),
    }
    create(cache_dir, &path).map_err(|error| file_error("create", &path, error))?;
    // What counts is what the file says now: another process may have been first.
    let text = fs::read_to_string(&path).map_err(|error| file_error("read", &path, error))?;
    parse(&path, &text)
}

/// The same text for every process on this running machine and for no other: as it was set, or the kernel's boot id.
/// Empty where the kernel does not tell, which matches nothing.
pub fn host_id() -> String {
    if let Some(set) = std::env::var(env::HOST_ID).ok().filter(|set| !set.is_empty()) {
        return set;
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Writes a fresh id to a temporary name, then links it to its own, which fails when that exists.
fn create(cache_dir: &Path, path: &Path) -> io::Result<()> {
    let id = MemberId::random();
    let temporary = cache_dir.join(format!("{ID_FILE}.{id}.tmp"));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    let written = writeln!(file, "{id}").and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // File systems without hard links: the cache folder's lock keeps a second daemon out.
        Err(error) if no_hard_links(&error) => fs::rename(&temporary, path),
        other => other,
    });
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    linked.and(removed)?;
    File::open(cache_dir)?.sync_all()
}

fn no_hard_links(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

fn parse(path: &Path, text: &str) -> Result<MemberId> {
    text.trim().parse().map_err(|_| {
        let path = path.display();
        Error::new(Code::Corrupt, format!("{path} holds no member id; delete it and the worker takes a new one"))
    })
}

fn file_error(what: &str, path: &Path, error: io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::PermissionDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::Exhausted,
        _ => Code::Internal,
    };
    Error::new(code, format!("cannot {what} {}: {error}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_with_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_create_id(folder.path()).unwrap();
        assert_eq!(load_or_create_id(folder.path()).unwrap(), first);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [ID_FILE], "no temporary file stays behind");
    }

    #[test]
    fn racing_creators_agree() {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<MemberId> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| load_or_create_id(folder.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_torn_file_and_a_missing_folder_are_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(ID_FILE), "1234").unwrap();
        let error = load_or_create_id(folder.path()).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt);
        assert!(error.message().contains(ID_FILE), "{error}");
        let error = load_or_create_id(&folder.path().join("absent")).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }
}
