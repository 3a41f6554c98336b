//! What is swept, and above all what is not.

use longshore_testkit::origin::{Fault, FaultKind, Verb};

use super::*;

const URI: &str = "s3://bucket/run";
/// Older than this is everything that was written before the call.
const AT_ONCE: u64 = 1;

async fn a_moment() {
    // Ages are counted in milliseconds.
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Waits until all but one object of step 2 is stored, and that one's upload does not go on.
async fn stuck(node: &Node, fake: &FakeOrigin, attempt: AttemptId) {
    node.until(attempt, |status| {
        // Four files and the intent; each retry changes the status.
        status.retries > 1 && fake.paths("bucket/run/step-2/").len() >= 5 && fake.uploads().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_what_dead_attempts_left_and_nothing_else() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let live = Content::small(1);
    let attempt = node.save(URI, 1, &SaveOptions::default(), &live).await;
    node.committed(attempt).await;
    // A node that died: an intent, an object, an open upload, the record of a rank.
    let dead = Node::new(&origins_of(&fake)).await;
    fake.fault(Fault::new(FaultKind::Status(503)).verb(Verb::UploadPart).skip(1));
    let lost = dead.save(URI, 2, &SaveOptions::default(), &Content::small(2).tensor("big", "w", 3, 11 * MIB)).await;
    stuck(&dead, &fake, lost).await;
    dead.engine.close(PATIENCE).await;
    fake.clear_faults();
    fake.put(&format!("bucket/run/step-2/_RANK-{lost}-0.json"), b"{}".to_vec());
    // Left by a zombie beside a committed checkpoint, and things that are not ours.
    fake.put(&format!("bucket/run/step-1/model-{lost}-00001-of-00001.safetensors"), b"zombie".to_vec());
    let foreign =
        ["bucket/run/step-1/notes.txt", "bucket/run/readme.md", "bucket/run/logs/events", "bucket/run/step-9/x.bin"];
    foreign.iter().for_each(|path| fake.put(path, b"mine".to_vec()));
    a_moment().await;

    let before = fake.paths("bucket/run/");
    let swept = node.catalog().sweep(URI, 0, &[]).await.unwrap();
    assert_eq!((swept.objects_deleted, swept.uploads_aborted), (0, 0), "all of it is young");
    let swept = node.catalog().sweep(URI, AT_ONCE, &[lost]).await.unwrap();
    assert_eq!((swept.objects_deleted, swept.uploads_aborted), (0, 0), "the attempt is known to go on");
    assert_eq!(fake.paths("bucket/run/"), before);
    assert_eq!(node.engine.sweep(URI, AT_ONCE).await.unwrap().uploads_aborted, 1);
    let after = fake.paths("bucket/run/");
    assert!(!after.iter().any(|path| path.contains("step-2/") || path.contains(&lost.to_string())), "{after:?}");
    assert!(foreign.iter().all(|path| after.iter().any(|left| left == path)), "{after:?}");
    assert!(fake.uploads().is_empty());
    node.assert_whole(URI, 1, &live).await;
    let swept = node.catalog().sweep(URI, AT_ONCE, &[]).await.unwrap();
    assert_eq!((swept.objects_deleted, swept.uploads_aborted), (0, 0), "nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_cannot_read_a_commit_removes_nothing() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let attempt = node.save(URI, 1, &SaveOptions::default(), &Content::small(1)).await;
    node.committed(attempt).await;
    fake.put(&format!("bucket/run/step-3/model-{attempt}-00001-of-00001.safetensors"), b"orphan".to_vec());
    a_moment().await;
    fake.flip_byte("bucket/run/step-1/_CKPT.json", 100);
    let before = fake.paths("bucket/run/");
    let error = node.catalog().sweep(URI, AT_ONCE, &[]).await.unwrap_err();
    assert!(error.code() == Code::Corrupt && error.message().contains("step-1/_CKPT.json"), "{error}");
    assert_eq!(node.catalog().list(URI).await.unwrap_err().code(), Code::Corrupt);
    assert_eq!(fake.paths("bucket/run/"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_finishes_a_deletion_that_was_cut_off() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    for step in [1, 2] {
        let attempt = node.save(URI, step, &SaveOptions::default(), &Content::small(step)).await;
        node.committed(attempt).await;
    }
    fake.remove("bucket/run/step-1/_CKPT.json");
    a_moment().await;
    let swept = node.catalog().sweep(URI, AT_ONCE, &[]).await.unwrap();
    assert!(swept.objects_deleted >= 4, "{swept:?}");
    assert!(!fake.paths("bucket/run/").iter().any(|path| path.contains("step-1/")));
    node.assert_whole(URI, 2, &Content::small(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_was_taken_for_dead_sends_its_objects_again() {
    let fake = server();
    let (node, sweeper) = (Node::new(&origins_of(&fake)).await, Node::new(&origins_of(&fake)).await);
    let content = Content::small(2).tensor("big", "w", 3, 11 * MIB);
    fake.fault(Fault::new(FaultKind::Status(503)).verb(Verb::UploadPart).skip(1));
    let attempt = node.save(URI, 2, &SaveOptions { hf_index: true, ..SaveOptions::default() }, &content).await;
    stuck(&node, &fake, attempt).await;
    node.engine.close(PATIENCE).await;
    a_moment().await;
    let swept = sweeper.catalog().sweep(URI, AT_ONCE, &[]).await.unwrap();
    assert!(swept.objects_deleted >= 4 && swept.uploads_aborted == 1, "{swept:?}");
    assert!(fake.paths("bucket/run/").is_empty());
    fake.clear_faults();
    let node = node.restart().await;
    let status = node.committed(attempt).await;
    assert!(status.notes.iter().any(|note| note.contains("deleted before the commit")), "{:?}", status.notes);
    node.assert_whole(URI, 2, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_in_progress_survives_any_sweep_of_its_node() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = Content::small(2).tensor("big", "w", 3, 21 * MIB);
    fake.fault(Fault::new(FaultKind::Status(503)).verb(Verb::UploadPart).skip(2));
    let attempt = node.save(URI, 2, &SaveOptions::default(), &content).await;
    node.until(attempt, |status| status.retries > 1).await;
    a_moment().await;
    let swept = node.engine.sweep(URI, AT_ONCE).await.unwrap();
    assert_eq!((swept.objects_deleted, swept.uploads_aborted), (0, 0));
    fake.clear_faults();
    node.committed(attempt).await;
    node.assert_whole(URI, 2, &content).await;
}
