//! Named points at which a debug build kills itself, so that tests can show what a kill there leaves behind.
//!
//! `LONGSHORE_KILL_AT=name` or `name@n` (the n-th time, from 1). The signal is SIGKILL: nothing is flushed or run at exit. In
//! builds without debug assertions the points cost nothing and the variable is not read.

/// Ends the process here when it was asked for.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_name: &str) {}

/// Ends the process here when it was asked for.
#[cfg(debug_assertions)]
pub fn hit(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())?;
        match text.split_once('@') {
            Some((name, times)) => Some((name.to_owned(), times.parse().ok()?)),
            None => Some((text, 1)),
        }
    });
    if let Some((wanted, times)) = wanted
        && wanted == name
        && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *times
    {
        // A failed kill leaves the process alive, which the test that asked for it notices.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Which point, for debug builds.
#[cfg(debug_assertions)]
const VARIABLE: &str = "LONGSHORE_KILL_AT";
