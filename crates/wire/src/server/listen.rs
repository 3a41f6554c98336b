//! Taking an address, and never one that a living daemon has.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use longshore_types::{Code, Error, Result};
use rustix::fs::FlockOperation;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted; a burst of loaders connects at once.
const BACKLOG: i32 = 1024;

pub(crate) struct BoundTcp {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
}

/// A listening unix socket. Its file goes when this is dropped, unless somebody put another in its place.
pub(crate) struct BoundUnix {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    /// Held as long as we listen. Its file stays: to remove it would let two daemons hold two locks of one name.
    _lock: File,
}

pub(crate) fn bind_tcp(address: SocketAddr) -> Result<BoundTcp> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok(BoundTcp { listener, address })
    };
    bind().map_err(|e| failed(&format!("cannot listen on {address}"), e))
}

pub(crate) fn bind_unix(path: &Path) -> Result<BoundUnix> {
    let what = format!("cannot listen on unix socket {}", path.display());
    let lock = lock(path).map_err(|e| failed(&what, e))?;
    let taken = || {
        Error::new(Code::FailedPrecondition, format!("{what}: another daemon listens there; stop it or choose a path"))
    };
    let lock = lock.ok_or_else(taken)?;
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(&what, e)),
        Ok(found) if !found.file_type().is_socket() => {
            let why = format!("{what}: a file of another kind is there; remove it or choose a path");
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|e| failed(&what, e))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(taken()),
        },
    }
    let bind = || {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let inode = inode(path)?;
        Ok(BoundUnix { listener, path: path.to_owned(), inode, _lock: lock })
    };
    bind().map_err(|e| failed(&what, e))
}

impl Drop for BoundUnix {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // What cannot be removed is found stale by the next daemon.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The lock beside the socket; `None` when another process holds it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(name)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn failed(what: &str, error: io::Error) -> Error {
    let (code, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (Code::FailedPrecondition, "; another process listens there"),
        io::ErrorKind::PermissionDenied => (Code::PermissionDenied, ""),
        io::ErrorKind::NotFound => (Code::InvalidArgument, "; create its folder first"),
        io::ErrorKind::InvalidInput | io::ErrorKind::AddrNotAvailable => (Code::InvalidArgument, ""),
        _ => (Code::Internal, ""),
    };
    Error::new(code, format!("{what}: {error}{hint}")).with_source(error)
}
