//! The entry points: names, types and order of arguments as in `cuda.h` for CUDA 13.

mod context;
mod copies;
mod cufile;
mod device;
mod error;
mod legacy;
mod memory;
mod pointers;
mod stream;
mod types;
mod vmm;

use std::ffi::c_void;

/// Where an entry point is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) address: *const c_void,
}

/// Defines entry points. `Needs` says what is looked at before the body runs; `call` is the call under way.
macro_rules! entry_points {
    ($($needs:ident fn $name:ident($call:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case)]
            pub(crate) extern "C" fn $name($($argument: $type),*) -> $crate::codes::Code {
                const ENTRY: usize = $crate::calls::index_of(stringify!($name));
                let body = |$call: &$crate::driver::Call| -> Result<(), $crate::codes::Code> { $body };
                $crate::driver::enter(ENTRY, $crate::driver::Needs::$needs, body)
            }
        )*

        /// The entry points of this file.
        pub(super) const ENTRIES: &[super::Entry] = &[
            $(super::Entry { name: stringify!($name), address: $name as *const std::ffi::c_void }),*
        ];
    };
}
use entry_points;

/// All entry points.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    let files = [
        context::ENTRIES,
        copies::ENTRIES,
        cufile::ENTRIES,
        device::ENTRIES,
        error::ENTRIES,
        legacy::ENTRIES,
        memory::ENTRIES,
        pointers::ENTRIES,
        stream::ENTRIES,
        vmm::ENTRIES,
    ];
    files.into_iter().flatten().copied()
}

#[cfg(test)]
pub(crate) mod all {
    pub(crate) use super::context::*;
    pub(crate) use super::copies::*;
    pub(crate) use super::device::*;
    pub(crate) use super::error::*;
    pub(crate) use super::legacy::*;
    pub(crate) use super::memory::*;
    pub(crate) use super::pointers::*;
    pub(crate) use super::stream::*;
    pub(crate) use super::types::*;
    pub(crate) use super::vmm::*;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_entry_point_and_every_entry_point_a_name() {
        let mut names: Vec<&str> = entries().map(|entry| entry.name).collect();
        names.sort_unstable();
        assert_eq!(names, crate::calls::NAMES);
    }
}
