//! Local files that cards read by themselves: every byte, and what happens where they cannot.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use longshore_proto::v1;
use longshore_testkit::FakeCudaOptions;
use longshore_testkit::fake_cuda::Role;
use longshore_testkit::modelgen::{HeaderStyle, Model, ModelSpec};
use longshore_types::Code;
use tempfile::TempDir;

use crate::common::{check, wait_until};
use crate::gpu::{MIB, Node, NodeSpec};

/// How the trace calls this way.
const SOURCE: &str = "local file, by GPUDirect Storage";

fn node(nvfs: bool, h2d_gbps: f64) -> Node {
    let cards = FakeCudaOptions { devices: 2, memory_mib: 256, nvfs, h2d_gbps, ..FakeCudaOptions::default() };
    Node::start(NodeSpec::new().cards(cards).env("LONGSHORE_LOADER_GPUDIRECT_STORAGE", "true"))
}

/// A model's files, on a file system that has direct reads.
struct Stored {
    folder: TempDir,
    model: Model,
}

impl Stored {
    fn new(spec: ModelSpec) -> Stored {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let model = spec.build();
        model.write_to(folder.path()).unwrap();
        Stored { folder, model }
    }

    fn large() -> Stored {
        Stored::new(ModelSpec::sized(6, 70 * MIB, 5).header(HeaderStyle::Odd))
    }

    fn uri(&self) -> String {
        format!("file://{}", self.folder.path().display())
    }

    /// Loads it with a trace and compares every byte.
    fn load(&self, node: &Node) -> v1::LoadReport {
        let uri = self.uri();
        let request =
            v1::LoadModelRequest { uri: uri.clone(), device: "cuda:0".to_owned(), trace: true, ..Default::default() };
        let loaded = node.client().load_with(request).unwrap_or_else(|error| node.fail(&format!("{uri}: {error}")));
        check(&loaded, &self.model);
        node.client().unload(&uri).unwrap();
        loaded.model.report.unwrap()
    }
}

fn direct_bytes(report: &v1::LoadReport) -> u64 {
    report.events.iter().filter(|event| event.source == SOURCE).map(|event| event.bytes).sum()
}

fn fallbacks(report: &v1::LoadReport) -> Vec<(&str, u64)> {
    report.fallbacks.iter().map(|fallback| (fallback.kind.as_str(), fallback.count)).collect()
}

#[test]
fn every_byte_of_models_that_the_card_reads() {
    let node = node(true, 0.0);
    let large = Stored::large();
    let report = large.load(&node);
    // All but the ends of tensors, block by block.
    let (bytes, size) = (direct_bytes(&report), large.model.chunks() * 16 * MIB);
    assert!(bytes >= 50 * MIB && bytes.is_multiple_of(MIB) && bytes <= size, "{bytes}");
    assert_eq!((fallbacks(&report), report.checksum_mismatches), (vec![], 0));
    assert!(node.cuda.calls(Role::Copier)["cuFileRead"] > 0);
    let others = [
        ModelSpec::sized(5, 60 * MIB, 40).shards(4).header(HeaderStyle::Odd),
        ModelSpec::every_dtype(1).shards(3).header(HeaderStyle::Shuffled),
        ModelSpec::sized(7, 33 * MIB, 2).side_file("tokenizer.json", b"{}".to_vec()),
        ModelSpec::small(11),
    ];
    for spec in others {
        let report = Stored::new(spec).load(&node);
        assert_eq!(fallbacks(&report), vec![]);
    }
    // What the cards read is not in page-locked memory: it is read again.
    let again = large.load(&node);
    assert_eq!(direct_bytes(&again), bytes);
    assert!(!node.loader.log().contains("no GPUDirect Storage"));
}

#[test]
fn where_it_is_not_offered_the_usual_way_is_taken_and_counted() {
    let node = node(false, 0.0);
    let report = Stored::large().load(&node);
    assert_eq!((fallbacks(&report), direct_bytes(&report)), (vec![("storage_not_direct", 1)], 0));
    assert!(report.fallbacks[0].last_detail.contains("nvidia-fs"), "{report:?}");
    assert!(node.loader.log().contains("no GPUDirect Storage"), "{}", node.loader.log());
    assert!(!node.cuda.calls(Role::Copier).contains_key("cuFileRead"));
    // Nothing that it could be used for.
    assert_eq!(fallbacks(&Stored::new(ModelSpec::small(3)).load(&node)), vec![]);
}

#[test]
fn refusals_in_the_middle_cost_no_byte() {
    let node = node(true, 0.0);
    let stored = Stored::large();
    for (fault, detail) in [
        ("copier/cuFileHandleRegister@1=5008", "cuFileHandleRegister failed with 5008"),
        ("copier/cuFileRead@1=5008", "cuFileRead failed with 5008"),
        ("copier/cuFileRead@3=5", "Input/output error"),
    ] {
        node.cuda.disarm();
        node.cuda.reset_calls();
        node.cuda.arm(fault);
        let report = stored.load(&node);
        assert_eq!(fallbacks(&report), vec![("storage_not_direct", 1)], "{fault}");
        assert!(report.fallbacks[0].last_detail.contains(detail), "{report:?}");
        assert_eq!(node.cuda.fired().len(), 1, "{fault}");
    }
    assert_eq!(node.card(0).restarts, 0);
}

#[test]
fn a_context_that_is_lost_by_a_read_costs_a_repetition() {
    let node = node(true, 0.0);
    node.cuda.arm("copier/cuFileRead~2=700");
    let report = Stored::large().load(&node);
    // A read beside it may be refused by the lost context before its end is noticed: then the rest takes the usual way.
    let mut found = fallbacks(&report);
    let before = found.len();
    found.retain(|fallback| *fallback != ("storage_not_direct", 1));
    let was_refused = found.len() < before;
    assert_eq!(found, vec![("device_restarted", 1)]);
    assert!(was_refused || direct_bytes(&report) >= 50 * MIB);
}

#[test]
fn a_file_that_changes_meanwhile_is_no_model() {
    let node = node(true, 0.05);
    let stored = Stored::large();
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| node.load(&stored.uri(), "cuda:0"));
        wait_until("the card reads", || node.cuda.calls(Role::Copier).contains_key("cuFileRead"));
        let file = std::fs::read_dir(stored.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let file = file.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).max().unwrap();
        append(&file);
        let error = loading.join().unwrap().err().unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("changed since it was resolved"), "{error}");
    });
    node.cuda.wait_used_bytes(0, 0);
}

fn append(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
}
