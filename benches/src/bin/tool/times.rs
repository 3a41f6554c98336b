//! Wall-clock and CPU time, and percentiles of many short calls.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

/// One measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU seconds of this process, which holds both ends of what it measures unless the command says otherwise.
    pub cpu_seconds: f64,
}

/// CPU seconds of this process so far, of all threads.
fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Measures from its start on.
pub struct Stopwatch {
    start: Instant,
    cpu_seconds: f64,
}

impl Stopwatch {
    /// Now.
    pub fn start() -> Stopwatch {
        Stopwatch { cpu_seconds: cpu_seconds(), start: Instant::now() }
    }

    /// What went by since then.
    pub fn sample(&self) -> Sample {
        Sample { seconds: self.start.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - self.cpu_seconds }
    }
}

/// Times `work`.
pub fn measure<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Sample, T)> {
    let watch = Stopwatch::start();
    let value = work()?;
    Ok((watch.sample(), value))
}

/// The smallest value that so large a share of the ordered values does not exceed.
fn percentile(ordered: &[Duration], share: f64) -> f64 {
    let at = ((ordered.len() as f64 * share).ceil() as usize).clamp(1, ordered.len().max(1)) - 1;
    ordered.get(at).map_or(0.0, Duration::as_secs_f64)
}

/// What is said of many calls: their number, the time of all, and that of single ones in seconds.
pub fn described(sample: Sample, mut calls: Vec<Duration>) -> Value {
    calls.sort_unstable();
    json!({
        "seconds": sample.seconds,
        "cpu_seconds": sample.cpu_seconds,
        "count": calls.len(),
        "p50_seconds": percentile(&calls, 0.5),
        "p99_seconds": percentile(&calls, 0.99),
        "max_seconds": percentile(&calls, 1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let calls: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let value = described(Sample { seconds: 1.0, cpu_seconds: 0.5 }, calls);
        assert_eq!(value["p50_seconds"], 0.1);
        assert_eq!(value["p99_seconds"], 0.198);
        assert_eq!(value["max_seconds"], 0.2);
        assert_eq!(value["count"], 200);
    }

    #[test]
    fn no_calls_have_no_times() {
        assert_eq!(described(Sample { seconds: 1.0, cpu_seconds: 0.5 }, Vec::new())["p99_seconds"], 0.0);
    }
}
