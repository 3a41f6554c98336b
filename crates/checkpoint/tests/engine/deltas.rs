//! Only changed chunks are written.

use longshore_checkpoint::{RankItems, SLAB_BYTES, SaveOptions, SaveState};
use longshore_types::CHUNK_BYTES;
use longshore_types::checkpoint::FilePlace;

use crate::support::*;

fn items() -> Vec<RankItems> {
    let tensors = vec![tensor("w", &[SLAB_BYTES + 2 * CHUNK_BYTES + 5]), tensor("v", &[3 * MIB])];
    vec![RankItems { tensors, ..RankItems::default() }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_holds_the_chunks_that_changed_also_over_a_restart() {
    let place = Place::new();
    let mut engine = place.open().await;
    let options = SaveOptions { delta: true, ..SaveOptions::default() };
    let first = place.plan_ranks(&engine, 1, items(), options.clone()).await;
    let mut contents = contents(&first, 1);
    let status = save(&engine, &first, &contents).await;
    assert!(status.notes.iter().any(|note| note.contains("full")), "{status:?}");
    for step in 2..=4u64 {
        let plan = place.plan_ranks(&engine, step, items(), options.clone()).await;
        assert_eq!(plan.files[0].header, first.files[0].header);
        // A byte in the second chunk, one in the last, which is short.
        contents[0][CHUNK_BYTES as usize + step as usize] ^= 0x55;
        *contents[0].last_mut().unwrap() ^= 0x33;
        engine.start(plan.clone(), 0, vec![]).await.unwrap();
        let client = Client::new(&engine).await;
        if step == 3 {
            // Killed after one slab: its place in the pack stays its own.
            client.slab(plan.attempt, 0, 1, &contents[0]).await.unwrap();
            let mut watch = engine.watch(&plan.attempt).unwrap();
            tokio::time::timeout(SOON, watch.wait_for(|status| status.bytes_durable > 0)).await.unwrap().unwrap();
            engine.close(SOON).await;
            client.leave();
            drop(engine);
            let patient = longshore_checkpoint::CheckpointOptions { resume_wait_ms: 60_000, ..place.options.clone() };
            engine = place.open_with(patient).await;
            Client::new(&engine).await.stage(&plan, 0, &contents).await.unwrap();
        } else {
            client.stage(&plan, 0, &contents).await.unwrap();
        }
        let status = reaches(&engine, &plan.attempt, SaveState::Committed).await;
        let commit = place.check_commit(&plan, &contents);
        assert_eq!(commit.parent.unwrap().step, step - 1);
        assert!(matches!(commit.files[0].place, FilePlace::Chunks(_)));
        assert_eq!(commit.own_bytes(), 2 * CHUNK_BYTES, "step {step}");
        let chunks = plan.files[0].size_bytes.div_ceil(CHUNK_BYTES);
        assert_eq!(status.bytes_unchanged, (chunks - 2) * CHUNK_BYTES, "step {step}");
        assert_eq!(status.bytes_durable, status.bytes_total);
        // The zeros behind the short chunk in the pack are nobody's bytes.
        assert_eq!(status.bytes_uploaded, status.bytes_total - status.bytes_unchanged, "step {step}");
        let pack = place.attempt_folder(&plan.attempt).join(format!("objects/{}", plan.files.len()));
        assert_eq!(std::fs::metadata(pack).unwrap().len(), 2 * CHUNK_BYTES);
    }
    // Nothing changed: no object of its own.
    let plan = place.plan_ranks(&engine, 5, items(), options).await;
    save(&engine, &plan, &contents).await;
    let commit = place.check_commit(&plan, &contents);
    assert_eq!(commit.own_bytes(), 0);
    engine.close(SOON).await;
}
