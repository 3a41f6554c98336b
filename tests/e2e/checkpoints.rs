//! Checkpoints that are saved, and what is loaded of them: on this node, on others, in part uncommitted, as deltas.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_proto::v1;
use longshore_testkit::cluster::{CliOutput, Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{Content, FakeOrigin, Fault, FaultKind};
use longshore_tests::{Client, SaveClient, Saving, SlabClient};
use longshore_types::Code;

use crate::common::{Embedded, check, load, load_and_check, wait_until};

const MIB: u64 = 1 << 20;
const RUN: &str = "s3://bucket/run";
const SOON: Duration = Duration::from_secs(60);

fn start(workers: usize, loaders: usize) -> (FakeOrigin, Cluster) {
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    let spec = ClusterSpec::new(workers, loaders).origin(&origin).checkpoints().loader_args(&[
        "--checkpoint-part-bytes",
        "5MiB",
        "--checkpoint-memory",
        "512MiB",
    ]);
    let cluster = Cluster::start(spec);
    (origin, cluster)
}

fn sockets(cluster: &Cluster, loader: usize) -> PathBuf {
    cluster.loader_socket(loader).parent().unwrap().to_owned()
}

fn client(cluster: &Cluster, loader: usize) -> SaveClient {
    SaveClient::connect(&sockets(cluster, loader)).unwrap()
}

fn options() -> v1::SaveOptions {
    v1::SaveOptions { hf_index: true, ..Default::default() }
}

/// Plans, starts and copies; the session lives on.
fn stage(cluster: &Cluster, step: u64, model: &Model, options: v1::SaveOptions) -> (Saving, SlabClient) {
    let mut client = client(cluster, 0);
    let saving = Saving::plan(&mut client, (RUN, step), (model, 1), options).unwrap();
    let slabs = saving.stage(&mut client, 0).unwrap();
    (saving, slabs)
}

fn save(cluster: &Cluster, step: u64, model: &Model, options: v1::SaveOptions) -> v1::SaveStatus {
    let (saving, _slabs) = stage(cluster, step, model, options);
    let status = client(cluster, 0).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
    assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
    status
}

fn url(step: u64) -> String {
    format!("{RUN}/step-{step}")
}

/// Pulls a step into a new folder.
fn pull(embedded: &Embedded, step: u64) -> (CliOutput, PathBuf) {
    let folder = embedded.folder.path().join("out");
    std::fs::create_dir(&folder).unwrap();
    (embedded.run(&["pull", &url(step), folder.to_str().unwrap()]), folder)
}

#[test]
fn what_was_saved_is_loaded_on_its_node_without_the_origin() {
    for workers in [0, 1] {
        let (origin, cluster) = start(workers, 1);
        let model = ModelSpec::sized(1, 40 * MIB, 10).build();
        save(&cluster, 1, &model, v1::SaveOptions { file_bytes_max: 16 * MIB, ..options() });
        assert!(origin.wait_idle(SOON));
        origin.reset_counters();
        load_and_check(&cluster, 0, &url(1), &model);
        let counters = origin.counters();
        assert_eq!((counters.total(), counters.bytes), (0, 0), "{workers} workers: {:?}", counters.requests);
    }
}

#[test]
fn a_checkpoint_that_is_staged_is_loaded_when_asked_for() {
    let (origin, cluster) = start(0, 1);
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/run/*"));
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let (saving, _slabs) = stage(&cluster, 1, &model, options());
    let request = |allow_uncommitted| v1::LoadModelRequest {
        uri: url(1),
        device: "host".to_owned(),
        allow_uncommitted,
        ..Default::default()
    };
    let mut loader = Client::connect(&cluster.loader_socket(0)).unwrap();
    let loaded = loader.load_with(request(true)).unwrap();
    check(&loaded, &model);
    let told = format!("{:?}", loaded.model.report);
    assert!(told.contains("committed") || format!("{:?}", loaded.model).contains("committed"), "it is told: {told}");
    let status = client(&cluster, 0).status(saving.attempt()).unwrap();
    assert_eq!(status.state(), v1::SaveState::LocalDurable, "{status:?}");
    loader.unload(&url(1)).unwrap();
    origin.clear_faults();
    client(&cluster, 0).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
    check(&loader.load_with(request(false)).unwrap(), &model);
}

#[test]
fn another_node_finds_what_was_saved_at_the_workers() {
    let (origin, cluster) = start(2, 2);
    let model = ModelSpec::sized(1, 80 * MIB, 10).build();
    save(&cluster, 1, &model, options());
    let metrics = cluster.loaders()[0].metrics();
    assert!(metrics.sum("longshore_loader_origin_written_bytes_total") >= model.tensor_bytes() as f64);
    assert!(metrics.sum("longshore_loader_checkpoint_puts_total") >= (model.tensor_bytes() / (16 * MIB)) as f64);
    assert!(origin.wait_idle(SOON));
    origin.reset_counters();
    let loaded = load_and_check(&cluster, 1, &url(1), &model);
    let counters = origin.counters();
    let data = counters.keys.iter().filter(|(path, _)| path.ends_with(".safetensors"));
    let bytes: u64 = data.map(|(_, key)| key.bytes).sum();
    assert_eq!(bytes, 0, "{:?}", counters.keys);
    assert_eq!(loaded.tier_bytes(v1::Tier::Origin), 0, "{:?}", loaded.model.report);
}

#[test]
fn a_flipped_bit_anywhere_is_refused_by_name() {
    let (origin, cluster) = start(0, 2);
    let model = ModelSpec::sized(1, 24 * MIB, 6).build();
    save(&cluster, 1, &model, v1::SaveOptions { file_bytes_max: 8 * MIB, ..options() });
    let weights: Vec<String> =
        origin.paths("bucket/run/step-1/").into_iter().filter(|path| path.ends_with(".safetensors")).collect();
    assert!(weights.len() >= 2, "{weights:?}");
    let commit = client(&cluster, 0).checkpoint(RUN, Some(1)).unwrap();
    for path in &weights {
        let size = origin.content(path).unwrap().len_bytes();
        // The last byte is one of the file's last tensor.
        for offset in [size - 1, size / 2] {
            assert!(origin.flip_byte(path, offset));
            let error = load(&cluster, 1, &url(1)).expect_err("wrong bytes are never loaded");
            assert_eq!(error.code(), Code::Corrupt, "{error}");
            let object = path.rsplit('/').next().unwrap();
            assert!(error.message().contains(object), "{object} is named: {error}");
            let named = commit.tensors.iter().any(|tensor| error.message().contains(&tensor.name));
            assert!(named, "a tensor is named: {error}");
            let embedded = Embedded::with(&origin);
            let (pulled, folder) = pull(&embedded, 1);
            assert_eq!(pulled.code(), Code::Corrupt.exit_code(), "{pulled}");
            assert!(pulled.stderr.contains(object), "{object} is named: {pulled}");
            let written = std::fs::read_dir(&folder).unwrap();
            let mut written = written.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            assert!(!written.any(|name| name == object || name.ends_with(".part")));
            assert!(origin.flip_byte(path, offset));
        }
    }
    for (path, offset) in [("config.json", 3), ("_CKPT.json", 500), ("model.safetensors.index.json", 9)] {
        let path = format!("bucket/run/step-1/{path}");
        assert!(origin.flip_byte(&path, offset), "{path}");
        let error = load(&cluster, 1, &url(1)).expect_err("wrong bytes are never loaded");
        assert_eq!(error.code(), Code::Corrupt, "{path}: {error}");
        assert!(error.message().contains(path.rsplit('/').next().unwrap()), "{path}: {error}");
        assert!(origin.flip_byte(&path, offset));
    }
    load_and_check(&cluster, 1, &url(1), &model);
}

#[test]
fn two_nodes_commit_one_checkpoint() {
    let (origin, cluster) = start(0, 3);
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let saving = Saving::plan(&mut client(&cluster, 0), (RUN, 1), (&model, 2), options()).unwrap();
    let _slabs: Vec<SlabClient> =
        (0..2).map(|rank| saving.stage(&mut client(&cluster, rank as usize), rank).unwrap()).collect();
    for node in 0..2 {
        let status = client(&cluster, node).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
        assert_eq!(status.state(), v1::SaveState::Committed, "node {node}: {status:?}");
        assert_eq!(status.ranks.len(), 1, "node {node}: {status:?}");
    }
    load_and_check(&cluster, 2, &url(1), &model);
    wait_until("the records of ranks are removed", || {
        !origin.paths("bucket/run/step-1/").iter().any(|path| path.contains("_RANK-"))
    });
    // A node that has a part of it loads the rest from the origin.
    load_and_check(&cluster, 0, &url(1), &model);
}

#[test]
fn a_second_node_holds_a_copy_until_the_commit() {
    let (origin, cluster) = start(2, 1);
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/run/step-1/*"));
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let (saving, _slabs) = stage(&cluster, 1, &model, v1::SaveOptions { peer_copies: 1, ..options() });
    let held = |status: &v1::SaveStatus| status.ranks.iter().all(|rank| rank.peer_durable) && !status.ranks.is_empty();
    let status = client(&cluster, 0).follow(saving.attempt(), SOON, held).unwrap();
    assert!(held(&status) && status.state() < v1::SaveState::Committed, "{status:?}");
    assert!(status.bytes_peer >= model.tensor_bytes(), "{status:?}");
    origin.clear_faults();
    let status = client(&cluster, 0).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
    assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");

    // Workers of one machine are one node: more copies than nodes is told, and no reason to fail.
    let status = save(&cluster, 2, &model, v1::SaveOptions { peer_copies: 2, ..options() });
    assert!(status.notes.iter().any(|note| note.contains("not peer-durable")), "{:?}", status.notes);
}

/// The same model with other bytes in one tensor.
fn changed(model: &Model, tensor: usize, seed: u64) -> Model {
    let mut changed = model.clone();
    let content = &mut changed.tensors[tensor].content;
    *content = Content::generated(seed, content.len_bytes());
    changed
}

#[test]
fn deltas_send_what_changed_and_outlive_their_parents() {
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    // A trainer that goes and comes again has its memory for a while: room for all of them.
    let spec = ClusterSpec::new(0, 2).origin(&origin).checkpoints().budgets("128MiB", "1GiB", "2GiB");
    let cluster = Cluster::start(spec.loader_args(&["--checkpoint-part-bytes", "5MiB", "--checkpoint-memory", "1GiB"]));
    let specs = (0..8).map(|i| longshore_testkit::modelgen::TensorSpec::new(format!("layer.{i}"), "U8", [16 * MIB]));
    let first = ModelSpec::of(1, specs.collect()).build();
    save(&cluster, 1, &first, options());
    let second = changed(&first, 3, 77);
    origin.reset_counters();
    let delta = v1::SaveOptions { delta: true, ..options() };
    let status = save(&cluster, 2, &second, delta.clone());
    // A tensor does not begin where a chunk does: it lies in two.
    assert!(status.bytes_unchanged >= 5 * 16 * MIB, "{status:?}");
    let received = origin.counters().received_bytes;
    assert!(received <= 3 * 16 * MIB + MIB, "{received} bytes were sent");
    let third = changed(&second, 7, 78);
    save(&cluster, 3, &third, delta);
    for (step, model) in [(1, &first), (2, &second), (3, &third)] {
        load_and_check(&cluster, 1, &url(step), model);
        let embedded = Embedded::with(&origin);
        let (pulled, folder) = pull(&embedded, step);
        assert!(pulled.success(), "{pulled}");
        let index = folder.join("model.safetensors.index.json");
        // A delta has none.
        assert_eq!(index.exists(), step == 1);
        if let Ok(text) = std::fs::read_to_string(&index) {
            let shards = serde_json::from_str::<serde_json::Value>(&text).unwrap()["weight_map"].clone();
            let shards = shards.as_object().unwrap().values();
            assert!(
                shards.clone().count() > 0 && shards.clone().all(|name| folder.join(name.as_str().unwrap()).exists())
            );
            std::fs::remove_file(&index).unwrap();
        }
        embedded.exec_and_check(folder.to_str().unwrap(), model);
    }
    for step in 1..=3 {
        Client::connect(&cluster.loader_socket(1)).unwrap().unload(&url(step)).unwrap();
    }
    let deleted = client(&cluster, 1).delete(RUN, 1).unwrap();
    assert!(deleted.objects_kept > 0, "{deleted:?}");
    // The manifest may be remembered for a while, and what it speaks of is there: ask again.
    let again = v1::LoadModelRequest { uri: url(1), device: "host".to_owned(), revalidate: true, ..Default::default() };
    let error = Client::connect(&cluster.loader_socket(1)).unwrap().load_with(again).unwrap_err();
    assert!(matches!(error.code(), Code::FailedPrecondition | Code::NotFound), "{error}");
    load_and_check(&cluster, 1, &url(2), &second);
    load_and_check(&cluster, 1, &url(3), &third);
    let listed = client(&cluster, 1).checkpoints(RUN).unwrap();
    let parents: Vec<(u64, Option<u64>)> =
        listed.checkpoints.iter().map(|checkpoint| (checkpoint.step, checkpoint.parent_step)).collect();
    assert_eq!(parents, [(2, Some(1)), (3, Some(2))]);
}

#[test]
fn retention_keeps_as_many_as_told_and_the_sweep_takes_what_is_dead() {
    let (origin, cluster) = start(0, 2);
    let model = |step| ModelSpec::sized(step, 12 * MIB, 5).build();
    for step in 1..=4 {
        save(&cluster, step, &model(step), v1::SaveOptions { keep: 2, ..options() });
    }
    let steps = || -> Vec<u64> {
        let listed = client(&cluster, 1).checkpoints(RUN).unwrap();
        listed.checkpoints.iter().map(|checkpoint| checkpoint.step).collect()
    };
    wait_until("old ones are deleted", || steps() == [3, 4]);
    wait_until("and their data", || origin.paths("bucket/run/step-1/").is_empty());
    wait_until("and their data", || origin.paths("bucket/run/step-2/").is_empty());
    // One that is given up.
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/run/step-5/_CKPT.json").skip(1));
    let (saving, _slabs) = stage(&cluster, 5, &model(5), options());
    wait_until("objects are there", || {
        origin.paths("bucket/run/step-5/").iter().any(|path| path.ends_with(".safetensors"))
    });
    let status = client(&cluster, 0).cancel(saving.attempt()).unwrap();
    println!("{status:?}");
    let ended = client(&cluster, 0).wait(saving.attempt(), v1::SaveState::Committed, Duration::from_secs(5));
    origin.clear_faults();
    if ended.as_ref().is_ok_and(|status| status.state() == v1::SaveState::Cancelled) {
        assert_eq!(load(&cluster, 1, &url(5)).unwrap_err().code(), Code::FailedPrecondition);
        let swept = client(&cluster, 1).sweep(RUN, Duration::from_millis(1)).unwrap();
        assert!(swept.objects_deleted > 0, "{swept:?}");
        assert_eq!(origin.paths("bucket/run/step-5/"), Vec::<String>::new());
    }
    for step in [3, 4] {
        load_and_check(&cluster, 1, &url(step), &model(step));
    }
}

/// Bytes of the files below a folder.
fn bytes_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[test]
fn memory_stays_within_its_budget_while_slabs_are_exhausted() {
    const SLABS: u64 = 256 * MIB;
    const ARENA: u64 = 512 * MIB;
    const SLACK: u64 = 256 * MIB;
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    let spec = ClusterSpec::new(0, 1).origin(&origin).checkpoints().budgets("128MiB", "1GiB", "512MiB").loader_args(&[
        "--checkpoint-memory",
        "256MiB",
        "--checkpoint-part-bytes",
        "8MiB",
    ]);
    let cluster = Cluster::start(spec);
    let model = ModelSpec::sized(1, 700 * MIB, 10).build();
    let most = std::sync::atomic::AtomicU64::new(0);
    let is_done = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Relaxed) {
                most.fetch_max(bytes_below(&cluster.slab_folder(0)), Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let refuse = v1::SaveOptions { refuse_when_full: true, ..options() };
            let mut holder = client(&cluster, 0);
            // One takes all slabs that it can and keeps them.
            let saving = Saving::plan(&mut holder, (RUN, 1), (&model, 1), refuse).unwrap();
            holder.start(&saving.plan, 0, saving.inline(0)).unwrap();
            let mut slabs = holder.slabs().unwrap();
            let keys = saving.slabs(0, slabs.slab_bytes);
            let taken = keys.iter().take_while(|key| slabs.acquire((*key).clone(), Duration::ZERO).is_ok()).count();
            assert!(taken >= 1 && (taken as u64) * slabs.slab_bytes <= SLABS, "{taken} slabs");
            let error = slabs.acquire(keys[taken].clone(), Duration::from_secs(5)).unwrap_err();
            assert_eq!(error.code(), Code::Exhausted, "{error}");
            holder.cancel(saving.attempt()).unwrap();
            drop(slabs);
            // Another one goes through the same few slabs again and again.
            let status = save(&cluster, 2, &model, options());
            assert_eq!(status.bytes_durable, status.bytes_total);
        }));
        is_done.store(true, Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let memory = cluster.loaders()[0].memory();
    let most = most.load(Relaxed);
    println!("{memory:?}, {most} bytes of slabs at most");
    assert!(memory.peak_bytes < ARENA + SLACK, "{memory:?}");
    assert!(most > 0 && most <= SLABS + MIB, "{most} bytes of slabs");
    // It is larger than what this loader may hold: read back piece by piece.
    let verified = client(&cluster, 0).verify(RUN, Some(2)).unwrap();
    assert!(verified.problem_count == 0 && verified.bytes_done >= model.tensor_bytes(), "{verified:?}");
}

/// A folder as a training script leaves it. The index is made anew when it is saved: it names objects.
fn folder_of(model: &mut Model, at: &Path) -> PathBuf {
    let folder = at.join(format!("out-{}", model.size_bytes()));
    model.write_to(&folder).unwrap();
    model.files.retain(|(name, _)| name != longshore_testkit::modelgen::INDEX_NAME);
    folder
}

#[test]
fn the_command_line_with_a_daemon_and_without() {
    let (origin, cluster) = start(0, 1);
    let mut first = ModelSpec::sized(1, 24 * MIB, 6).shards(2).build();
    let mut second = ModelSpec::sized(2, 23 * MIB, 6).build();
    let place = tempfile::tempdir().unwrap();
    let (first_folder, second_folder) = (folder_of(&mut first, place.path()), folder_of(&mut second, place.path()));
    let run = |args: &[&str]| {
        let output = cluster.cli(0).args(args).args(["--json"]).run();
        assert!(output.success(), "{output}");
        output.json()
    };
    let saved = run(&["save", first_folder.to_str().unwrap(), RUN, "--step", "1"]);
    assert_eq!(saved["state"], "committed", "{saved}");
    let alone = Embedded::with(&origin).env("LONGSHORE_CHECKPOINT_DIR", place.path().join("spool").to_str().unwrap());
    let output = alone.run(&["save", second_folder.to_str().unwrap(), RUN, "--json"]);
    assert!(output.success(), "{output}");
    assert_eq!(output.json()["step"], 2, "{output}");
    for (step, model) in [(1, &first), (2, &second)] {
        load_and_check(&cluster, 0, &url(step), model);
    }
    let listed = run(&["checkpoints", RUN]);
    let alone_listed = alone.run(&["checkpoints", RUN, "--json"]).json();
    assert_eq!(listed["checkpoints"], alone_listed["checkpoints"]);
    assert_eq!((listed["latest"].as_u64(), listed["checkpoints"].as_array().unwrap().len()), (Some(2), 2), "{listed}");
    let output = alone.run(&["checkpoints", RUN, "--verify", "--json"]);
    assert!(output.success(), "{output}");
    // Without --yes nothing is deleted.
    let output = alone.run(&["checkpoints", RUN, "--delete", "1"]);
    assert!(!output.success() && origin.content("bucket/run/step-1/_CKPT.json").is_some(), "{output}");
    let output = alone.run(&["checkpoints", RUN, "--delete", "1", "--yes", "--json"]);
    assert!(output.success(), "{output}");
    assert_eq!(run(&["checkpoints", RUN])["checkpoints"].as_array().unwrap().len(), 1);
    assert_eq!(origin.paths("bucket/run/step-1/"), Vec::<String>::new());
}

#[test]
fn a_command_that_is_killed_is_gone_on_with_by_the_next_one() {
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    let mut model = ModelSpec::sized(1, 24 * MIB, 6).build();
    let place = tempfile::tempdir().unwrap();
    let folder = folder_of(&mut model, place.path());
    let alone = Embedded::with(&origin).env("LONGSHORE_CHECKPOINT_DIR", place.path().join("spool").to_str().unwrap());
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/run/step-1/*"));
    let mut saving = alone.cli(&["save", folder.to_str().unwrap(), RUN, "--step", "1"]).spawn();
    wait_until("the bytes are in the spool", || bytes_below(&place.path().join("spool")) > model.tensor_bytes());
    // It asks again after a pause: by then all is on the disk.
    let asked = origin.counters().errors;
    wait_until("the origin was asked for some time", || origin.counters().errors > asked + 8);
    saving.kill();
    saving.wait();
    std::fs::remove_dir_all(&folder).unwrap();
    origin.clear_faults();
    let output = alone.run(&["saves", "--wait", "--json"]);
    assert!(output.success(), "{output}");
    let output = alone.run(&["checkpoints", RUN, "--verify", "--json"]);
    assert!(output.success(), "{output}");
    alone.exec_and_check(&url(1), &model);
}
