//! Memory for other processes: where this process takes it from, decided once.
//!
//! Three kinds, the first that is to be had: memfds, where the system's settings give those huge pages; files of a
//! [private mount](mount) with huge pages of its own, which asks for no setting but for the right to mount, this
//! process's or that of a [`helper`] in a user namespace; memfds of 4 KiB pages, each of which costs a fault when it is
//! first written. The last is never silent: [`SharedMemory::advice`].

mod helper;
mod mount;
mod readable;
mod sealed;

use std::fs::File;
use std::io;
use std::sync::OnceLock;

use rustix::fs::MemfdFlags;

pub use self::helper::{MountHelper, mount_helper_main};
use self::mount::PrivateMount;
pub(crate) use self::sealed::check_unchangeable;
use crate::memfd::create_memfd;
use crate::region_page_advice;

/// Where memory for other processes comes from.
#[derive(Debug)]
pub struct SharedMemory {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Memfds. With what an administrator should know when their pages are small.
    Memfd(Option<String>),
    Mount(PrivateMount),
}

/// What memory for other processes consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedPages {
    /// Memfds, which the system's settings give huge pages.
    HugeBySetting,
    /// Files of a private mount, which has huge pages whatever the settings are.
    HugePrivateMount,
    /// Memfds of 4 KiB pages.
    Small,
}

impl std::fmt::Display for SharedPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SharedPages::HugeBySetting => "huge pages by the system's setting",
            SharedPages::HugePrivateMount => "huge pages of a private mount",
            SharedPages::Small => "4 KiB pages",
        })
    }
}

static CHOSEN: OnceLock<SharedMemory> = OnceLock::new();

/// This process's memory for others; the first call chooses it, without help.
pub fn shared_memory() -> &'static SharedMemory {
    CHOSEN.get_or_init(|| SharedMemory::choose(None))
}

/// As [`shared_memory`]; where this is the first call, with somebody to ask who may mount when this process may not. Then
/// it starts a process and blocks until that has answered.
pub fn choose_shared_memory(helper: Option<&MountHelper>) -> &'static SharedMemory {
    CHOSEN.get_or_init(|| SharedMemory::choose(helper))
}

/// A fresh file of memory.
#[derive(Debug)]
pub(crate) struct SharedFile {
    /// To size, map and write it.
    pub(crate) file: File,
    /// What others get of a file that cannot be sealed: a descriptor that leads to no way of changing it.
    pub(crate) read_only: Option<File>,
}

impl SharedMemory {
    /// The best kind that is to be had. Blocks while a helper is asked.
    pub fn choose(helper: Option<&MountHelper>) -> SharedMemory {
        if region_page_advice().is_none() {
            return SharedMemory::memfd();
        }
        match SharedMemory::private_mount(helper) {
            Ok(memory) => memory,
            Err(error) => SharedMemory::memfd_instead(&error),
        }
    }

    /// Memfds, of the pages that the system gives them.
    pub fn memfd() -> SharedMemory {
        SharedMemory { kind: Kind::Memfd(region_page_advice()) }
    }

    /// Memfds, because there can be no private mount.
    fn memfd_instead(error: &io::Error) -> SharedMemory {
        let advice = region_page_advice().map(|advice| {
            format!(
                "{advice}, or give this process the right to mount (CAP_SYS_ADMIN); a private mount was tried: {error}"
            )
        });
        SharedMemory { kind: Kind::Memfd(advice) }
    }

    /// Files of a private mount with huge pages.
    ///
    /// # Errors
    /// Which step this process, and then the helper, may not do; that the mount has no huge pages after all.
    pub fn private_mount(helper: Option<&MountHelper>) -> io::Result<SharedMemory> {
        let mount = match (PrivateMount::make(), helper) {
            (Err(own), Some(helper)) => helper.ask().map_err(|error| {
                io::Error::new(error.kind(), format!("{own}; with a user namespace of its own: {error}"))
            })?,
            (made, _) => made?,
        };
        mount.check()?;
        Ok(SharedMemory { kind: Kind::Mount(mount) })
    }

    /// What it consists of.
    pub fn pages(&self) -> SharedPages {
        match &self.kind {
            Kind::Memfd(None) => SharedPages::HugeBySetting,
            Kind::Memfd(Some(_)) => SharedPages::Small,
            Kind::Mount(_) => SharedPages::HugePrivateMount,
        }
    }

    /// What an administrator should change so that fresh memory fills at the speed of memory; `None` when nothing.
    pub fn advice(&self) -> Option<&str> {
        match &self.kind {
            Kind::Memfd(advice) => advice.as_deref(),
            Kind::Mount(_) => None,
        }
    }

    /// For who looks at a status: what it consists of, and what would make it better.
    pub fn describe(&self) -> String {
        let pages = self.pages();
        self.advice().map_or_else(|| pages.to_string(), |advice| format!("{pages}: {advice}"))
    }

    /// A fresh, empty file of memory. `name` shows in `/proc/<pid>/maps`.
    pub(crate) fn file(&self, name: &str) -> io::Result<SharedFile> {
        match &self.kind {
            Kind::Memfd(_) => Ok(SharedFile { file: create_memfd(name, MemfdFlags::empty())?, read_only: None }),
            Kind::Mount(mount) => mount.file(name),
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))]
pub(crate) mod tests;
