//! The folder of shared memory: ours alone, locked, never through a link.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use longshore_types::{Code, Error, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, fstatfs, mkdirat, open, openat, unlinkat,
};
use rustix::io::Errno;

/// Entries of a folder that are looked at: more than any daemon of ours makes.
const ENTRIES_MAX: usize = 65_536;
/// `f_type` of tmpfs and hugetlbfs.
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;
/// Largest page of a hugetlbfs that is of use: a slab is a whole number of pages.
const PAGE_BYTES_MAX: u64 = 64 << 20;

/// What the files of a folder are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabPages {
    /// Shared memory, in huge pages where the kernel gives them.
    Tmpfs,
    /// Huge pages that were set aside.
    Hugetlb,
    /// Files of a disk: they work, at the speed of its page cache.
    Disk,
}

/// A folder of named shared memory, used by this process alone.
#[derive(Debug)]
pub struct SlabFolder {
    /// Holds the lock.
    fd: OwnedFd,
    path: PathBuf,
    pages: SlabPages,
    page_bytes: u64,
}

/// The files of one session.
#[derive(Debug)]
pub struct SessionFolder {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) pages: SlabPages,
    pub(super) page_bytes: u64,
}

/// The name of a piece: its number, and its length, which its file may have lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PieceName {
    /// Position among the pieces of the session.
    pub index: u32,
    /// Length when it was made.
    pub len_bytes: u64,
}

impl SlabFolder {
    /// Makes the folder when it is missing, and locks it until this is dropped or unlocked.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`] when it is a link, another user's, or open to others; [`Code::FailedPrecondition`] when
    /// another process uses it; [`Code::Unsupported`] for a hugetlbfs of too large pages.
    pub fn open(path: &Path) -> Result<SlabFolder> {
        make(path)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => refused(path, "it is a link, or no folder"),
            errno => failed("open", path, errno),
        })?;
        let facts = fstat(&fd).map_err(|errno| failed("look at", path, errno))?;
        if facts.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused(path, "it belongs to another user"));
        }
        if facts.st_mode & 0o077 != 0 {
            return Err(refused(path, "others may enter it: its mode must be 0700"));
        }
        flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::new(
                Code::FailedPrecondition,
                format!(
                    "another process uses the slab folder {}; stop it, or choose another folder with \
                     --checkpoint-slab-dir",
                    path.display()
                ),
            ),
            errno => failed("lock", path, errno),
        })?;
        let (pages, page_bytes) = kind(&fd, path)?;
        Ok(SlabFolder { fd, path: path.to_path_buf(), pages, page_bytes })
    }

    /// Lets another process have it, while this one still has parts of it open. Nothing may be made in it after.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the system refuses: then it is locked until this is dropped.
    pub fn unlock(&self) -> Result<()> {
        flock(&self.fd, FlockOperation::Unlock).map_err(|errno| failed("unlock", &self.path, errno))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its files are made of.
    pub fn pages(&self) -> SlabPages {
        self.pages
    }

    /// Sizes of files are multiples of this.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Names of the folders in it; not more than a bound. Anything else in it is nobody's business.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when it cannot be read.
    pub fn sessions(&self) -> Result<Vec<String>> {
        names(&self.fd, &self.path)
    }

    /// A new session's folder.
    ///
    /// # Errors
    /// [`Code::Exhausted`] when the file system has no room, [`Code::Unavailable`] for other failures.
    pub fn create_session(&self, name: &str) -> Result<SessionFolder> {
        let path = self.path.join(name);
        mkdirat(&self.fd, name, Mode::RWXU).map_err(|errno| failed("make", &path, errno))?;
        self.open_session(name)
    }

    /// A session's folder that is there.
    ///
    /// # Errors
    /// As [`SlabFolder::open`].
    pub fn open_session(&self, name: &str) -> Result<SessionFolder> {
        let path = self.path.join(name);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(|errno| failed("open", &path, errno))?;
        Ok(SessionFolder { fd, path, pages: self.pages, page_bytes: self.page_bytes })
    }

    /// Removes a session's folder with its files. Memory stays with those who have mapped it, unless it was freed before.
    ///
    /// # Errors
    /// [`Code::Unavailable`] naming what cannot be removed.
    pub fn remove_session(&self, name: &str) -> Result<()> {
        let session = self.open_session(name)?;
        for file in names(&session.fd, &session.path)? {
            unlinkat(&session.fd, &*file, AtFlags::empty())
                .map_err(|errno| failed("remove", &session.path.join(&file), errno))?;
        }
        unlinkat(&self.fd, name, AtFlags::REMOVEDIR).map_err(|errno| failed("remove", &session.path, errno))
    }
}

impl SessionFolder {
    /// The pieces that are there, in order, whatever has become of them. Stops at the first that is missing.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the folder cannot be read.
    pub fn pieces(&self) -> Result<Vec<PieceName>> {
        let mut pieces: Vec<PieceName> =
            names(&self.fd, &self.path)?.iter().filter_map(|name| PieceName::parse(name)).collect();
        pieces.sort_unstable();
        let in_order = pieces.iter().zip(0..).take_while(|(piece, index)| piece.index == *index).count();
        pieces.truncate(in_order);
        Ok(pieces)
    }

    /// Opens a file of the session; `create` makes it, and fails when it is there.
    pub(super) fn file(&self, name: &str, create: bool) -> Result<File> {
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        if create {
            flags |= OFlags::CREATE | OFlags::EXCL;
        }
        let fd = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("open", &self.path.join(name), errno))?;
        let file = File::from(fd);
        let is_file = fstat(&file).is_ok_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile);
        if is_file { Ok(file) } else { Err(refused(&self.path.join(name), "it is no file")) }
    }

    pub(super) fn remove(&self, name: &str) {
        // What stays is removed with the folder.
        let _ = unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl PieceName {
    /// The inverse of `Display`.
    pub fn parse(name: &str) -> Option<PieceName> {
        let (index, len_bytes) = name.strip_prefix("piece-")?.split_once('-')?;
        let parsed = PieceName { index: index.parse().ok()?, len_bytes: len_bytes.parse().ok()? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for PieceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "piece-{}-{}", self.index, self.len_bytes)
    }
}

/// Makes the folder and those above it. One that is there stays as it is.
fn make(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(failed("make", path, Errno::from_io_error(&error).unwrap_or(Errno::IO)))
        }
        _ => Ok(()),
    }
}

fn kind(fd: &OwnedFd, path: &Path) -> Result<(SlabPages, u64)> {
    let facts = fstatfs(fd).map_err(|errno| failed("look at the file system of", path, errno))?;
    // The fields' types differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    let (magic, block) = (facts.f_type as u64 & 0xffff_ffff, facts.f_bsize as u64);
    let small = rustix::param::page_size() as u64;
    match magic {
        HUGETLBFS if block <= PAGE_BYTES_MAX && block.is_power_of_two() => Ok((SlabPages::Hugetlb, block)),
        HUGETLBFS => Err(Error::new(
            Code::Unsupported,
            format!(
                "the slab folder {} is on a hugetlbfs with pages of {block} bytes; mount one with pagesize=2M, or \
                 choose another folder with --checkpoint-slab-dir",
                path.display()
            ),
        )),
        TMPFS => Ok((SlabPages::Tmpfs, small)),
        _ => Ok((SlabPages::Disk, small)),
    }
}

/// Names of entries, but for those that are no text or start with a dot.
fn names(fd: &OwnedFd, path: &Path) -> Result<Vec<String>> {
    let mut folder = Dir::read_from(fd.as_fd()).map_err(|errno| failed("read", path, errno))?;
    let mut found = Vec::new();
    while let Some(entry) = folder.read() {
        let entry = entry.map_err(|errno| failed("read", path, errno))?;
        if let Ok(name) = entry.file_name().to_str()
            && !name.starts_with('.')
            && found.len() < ENTRIES_MAX
        {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

fn refused(path: &Path, why: &str) -> Error {
    let path = path.display();
    Error::new(
        Code::PermissionDenied,
        format!(
            "the slab folder {path} cannot be used: {why}; remove it, or choose another one with --checkpoint-slab-dir"
        ),
    )
}

pub(super) fn failed(doing: &str, path: &Path, errno: Errno) -> Error {
    let code = match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Code::PermissionDenied,
        Errno::NOENT => Code::NotFound,
        Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::DQUOT => Code::Exhausted,
        _ => Code::Unavailable,
    };
    let message = format!(
        "cannot {doing} {}: {errno}; make room there, or choose another folder with --checkpoint-slab-dir",
        path.display()
    );
    Error::new(code, message).with_source(std::io::Error::from(errno))
}
