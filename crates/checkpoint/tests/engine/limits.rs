//! Budgets, full disks, and what makes room.

use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_checkpoint::{SLAB_BYTES, SaveOptions, SaveState};
use longshore_types::{ByteSize, Code};

use crate::support::*;

/// A file system of so many bytes; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` for those who may not mount.
    fn mount(path: &Path, size_bytes: u64) -> Option<SmallDisk> {
        std::fs::create_dir_all(path).unwrap();
        let options = format!("size={size_bytes},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(path).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

async fn waits_for_room(engine: &longshore_checkpoint::Engine, attempt: &longshore_types::checkpoint::AttemptId) {
    let mut watch = loop {
        if let Ok(watch) = engine.watch(attempt) {
            break watch;
        }
        tokio::task::yield_now().await;
    };
    let waits = watch.wait_for(|status| status.waiting_for.contains("room"));
    tokio::time::timeout(SOON, waits).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_a_save_is_refused_or_waits_and_what_is_uncommitted_stays() {
    let mut place = Place::new();
    place.options.disk = Some(ByteSize(3 * MIB));
    let engine = place.open().await;
    // The origin does not take the first one: it stays, whatever comes.
    place.is_down = true;
    let first = place.plan(&engine, 1, &[("a", 2 * MIB)], SaveOptions::default()).await;
    let first_contents = contents(&first, 1);
    engine.start(first.clone(), 0, inline(&first, &first_contents, 0)).await.unwrap();
    let refusing = SaveOptions { refuse_when_full: true, ..SaveOptions::default() };
    let second = place.plan(&engine, 2, &[("a", 2 * MIB)], refusing).await;
    let error = engine.start(second.clone(), 0, vec![]).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("--checkpoint-disk"), "{error}");
    let impossible = place.plan(&engine, 3, &[("a", 4 * MIB)], SaveOptions::default()).await;
    assert_eq!(engine.start(impossible, 0, vec![]).await.unwrap_err().code(), Code::Exhausted);
    // One that waits has room as soon as the first is given up.
    let third = place.plan(&engine, 4, &[("a", 2 * MIB)], SaveOptions::default()).await;
    let third_contents = contents(&third, 4);
    let starting = {
        let (engine, third, inline) = (engine.clone(), third.clone(), inline(&third, &third_contents, 0));
        tokio::spawn(async move { engine.start(third, 0, inline).await })
    };
    waits_for_room(&engine, &third.attempt).await;
    assert!(place.attempt_folder(&first.attempt).join("objects/0").is_file());
    engine.cancel(&first.attempt).await.unwrap();
    starting.await.unwrap().unwrap();
    reaches(&engine, &third.attempt, SaveState::LocalDurable).await;
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_checkpoints_make_room_and_only_so_many_are_kept() {
    let mut place = Place::new();
    place.options.disk = Some(ByteSize(5 * MIB));
    place.options.keep_local = 2;
    let engine = place.open().await;
    let mut plans = Vec::new();
    for step in 1..=4 {
        let plan = place.plan(&engine, step, &[("a", 2 * MIB)], SaveOptions::default()).await;
        let contents = contents(&plan, step);
        engine.start(plan.clone(), 0, inline(&plan, &contents, 0)).await.unwrap();
        reaches(&engine, &plan.attempt, SaveState::Committed).await;
        place.check_commit(&plan, &contents);
        plans.push(plan);
    }
    let is_here = |step: u64| engine.local(&format!("{}/step-{step}", place.run()), true).is_some();
    // Two fit beside a third only when one of them goes.
    assert!(!is_here(1) && !is_here(2) && is_here(4));
    engine.close(SOON).await;
    drop(engine);
    place.options.keep_local = 0;
    let engine = place.open().await;
    assert!(engine.local(&format!("{}/step-4", place.run()), true).is_none());
    assert_eq!(engine.busy(), 0);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_slabs_hold_is_saved_within_the_memory() {
    let mut place = Place::new();
    place.options.memory = Some(ByteSize(2 * SLAB_BYTES));
    let engine = place.open().await;
    let plan = place.plan(&engine, 1, &[("a", 5 * SLAB_BYTES + 1)], SaveOptions::default()).await;
    let contents = contents(&plan, 1);
    save(&engine, &plan, &contents).await;
    place.check_commit(&plan, &contents);
    assert!(engine.slabs().stats().held_bytes <= 2 * SLAB_BYTES);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_others_fill_is_waited_for_or_refused() {
    let mut place = Place::new();
    let small = place.disk.path().join("small");
    let Some(_disk) = SmallDisk::mount(&small, 24 * MIB) else {
        eprintln!("NOT RUN: a_disk_that_others_fill_is_waited_for_or_refused: needs root to mount a small disk");
        return;
    };
    place.options.dir = Some(small.join("spool"));
    let engine = place.open().await;
    for refuse in [false, true] {
        let options = SaveOptions { refuse_when_full: refuse, ..SaveOptions::default() };
        let step = 1 + u64::from(refuse);
        let plan = place.plan(&engine, step, &[("a", 6 * MIB)], options).await;
        let contents = contents(&plan, step);
        engine.start(plan.clone(), 0, vec![]).await.unwrap();
        // Somebody else takes all that is left, after the room was set aside.
        let hog = small.join("hog");
        let filled = std::fs::File::create(&hog).unwrap();
        let mut writer = &filled;
        while std::io::Write::write_all(&mut writer, &[7; 1 << 16]).is_ok() {}
        let client = Client::new(&engine).await;
        client.stage(&plan, 0, &contents).await.unwrap();
        if refuse {
            let mut watch = engine.watch(&plan.attempt).unwrap();
            let ended = tokio::time::timeout(SOON, watch.wait_for(|status| status.state.is_ended())).await;
            let error = ended.unwrap().unwrap().error.clone().unwrap();
            assert_eq!(error.code(), Code::Exhausted);
            assert!(error.message().contains(small.to_str().unwrap()), "{error}");
        } else {
            waits_for_room(&engine, &plan.attempt).await;
            assert!(!engine.watch(&plan.attempt).unwrap().borrow().ranks[0].local_durable);
        }
        std::fs::remove_file(&hog).unwrap();
        drop(filled);
        if !refuse {
            reaches(&engine, &plan.attempt, SaveState::Committed).await;
            place.check_commit(&plan, &contents);
        }
    }
    engine.close(SOON).await;
}
