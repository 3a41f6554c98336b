//! What the operating system says of a process.

use std::io;

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, with everything shared.
    pub rss_bytes: u64,
    /// Resident anonymous memory: heap, stacks, private mappings.
    pub anonymous_bytes: u64,
    /// Resident shared memory: memfd regions.
    pub shared_bytes: u64,
    /// Most that was ever resident.
    pub peak_bytes: u64,
    /// Resident, with shared pages divided among those who share them.
    pub pss_bytes: u64,
}

/// Memory of the process with this id, now.
///
/// # Errors
/// When there is no such process.
pub fn memory_of(pid: u32) -> io::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    // Not on every kernel.
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    Ok(Memory {
        rss_bytes: field(&status, "VmRSS"),
        anonymous_bytes: field(&status, "RssAnon"),
        shared_bytes: field(&status, "RssShmem"),
        peak_bytes: field(&status, "VmHWM"),
        pss_bytes: field(&rollup, "Pss"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let memory = memory_of(std::process::id()).unwrap();
        assert!(memory.rss_bytes > 0 && memory.peak_bytes >= memory.rss_bytes / 2, "{memory:?}");
        assert!(memory_of(u32::MAX).is_err());
    }
}
