//! What the next process makes of what the last one left.
//!
//! The folder of a process that was killed is one that it had synced up to some record: these tests make such folders by
//! copying, and by cutting the journal.

use std::path::Path;

use longshore_checkpoint::{RankItems, SLAB_BYTES, SaveFile, SaveOptions, SaveState};
use longshore_types::Code;

use crate::support::*;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Ends of the frames of a journal: length, checksum, payload.
fn frame_ends(journal: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while at < journal.len() {
        at += 12 + u32::from_le_bytes(journal[at..at + 4].try_into().unwrap()) as usize;
        ends.push(at);
    }
    ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_prefix_of_the_journal_is_gone_on_with() {
    let place = Place::new();
    let engine = place.open().await;
    let items = |rank: u32| RankItems {
        rank,
        files: vec![
            SaveFile { name: format!("big{rank}"), size_bytes: SLAB_BYTES + MIB },
            SaveFile { name: format!("small{rank}"), size_bytes: 1000 },
        ],
        ..RankItems::default()
    };
    let options = SaveOptions { as_given: true, ..SaveOptions::default() };
    let plan = place.plan_ranks(&engine, 4, vec![items(0), items(1)], options).await;
    let contents = contents(&plan, 1);
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    engine.start(plan.clone(), 1, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.stage(&plan, 0, &contents).await.unwrap();
    client.stage(&plan, 1, &contents).await.unwrap();
    reaches(&engine, &plan.attempt, SaveState::Committed).await;
    engine.close(SOON).await;
    drop(engine);
    let folder = place.attempt_folder(&plan.attempt);
    let whole = std::fs::read(folder.join("journal")).unwrap();
    let ends = frame_ends(&whole);
    assert!(ends.len() > 10, "{}", ends.len());
    let origin = place.disk.path().join("origin");
    copy(&place.run_folder(), &origin);
    let mut seen = std::collections::BTreeSet::new();
    for (number, end) in ends.iter().enumerate() {
        let next = Place::new();
        let theirs = next.attempt_folder(&plan.attempt);
        copy(&folder, &theirs);
        // Half a frame behind it, as a power loss leaves it.
        let torn = &whole[*end..whole.len().min(end + 9)];
        std::fs::write(theirs.join("journal"), [&whole[..*end], torn].concat()).unwrap();
        std::fs::remove_dir_all(place.run_folder()).unwrap();
        copy(&origin, &place.run_folder());
        if number + 1 < ends.len() {
            // The commit is what comes last.
            std::fs::remove_file(place.run_folder().join("step-4/_CKPT.json")).unwrap();
            std::fs::remove_file(place.run_folder().join("_LATEST.json")).unwrap();
            std::fs::remove_file(theirs.join("commit.json")).unwrap();
        }
        let engine = next.open().await;
        let mut watch = engine.watch(&plan.attempt).unwrap();
        let ended = tokio::time::timeout(SOON, watch.wait_for(|status| status.state.is_ended())).await;
        let status = ended.unwrap_or_else(|_| panic!("record {number}: {:?}", engine.saves())).unwrap().clone();
        match status.state {
            SaveState::Committed => {
                assert!(status.ranks.iter().all(|rank| rank.local_durable), "record {number}: {status:?}");
                place.check_commit(&plan, &contents);
            }
            // Slabs that were not flushed are lost with their memory, and never said to be durable.
            SaveState::Failed => {
                let error = status.error.clone().unwrap();
                assert!(error.message().contains("lost"), "record {number}: {error}");
                assert!(!status.ranks.iter().all(|rank| rank.local_durable) || status.ranks.is_empty(), "{status:?}");
                assert!(!place.run_folder().join("step-4/_CKPT.json").exists());
            }
            other => panic!("{other:?}"),
        }
        seen.insert(status.state);
        engine.close(SOON).await;
    }
    assert_eq!(seen.len(), 2, "both outcomes happen: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_is_set_aside_by_name_and_nothing_of_it_is_removed() {
    let place = Place::new();
    let engine = place.open().await;
    let plan = place.plan(&engine, 1, &[("a", MIB), ("b", 10)], SaveOptions::default()).await;
    save(&engine, &plan, &contents(&plan, 1)).await;
    engine.close(SOON).await;
    drop(engine);
    let journal = place.attempt_folder(&plan.attempt).join("journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[40] ^= 4;
    std::fs::write(&journal, &bytes).unwrap();
    let engine = place.open().await;
    assert_eq!(engine.watch(&plan.attempt).unwrap_err().code(), Code::NotFound);
    let note = engine.notes().into_iter().find(|note| note.contains("damaged")).unwrap();
    assert!(note.contains(&plan.attempt.to_string()), "{note}");
    let aside = place.disk.path().join("spool/damaged").join(plan.attempt.to_string());
    assert_eq!(std::fs::read(aside.join("journal")).unwrap(), bytes);
    assert!(aside.join("objects/0").is_file());
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_comes_back_goes_on_where_it_was() {
    let mut place = Place::new();
    place.options.resume_wait_ms = 60_000;
    let engine = place.open().await;
    let plan = place.plan(&engine, 1, &[("a", 2 * SLAB_BYTES + 5)], SaveOptions::default()).await;
    let contents = contents(&plan, 1);
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.slab(plan.attempt, 0, 1, &contents[0]).await.unwrap();
    let mut watch = engine.watch(&plan.attempt).unwrap();
    tokio::time::timeout(SOON, watch.wait_for(|status| status.bytes_durable > 0)).await.unwrap().unwrap();
    engine.close(SOON).await;
    client.leave();
    drop(engine);
    let engine = place.open().await;
    let status = engine.watch(&plan.attempt).unwrap().borrow().clone();
    assert_eq!((status.state, status.bytes_durable), (SaveState::Staging, SLAB_BYTES));
    // It acquires every slab again and is told which are durable.
    let client = Client::new(&engine).await;
    client.stage(&plan, 0, &contents).await.unwrap();
    reaches(&engine, &plan.attempt, SaveState::Committed).await;
    place.check_commit(&plan, &contents);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sealed_and_not_flushed_is_found_again_or_said_to_be_lost() {
    for keep in [true, false] {
        let place = Place::new();
        let engine = place.open().await;
        let plan = place.plan(&engine, 1, &[("a", MIB - 1), ("b", 1000)], SaveOptions::default()).await;
        let contents = contents(&plan, 1);
        engine.start(plan.clone(), 0, vec![]).await.unwrap();
        // Every write finds the disk full: what is sealed waits for room.
        let objects = place.attempt_folder(&plan.attempt).join("objects");
        std::os::unix::fs::symlink("/dev/full", objects.join("0")).unwrap();
        std::os::unix::fs::symlink("/dev/full", objects.join("1")).unwrap();
        let client = Client::new(&engine).await;
        client.stage(&plan, 0, &contents).await.unwrap();
        let mut watch = engine.watch(&plan.attempt).unwrap();
        let waits = watch.wait_for(|status| status.waiting_for.contains("room") && status.state == SaveState::Staged);
        tokio::time::timeout(SOON, waits).await.unwrap().unwrap();
        engine.close(SOON).await;
        client.leave();
        drop(engine);
        std::fs::remove_file(objects.join("0")).unwrap();
        std::fs::remove_file(objects.join("1")).unwrap();
        if !keep {
            // A power loss takes the shared memory.
            for entry in std::fs::read_dir(place.slab_folder()).unwrap() {
                std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
            }
        }
        let engine = place.open().await;
        if keep {
            reaches(&engine, &plan.attempt, SaveState::Committed).await;
            place.check_commit(&plan, &contents);
        } else {
            let mut watch = engine.watch(&plan.attempt).unwrap();
            let ended = tokio::time::timeout(SOON, watch.wait_for(|status| status.state.is_ended())).await;
            let status = ended.unwrap().unwrap().clone();
            assert_eq!(status.state, SaveState::Failed);
            let error = status.error.clone().unwrap();
            assert!(error.message().contains("lost") && error.message().contains("rank 0"), "{error}");
            assert!(!status.ranks[0].local_durable);
        }
        engine.close(SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_private_process_leaves_its_save_to_the_next_one() {
    let mut place = Place::new();
    place.options.private = true;
    let engine = place.open().await;
    place.is_down = true;
    let plan = place.plan(&engine, 1, &[("a", MIB)], SaveOptions::default()).await;
    let contents = contents(&plan, 1);
    engine.start(plan.clone(), 0, inline(&plan, &contents, 0)).await.unwrap();
    reaches(&engine, &plan.attempt, SaveState::LocalDurable).await;
    assert!(engine.busy() > 0);
    engine.close(SOON).await;
    drop(engine);
    assert_eq!(std::fs::read_dir(place.disk.path().join("spool/private")).unwrap().count(), 1);
    place.options.private = false;
    let engine = place.open().await;
    let status = reaches(&engine, &plan.attempt, SaveState::LocalDurable).await;
    assert_eq!((status.bytes_durable, status.ranks.len()), (MIB, 1));
    assert!(std::fs::read(place.attempt_folder(&plan.attempt).join("objects/0")).unwrap() == contents[0]);
    assert_eq!(std::fs::read_dir(place.disk.path().join("spool/private")).unwrap().count(), 0);
    engine.close(SOON).await;
}
