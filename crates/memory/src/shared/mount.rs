//! A tmpfs that is attached nowhere: only who has its descriptors can reach it, and no setting of the system says what
//! its pages are.
//!
//! Its files cannot be sealed. What takes the place of seals is a second, read-only mount of the same tmpfs, as
//! unattached as the first: the descriptor that others get was opened there, to read, and the file has no name any more.
//! Neither it nor what is opened anew through `/proc` can write, map writable or truncate, not even as root. The mounts
//! stay for as long as a file of theirs is open or mapped, in whichever process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, fstatvfs, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    open_tree,
};

use super::SharedFile;
use crate::raw::{HUGE_PAGE_BYTES, RawMemory};
use crate::sys;

/// Longest part of a name that is the caller's: with what is added it stays below the kernel's 255 bytes.
const NAME_BYTES_MAX: usize = 200;
/// Fresh huge pages that are tried before a mount is said to have none: one may be missing for a moment.
const TRIES: usize = 4;

/// Huge pages where a file has room for a whole one, so that its end costs no more than it is long; no limit of its own,
/// because what lies there is paid for from an arena.
const OPTIONS: [(&str, &str); 4] = [("huge", "within_size"), ("size", "0"), ("nr_inodes", "0"), ("mode", "0700")];

/// Both mounts of one tmpfs.
#[derive(Debug)]
pub(super) struct PrivateMount {
    writable: OwnedFd,
    read_only: OwnedFd,
    /// Files made so far, for their names.
    count: AtomicU64,
}

impl PrivateMount {
    /// Makes a fresh one.
    ///
    /// # Errors
    /// The step that failed; without the right to mount (CAP_SYS_ADMIN) it is the first.
    pub(super) fn make() -> io::Result<PrivateMount> {
        let step = |name: &'static str| move |errno: Errno| failed(name, &errno.into());
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step("fsopen"))?;
        for (key, value) in OPTIONS {
            fsconfig_set_string(context.as_fd(), key, value).map_err(step("fsconfig"))?;
        }
        fsconfig_create(context.as_fd()).map_err(step("fsconfig"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let writable = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(step("fsmount"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let read_only = open_tree(writable.as_fd(), "", flags).map_err(step("open_tree"))?;
        sys::set_mount_read_only(read_only.as_fd()).map_err(|error| failed("mount_setattr", &error))?;
        Ok(PrivateMount::of(writable, read_only))
    }

    /// One that another process made.
    pub(super) fn of(writable: OwnedFd, read_only: OwnedFd) -> PrivateMount {
        PrivateMount { writable, read_only, count: AtomicU64::new(0) }
    }

    /// The mounts, writable and read-only.
    pub(super) fn fds(&self) -> [&OwnedFd; 2] {
        [&self.writable, &self.read_only]
    }

    /// Whether it is what it is taken for: it must really give huge pages (the setting `deny` forbids them everywhere),
    /// and what is read-only must be so.
    pub(super) fn check(&self) -> io::Result<()> {
        let other = |message: &str| Err(io::Error::other(format!("a private mount {message}")));
        if !fstatvfs(&self.read_only)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return other("is not read-only for others");
        }
        let SharedFile { file, .. } = self.file("probe")?;
        let len = TRIES * HUGE_PAGE_BYTES;
        file.set_len(len as u64)?;
        let memory = RawMemory::shared(file.as_fd(), len)?;
        memory.advise();
        for page in 0..TRIES {
            let start = memory.start().as_ptr().wrapping_add(page * HUGE_PAGE_BYTES);
            // SAFETY: within the mapping, which nobody else knows of.
            unsafe { start.write_volatile(1) };
            if file.metadata()?.blocks() * 512 >= HUGE_PAGE_BYTES as u64 {
                return Ok(());
            }
        }
        other("gives no huge pages")
    }

    /// A fresh, empty file: open to write, and open to read by way of the read-only mount. No name leads to it any more.
    pub(super) fn file(&self, name: &str) -> io::Result<SharedFile> {
        let plain = name.chars().filter(|c| c.is_ascii_graphic() && *c != '/').take(NAME_BYTES_MAX);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("longshore:{}:{number}", plain.collect::<String>());
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let file = openat(&self.writable, name.as_str(), create, Mode::RUSR)?;
        let read_only = openat(&self.read_only, name.as_str(), flags | OFlags::RDONLY, Mode::empty());
        unlinkat(&self.writable, name.as_str(), AtFlags::empty())?;
        Ok(SharedFile { file: file.into(), read_only: Some(File::from(read_only?)) })
    }
}

fn failed(step: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{step}: {error}"))
}
