//! How much memory this process may use: the machine's, or less when a cgroup says so.

use std::fs;
use std::path::Path;

/// The least of the machine's memory and the limits of the cgroups (v1 and v2) this process is in, in bytes.
pub fn memory_limit_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let physical = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
    cgroup_limit(Path::new("/")).map_or(physical, |limit| limit.min(physical))
}

fn cgroup_limit(_root: &Path) -> Option<u64> {
    let text = fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    text.trim().parse().ok()
}
