//! Several attempts at one step, and several nodes for one checkpoint.

use longshore_testkit::origin::{Fault, FaultKind, Verb};

use super::*;

const URI: &str = "s3://bucket/run";

#[tokio::test(flavor = "multi_thread")]
async fn of_two_attempts_that_race_for_a_step_one_is_committed() {
    for round in 0..4 {
        let fake = server();
        let (one, two) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
        let contents = [Content::small(round), Content::small(round + 100)];
        let options = SaveOptions { hf_index: true, ..SaveOptions::default() };
        let attempts = tokio::join!(one.save(URI, 5, &options, &contents[0]), two.save(URI, 5, &options, &contents[1]));
        let ends = [one.ended(attempts.0).await, two.ended(attempts.1).await];
        let winners: Vec<usize> = (0..2).filter(|at| ends[*at].state == SaveState::Committed).collect();
        assert_eq!(winners.len(), 1, "{ends:#?}");
        let loser = &ends[1 - winners[0]];
        assert_eq!(loser.error.as_ref().unwrap().code(), Code::FailedPrecondition, "{loser:#?}");
        let commit = one.assert_whole(URI, 5, &contents[winners[0]]).await;
        assert_eq!(commit.attempt, ends[winners[0]].attempt);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_is_fenced_and_changes_nothing() {
    let fake = server();
    let (zombie, other) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
    let (stale, fresh) = (Content::small(1).tensor("", "w", 3, 6 * MIB), Content::small(2).tensor("", "w", 4, 6 * MIB));
    // The first attempt has the intent and waits for its last bytes.
    let plan = zombie.plan(URI, 5, &SaveOptions::default(), &stale).await;
    let images = stale.images(&plan, 0);
    let inline = images.iter().filter(|(_, image)| image.len() <= 4 * MIB);
    let inline: Vec<_> = inline.map(|(file, image)| (*file, Bytes::from(image.clone()))).collect();
    zombie.engine.start(plan.clone(), 0, inline).await.unwrap();
    let large = images.iter().find(|(_, image)| image.len() > 4 * MIB).unwrap();
    let small = 300_000;
    zombie.until(plan.attempt, |status| status.bytes_uploaded > small).await;

    let attempt = other.save(URI, 5, &SaveOptions::default(), &fresh).await;
    other.committed(attempt).await;
    zombie.stage(&plan, large.0, &large.1).await;
    let status = zombie.failed(plan.attempt, Code::FailedPrecondition).await;
    let text = status.error.as_ref().unwrap().message().to_owned();
    assert!(text.contains(&attempt.to_string()), "{text}");
    let commit = other.assert_whole(URI, 5, &fresh).await;
    assert_eq!((commit.attempt, commit.epoch), (attempt, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_committed_is_not_saved_again() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let first = node.save(URI, 5, &SaveOptions::default(), &Content::small(1)).await;
    node.committed(first).await;
    let second = node.save(URI, 5, &SaveOptions::default(), &Content::small(2)).await;
    let status = node.failed(second, Code::FailedPrecondition).await;
    assert!(status.error.as_ref().unwrap().message().contains(&first.to_string()), "{status:?}");
    node.assert_whole(URI, 5, &Content::small(1)).await;
    node.catalog().delete(URI, 5).await.unwrap();
    let third = node.save(URI, 5, &SaveOptions::default(), &Content::small(3)).await;
    node.committed(third).await;
    node.assert_whole(URI, 5, &Content::small(3)).await;
}

/// Plans a save of two ranks: what each has alone, and what both have.
async fn two_ranks(node: &Node, step: u64, delta: bool) -> (SavePlan, [Content; 2], Content) {
    let shared = Content::default().tensor("", "shared", 50, 100_000).file("config.json", b"{}");
    let one = shared.clone().tensor("", "a", 51 + step, 700_000);
    let two = shared.clone().tensor("", "b", 52, 18 * MIB);
    let options = SaveOptions { hf_index: true, delta, ..SaveOptions::default() };
    let plans = tokio::join!(
        node.engine.plan(one.request(URI, step, options.clone(), 2, 0)),
        node.engine.plan(two.request(URI, step, options, 2, 1)),
    );
    let (plan, same) = (plans.0.unwrap(), plans.1.unwrap());
    assert_eq!(plan, same);
    let all = shared.tensor("", "a", 51 + step, 700_000).tensor("", "b", 52, 18 * MIB);
    ((*plan).clone(), [one, two], all)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_commit_one_checkpoint() {
    for lost in [false, true] {
        let fake = server();
        let (one, two) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
        let (plan, [first, second], all) = two_ranks(&one, 5, false).await;
        if lost {
            fake.fault(Fault::new(FaultKind::ReplyLost).verb(Verb::Put).on("*_RANK-*").times(2));
            fake.fault(Fault::new(FaultKind::ReplyLost).verb(Verb::Put).on("*_CKPT.json").times(1));
        }
        one.save_rank(&plan, 0, &first).await;
        let waiting = one.until(plan.attempt, |status| status.waiting_for.contains("rank 1")).await;
        assert_eq!(waiting.state, SaveState::LocalDurable);
        two.save_rank(&plan, 1, &second).await;
        one.committed(plan.attempt).await;
        two.committed(plan.attempt).await;
        let commit = one.assert_whole(URI, 5, &all).await;
        assert_eq!(commit.world_size, 2);
        one.engine.close(PATIENCE).await;
        two.engine.close(PATIENCE).await;
        let left = fake.paths("bucket/run/step-5/");
        assert!(!left.iter().any(|path| path.contains("_RANK-")), "{left:?}");
        assert_eq!(one.catalog().latest(URI).await.unwrap().unwrap().attempt, plan.attempt);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_commit_a_delta() {
    let fake = server();
    let (one, two) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
    for step in [5, 6] {
        let (plan, [first, second], all) = two_ranks(&one, step, step > 5).await;
        tokio::join!(one.save_rank(&plan, 0, &first), two.save_rank(&plan, 1, &second));
        one.committed(plan.attempt).await;
        two.committed(plan.attempt).await;
        let commit = one.assert_whole(URI, step, &all).await;
        assert_eq!(commit.delta_depth, u32::from(step > 5), "{:?}", two.engine.saves());
        if step > 5 {
            assert!(commit.own_bytes() < 18 << 20, "{}", commit.own_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_never_comes_is_named() {
    let fake = server();
    let one = Node::new(&origins_of(&fake)).await;
    let (mut plan, [first, _], _) = two_ranks(&one, 5, false).await;
    plan.options.stage_timeout_ms = 300;
    one.save_rank(&plan, 0, &first).await;
    let status = one.failed(plan.attempt, Code::Timeout).await;
    assert!(status.error.as_ref().unwrap().message().contains("rank 1"), "{status:?}");
    assert!(one.catalog().list(URI).await.unwrap().checkpoints.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_finds_that_the_other_has_committed() {
    let fake = server();
    let (one, two) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
    let (plan, [first, second], all) = two_ranks(&one, 5, false).await;
    one.save_rank(&plan, 0, &first).await;
    one.until(plan.attempt, |status| status.waiting_for.contains("rank 1")).await;
    one.engine.close(PATIENCE).await;
    two.save_rank(&plan, 1, &second).await;
    two.committed(plan.attempt).await;
    let one = one.restart().await;
    one.committed(plan.attempt).await;
    one.assert_whole(URI, 5, &all).await;
}
