//! A value of atomics that several processes see: a file that each of them maps.

use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};

/// Types that may lie in a [`Shared`].
///
/// # Safety
/// The type is `repr(C)`, is made of atomic integers alone, and all zeros is its first state.
pub(crate) unsafe trait Plain: Sync {}

/// The value in the file.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    map: MmapRaw,
    value: PhantomData<T>,
}

impl<T: Plain> Shared<T> {
    /// Opens the file; makes it when it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Shared<T>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Shared::of(&file)
    }

    /// The value in a file that is there.
    pub(crate) fn existing(path: &Path) -> io::Result<Shared<T>> {
        Shared::of(&OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn of(file: &File) -> io::Result<Shared<T>> {
        let len = size_of::<T>();
        // Everybody gives it the same length, so nothing is ever cut off.
        file.set_len(len as u64)?;
        Ok(Shared { map: MmapOptions::new().len(len).map_raw(file)?, value: PhantomData })
    }
}

impl<T: Plain> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping is as long as `T`, starts on a page and lives as long as `self`; `T` is atomics alone
        // (`Plain`), so that other processes may write at any time.
        unsafe { &*self.map.as_ptr().cast::<T>() }
    }
}
