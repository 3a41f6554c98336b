//! Locks, folders of processes that are gone, and room.

use longshore_types::format_bytes;

use super::room::{Limits, Space};
use super::*;
use crate::options::CheckpointOptions;

fn options(base: &Path, private: bool) -> CheckpointOptions {
    CheckpointOptions { dir: Some(base.to_owned()), private, ..CheckpointOptions::default() }
}

fn open(base: &Path, private: bool) -> Result<Spool> {
    Spool::open(&options(base, private), &Metrics::unregistered().unwrap())
}

#[test]
fn a_second_process_is_told_who_has_the_folder() {
    let base = tempfile::tempdir().unwrap();
    let first = open(base.path(), false).unwrap();
    let error = open(base.path(), false).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    open(base.path(), false).unwrap();
}

#[test]
fn folders_of_killed_private_processes_are_taken_over_and_those_of_others_are_not() {
    let base = tempfile::tempdir().unwrap();
    let attempt = AttemptId::from_bytes([9; 16]);
    let killed = open(base.path(), true).unwrap();
    let killed_folder = killed.folder().to_owned();
    std::fs::create_dir(killed.attempt_folder(&attempt)).unwrap();
    std::fs::write(killed.attempts_folder().join("foreign"), b"stays").unwrap();
    let alive = open(base.path(), true).unwrap();
    std::fs::create_dir(alive.attempt_folder(&AttemptId::from_bytes([8; 16]))).unwrap();
    // The kernel drops a killed process's lock; nothing else of it runs.
    drop(killed);
    let next = open(base.path(), false).unwrap();
    assert_eq!(next.adopted(), std::slice::from_ref(&killed_folder));
    assert!(next.attempt_folder(&attempt).is_dir());
    assert!(killed_folder.join(ATTEMPTS_NAME).join("foreign").exists(), "what is not ours is not removed");
    assert_eq!(alive.attempt_folders().unwrap().len(), 1);
    // An orderly end leaves nothing.
    let empty = open(base.path(), true).unwrap();
    let folder = empty.folder().to_owned();
    empty.tidy();
    assert!(!folder.exists());
}

#[test]
fn room_is_bounded_by_the_budget_and_comes_back() {
    let base = tempfile::tempdir().unwrap();
    let options = CheckpointOptions { disk: Some(longshore_types::ByteSize(1000)), ..options(base.path(), false) };
    let spool = Spool::open(&options, &Metrics::unregistered().unwrap()).unwrap();
    assert_eq!(spool.try_reserve(1001).unwrap_err().code(), Code::Exhausted);
    let mut first = spool.try_reserve(600).unwrap().unwrap();
    assert!(spool.try_reserve(401).unwrap().is_none());
    let freed = spool.room_freed();
    first.shrink_to(100);
    assert!(freed.has_changed().unwrap());
    let second = spool.try_reserve(900).unwrap().unwrap();
    assert!(spool.try_reserve(1).unwrap().is_none());
    drop(first);
    drop(second);
    drop(spool.try_reserve(1000).unwrap().unwrap());
    // What is there already counts, even beyond the budget.
    let kept = spool.reserve_written(5000);
    assert!(spool.try_reserve(1).unwrap().is_none());
    drop(kept);
    assert!(spool.try_reserve(1).unwrap().is_some());
}

/// A ledger over a real folder, with a floor that no disk is above.
fn space(base: &Path, limits: Limits) -> Arc<Space> {
    Arc::new(Space::new(base, limits, &Metrics::unregistered().unwrap()))
}

#[test]
fn the_bound_that_bites_is_named_with_its_numbers() {
    let base = tempfile::tempdir().unwrap();
    let floored = space(base.path(), Limits { budget_bytes: 5000, floor_bytes: 1 << 62 });
    assert!(floored.try_reserve(1).unwrap().is_none());
    let why = floored.shortage(1);
    assert!(why.contains(" free") && why.contains(&format_bytes(1 << 62)), "{why}");
    assert!(why.contains("as long as --checkpoint-disk is not set") && !why.contains("budget"), "{why}");

    let budgeted = space(base.path(), Limits { budget_bytes: 5000, floor_bytes: 0 });
    let held = budgeted.try_reserve(3000).unwrap().unwrap();
    assert!(budgeted.try_reserve(2001).unwrap().is_none());
    let why = budgeted.shortage(2001);
    assert!(why.starts_with("3.0 kB of the budget of 5.0 kB are taken: raise --checkpoint-disk"), "{why}");
    assert!(!why.contains("free space"), "{why}");
    drop(held);

    let promised = space(base.path(), Limits { budget_bytes: u64::MAX, floor_bytes: 0 });
    let held = promised.try_reserve(1 << 20).unwrap().unwrap();
    assert!(promised.try_reserve(1 << 60).unwrap().is_none());
    let why = promised.shortage(1 << 60);
    assert!(why.contains("1.0 MB of them promised to other saves: free space on that disk"), "{why}");
    drop(held);
}

#[test]
fn only_a_budget_that_nobody_chose_leaves_a_floor() {
    let base = tempfile::tempdir().unwrap();
    let chosen = Limits::measure(base.path(), Some(7)).unwrap();
    assert_eq!(chosen, Limits { budget_bytes: 7, floor_bytes: 0 });
    let default = Limits::measure(base.path(), None).unwrap();
    assert!(default.floor_bytes > 0 && default.budget_bytes > default.floor_bytes, "{default:?}");
}

#[test]
fn those_who_wait_for_room_are_woken() {
    let base = tempfile::tempdir().unwrap();
    let options = CheckpointOptions { disk: Some(longshore_types::ByteSize(10)), ..options(base.path(), false) };
    let spool = Spool::open(&options, &Metrics::unregistered().unwrap()).unwrap();
    let held = spool.try_reserve(10).unwrap().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            while spool.try_reserve(10).unwrap().is_none() {
                assert!(spool.wait_for_room());
            }
        });
        drop(held);
        waiting.join().unwrap();
    });
}

#[test]
fn errors_of_the_disk_say_what_to_do() {
    let full = disk_error("write", Path::new("/spool/x"), &io::Error::from_raw_os_error(28));
    assert_eq!(full.code(), Code::Exhausted);
    assert!(full.message().contains("/spool/x"), "{full}");
    let broken = disk_error("sync", Path::new("/spool/x"), &io::Error::from_raw_os_error(5));
    assert_eq!(broken.code(), Code::Internal);
}
