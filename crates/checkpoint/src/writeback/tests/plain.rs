//! Saves where nothing goes wrong.

use longshore_testkit::origin::{Fault, FaultKind, Verb};
use longshore_types::ChunkKey;
use parking_lot::Mutex;

use super::*;
use crate::sink::SinkHow;

#[tokio::test(flavor = "multi_thread")]
async fn a_save_is_committed_whole_and_hugging_face_tools_find_it() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = Content::small(1);
    let options = SaveOptions {
        hf_index: true,
        metadata: BTreeMap::from([("loss".to_owned(), "0.5".to_owned())]),
        ..SaveOptions::default()
    };
    let attempt = node.save("s3://bucket/run", 90, &options, &content).await;
    let status = node.committed(attempt).await;
    assert_eq!(status.bytes_uploaded, status.bytes_total);
    assert!(status.committed_seconds >= status.local_durable_seconds && status.waiting_for.is_empty());
    let commit = node.assert_whole("s3://bucket/run", 90, &content).await;
    assert_eq!((commit.attempt, commit.epoch, commit.metadata["loss"].as_str()), (attempt, 1, "0.5"));

    let index = fake.content("bucket/run/step-90/model.safetensors.index.json").unwrap().to_vec();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let file = index["weight_map"]["layers.0.weight"].as_str().unwrap();
    assert_eq!(index["metadata"]["total_size"], 300_007);
    let image = fake.content(&format!("bucket/run/step-90/{file}")).unwrap().to_vec();
    let model = safetensors::SafeTensors::deserialize(&image).unwrap();
    assert_eq!(model.tensor("layers.0.weight").unwrap().data(), content.tensors[0].1);
    assert_eq!(fake.content("bucket/run/step-90/config.json").unwrap().to_vec(), content.files[0].1);

    let latest = node.catalog().latest("s3://bucket/run").await.unwrap().unwrap();
    assert_eq!(latest.step, 90);
    let list = node.catalog().list("s3://bucket/run").await.unwrap();
    assert_eq!(list.checkpoints.len(), 1);
    assert_eq!(list.checkpoints[0].tensor_count, 3);
    assert!(list.uncommitted_steps.is_empty());
    assert!(fake.content("bucket/run/_LATEST.json").is_some());
    assert!(fake.uploads().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_an_origin_like_any_other() {
    let folder = TempDir::new().unwrap();
    let uri = format!("file://{}", folder.path().join("run").display());
    let node = Node::new(&Origins::new(OriginOptions::default()).unwrap()).await;
    let content = Content::small(2).tensor("", "large", 9, 12 * MIB);
    for step in [3, 4] {
        let options = SaveOptions { keep: 1, hf_index: true, ..SaveOptions::default() };
        let attempt = node.save(&uri, step, &options, &content).await;
        node.committed(attempt).await;
        node.assert_whole(&uri, step, &content).await;
    }
    until_gone(&node, &uri, 3).await;
    let left: Vec<_> = std::fs::read_dir(folder.path().join("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.len() <= 3, "only the last step and the hint stay: {left:?}");
}

/// Retention comes after the commit.
pub(super) async fn until_gone(node: &Node, uri: &str, step: u64) {
    let gone = async {
        while node.catalog().get(uri, Some(step)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_in_parts_each_of_them_once() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = Content::default().tensor("", "w", 5, 23 * MIB);
    let attempt = node.save("s3://bucket/run", 1, &SaveOptions::default(), &content).await;
    node.committed(attempt).await;
    node.assert_whole("s3://bucket/run", 1, &content).await;
    let path = format!("bucket/run/step-1/model-{attempt}-00001-of-00001.safetensors");
    let counters = fake.counters();
    let key = &counters.keys[&path];
    assert_eq!((key.create_upload, key.complete_upload), (1, 1));
    assert_eq!(key.parts.len(), 5);
    assert!(key.parts.values().all(|part| part.stored == 1), "{key:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_checkpoints_go_when_newer_ones_are_committed() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    for step in 1..=4 {
        let content = Content::small(step * 10);
        let options = SaveOptions { keep: 2, ..SaveOptions::default() };
        let attempt = node.save("s3://bucket/run", step, &options, &content).await;
        node.committed(attempt).await;
    }
    until_gone(&node, "s3://bucket/run", 2).await;
    for step in [3, 4] {
        node.assert_whole("s3://bucket/run", step, &Content::small(step * 10)).await;
    }
    let node = node.restart().await;
    let left = fake.paths("bucket/run/");
    assert!(left.iter().all(|path| !path.contains("step-1/") && !path.contains("step-2/")), "{left:?}");
    let deleted = node.catalog().delete("s3://bucket/run", 4).await.unwrap();
    assert!(
        deleted.objects_deleted >= 4 && deleted.bytes_freed > 2_000_000 && deleted.objects_kept == 0,
        "{deleted:?}"
    );
    assert!(!fake.paths("bucket/run/").iter().any(|path| path.contains("step-4/")));
    assert_eq!(
        node.catalog().latest("s3://bucket/run").await.unwrap().unwrap().step,
        3,
        "the hint is stale and not believed"
    );
    assert_eq!(node.catalog().get("s3://bucket/run", Some(4)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_is_by_time_and_not_by_number() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    for step in [50, 100, 60] {
        let attempt = node.save("s3://bucket/run", step, &SaveOptions::default(), &Content::small(step)).await;
        node.committed(attempt).await;
    }
    assert_eq!(node.catalog().get("s3://bucket/run", None).await.unwrap().step, 60);
    fake.remove("bucket/run/_LATEST.json");
    assert_eq!(node.catalog().get("s3://bucket/run", None).await.unwrap().step, 60);
    fake.put("bucket/run/_LATEST.json", b"nonsense".to_vec());
    assert_eq!(node.catalog().get("s3://bucket/run", None).await.unwrap().step, 60);
    let steps: Vec<u64> =
        node.catalog().list("s3://bucket/run").await.unwrap().checkpoints.iter().map(|found| found.step).collect();
    assert_eq!(steps, [50, 100, 60], "newest last");
}

/// Remembers what it is given.
#[derive(Default)]
struct Recorder {
    puts: Mutex<Vec<(String, u32, usize, SinkHow)>>,
    released: Mutex<Vec<AttemptId>>,
    fails: bool,
}

#[async_trait::async_trait]
impl ChunkSink for Recorder {
    async fn put(
        &self,
        key: &ChunkKey,
        bytes: Bytes,
        blocks: &[BlockChecksum],
        how: SinkHow,
    ) -> longshore_types::Result<()> {
        if self.fails {
            return Err(longshore_types::Error::new(Code::Unavailable, "no worker"));
        }
        assert_eq!(BlockChecksum::of_blocks(&bytes), blocks);
        assert_eq!(bytes.len() as u64, key.len_bytes());
        self.puts.lock().push((key.artifact().url().to_owned(), key.index(), bytes.len(), how));
        Ok(())
    }

    async fn release(&self, attempt: &AttemptId) {
        self.released.lock().push(*attempt);
    }

    fn peers(&self) -> usize {
        2
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_go_to_caches_and_peers() {
    let fake = server();
    let sink = Arc::new(Recorder::default());
    let node = Node::with_sink(&origins_of(&fake), sink.clone()).await;
    let content = Content::default().tensor("", "w", 5, 20 * MIB);
    let options = SaveOptions { peer_copies: 2, ..SaveOptions::default() };
    let attempt = node.save("s3://bucket/run", 1, &options, &content).await;
    let status = node.committed(attempt).await;
    assert!(status.ranks[0].peer_durable && status.peer_durable_seconds > 0.0, "{status:?}");
    let puts = sink.puts.lock().clone();
    let count = |wanted: SinkHow| puts.iter().filter(|put| put.3 == wanted).count();
    assert_eq!(count(SinkHow::Cache), 2);
    // The chunks, then what makes a save of them again.
    for copy in 0..2 {
        assert_eq!(count(SinkHow::Hold { attempt, copy }), 3);
        let last = puts.iter().rfind(|put| put.3 == SinkHow::Hold { attempt, copy }).unwrap();
        assert_eq!(last.0, format!("s3://bucket/run/step-1/_HELD-{attempt}-0"));
    }
    node.engine.close(PATIENCE).await;
    assert_eq!(*sink.released.lock(), [attempt], "copies are let go once the origin has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_just_written_is_sent_from_memory_and_the_rest_from_the_disk() {
    let fake = server();
    let node = Node::new(&origins_of(&fake)).await;
    let content = Content::default().tensor("", "w", 5, 80 * MIB);
    let plan = node.plan("s3://bucket/run", 1, &SaveOptions::default(), &content).await;
    node.engine.start(plan.clone(), 0, Vec::new()).await.unwrap();
    // With the intent in the bucket, the upload has begun before there are bytes.
    let attempt = node.engine.parts().attempts.get(&plan.attempt).unwrap();
    let intent = async {
        while !attempt.warm().is_open() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, intent).await.unwrap();
    let images = content.images(&plan, 0);
    node.stage(&plan, images[0].0, &images[0].1).await;
    node.committed(plan.attempt).await;
    node.assert_whole("s3://bucket/run", 1, &content).await;
    let metrics = &node.engine.parts().metrics;
    let (sent, memory) = (metrics.uploaded_bytes.get(), metrics.uploaded_memory_bytes.get());
    // Three parts at once may be kept, two chunks of this size; slabs are written faster than they are sent, or not.
    assert!(memory > 0 && memory <= sent, "{memory} of {sent}");
    let after = node.engine.parts().attempts.get(&plan.attempt).unwrap();
    assert!(!after.warm().is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_hold_copies_while_the_origin_takes_nothing() {
    let fake = server();
    fake.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/*"));
    let sink = Arc::new(Recorder::default());
    let node = Node::with_sink(&origins_of(&fake), sink.clone()).await;
    let content = Content::default().tensor("", "w", 5, 20 * MIB);
    let options = SaveOptions { peer_copies: 1, ..SaveOptions::default() };
    let attempt = node.save("s3://bucket/run", 1, &options, &content).await;
    let status = node.until(attempt, |status| status.ranks.iter().any(|rank| rank.peer_durable)).await;
    assert_eq!(status.state, SaveState::LocalDurable, "{status:?}");
    assert!(fake.paths("bucket/").is_empty() && sink.released.lock().is_empty());
    let held = sink.puts.lock().len();
    assert_eq!(held, 3, "{:?}", sink.puts.lock());

    fake.clear_faults();
    node.committed(attempt).await;
    node.assert_whole("s3://bucket/run", 1, &content).await;
    let holds = sink.puts.lock().iter().filter(|put| put.3 != SinkHow::Cache).count();
    assert_eq!(holds, held, "what is held is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_and_peers_that_fail_do_not_keep_a_save_from_being_committed() {
    let fake = server();
    let sink = Arc::new(Recorder { fails: true, ..Recorder::default() });
    let node = Node::with_sink(&origins_of(&fake), sink).await;
    let content = Content::small(4);
    let options = SaveOptions { peer_copies: 1, ..SaveOptions::default() };
    let attempt = node.save("s3://bucket/run", 1, &options, &content).await;
    let status = node.committed(attempt).await;
    assert!(!status.ranks[0].peer_durable);
    assert!(status.notes.iter().any(|note| note.contains("not peer-durable")), "{:?}", status.notes);
    node.assert_whole("s3://bucket/run", 1, &content).await;
    assert!(fake.counters().requests.iter().all(|request| request.verb != Verb::AbortUpload));
}
