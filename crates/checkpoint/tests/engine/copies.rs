//! Folders and files of this node.

use longshore_checkpoint::{SLAB_BYTES, SaveOptions, SaveState};
use longshore_types::checkpoint::Commit;
use longshore_types::{BlockChecksum, Code};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_saved_with_the_tensors_in_it() {
    let place = Place::new();
    let engine = place.open().await;
    let folder = place.disk.path().join("model");
    std::fs::create_dir_all(folder.join("tokenizer")).unwrap();
    let header = br#"{"w":{"dtype":"U8","shape":[70000000],"data_offsets":[0,70000000]}}     "#;
    let mut model = (header.len() as u64).to_le_bytes().to_vec();
    model.extend(header);
    model.extend(content(70_000_000, 1));
    std::fs::write(folder.join("model.safetensors"), &model).unwrap();
    std::fs::write(folder.join("config.json"), b"{}").unwrap();
    std::fs::write(folder.join("tokenizer/empty"), b"").unwrap();
    std::fs::write(folder.join("noise.bin"), content(SLAB_BYTES + 9, 2)).unwrap();
    let attempt = engine.save_folder(place.run(), 3, folder.clone(), SaveOptions::default()).await.unwrap();
    let status = reaches(&engine, &attempt, SaveState::Committed).await;
    assert_eq!(status.bytes_durable, status.bytes_total);
    let bytes = std::fs::read(place.run_folder().join("step-3/_CKPT.json")).unwrap();
    let commit = Commit::parse(&bytes, "commit").unwrap();
    for file in &commit.files {
        let source = std::fs::read(folder.join(&file.name)).unwrap();
        assert_eq!(file.checksum, BlockChecksum::of(&source), "{}", file.name);
    }
    assert_eq!(commit.files.len(), 4);
    assert_eq!(commit.tensors[0].pieces[0].checksum, BlockChecksum::of(&model[8 + header.len()..]));
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_is_saved_fails_the_save() {
    let place = Place::new();
    let engine = place.open().await;
    let folder = place.disk.path().join("data");
    std::fs::create_dir(&folder).unwrap();
    // The copy of the second file waits behind the first, and finds it changed.
    let (first, second) = (folder.join("a"), folder.join("b"));
    std::fs::write(&first, content(4 * SLAB_BYTES, 1)).unwrap();
    std::fs::write(&second, b"before").unwrap();
    let attempt = engine.save_folder(place.run(), 1, folder.clone(), SaveOptions::default()).await.unwrap();
    std::fs::write(&second, b"behind it").unwrap();
    let mut watch = engine.watch(&attempt).unwrap();
    let ended = tokio::time::timeout(SOON, watch.wait_for(|status| status.state.is_ended())).await;
    let status = ended.unwrap().unwrap().clone();
    let error = status.error.clone().unwrap();
    assert_eq!((status.state, error.code()), (SaveState::Failed, Code::FailedPrecondition));
    assert!(error.message().contains(second.to_str().unwrap()), "{error}");
    assert!(!place.run_folder().join("step-1/_CKPT.json").exists());
    engine.close(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_saved_is_refused_before_anything_is_done() {
    let place = Place::new();
    let engine = place.open().await;
    let save = |path: &str| engine.save_folder(place.run(), 1, path.into(), SaveOptions::default());
    assert_eq!(save("/dev/null").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(save("relative").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(save("/no/such/folder").await.unwrap_err().code(), Code::NotFound);
    assert!(engine.saves().is_empty());
    engine.close(SOON).await;
}
