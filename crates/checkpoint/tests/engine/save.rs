//! From slabs to the origin.

use longshore_checkpoint::{RankItems, SLAB_BYTES, SaveFile, SaveOptions, SaveState};
use longshore_types::Code;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_every_size_are_committed_with_their_checksums() {
    let place = Place::new();
    let engine = place.open().await;
    let files = [("big", 2 * SLAB_BYTES + 3 * MIB + 17), ("slab", SLAB_BYTES), ("one", 1), ("empty", 0), ("a/b", MIB)];
    let plan = place.plan(&engine, 5, &files, SaveOptions::default()).await;
    let contents = contents(&plan, 1);
    let status = save(&engine, &plan, &contents).await;
    assert_eq!(status.bytes_total, files.iter().map(|(_, size)| size).sum::<u64>());
    assert_eq!((status.bytes_staged, status.bytes_durable), (status.bytes_total, status.bytes_total));
    assert!(status.staged_seconds > 0.0 && status.staged_seconds <= status.local_durable_seconds);
    assert!(status.local_durable_seconds <= status.committed_seconds);
    assert!(status.ranks.iter().all(|rank| rank.staged && rank.local_durable), "{status:?}");
    place.check_commit(&plan, &contents);
    // Its bytes are here: a load needs no origin.
    let local = engine.local(&status.url, false).unwrap();
    for (object, path) in local.commit.objects.iter().zip(&local.objects) {
        assert_eq!(std::fs::metadata(path.as_ref().unwrap()).unwrap().len(), object.size_bytes);
    }
    // Deleted is deleted, here too.
    engine.delete(&plan.uri, plan.step).await.unwrap();
    assert!(engine.local(&status.url, true).is_none());
    assert!(local.objects.iter().flatten().all(|path| !path.exists()));
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_over_many_blocks_and_slabs_have_their_own_checksums() {
    let place = Place::new();
    let engine = place.open().await;
    let rank = |rank: u32, tensors: Vec<_>| RankItems { rank, tensors, ..RankItems::default() };
    let ranks = vec![
        rank(0, vec![tensor("long", &[SLAB_BYTES + MIB + 5]), tensor("scalar", &[]), tensor("none", &[0, 7])]),
        rank(1, (0..300).map(|at| tensor(&format!("small.{at}"), &[at * 37])).collect()),
    ];
    let plan = place.plan_ranks(&engine, 9, ranks, SaveOptions { hf_index: true, ..SaveOptions::default() }).await;
    let contents = contents(&plan, 2);
    save(&engine, &plan, &contents).await;
    let commit = place.check_commit(&plan, &contents);
    assert_eq!(commit.tensors.len(), 303);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_with_the_call_needs_no_slabs() {
    let place = Place::new();
    let engine = place.open().await;
    let plan = place.plan(&engine, 1, &[("a.json", 100), ("b", 0), ("c", 3 * MIB)], SaveOptions::default()).await;
    let contents = contents(&plan, 3);
    let status = engine.start(plan.clone(), 0, inline(&plan, &contents, 0)).await.unwrap();
    assert!(status.state >= SaveState::Staged, "{status:?}");
    // Once more changes nothing.
    engine.start(plan.clone(), 0, inline(&plan, &contents, 0)).await.unwrap();
    let status = reaches(&engine, &plan.attempt, SaveState::Committed).await;
    assert_eq!(status.bytes_staged, 100 + 3 * MIB);
    place.check_commit(&plan, &contents);
    // Content that is not the plan's.
    let plan = place.plan(&engine, 2, &[("a.json", 100)], SaveOptions::default()).await;
    let wrong = engine.start(plan.clone(), 0, vec![(0, vec![0; 99].into())]).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let twice = engine.start(plan.clone(), 1, vec![]).await.unwrap_err();
    assert_eq!(twice.code(), Code::InvalidArgument);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_small_files_share_syncs() {
    let place = Place::new();
    let engine = place.open().await;
    let names: Vec<String> = (0..1000).map(|at| format!("part/{at}")).collect();
    let files = (0u64..).zip(&names).map(|(at, name)| SaveFile { name: name.clone(), size_bytes: at % 7 * 1000 });
    let items = RankItems { files: files.collect(), ..RankItems::default() };
    let plan = place.plan_ranks(&engine, 1, vec![items], SaveOptions::default()).await;
    let contents = contents(&plan, 4);
    save(&engine, &plan, &contents).await;
    place.check_commit(&plan, &contents);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_goes_away_fails_its_save_and_nothing_else() {
    let place = Place::new();
    let engine = place.open().await;
    let good = place.plan(&engine, 1, &[("a", MIB)], SaveOptions::default()).await;
    let good_contents = contents(&good, 5);
    save(&engine, &good, &good_contents).await;
    let plan = place.plan(&engine, 2, &[("x", SLAB_BYTES + 1), ("y", MIB)], SaveOptions::default()).await;
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.slab(plan.attempt, 0, 0, &contents(&plan, 6)[0]).await.unwrap();
    client.take(plan.attempt, 0, 1).await;
    drop(client);
    let mut watch = engine.watch(&plan.attempt).unwrap();
    let failed = tokio::time::timeout(SOON, watch.wait_for(|status| status.state == SaveState::Failed)).await;
    let error = failed.unwrap().unwrap().error.clone().unwrap();
    assert!(error.message().contains("rank 0") && error.message().contains("x"), "{error}");
    place.check_commit(&good, &good_contents);
    assert!(!place.run_folder().join("step-2/_CKPT.json").exists());
    // Its bytes go, and the same call is refused with the reason.
    let again = engine.start(plan.clone(), 0, vec![]).await.unwrap_err();
    assert_eq!(again.message(), error.message());
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_never_seals_is_named_when_time_is_up() {
    let place = Place::new();
    let engine = place.open().await;
    let items = |rank: u32| RankItems {
        rank,
        files: vec![SaveFile { name: format!("r{rank}"), size_bytes: MIB }],
        ..RankItems::default()
    };
    let options = SaveOptions { stage_timeout_ms: 700, as_given: true, ..SaveOptions::default() };
    let plan = place.plan_ranks(&engine, 2, vec![items(0), items(1)], options).await;
    let contents = contents(&plan, 7);
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    engine.start(plan.clone(), 1, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.stage(&plan, 0, &contents).await.unwrap();
    let mut watch = engine.watch(&plan.attempt).unwrap();
    let failed = tokio::time::timeout(SOON, watch.wait_for(|status| status.state.is_ended())).await;
    let error = failed.unwrap().unwrap().error.clone().unwrap();
    assert_eq!(error.code(), Code::Timeout);
    assert!(error.message().contains("rank 1") && !error.message().contains("rank 0"), "{error}");
    let late = client.stage(&plan, 1, &contents).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_removes_the_bytes_and_is_remembered() {
    let place = Place::new();
    let engine = place.open().await;
    let plan = place.plan(&engine, 2, &[("x", 3 * MIB), ("y", MIB)], SaveOptions::default()).await;
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.slab(plan.attempt, 0, 0, &contents(&plan, 6)[0]).await.unwrap();
    let status = engine.cancel(&plan.attempt).await.unwrap();
    assert_eq!(status.state, SaveState::Cancelled);
    assert_eq!(client.slab(plan.attempt, 1, 0, &[0; 1 << 20]).await.unwrap_err().code(), Code::FailedPrecondition);
    engine.close(SOON).await;
    client.leave();
    drop(engine);
    let engine = place.open().await;
    assert_eq!(engine.watch(&plan.attempt).unwrap().borrow().state, SaveState::Cancelled);
    assert!(!place.attempt_folder(&plan.attempt).join("objects").exists());
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_is_not_the_plans_is_refused() {
    let place = Place::new();
    let engine = place.open().await;
    let items = RankItems { tensors: vec![tensor("w", &[MIB])], ..RankItems::default() };
    let plan = place.plan_ranks(&engine, 2, vec![items], SaveOptions::default()).await;
    let mut contents = contents(&plan, 8);
    contents[0][20] ^= 1;
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.stage(&plan, 0, &contents).await.unwrap();
    let mut watch = engine.watch(&plan.attempt).unwrap();
    let failed = tokio::time::timeout(SOON, watch.wait_for(|status| status.state.is_ended())).await;
    let error = failed.unwrap().unwrap().error.clone().unwrap();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains("rank 0") && error.message().contains("header"), "{error}");
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_can_start_from_what_is_not_committed_yet() {
    let place = Place::new();
    let engine = place.open().await;
    let items =
        |rank: u32| RankItems { rank, tensors: vec![tensor(&format!("w{rank}"), &[MIB + 5])], ..RankItems::default() };
    // The other rank is on a node that never comes: no commit.
    let plan = place.plan_ranks(&engine, 2, vec![items(0)], SaveOptions::default()).await;
    let contents = contents(&plan, 9);
    assert!(engine.local(&format!("{}/step-2", place.run()), true).is_none());
    engine.start(plan.clone(), 0, vec![]).await.unwrap();
    let client = Client::new(&engine).await;
    client.stage(&plan, 0, &contents).await.unwrap();
    let url = reaches(&engine, &plan.attempt, SaveState::Staged).await.url.clone();
    let local = engine.local_when_durable(&url).await.unwrap();
    let path = local.objects[0].clone().unwrap();
    assert!(std::fs::read(path).unwrap() == contents[0]);
    assert_eq!(local.commit.files[0].checksum, longshore_types::BlockChecksum::of(&contents[0]));
    reaches(&engine, &plan.attempt, SaveState::Committed).await;
    assert!(engine.local(&url, false).is_some());
    engine.close(SOON).await;
}
