//! Arguments as C passes them: pointers for answers, structures to read, texts.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::codes::{self, Code};

/// Room for an answer.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out<T>(pub(crate) *mut T);

impl<T> Out<T> {
    /// Writes the answer.
    pub(crate) fn set(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller of a CUDA function passes room for what it answers.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// The same where the caller need not ask for this answer.
    pub(crate) fn set_if_wanted(self, value: T) {
        // No room is no error here.
        let _ = self.set(value);
    }
}

/// Room for an answer whose type depends on the question.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutAny(pub(crate) *mut c_void);

impl OutAny {
    pub(crate) fn set<T>(self, value: T) -> Result<(), Code> {
        Out(self.0.cast::<T>()).set(value)
    }
}

/// Something to read.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct In<T>(pub(crate) *const T);

impl<T: Copy> In<T> {
    /// What it says.
    pub(crate) fn get(self) -> Result<T, Code> {
        self.at(0)
    }

    /// An element of an array.
    pub(crate) fn at(self, index: usize) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        let element = self.0.wrapping_add(index);
        // SAFETY: not null, and the caller of a CUDA function passes as many values of this type as it says.
        Ok(unsafe { element.read_unaligned() })
    }
}

/// A text to read.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text(pub(crate) *const c_char);

impl Text {
    pub(crate) fn get(&self) -> Result<&str, Code> {
        if self.0.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller of a CUDA function passes a C string.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| codes::INVALID_VALUE)
    }
}

/// Room for a text of so many bytes, with the zero at its end.
pub(crate) fn set_text(room: *mut c_char, len: c_int, text: &str) -> Result<(), Code> {
    let len = usize::try_from(len).ok().filter(|len| *len > 0 && !room.is_null()).ok_or(codes::INVALID_VALUE)?;
    let kept = &text.as_bytes()[..text.len().min(len - 1)];
    for (at, byte) in kept.iter().chain(&[0]).enumerate() {
        Out(room.wrapping_add(at).cast::<u8>()).set(*byte)?;
    }
    Ok(())
}

/// `CUmemLocation`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) kind: c_uint,
    pub(crate) id: c_int,
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`
pub(crate) const LOCATION_DEVICE: c_uint = 1;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`
pub(crate) const ALLOCATION_PINNED: c_uint = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`
pub(crate) const HANDLE_POSIX_FD: c_uint = 1;

/// `CUmemAllocationProp`
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllocationProperties {
    pub(crate) kind: c_uint,
    pub(crate) handle_types: c_uint,
    pub(crate) location: Location,
    pub(crate) win32_meta_data: usize,
    pub(crate) compression: u8,
    pub(crate) rdma_capable: u8,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 4],
}

/// `CUmemAccessDesc`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccessDescription {
    pub(crate) location: Location,
    pub(crate) flags: c_uint,
}

/// `CUDA_MEMCPY2D`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy2D {
    pub(crate) from: Side2D,
    pub(crate) to: Side2D,
    pub(crate) width_bytes: usize,
    pub(crate) height: usize,
}

/// One half of `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side2D {
    pub(crate) x_bytes: usize,
    pub(crate) y: usize,
    pub(crate) kind: c_uint,
    pub(crate) host: u64,
    pub(crate) device: u64,
    pub(crate) array: u64,
    pub(crate) pitch: usize,
}

/// `CUipcMemHandle`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpcHandle(pub(crate) [u8; 64]);

// As `cuda.h` lays them out on 64-bit machines.
const _: () = assert!(size_of::<AllocationProperties>() == 32);
const _: () = assert!(size_of::<AccessDescription>() == 12);
const _: () = assert!(size_of::<Side2D>() == 56);
const _: () = assert!(size_of::<Copy2D>() == 128);
