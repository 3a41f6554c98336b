//! Whether memory that came from elsewhere can change any more.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{OFlags, SealFlags, StatVfsMountFlags, fcntl_get_seals, fcntl_getfl, fstatfs, fstatvfs};
use rustix::io::Errno;

/// `TMPFS_MAGIC` of the kernel: also of memfds.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// That nobody with this descriptor can write, map writable or resize the memory, or why that is not so: it must be a
/// memfd with the seals for it, or a file without a name of a tmpfs that is mounted read-only, open to read only. That
/// its maker does not keep a way of its own is the maker's word in both cases.
pub(crate) fn check_unchangeable(file: &File) -> Result<(), String> {
    let unreadable = |what: &str, errno: Errno| format!("{what} cannot be read: {errno}");
    let seals = fcntl_get_seals(file).map_err(|errno| unreadable("its seals", errno))?;
    let fixed = SealFlags::SHRINK | SealFlags::GROW;
    if seals.contains(fixed) && seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Ok(());
    }
    let facts = fstatfs(file).map_err(|errno| unreadable("its file system", errno))?;
    let mount = fstatvfs(file).map_err(|errno| unreadable("its mount", errno))?;
    if facts.f_type as u64 != TMPFS_MAGIC || !mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(format!("its seals are {seals:?}, and it is no tmpfs that is mounted read-only"));
    }
    let access = fcntl_getfl(file).map_err(|errno| unreadable("how it is open", errno))?;
    if access & OFlags::RWMODE != OFlags::RDONLY {
        return Err("it is open to write".into());
    }
    match file.metadata() {
        Ok(metadata) if metadata.nlink() == 0 => Ok(()),
        Ok(_) => Err("its file has a name, by which others may change it".into()),
        Err(error) => Err(format!("its file cannot be looked at: {error}")),
    }
}
