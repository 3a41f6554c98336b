//! Origins that misbehave.

use longshore_testkit::origin::{Fault, FaultKind, Quirks, Verb};

use super::*;

const URI: &str = "s3://bucket/run";

/// Small files, and a tensor that goes in parts.
fn content() -> Content {
    Content::small(7).tensor("big", "w", 8, 11 * MIB)
}

fn fault(verb: Verb, kind: FaultKind) -> Fault {
    Fault::new(kind).verb(verb)
}

async fn saved_despite(faults: Vec<Fault>) -> Arc<SaveStatus> {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = content();
    let plan = node.plan(URI, 1, &SaveOptions { hf_index: true, ..SaveOptions::default() }, &content).await;
    faults.into_iter().for_each(|fault| fake.fault(fault));
    node.save_rank(&plan, 0, &content).await;
    let status = node.committed(plan.attempt).await;
    fake.clear_faults();
    node.assert_whole(URI, 1, &content).await;
    assert_eq!(node.catalog().latest(URI).await.unwrap().unwrap().attempt, plan.attempt);
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_change_nothing() {
    for verb in [Verb::Put, Verb::CreateUpload, Verb::UploadPart, Verb::CompleteUpload, Verb::Head, Verb::Get] {
        saved_despite(vec![fault(verb, FaultKind::ReplyLost).times(3)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_the_commit_is_read_back() {
    for times in [1, 5] {
        saved_despite(vec![fault(Verb::Put, FaultKind::ReplyLost).on("*_CKPT.json").times(times)]).await;
        saved_despite(vec![fault(Verb::Put, FaultKind::ReplyLost).on("*_INTENT.json").times(times)]).await;
        saved_despite(vec![fault(Verb::Put, FaultKind::ReplyLost).on("*_LATEST.json").times(times)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_waited_for() {
    for status in [500, 503, 409] {
        for verb in [Verb::Put, Verb::UploadPart, Verb::CompleteUpload, Verb::List] {
            saved_despite(vec![fault(verb, FaultKind::Status(status)).times(5)]).await;
        }
    }
    saved_despite(vec![fault(Verb::Put, FaultKind::Status(412)).times(2)]).await;
    saved_despite(vec![fault(Verb::UploadPart, FaultKind::CutAfter(1 << 20)).times(3)]).await;
    saved_despite(vec![fault(Verb::CompleteUpload, FaultKind::ErrorInBody).times(3)]).await;
    saved_despite(vec![fault(Verb::UploadPart, FaultKind::BytesPerSecond(20 << 20)).times(2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_damaged_on_the_way_are_sent_again() {
    saved_despite(vec![fault(Verb::UploadPart, FaultKind::FlipBit(1000)).times(1)]).await;
    saved_despite(vec![fault(Verb::Put, FaultKind::FlipBit(100)).on("*.safetensors").times(1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_checksums_is_read_back_and_damage_is_found() {
    let quirks = Quirks { has_no_checksums: true, ..Quirks::default() };
    let fake = FakeOrigin::with(OriginConfig { quirks, ..OriginConfig::default() });
    fake.create_bucket("bucket");
    let node = Node::new(&origins_of(&fake)).await;
    let content = content();
    fake.fault(fault(Verb::UploadPart, FaultKind::FlipStored(1000)).times(1));
    let attempt = node.save(URI, 1, &SaveOptions::default(), &content).await;
    let status = node.committed(attempt).await;
    assert!(status.notes.iter().any(|note| note.contains("read back")), "{:?}", status.notes);
    assert!(status.notes.iter().any(|note| note.contains("uploaded again")), "{:?}", status.notes);
    node.assert_whole(URI, 1, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_down_is_waited_for_as_long_as_it_takes() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = content();
    fake.fault(Fault::new(FaultKind::Status(503)).any_verb());
    let attempt = node.save(URI, 1, &SaveOptions::default(), &content).await;
    // Longer than what a refusal may take in tests.
    let status = node.until(attempt, |status| status.retries > 12).await;
    assert_eq!(status.state, SaveState::LocalDurable);
    assert!(status.waiting_for.contains("origin"), "{:?}", status.waiting_for);
    fake.clear_faults();
    node.committed(attempt).await;
    node.assert_whole(URI, 1, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_lasts_fails_the_save_and_keeps_its_bytes() {
    for (kind, code) in [
        (FaultKind::Status(403), Code::PermissionDenied),
        (FaultKind::quota(), Code::Exhausted),
        (FaultKind::expired_token(), Code::Unauthenticated),
    ] {
        let fake = server();
        let node = Node::new(&origins_of(&fake)).await;
        let content = content();
        fake.fault(fault(Verb::UploadPart, kind.clone()));
        let attempt = node.save(URI, 1, &SaveOptions::default(), &content).await;
        node.failed(attempt, code).await;
        node.until(attempt, |status| status.notes.iter().any(|note| note.contains("stay on this node"))).await;
        assert_eq!(node.catalog().get(URI, Some(1)).await.unwrap_err().code(), Code::FailedPrecondition, "not visible");
        fake.clear_faults();
        let node = node.restart().await;
        node.committed(attempt).await;
        node.assert_whole(URI, 1, &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_missing_fails_the_save_and_keeps_its_bytes() {
    let fake = FakeOrigin::with(OriginConfig::default());
    fake.create_bucket("other");
    let node = Node::new(&origins_of(&fake)).await;
    let content = content();
    let attempt = node.save(URI, 1, &SaveOptions::default(), &content).await;
    node.failed(attempt, Code::NotFound).await;
    fake.create_bucket("bucket");
    let node = node.restart().await;
    node.committed(attempt).await;
    node.assert_whole(URI, 1, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_overwrites_is_refused() {
    let quirks = Quirks { ignores_conditional_puts: true, ..Quirks::default() };
    let fake = FakeOrigin::with(OriginConfig { quirks, ..OriginConfig::default() });
    fake.create_bucket("bucket");
    let node = Node::new(&origins_of(&fake)).await;
    let attempt = node.save(URI, 1, &SaveOptions::default(), &Content::small(1)).await;
    let status = node.failed(attempt, Code::Unsupported).await;
    assert!(status.error.as_ref().unwrap().message().contains("conditional"), "{status:?}");
    assert!(fake.paths("bucket/").is_empty(), "{:?}", fake.paths("bucket/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_sends_no_part_again_that_was_taken() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = Content::default().tensor("", "w", 5, 33 * MIB);
    fake.fault(fault(Verb::UploadPart, FaultKind::Status(503)).skip(3));
    let attempt = node.save(URI, 1, &SaveOptions::default(), &content).await;
    node.until(attempt, |status| status.bytes_uploaded >= 3 * PART_BYTES && status.retries > 2).await;
    let node = node.restart().await;
    fake.clear_faults();
    node.committed(attempt).await;
    node.assert_whole(URI, 1, &content).await;
    let counters = fake.counters();
    let path = format!("bucket/run/step-1/model-{attempt}-00001-of-00001.safetensors");
    let key = &counters.keys[&path];
    assert_eq!(key.create_upload, 1);
    assert!(key.parts.values().all(|part| part.stored == 1), "{key:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_store_forgot_begins_afresh() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = Content::default().tensor("", "w", 5, 22 * MIB);
    fake.fault(fault(Verb::UploadPart, FaultKind::Status(503)).skip(2));
    let attempt = node.save(URI, 1, &SaveOptions::default(), &content).await;
    node.until(attempt, |status| status.bytes_uploaded >= 2 * PART_BYTES).await;
    let open = fake.uploads().remove(0);
    assert!(fake.forget_upload(&open.path, &open.id));
    fake.clear_faults();
    let status = node.committed(attempt).await;
    assert!(status.notes.iter().any(|note| note.contains("uploaded again")), "{:?}", status.notes);
    node.assert_whole(URI, 1, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_cancelled_leaves_nothing_visible() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    fake.fault(fault(Verb::UploadPart, FaultKind::Status(503)).skip(1));
    let attempt = node.save(URI, 1, &SaveOptions::default(), &content()).await;
    node.until(attempt, |status| status.retries > 1).await;
    node.engine.cancel(&attempt).await.unwrap();
    node.engine.close(PATIENCE).await;
    assert!(fake.uploads().is_empty(), "open uploads are given up");
    let list = node.catalog().list(URI).await.unwrap();
    assert!(list.checkpoints.is_empty());
    assert_eq!(list.uncommitted_steps, [1]);
}
