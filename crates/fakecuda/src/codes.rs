//! The driver's error codes, as far as the fake answers with them or tests inject them.

use std::ffi::CStr;

/// What an entry point answers: `CUresult`, but open, because newer drivers have codes that nobody here knows.
pub type Code = u32;

/// `CUDA_SUCCESS`
pub const SUCCESS: Code = 0;
/// `CUDA_ERROR_INVALID_VALUE`
pub const INVALID_VALUE: Code = 1;
/// `CUDA_ERROR_OUT_OF_MEMORY`
pub const OUT_OF_MEMORY: Code = 2;
/// `CUDA_ERROR_NOT_INITIALIZED`
pub const NOT_INITIALIZED: Code = 3;
/// `CUDA_ERROR_NO_DEVICE`
pub const NO_DEVICE: Code = 100;
/// `CUDA_ERROR_INVALID_DEVICE`
pub const INVALID_DEVICE: Code = 101;
/// `CUDA_ERROR_INVALID_CONTEXT`
pub const INVALID_CONTEXT: Code = 201;
/// `CUDA_ERROR_ECC_UNCORRECTABLE`
pub const ECC_UNCORRECTABLE: Code = 214;
/// `CUDA_ERROR_OPERATING_SYSTEM`
pub const OPERATING_SYSTEM: Code = 304;
/// `CUDA_ERROR_INVALID_HANDLE`
pub const INVALID_HANDLE: Code = 400;
/// `CUDA_ERROR_NOT_FOUND`
pub const NOT_FOUND: Code = 500;
/// `CUDA_ERROR_NOT_READY`
pub const NOT_READY: Code = 600;
/// `CUDA_ERROR_ILLEGAL_ADDRESS`
pub const ILLEGAL_ADDRESS: Code = 700;
/// `CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE`
pub const PRIMARY_CONTEXT_ACTIVE: Code = 708;
/// `CUDA_ERROR_CONTEXT_IS_DESTROYED`
pub const CONTEXT_IS_DESTROYED: Code = 709;
/// `CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED`
pub const HOST_MEMORY_ALREADY_REGISTERED: Code = 712;
/// `CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED`
pub const HOST_MEMORY_NOT_REGISTERED: Code = 713;
/// `CUDA_ERROR_LAUNCH_FAILED`
pub const LAUNCH_FAILED: Code = 719;
/// `CUDA_ERROR_NOT_SUPPORTED`
pub const NOT_SUPPORTED: Code = 801;
/// `CUDA_ERROR_UNKNOWN`
pub const UNKNOWN: Code = 999;

/// Name and text of a code; the driver has none for codes that it does not know.
pub(crate) fn describe(code: Code) -> Option<(&'static CStr, &'static CStr)> {
    Some(match code {
        SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        ECC_UNCORRECTABLE => (c"CUDA_ERROR_ECC_UNCORRECTABLE", c"uncorrectable ECC error encountered"),
        OPERATING_SYSTEM => (c"CUDA_ERROR_OPERATING_SYSTEM", c"OS call failed or operation not supported on this OS"),
        INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        ILLEGAL_ADDRESS => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        PRIMARY_CONTEXT_ACTIVE => {
            (c"CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", c"cannot set while device is active in this process")
        }
        CONTEXT_IS_DESTROYED => (c"CUDA_ERROR_CONTEXT_IS_DESTROYED", c"context is destroyed"),
        HOST_MEMORY_ALREADY_REGISTERED => (
            c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
            c"part or all of the requested memory range is already mapped",
        ),
        HOST_MEMORY_NOT_REGISTERED => {
            (c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", c"pointer does not correspond to a registered memory region")
        }
        LAUNCH_FAILED => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        UNKNOWN => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
        _ => return None,
    })
}
