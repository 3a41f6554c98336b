//! The one place where code looks at memory that may not be there.
//!
//! The copy is a routine of its own, in assembly, so that it is known which instructions may fault. A handler of SIGBUS
//! sends those, and only those, to the routine's end; every other SIGBUS goes to whom it went before. The routine touches
//! no stack and calls nobody, so there is nothing to undo.

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod x86_64;

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
pub(super) use self::x86_64::{copy_streaming, recovers};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
pub(super) fn recovers() -> bool {
    false
}

/// # Safety
/// None: it copies nothing.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
pub(super) unsafe fn copy_streaming(_: &mut [u8], _: *const u8) -> bool {
    false
}
