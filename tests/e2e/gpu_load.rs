//! Loads onto cards: every byte, from every source; where models go, which of them leave, and what comes back from where.

use longshore_proto::v1::Tier;
use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{HeaderStyle, Model, ModelSpec, TensorSpec};
use longshore_testkit::{Content, FakeCudaOptions, FakeOrigin};
use longshore_types::Code;

use crate::gpu::{MIB, Node, NodeSpec};

/// Every dtype and shape, tensors of a byte and of many chunks, and files beside them.
fn models() -> Vec<(&'static str, Model)> {
    vec![
        ("every-dtype", ModelSpec::every_dtype(1).shards(3).header(HeaderStyle::Shuffled).build()),
        ("one-byte", ModelSpec::of(3, vec![TensorSpec::new("b", "U8", [1])]).build()),
        ("no-tensors", ModelSpec::of(4, Vec::new()).build()),
        ("many", ModelSpec::sized(5, 30 * MIB, 100).shards(9).header(HeaderStyle::Odd).build()),
        ("large", ModelSpec::sized(6, 70 * MIB, 5).header(HeaderStyle::Odd).build()),
        ("side-files", side_files()),
    ]
}

fn side_files() -> Model {
    ModelSpec::small(11)
        .side_file("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec())
        .side_file("sub/vocab.txt", Content::generated(1, 5 * MIB + 3))
        .side_file("empty.txt", Vec::new())
        .build()
}

/// A model of so many MiB in one tensor more than a chunk long.
fn sized(seed: u64, mib: u64) -> Model {
    ModelSpec::sized(seed, mib * MIB, 3).build()
}

#[test]
fn every_byte_through_three_workers() {
    let origin = FakeOrigin::start();
    let cluster = Cluster::start(ClusterSpec::new(3, 0).origin(&origin));
    let node = Node::start(NodeSpec::new().workers(&cluster).envs(origin.client_env()));
    for (name, model) in models() {
        model.put_into(&origin, &format!("bucket/{name}"));
        let uri = format!("s3://bucket/{name}");
        let (loaded, _) = node.load_and_check(&uri, "cuda:0", &model);
        assert_eq!((loaded.model.device.as_str(), loaded.model.device_uuid), ("cuda:0", node.cuda.uuid(0)), "{name}");
        let report = loaded.model.report.unwrap();
        assert!(report.fallbacks.is_empty() && report.checksum_mismatches == 0, "{name}: {report:?}");
        let (again, _) = node.load_and_check(&uri, "cuda:0", &model);
        assert!(again.model.reattached, "{name} is there already");
        node.client().unload(&uri).unwrap();
        node.cuda.wait_used_bytes(0, 0);
    }
}

#[test]
fn every_byte_from_local_files_and_from_an_origin_without_workers() {
    let origin = FakeOrigin::start();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(NodeSpec::new().envs(origin.client_env()));
    for (name, model) in models() {
        let path = folder.path().join(name);
        model.write_to(&path).unwrap();
        model.put_into(&origin, &format!("bucket/{name}"));
        for uri in [format!("file://{}", path.display()), format!("s3://bucket/{name}")] {
            node.load_and_check(&uri, "cuda:1", &model);
            node.client().unload(&uri).unwrap();
        }
    }
    node.cuda.wait_used_bytes(1, 0);
}

#[test]
fn tensors_are_on_the_card_and_files_beside_them_in_host_memory() {
    let origin = FakeOrigin::start();
    let model = side_files();
    model.put_into(&origin, "bucket/m");
    let node = Node::start(NodeSpec::new().envs(origin.client_env()));
    let (loaded, _lease) = node.load_and_check("s3://bucket/m", "cuda:0", &model);
    let devices: Vec<&str> = loaded.model.regions.iter().map(|region| region.device.as_str()).collect();
    assert_eq!(devices, [node.cuda.uuid(0).as_str(), "host"]);
    assert!(loaded.model.tensors.iter().all(|tensor| tensor.region == 0 && tensor.offset_bytes % 256 == 0));
    assert!(loaded.model.files.iter().all(|file| file.region == 1));
    let granules = node.cuda.used_bytes(0);
    assert!(granules.is_multiple_of(2 * MIB) && granules >= loaded.model.regions[0].size_bytes, "{granules}");
    assert_eq!(node.card(0).used_bytes, granules);
}

#[test]
fn a_card_is_chosen_by_number_by_uuid_or_as_the_one_with_most_room() {
    let origin = FakeOrigin::start();
    let node = Node::start(NodeSpec::new().envs(origin.client_env()));
    let on = |seed: u64, device: &str| {
        let model = sized(seed, 20);
        model.put_into(&origin, &format!("bucket/{seed}"));
        let (loaded, _) = node.load_and_check(&format!("s3://bucket/{seed}"), device, &model);
        loaded.model.device
    };
    assert_eq!(on(1, "cuda:1"), "cuda:1");
    assert_eq!(on(2, "auto"), "cuda:0");
    assert_eq!(on(3, &node.cuda.uuid(0)), "cuda:0");
    assert_eq!(on(4, ""), "cuda:1");
    assert_eq!(on(5, "host"), "host");
    for device in ["cuda:7", "GPU-00000000-0000-0000-0000-000000000000"] {
        let error = node.load("s3://bucket/1", device).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported, "{error}");
        let text = error.to_string();
        assert!(
            [device, "cuda:0", "cuda:1"].iter().all(|name| text.contains(name)),
            "{text} does not say what there is"
        );
    }
    assert_eq!(node.load("s3://bucket/1", "cuda:x").unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn what_is_used_least_makes_room_and_comes_back_from_page_locked_memory() {
    let origin = FakeOrigin::start();
    let cluster = Cluster::start(ClusterSpec::new(1, 0).origin(&origin));
    let spec = NodeSpec::new().env("LONGSHORE_LOADER_GPU_MEMORY", "110MiB").workers(&cluster);
    let node = Node::start(spec.envs(origin.client_env()));
    let models: Vec<Model> = (1..=3).map(|seed| sized(seed, 45)).collect();
    for (at, model) in models.iter().enumerate() {
        model.put_into(&origin, &format!("bucket/{at}"));
    }
    let load = |at: usize| node.load_and_check(&format!("s3://bucket/{at}"), "cuda:0", &models[at]).0;
    load(0);
    load(1);
    assert!(load(0).model.reattached, "now model 1 is the one that was used least");
    load(2);
    let there: Vec<String> = node.client().models().unwrap().into_iter().map(|model| model.uri).collect();
    assert!(there.iter().any(|uri| uri.ends_with("/0")) && !there.iter().any(|uri| uri.ends_with("/1")), "{there:?}");
    let served = || cluster.worker_metric("longshore_worker_served_bytes_total") as u64;
    let before = (origin.counters().bytes, served());
    let back = load(1);
    assert!(!back.model.reattached);
    // Files beside the tensors land in host memory, without a stay in page-locked memory.
    let files: u64 = back.model.files.iter().map(|file| file.length_bytes).sum();
    assert_eq!((origin.counters().bytes, served()), (before.0, before.1 + files), "all tensors were still page-locked");
    assert_eq!(back.tier_bytes(Tier::Pinned), back.model.report.as_ref().unwrap().bytes - files);
    let pinned = node.status().pinned.unwrap();
    assert!(pinned.cached_bytes >= 3 * 45 * MIB && pinned.capacity_bytes == 256 * MIB, "{pinned:?}");
}

#[test]
fn a_full_card_says_what_holds_it_and_takes_the_next_model_when_that_goes() {
    let origin = FakeOrigin::start();
    let spec = NodeSpec::new().env("LONGSHORE_LOADER_GPU_MEMORY", "110MiB").envs(origin.client_env());
    let node = Node::start(spec);
    let models: Vec<Model> = (1..=3).map(|seed| sized(seed, 45)).collect();
    for (at, model) in models.iter().enumerate() {
        model.put_into(&origin, &format!("bucket/model-{at}"));
    }
    let load = |at: usize| node.load_and_check(&format!("s3://bucket/model-{at}"), "cuda:0", &models[at]).1;
    let (first, second) = (load(0), load(1));
    let error = node.load("s3://bucket/model-2", "cuda:0").unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    let text = error.to_string();
    assert!(["cuda:0", "model-0", "model-1"].iter().all(|name| text.contains(name)), "{text}");
    node.load_and_check("s3://bucket/model-2", "auto", &models[2]);
    drop(first);
    load(2);
    second.check(&models[1]).unwrap();
    let gone = node.client().models().unwrap().into_iter().find(|model| model.uri.ends_with("model-0"));
    assert!(gone.is_none(), "{gone:?}");
}

#[test]
fn a_model_that_no_card_has_room_for_is_refused_before_anything_is_read() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 300 * MIB, 3).build();
    model.put_into(&origin, "bucket/m");
    let node = Node::start(NodeSpec::new().envs(origin.client_env()));
    for device in ["cuda:0", "auto"] {
        let error = node.load("s3://bucket/m", device).unwrap_err();
        assert_eq!(error.code(), Code::Exhausted, "{error}");
    }
    assert!(origin.counters().bytes < 20 * MIB, "{:?}", origin.counters());
    assert!(node.cuda.live_allocations().is_empty());
}

#[test]
fn many_loads_at_once_share_the_cards() {
    let origin = FakeOrigin::start();
    let node = Node::start(NodeSpec::new().envs(origin.client_env()));
    let models: Vec<Model> = (1..=6).map(|seed| sized(seed, 20)).collect();
    for (at, model) in models.iter().enumerate() {
        model.put_into(&origin, &format!("bucket/{at}"));
    }
    std::thread::scope(|scope| {
        for (at, model) in models.iter().enumerate() {
            let node = &node;
            let device = ["cuda:0", "cuda:1", "auto"][at % 3];
            scope.spawn(move || node.load_and_check(&format!("s3://bucket/{at}"), device, model));
            // Another client wants the same: both get it, and it is loaded once.
            scope.spawn(move || node.load_and_check(&format!("s3://bucket/{at}"), device, model));
        }
    });
    let there = node.client().models().unwrap();
    assert_eq!(there.len(), 6);
    let granules = |bytes: u64| bytes.next_multiple_of(2 * MIB);
    let wanted: u64 = there.iter().map(|model| granules(model.regions[0].size_bytes)).sum();
    assert_eq!([0, 1].map(|device| node.cuda.used_bytes(device)).iter().sum::<u64>(), wanted);
}

#[test]
fn a_slow_link_gives_the_same_bytes() {
    let origin = FakeOrigin::start();
    let model = sized(9, 60);
    model.put_into(&origin, "bucket/m");
    let cards = FakeCudaOptions { devices: 2, memory_mib: 256, h2d_gbps: 0.2, ..FakeCudaOptions::default() };
    let spec = NodeSpec::new().cards(cards).env("LONGSHORE_LOADER_PINNED_MEMORY", "112MiB");
    let node = Node::start(spec.env("LONGSHORE_LOADER_FETCHES_MAX", "3").envs(origin.client_env()));
    // Slots are used again as soon as their copies are done: one that is too early would show.
    for _ in 0..2 {
        let (loaded, _) = node.load_and_check("s3://bucket/m", "cuda:0", &model);
        assert!(loaded.model.report.unwrap().seconds >= 0.29);
        node.client().unload("s3://bucket/m").unwrap();
        let other = sized(10, 70);
        other.put_into(&origin, "bucket/other");
        node.load_and_check("s3://bucket/other", "cuda:0", &other);
    }
}

#[test]
fn a_machine_without_a_card_says_so_and_serves_host_memory() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::small(1).build();
    model.put_into(&origin, "bucket/m");
    let cards = FakeCudaOptions { devices: 0, ..FakeCudaOptions::default() };
    let node = Node::start(NodeSpec::new().without_holder().cards(cards).envs(origin.client_env()));
    let (loaded, _) = node.load_and_check("s3://bucket/m", "auto", &model);
    assert_eq!(loaded.model.device, "host");
    let error = node.load("s3://bucket/m", "cuda:0").unwrap_err();
    assert_eq!(error.code(), Code::Unsupported, "{error}");
    assert!(node.status().pinned.is_none(), "no memory is page-locked without a card");
}
