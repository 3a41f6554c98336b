//! Unix sockets of the daemon: a folder nobody else can slip into, one daemon for each socket, no stale files.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use longshore_types::{Code, Error, Result};
use tokio::net::UnixListener;

use crate::holder::HOLDER_SOCKET;

/// A socket that is listened on. Its file goes when this is dropped.
pub(crate) struct BoundSocket {
    pub listener: UnixListener,
    pub guard: SocketGuard,
}

/// The file of a socket and the lock that makes it ours.
pub(crate) struct SocketGuard {
    path: PathBuf,
    inode: u64,
    /// Held by `flock` until the process ends or this is dropped.
    _lock: File,
}

/// Makes the folder when it is missing: open to look into for root's daemon, private for a user's.
///
/// # Errors
/// [`Code::PermissionDenied`] when it cannot be made, is a link or belongs to another user.
pub(crate) fn prepare_folder(folder: &Path) -> Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let mode = if uid == 0 { 0o755 } else { 0o700 };
    if let Err(error) = DirBuilder::new().recursive(true).mode(mode).create(folder)
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(failed("create the socket folder", folder, error));
    }
    let metadata = folder.symlink_metadata().map_err(|error| failed("look at the socket folder", folder, error))?;
    if metadata.is_dir() && [0, uid].contains(&metadata.uid()) {
        return Ok(());
    }
    let folder = folder.display();
    Err(Error::new(
        Code::PermissionDenied,
        format!("the socket folder {folder} is not a folder of this user; choose another one with --socket-dir"),
    ))
}

/// Listens on `folder/name`. Must run inside a tokio runtime.
///
/// # Errors
/// [`Code::FailedPrecondition`] when another daemon listens there.
pub(crate) fn bind(folder: &Path, name: &str, mode: u32) -> Result<BoundSocket> {
    let path = folder.join(name);
    let lock = lock(&folder.join(format!("{name}.lock")), &path)?;
    remove_stale(&path)?;
    let listener = UnixListener::bind(&path).map_err(|error| failed("listen on", &path, error))?;
    std::fs::set_permissions(&path, Permissions::from_mode(mode))
        .map_err(|error| failed("set the mode of", &path, error))?;
    let inode = path.symlink_metadata().map_err(|error| failed("look at", &path, error))?.ino();
    Ok(BoundSocket { listener, guard: SocketGuard { path, inode, _lock: lock } })
}

impl SocketGuard {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // Only our own file: somebody may have put another one in its place.
        if self.path.symlink_metadata().is_ok_and(|metadata| metadata.ino() == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn lock(path: &Path, socket: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(|error| failed("open", path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(in_use(socket)),
        Err(std::fs::TryLockError::Error(error)) => Err(failed("lock", path, error)),
    }
}

/// Removes the socket of a daemon that was killed. The lock says that no daemon of ours is there; somebody else's may.
fn remove_stale(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("look at", path, error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let path = path.display();
            Err(Error::new(Code::FailedPrecondition, format!("{path} exists and is no socket; remove it")))
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| failed("remove the stale socket", path, error))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Ok(_) | Err(_) => Err(in_use(path)),
        },
    }
}

fn in_use(socket: &Path) -> Error {
    let path = socket.display();
    let who = if socket.ends_with(HOLDER_SOCKET) { "holder" } else { "loader" };
    Error::new(
        Code::FailedPrecondition,
        format!("another {who} listens on {path}; stop it, or choose another folder with --socket-dir"),
    )
}

fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    let code = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Code::PermissionDenied,
        ErrorKind::NotFound => Code::NotFound,
        _ => Code::Unavailable,
    };
    let message = format!("cannot {doing} {}: {error}; choose another folder with --socket-dir", path.display());
    Error::new(code, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_second_daemon_is_told() {
        let folder = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("a.sock")).unwrap());
        let first = bind(folder.path(), "a.sock", 0o600).unwrap();
        let mode = folder.path().join("a.sock").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = bind(folder.path(), "a.sock", 0o600).err().unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("a.sock"), "{error}");
        drop(first);
        assert!(!folder.path().join("a.sock").exists());
        bind(folder.path(), "a.sock", 0o600).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(folder.path(), "a.sock", 0o600).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        let _foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(bind(folder.path(), "a.sock", 0o600).err().unwrap().code(), Code::FailedPrecondition);
    }

    #[test]
    fn a_link_is_no_socket_folder() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert_eq!(prepare_folder(&link).unwrap_err().code(), Code::PermissionDenied);
        let made = folder.path().join("made");
        prepare_folder(&made).unwrap();
        assert_eq!(made.metadata().unwrap().mode() & 0o022, 0);
    }
}
