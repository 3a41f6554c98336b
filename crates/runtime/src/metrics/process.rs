//! The standard `process_*` metrics, read from `/proc/self` when they are asked for.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Result};

/// Ticks per second of the times in `/proc`: part of Linux's ABI.
const USER_HZ: f64 = 100.0;

#[derive(Clone)]
pub(super) struct ProcessCollector {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    start_time_seconds: Gauge,
}

impl ProcessCollector {
    pub(super) fn new() -> Result<Self> {
        Ok(ProcessCollector {
            cpu_seconds: Counter::new("process_cpu_seconds_total", "User and system CPU time in seconds.")?,
            resident_bytes: Gauge::new("process_resident_memory_bytes", "Resident memory in bytes.")?,
            virtual_bytes: Gauge::new("process_virtual_memory_bytes", "Virtual memory in bytes.")?,
            open_fds: Gauge::new("process_open_fds", "Open file descriptors.")?,
            max_fds: Gauge::new("process_max_fds", "Most file descriptors that may be open.")?,
            threads: Gauge::new("process_threads", "Threads.")?,
            start_time_seconds: Gauge::new("process_start_time_seconds", "Start of the process, in Unix seconds.")?,
        })
    }

    /// What cannot be read keeps its last value: a scrape never fails for it.
    fn update(&self) {
        if let Some(stat) = Stat::read() {
            self.cpu_seconds.reset();
            self.cpu_seconds.inc_by(stat.cpu_seconds);
            self.threads.set(stat.threads);
            self.virtual_bytes.set(stat.virtual_bytes);
            self.start_time_seconds.set(stat.start_time_seconds);
        }
        if let Some(kib) = line_value("/proc/self/status", "VmRSS:") {
            self.resident_bytes.set(kib * 1024.0);
        }
        if let Some(limit) = line_value("/proc/self/limits", "Max open files") {
            self.max_fds.set(limit);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the descriptor of this listing.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
    }

    fn parts(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.resident_bytes,
            &self.virtual_bytes,
            &self.open_fds,
            &self.max_fds,
            &self.threads,
            &self.start_time_seconds,
        ]
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.update();
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

/// What is used of `/proc/self/stat`.
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    virtual_bytes: f64,
    start_time_seconds: f64,
}

impl Stat {
    fn read() -> Option<Stat> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, the name in parentheses, may hold anything; counting starts after it, at field 3.
        let rest = &text[text.rfind(')')? + 1..];
        let fields: Vec<f64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let boot = line_value("/proc/stat", "btime")?;
        Some(Stat {
            cpu_seconds: (field(14)? + field(15)?) / USER_HZ,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            start_time_seconds: boot + field(22)? / USER_HZ,
        })
    }
}

/// The first number of the line that starts with `key`.
fn line_value(path: &str, key: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}
