//! Every call to the driver fails once, in every way: the load fails or does not notice, nothing is left, nobody waits
//! for ever, and the next load works.

use std::collections::BTreeSet;

use longshore_testkit::fake_cuda::Role;
use longshore_types::Code;

use crate::bench::{Bench, Driver};

/// What cannot be released by this process is lost until it ends, and would be in the way of other tests.
const RELEASES_HERE: &str = "cuMemRelease";

/// The faults for every call that one load makes in processes of this role; of those made often, the first and the
/// last.
fn faults(driver: &Driver, role: Role, how: &str) -> Vec<String> {
    let bench = Bench::open().unwrap();
    bench.load(1).unwrap();
    drop(bench);
    let calls = driver.cuda.calls(role);
    let is_tried = |name: &str, count: u64| count > 0 && (role == Role::Copier || name != RELEASES_HERE);
    let faults = calls.into_iter().filter(|(name, count)| is_tried(name, *count));
    let faults = faults.flat_map(|(name, count)| {
        let chosen = BTreeSet::from([1, count]);
        chosen.into_iter().map(move |nth| format!("{}/{name}{}", role.name(), how.replace('N', &nth.to_string())))
    });
    faults.collect()
}

fn fail_each(role: Role, how: &str) {
    let driver = Driver::alone();
    let faults = faults(&driver, role, how);
    assert!(faults.len() > 10, "{faults:?}");
    let mut noticed = 0;
    for fault in &faults {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(fault);
        let opened = Bench::open().or_else(|error| {
            noticed += 1;
            assert_ne!(error.code(), Code::InvalidArgument, "{fault}: {error}");
            Bench::open()
        });
        let bench = opened.unwrap_or_else(|error| panic!("{fault}: it does not open again: {error}"));
        if let Err(error) = bench.load(1) {
            noticed += 1;
            assert!(matches!(error.code(), Code::Unavailable | Code::Internal | Code::Exhausted), "{fault}: {error}");
            bench.load(2).unwrap_or_else(|error| panic!("{fault}: the next load: {error}"));
        }
        assert_eq!(bench.pinned.stats().used_bytes, 0, "{fault}");
        drop(bench);
        driver.assert_clean();
    }
    // Those that only release something are not noticed.
    assert!(noticed > faults.len() / 3, "{noticed} of {} were noticed", faults.len());
}

#[test]
fn of_the_copier_refused() {
    fail_each(Role::Copier, "@N=1");
}

#[test]
fn of_the_copier_with_the_context_lost() {
    fail_each(Role::Copier, "~N=700");
}

#[test]
fn of_who_makes_the_memory() {
    fail_each(Role::Other, "@N=2");
}
