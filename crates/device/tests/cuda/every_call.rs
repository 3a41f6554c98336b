//! Every call to the driver fails once, in every way: the load fails or does not notice, nothing is left, nobody waits
//! for ever, and the next load works.

use longshore_testkit::fake_cuda::Role;
use longshore_types::Code;

use crate::bench::{Bench, Driver};

fn fail_each(role: Role, calls: u64, fault: impl Fn(u64) -> String) {
    let driver = Driver::alone();
    let mut failed = 0;
    for nth in 1..=calls {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(&fault(nth));
        let bench = match Bench::open() {
            Ok(bench) => bench,
            Err(error) => {
                failed += 1;
                assert_ne!(error.code(), Code::InvalidArgument, "{error}");
                Bench::open().unwrap_or_else(|error| panic!("{}: {error}", fault(nth)))
            }
        };
        if let Err(error) = bench.load(1) {
            failed += 1;
            assert!(matches!(error.code(), Code::Unavailable | Code::Internal | Code::Exhausted), "{error}");
            bench.load(2).unwrap_or_else(|error| panic!("{}: {error}", fault(nth)));
        }
        assert_eq!(bench.pinned.stats().used_bytes, 0, "{}", fault(nth));
        drop(bench);
        driver.assert_clean();
    }
    // Those that only release something are not noticed.
    assert!(failed > calls / 3, "{failed} of {calls} were noticed by {}", role.name());
}

/// Calls that one load makes in processes of this role.
fn calls(role: Role) -> u64 {
    let driver = Driver::alone();
    Bench::open().unwrap().load(1).unwrap();
    driver.cuda.calls_of_any(role)
}

#[test]
fn of_the_copier_refused() {
    fail_each(Role::Copier, calls(Role::Copier), |nth| format!("copier/*@{nth}=1"));
}

#[test]
fn of_the_copier_with_the_context_lost() {
    fail_each(Role::Copier, calls(Role::Copier), |nth| format!("copier/*~{nth}=700"));
}

#[test]
fn of_who_makes_the_memory() {
    fail_each(Role::Other, calls(Role::Other), |nth| format!("other/*@{nth}=2"));
}
