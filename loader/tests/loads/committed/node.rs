//! Loads of what this node saved: from the node, without a request to the origin.

use std::path::PathBuf;
use std::sync::Arc;

use longshore_checkpoint::{Engine, SaveOptions, SaveState};
use longshore_loader::{FallbackKind, LoadRequest, LoadedModel, SourceTier};
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::origin::{Fault, FaultKind, Verb};
use longshore_types::Code;

use crate::fixture::{Fixture, Setup, assert_loaded, eventually};

const URL: &str = "s3://bucket/run";

struct Node {
    fixture: Fixture,
    folder: tempfile::TempDir,
    engine: Arc<Engine>,
}

impl Node {
    async fn new(workers: usize) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = Setup { workers, ..Setup::default() };
        setup.options.checkpoints.dir = Some(folder.path().join("spool"));
        setup.options.checkpoints.slab_dir = Some(folder.path().join("slabs"));
        setup.options.checkpoints.disk = Some(longshore_types::ByteSize(4 << 30));
        let fixture = Fixture::new(setup);
        fixture.origin.create_bucket("bucket");
        let engine = fixture.loader.checkpoints().engine().await.unwrap().clone();
        Node { fixture, folder, engine }
    }

    /// Saves a model's folder, and waits until it has come so far.
    async fn save(&self, step: u64, model: &longshore_testkit::modelgen::Model, until: SaveState) {
        let folder = self.folder.path().join(format!("model-{step}"));
        std::fs::create_dir_all(&folder).unwrap();
        model.write_to(&folder).unwrap();
        let id = self.engine.save_folder(URL.to_owned(), step, folder, SaveOptions::default()).await.unwrap();
        let mut status = self.engine.watch(&id).unwrap();
        let ended = status.wait_for(|status| status.state >= until).await.unwrap().clone();
        assert_eq!(ended.state, until, "{ended:?}");
    }

    async fn load(&self, step: u64, allow_uncommitted: bool) -> longshore_types::Result<Arc<LoadedModel>> {
        let request = LoadRequest { allow_uncommitted, ..LoadRequest::new(format!("{URL}/step-{step}")) };
        self.fixture.load(request).await
    }

    /// The spooled objects of at least so many bytes.
    fn spooled(&self, bytes_min: u64) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().join("spool")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                match entry.metadata().unwrap() {
                    metadata if metadata.is_dir() => folders.push(entry.path()),
                    metadata if metadata.len() >= bytes_min => found.push(entry.path()),
                    _ => {}
                }
            }
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_saved_here_is_loaded_without_a_request_to_the_origin() {
    let node = Node::new(0).await;
    let model = ModelSpec::sized(1, 40 << 20, 20).build();
    node.save(1, &model, SaveState::Committed).await;
    node.fixture.origin.reset_counters();
    let loaded = node.load(1, false).await.unwrap();
    assert_loaded(&loaded, &model);
    assert_eq!(node.fixture.origin.counters().total(), 0, "{:?}", node.fixture.origin.counters());
    let report = loaded.report();
    assert_eq!(report.bytes_from(SourceTier::Disk), report.bytes, "{report:?}");
    assert!(report.fallbacks.is_empty() && loaded.warnings().next().is_none(), "{report:?}");

    // The same model through the origin is the one in memory.
    let again = LoadRequest { revalidate: true, ..LoadRequest::new(format!("{URL}/step-1")) };
    assert!(node.fixture.load(again).await.unwrap().is_reattached());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_this_nodes_copy_costs_a_request_and_nothing_else() {
    let node = Node::new(1).await;
    let model = ModelSpec::sized(1, 20 << 20, 10).build();
    node.save(1, &model, SaveState::Committed).await;
    let objects = node.spooled(16 << 20);
    assert_eq!(objects.len(), 1);
    let mut bytes = std::fs::read(&objects[0]).unwrap();
    bytes[10 << 20] ^= 1;
    std::fs::write(&objects[0], bytes).unwrap();
    let loaded = node.load(1, false).await.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    assert_eq!(report.fallback_count(FallbackKind::NodeCopy), 1, "{report:?}");
    assert!(report.fallbacks[0].last_detail.contains("is damaged"), "{report:?}");
    node.fixture.loader.unload(&loaded.id).await.unwrap();
    // Gone altogether.
    std::fs::remove_file(&objects[0]).unwrap();
    let loaded = node.load(1, false).await.unwrap();
    assert_loaded(&loaded, &model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uncommitted_checkpoint_is_loaded_only_when_that_is_asked_for() {
    let node = Node::new(0).await;
    let model = ModelSpec::sized(1, 20 << 20, 10).build();
    for verb in [Verb::Put, Verb::CreateUpload, Verb::UploadPart, Verb::CompleteUpload] {
        node.fixture.origin.fault(Fault::new(FaultKind::Status(503)).verb(verb));
    }
    node.save(4, &model, SaveState::LocalDurable).await;
    let error = node.load(4, false).await.unwrap_err();
    assert!(matches!(error.code(), Code::NotFound | Code::FailedPrecondition), "{error}");
    let loaded = node.load(4, true).await.unwrap();
    assert_loaded(&loaded, &model);
    let warnings: Vec<&String> = loaded.warnings().collect();
    assert!(warnings.iter().any(|warning| warning.contains("before it was committed")), "{warnings:?}");
    node.fixture.origin.clear_faults();
    eventually("it is committed after all", || node.engine.local(&format!("{URL}/step-4"), false).is_some()).await;
    assert!(node.load(4, false).await.unwrap().is_reattached(), "it is the same checkpoint");
    // One that this node knows nothing of.
    assert_eq!(node.load(77, true).await.unwrap_err().code(), Code::NotFound);
}
