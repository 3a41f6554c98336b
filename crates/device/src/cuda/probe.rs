//! Which GPUs there are. Nothing here makes a context, so it costs no memory on a card and cannot be poisoned.

use std::ffi::{CStr, c_char, c_int};

use longshore_types::{Code, Error, Result};

use super::driver::{Driver, driver};
use super::error::{CudaError, Unavailable};

/// A GPU of this machine, or the part of one that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its number in this process; others may count differently.
    pub ordinal: u32,
    /// The same in every process: `GPU-` and 32 hexadecimal digits in the usual groups.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// All of its memory.
    pub total_bytes: u64,
    /// The NUMA node that it is next to; `None` on a machine with one node.
    pub node: Option<u32>,
}

/// The GPUs that this process can use, by ordinal.
///
/// # Errors
/// Why there are none.
pub fn probe() -> Result<Vec<GpuInfo>, Unavailable> {
    let driver = driver()?;
    let gpus = (0..count(driver)?).map(|ordinal| describe(driver, ordinal)).collect::<Result<Vec<_>, CudaError>>()?;
    if gpus.is_empty() { Err(Unavailable::NoDevice) } else { Ok(gpus) }
}

/// The handle of the GPU with this UUID.
pub(super) fn find(driver: &Driver, wanted: &str) -> Result<c_int> {
    let failed = |error: CudaError| error.about(wanted);
    for ordinal in 0..count(driver).map_err(failed)? {
        let device = get(driver, ordinal).map_err(failed)?;
        if uuid(driver, device).map_err(failed)?.eq_ignore_ascii_case(wanted) {
            return Ok(device);
        }
    }
    let message = format!("this process sees no GPU {wanted}; see nvidia-smi -L and CUDA_VISIBLE_DEVICES");
    Err(Error::new(Code::Unsupported, message))
}

fn count(driver: &Driver) -> Result<c_int, CudaError> {
    let mut count = 0;
    // SAFETY: the pointer is to a local.
    unsafe { driver.cuDeviceGetCount(&mut count) }?;
    Ok(count)
}

fn get(driver: &Driver, ordinal: c_int) -> Result<c_int, CudaError> {
    let mut device = 0;
    // SAFETY: the pointer is to a local.
    unsafe { driver.cuDeviceGet(&mut device, ordinal) }?;
    Ok(device)
}

fn describe(driver: &Driver, ordinal: c_int) -> Result<GpuInfo, CudaError> {
    let device = get(driver, ordinal)?;
    let mut name = [0; 256];
    // SAFETY: the pointer is to a local of the length that is announced.
    unsafe { driver.cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) }?;
    let mut total = 0;
    // SAFETY: the pointer is to a local.
    unsafe { driver.cuDeviceTotalMem_v2(&mut total, device) }?;
    Ok(GpuInfo {
        ordinal: ordinal.unsigned_abs(),
        uuid: uuid(driver, device)?,
        name: text(&name),
        total_bytes: total as u64,
        node: node(driver, device),
    })
}

fn uuid(driver: &Driver, device: c_int) -> Result<String, CudaError> {
    let mut bytes = [0; 16];
    // SAFETY: the pointer is to a local of the size of a UUID.
    unsafe { driver.cuDeviceGetUuid_v2(&mut bytes, device) }?;
    Ok(format_uuid(&bytes))
}

fn format_uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (at, byte) in bytes.iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// What the kernel says about the slot that the card is in; -1 there means one node, or that it does not know.
fn node(driver: &Driver, device: c_int) -> Option<u32> {
    let mut id = [0; 32];
    // SAFETY: the pointer is to a local of the length that is announced.
    unsafe { driver.cuDeviceGetPCIBusId(id.as_mut_ptr(), id.len() as c_int, device) }.ok()?;
    let id = text(&id).to_ascii_lowercase();
    let is_plain = id.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
    let path = is_plain.then(|| format!("/sys/bus/pci/devices/{id}/numa_node"))?;
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Up to the first zero, as far as there is one.
fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().map(|byte| byte.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_look_as_nvidia_smi_prints_them() {
        let bytes = std::array::from_fn(|at| at as u8 * 16 + 1);
        assert_eq!(format_uuid(&bytes), "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
        assert_eq!(text(&[0x48, 0x32, 0, 0x33].map(|byte: u8| byte as c_char)), "H2");
    }
}
