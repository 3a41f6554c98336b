//! Names of errors, and addresses of entry points.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::types::{Out, Text};
use super::{Entry, entries, entry_points};
use crate::codes::{self, Code, describe};

/// `CU_GET_PROC_ADDRESS_SUCCESS`, `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`
const FOUND: c_uint = 0;
const NOT_FOUND: c_uint = 1;

entry_points! {
    Nothing fn cuGetErrorName(call, code: c_uint, name: Out<*const c_char>) {
        let _ = call;
        let (text, _) = described(code, name)?;
        name.set(text)
    }

    Nothing fn cuGetErrorString(call, code: c_uint, text: Out<*const c_char>) {
        let _ = call;
        let (_, description) = described(code, text)?;
        text.set(description)
    }

    Nothing fn cuGetProcAddress(call, name: Text, address: Out<*const c_void>, version: c_int, flags: u64) {
        let _ = (call, version, flags);
        let entry = find(name.get()?);
        address.set(entry.map_or(std::ptr::null(), |entry| entry.address))?;
        entry.map(|_| ()).ok_or(codes::NOT_FOUND)
    }

    Nothing fn cuGetProcAddress_v2(
        call, name: Text, address: Out<*const c_void>, version: c_int, flags: u64, status: Out<c_uint>,
    ) {
        let _ = (call, version, flags);
        let entry = find(name.get()?);
        address.set(entry.map_or(std::ptr::null(), |entry| entry.address))?;
        status.set_if_wanted(if entry.is_some() { FOUND } else { NOT_FOUND });
        Ok(())
    }
}

/// Name and text; the driver says `CUDA_ERROR_INVALID_VALUE` for codes that it does not know, and gives no text.
fn described(code: Code, room: Out<*const c_char>) -> Result<(*const c_char, *const c_char), Code> {
    match describe(code) {
        Some((name, text)) => Ok((name.as_ptr(), text.as_ptr())),
        None => {
            room.set(std::ptr::null())?;
            Err(codes::INVALID_VALUE)
        }
    }
}

/// The newest entry point of that name, which is asked for without its version.
fn find(name: &str) -> Option<Entry> {
    let versions = [format!("{name}_v2"), name.to_owned()];
    versions.into_iter().find_map(|version| entries().find(|entry| entry.name == version))
}
