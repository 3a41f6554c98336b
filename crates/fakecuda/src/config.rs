//! What the fake driver is told by its environment.

use std::path::PathBuf;

use crate::faults::Fault;

/// Devices, sizes and rates. All processes of a state folder are given the same.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state folder.
    pub folder: PathBuf,
    /// Number of devices.
    pub devices: u32,
    /// Memory of each.
    pub memory_bytes: u64,
    /// Rate of copies from host memory to each device; 0: as fast as it goes.
    pub h2d_gbps: f64,
    /// What is to go wrong.
    pub faults: Vec<Fault>,
    /// Devices that this process sees, in its order.
    pub visible: Vec<u32>,
}

impl Config {
    /// From `FAKE_CUDA_*` and `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// A text that says which variable is missing or wrong.
    pub fn from_env() -> Result<Config, String> {
        let text = |name: &str| std::env::var(name).ok();
        let folder = text("FAKE_CUDA_DIR").ok_or("FAKE_CUDA_DIR is not set")?;
        let devices = number("FAKE_CUDA_DEVICES", 1)?;
        let memory_mib: u64 = number("FAKE_CUDA_MEM_MIB", 1024)?;
        Ok(Config {
            folder: folder.into(),
            devices,
            memory_bytes: memory_mib << 20,
            h2d_gbps: number("FAKE_CUDA_H2D_GBPS", 0.0)?,
            faults: Fault::parse_list(&text("FAKE_CUDA_FAULTS").unwrap_or_default())?,
            visible: visible(text("CUDA_VISIBLE_DEVICES").as_deref(), devices),
        })
    }
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}: `{text}` is no number")),
        Err(_) => Ok(default),
    }
}

/// As the driver reads it: numbers or beginnings of UUIDs; the first that is neither ends the list.
fn visible(list: Option<&str>, devices: u32) -> Vec<u32> {
    let Some(list) = list else { return (0..devices).collect() };
    let find = |entry: &str| match entry.parse() {
        Ok(number) => Some(number).filter(|number| *number < devices),
        Err(_) => (0..devices).find(|&device| entry.len() > 4 && uuid_text(device).starts_with(entry)),
    };
    list.split(',').map_while(|entry| find(entry.trim())).collect()
}

/// The UUID of a device.
pub(crate) fn uuid(device: u32) -> [u8; 16] {
    (0xfa6e_c0da_0000_4000_8000_0000_0000_0000_u128 + u128::from(device)).to_be_bytes()
}

/// The UUID of a device as it is written: `GPU-fa6ec0da-0000-4000-8000-000000000000`.
pub fn uuid_text(device: u32) -> String {
    let hex: String = uuid(device).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices_are_numbers_or_uuids_up_to_the_first_that_is_neither() {
        assert_eq!(visible(None, 3), [0, 1, 2]);
        assert_eq!(visible(Some("2,0"), 3), [2, 0]);
        assert_eq!(visible(Some(&format!("{}, 0", uuid_text(1))), 3), [1, 0]);
        assert_eq!(visible(Some("1,7,0"), 3), [1]);
        assert_eq!(visible(Some(""), 3), []);
        assert_eq!(uuid_text(3), "GPU-fa6ec0da-0000-4000-8000-000000000003");
    }
}
