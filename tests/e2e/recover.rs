//! Saves whose node is gone for good, finished by another node from the copies that workers hold.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_proto::v1;
use longshore_testkit::cluster::{CliOutput, Cluster, ClusterSpec, http_get};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use longshore_tests::{SaveClient, Saving, SlabClient};
use longshore_types::Code;

use crate::common::{load_and_check, wait_until};

const MIB: u64 = 1 << 20;
const RUN: &str = "s3://bucket/run";
const SOON: Duration = Duration::from_secs(60);

/// So many nodes: a worker and a loader each, on machines of their own as far as anybody can tell.
fn nodes(count: usize) -> (FakeOrigin, Cluster) {
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    // A trainer that goes and comes again has its memory for a while: room for several.
    let args = ["--checkpoint-part-bytes", "5MiB", "--checkpoint-memory", "768MiB"];
    let spec = ClusterSpec::new(count, count).origin(&origin).checkpoints().loader_args(&args);
    let mut cluster = Cluster::start(spec);
    for node in 0..count {
        let id = format!("machine-{node}");
        cluster.worker(node).set_env("LONGSHORE_HOST_ID", &id);
        cluster.worker(node).kill();
        cluster.worker(node).start_again();
    }
    for node in 0..count {
        let id = format!("machine-{node}");
        cluster.loader(node).set_env("LONGSHORE_HOST_ID", &id);
        cluster.loader(node).kill();
        cluster.loader(node).start_again();
    }
    (origin, cluster)
}

fn client(cluster: &Cluster, node: usize) -> SaveClient {
    SaveClient::connect(cluster.loader_socket(node).parent().unwrap()).unwrap()
}

fn options(peer_copies: u32) -> v1::SaveOptions {
    v1::SaveOptions { hf_index: true, peer_copies, ..Default::default() }
}

fn url(step: u64) -> String {
    format!("{RUN}/step-{step}")
}

/// The origin takes nothing of a step.
fn down(origin: &FakeOrigin, step: u64) {
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on(&format!("bucket/run/step-{step}/*")));
}

/// A save whose ranks are on the first nodes, one each; all of them are held when this returns.
fn held(cluster: &Cluster, step: u64, model: &Model, ranks: u32, copies: u32) -> (Saving, Vec<SlabClient>) {
    let saving = Saving::plan(&mut client(cluster, 0), (RUN, step), (model, ranks), options(copies)).unwrap();
    let stage = |rank| saving.stage(&mut client(cluster, rank as usize), rank).unwrap();
    let slabs = (0..ranks).map(stage).collect();
    for node in 0..ranks as usize {
        let is_held = |status: &v1::SaveStatus| status.ranks.iter().all(|rank| rank.peer_durable);
        let status = client(cluster, node).follow(saving.attempt(), SOON, is_held).unwrap();
        assert!(is_held(&status) && status.state() == v1::SaveState::LocalDurable, "{status:?}");
    }
    (saving, slabs)
}

/// The node's processes are killed, and its disk is gone.
fn lose(cluster: &mut Cluster, node: usize) {
    cluster.loader(node).kill();
    cluster.worker(node).kill();
    for folder in [cluster.checkpoint_folder(node), cluster.slab_folder(node), cluster.cache_folder(node)] {
        let _ = std::fs::remove_dir_all(folder);
    }
}

fn recover(cluster: &Cluster, node: usize, step: u64) -> CliOutput {
    cluster.cli(node).args(["checkpoints", RUN, "--recover", &step.to_string(), "--json"]).run()
}

/// What a worker holds of an attempt: the number of its objects, records among them.
fn holds(cluster: &Cluster, worker: usize, attempt: &str) -> usize {
    let (status, page) = http_get(cluster.workers()[worker].data_plane(), &format!("/v1/holds/{attempt}")).unwrap();
    match status {
        404 => 0,
        _ => serde_json::from_str::<serde_json::Value>(&page).unwrap()["objects"].as_array().unwrap().len(),
    }
}

fn verify(cluster: &Cluster, node: usize, step: u64) {
    let verified = client(cluster, node).verify(RUN, Some(step)).unwrap();
    assert_eq!(verified.problem_count, 0, "{verified:?}");
}

#[test]
fn a_save_whose_node_is_gone_is_finished_by_another_one() {
    let (origin, mut cluster) = nodes(2);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let (saving, _slabs) = held(&cluster, 1, &model, 1, 1);
    assert!(holds(&cluster, 1, saving.attempt()) > 1);
    assert_eq!(holds(&cluster, 0, saving.attempt()), 0, "no copy is on the node that saves");
    lose(&mut cluster, 0);

    let output = recover(&cluster, 1, 1);
    assert!(!output.success(), "the origin is down: {output}");
    origin.clear_faults();
    let output = recover(&cluster, 1, 1);
    assert!(output.success(), "{output}");
    let told = output.json();
    assert_eq!(told["attempt"], saving.attempt());
    assert_eq!((&told["recovered_ranks"], &told["own_ranks"]), (&serde_json::json!([0]), &serde_json::json!([])));
    assert_eq!(told["save"]["state"], "committed", "{told}");
    load_and_check(&cluster, 1, &url(1), &model);
    verify(&cluster, 1, 1);
    wait_until("copies are let go", || holds(&cluster, 1, saving.attempt()) == 0);
    let spool = cluster.checkpoint_folder(1);
    wait_until("nothing of the recovery stays beside the attempt", || {
        std::fs::read_dir(spool.join("recovering")).map_or(0, Iterator::count) == 0
    });

    let again = recover(&cluster, 1, 1);
    assert!(again.success() && again.json()["committed_before"] == true, "{again}");
}

#[test]
fn what_nobody_holds_is_told() {
    let (origin, mut cluster) = nodes(2);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 12 * MIB, 4).build();
    let saving = Saving::plan(&mut client(&cluster, 0), (RUN, 1), (&model, 1), options(0)).unwrap();
    let _slabs = saving.stage(&mut client(&cluster, 0), 0).unwrap();
    client(&cluster, 0).wait(saving.attempt(), v1::SaveState::LocalDurable, SOON).unwrap();
    lose(&mut cluster, 0);
    origin.clear_faults();
    let output = recover(&cluster, 1, 1);
    assert_eq!(output.code(), Code::FailedPrecondition.exit_code(), "{output}");
    assert!(output.to_string().contains("no worker holds copies of s3://bucket/run/step-1"), "{output}");
    // A command without a daemon knows no workers.
    let alone = crate::common::Embedded::with(&origin);
    let output = alone.run(&["checkpoints", RUN, "--recover", "1"]);
    assert!(!output.success() && output.to_string().contains("--workers"), "{output}");
}

#[test]
fn a_rank_of_another_node_joins_those_of_this_one() {
    let (origin, mut cluster) = nodes(3);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 60 * MIB, 10).build();
    let (saving, _slabs) = held(&cluster, 1, &model, 2, 1);
    lose(&mut cluster, 0);
    origin.clear_faults();
    let output = recover(&cluster, 1, 1);
    // Copies are spread over both other machines, and both are there.
    assert!(output.success(), "{output}");
    let told = output.json();
    assert_eq!((&told["recovered_ranks"], &told["own_ranks"]), (&serde_json::json!([0]), &serde_json::json!([1])));
    load_and_check(&cluster, 2, &url(1), &model);
    verify(&cluster, 2, 1);
    for worker in [1, 2] {
        wait_until("copies are let go", || holds(&cluster, worker, saving.attempt()) == 0);
    }
    wait_until("the records of ranks are removed", || {
        !origin.paths("bucket/run/step-1/").iter().any(|path| path.contains("_RANK-"))
    });
}

/// The files of what a worker holds.
fn held_files(cluster: &Cluster, worker: usize, attempt: &str) -> Vec<PathBuf> {
    let folder = cluster.cache_folder(worker).join("holds").join(attempt);
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn flip(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
}

#[test]
fn of_two_copies_the_good_one_is_taken() {
    let (origin, mut cluster) = nodes(3);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let (saving, _slabs) = held(&cluster, 1, &model, 1, 2);
    let files = [1, 2].map(|worker| held_files(&cluster, worker, saving.attempt()));
    assert!(!files[0].is_empty() && files[0].len() == files[1].len(), "each of two machines has all: {files:?}");
    assert!(held_files(&cluster, 0, saving.attempt()).is_empty());
    // Half of the chunks are bad at one, the other half at the other.
    let mut names: Vec<_> = files[0].iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    names.sort();
    for (at, name) in names.iter().enumerate() {
        flip(&cluster.cache_folder(1 + at % 2).join("holds").join(saving.attempt()).join(name));
    }
    lose(&mut cluster, 0);
    origin.clear_faults();
    let output = recover(&cluster, 1, 1);
    assert!(output.success(), "{output}");
    load_and_check(&cluster, 2, &url(1), &model);
    verify(&cluster, 2, 1);
}

#[test]
fn a_chunk_without_a_good_copy_is_named_with_those_who_were_asked() {
    let (origin, mut cluster) = nodes(2);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let (saving, _slabs) = held(&cluster, 1, &model, 1, 1);
    let files = held_files(&cluster, 1, saving.attempt());
    let largest = files.iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    flip(largest);
    lose(&mut cluster, 0);
    origin.clear_faults();
    let output = recover(&cluster, 1, 1);
    assert_eq!(output.code(), Code::Corrupt.exit_code(), "{output}");
    let address = cluster.workers()[1].data_plane().to_owned();
    assert!(output.to_string().contains(".safetensors") && output.to_string().contains(&address), "{output}");
    assert!(origin.content("bucket/run/step-1/_CKPT.json").is_none());
    assert_eq!(client(&cluster, 1).saves().unwrap().len(), 0, "nothing of it is here");
}

#[test]
fn the_node_that_saved_comes_back_while_another_one_finishes() {
    let (origin, mut cluster) = nodes(2);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    let (saving, _slabs) = held(&cluster, 1, &model, 1, 1);
    cluster.loader(0).kill();
    // The intent can be written, objects cannot: both nodes wait with all of the bytes.
    origin.clear_faults();
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/run/step-1/*.safetensors"));
    let running = cluster.cli(1).args(["checkpoints", RUN, "--recover", "1", "--json"]).spawn();
    wait_until("the other node has the save", || {
        client(&cluster, 1).saves().unwrap().iter().any(|save| save.state() == v1::SaveState::LocalDurable)
    });
    cluster.loader(0).start_again();
    let waits = |status: &v1::SaveStatus| !status.waiting_for.is_empty();
    for node in 0..2 {
        let status = client(&cluster, node).follow(saving.attempt(), SOON, waits).unwrap();
        assert!(waits(&status), "node {node}: {status:?}");
    }
    origin.clear_faults();
    for node in 0..2 {
        let status = client(&cluster, node).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
        assert_eq!(status.state(), v1::SaveState::Committed, "node {node}: {status:?}");
    }
    let output = running.wait();
    assert!(output.success(), "{output}");
    for node in 0..2 {
        load_and_check(&cluster, node, &url(1), &model);
        verify(&cluster, node, 1);
    }
}

#[test]
fn who_saved_the_step_anew_is_not_overruled() {
    let (origin, mut cluster) = nodes(2);
    down(&origin, 1);
    let model = ModelSpec::sized(1, 12 * MIB, 4).build();
    let (first, _slabs) = held(&cluster, 1, &model, 1, 1);
    lose(&mut cluster, 0);
    origin.clear_faults();
    let newer = ModelSpec::sized(2, 12 * MIB, 4).build();
    let saving = Saving::plan(&mut client(&cluster, 1), (RUN, 1), (&newer, 1), options(0)).unwrap();
    // It has the intent, and waits for its bytes.
    client(&cluster, 1).start(&saving.plan, 0, saving.inline(0)).unwrap();
    wait_until("it has the step", || origin.content("bucket/run/step-1/_INTENT.json").is_some());
    let attempt_of =
        |path: &str| origin.content(path).map(|content| String::from_utf8_lossy(&content.to_vec()).into_owned());
    assert!(attempt_of("bucket/run/step-1/_INTENT.json").unwrap().contains(saving.attempt()));
    let mut slabs = client(&cluster, 1).slabs().unwrap();
    saving.fill(&mut slabs, 0).unwrap();
    let status = client(&cluster, 1).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
    assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
    let output = recover(&cluster, 1, 1);
    assert_eq!(output.code(), Code::FailedPrecondition.exit_code(), "{output}");
    assert!(output.to_string().contains("fenced") && output.to_string().contains(saving.attempt()), "{output}");
    load_and_check(&cluster, 1, &url(1), &newer);
    assert!(holds(&cluster, 1, first.attempt()) > 0, "copies of what lost stay until they are too old");
}

#[test]
fn a_kill_while_a_save_is_recovered_leaves_it_whole_or_not_there() {
    let (origin, mut cluster) = nodes(2);
    for (step, point) in [(1, "recovery_synced"), (2, "recovery_renamed")] {
        down(&origin, step);
        let model = ModelSpec::sized(step, 24 * MIB, 6).build();
        let (saving, slabs) = held(&cluster, step, &model, 1, 1);
        drop(slabs);
        cluster.loader(0).kill();
        std::fs::remove_dir_all(cluster.checkpoint_folder(0)).unwrap();
        origin.clear_faults();
        assert!(cluster.loader(1).start_again_to_die(point));
        let output = recover(&cluster, 1, step);
        assert!(!output.success(), "{point}: {output}");
        cluster.loader(1).wait_killed(SOON);
        assert!(origin.content(&format!("bucket/run/step-{step}/_CKPT.json")).is_none());
        cluster.loader(1).start_again_to_live();
        let is_there = client(&cluster, 1).saves().unwrap().iter().any(|save| save.attempt == saving.attempt());
        assert_eq!(is_there, point == "recovery_renamed");
        if is_there {
            let status = client(&cluster, 1).wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
            assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
        }
        let output = recover(&cluster, 1, step);
        assert!(output.success(), "{point}: {output}");
        assert_eq!(output.json()["attempt"], saving.attempt(), "{output}");
        load_and_check(&cluster, 1, &url(step), &model);
        verify(&cluster, 1, step);
        cluster.loader(0).start_again();
    }
    // Ranks of two nodes: files are moved to those of the rank that is there, and no record speaks of them yet.
    down(&origin, 3);
    let model = ModelSpec::sized(3, 48 * MIB, 8).build();
    let (saving, slabs) = held(&cluster, 3, &model, 2, 1);
    drop(slabs);
    lose(&mut cluster, 0);
    assert!(cluster.loader(1).start_again_to_die("recovery_moved"));
    origin.clear_faults();
    let output = recover(&cluster, 1, 3);
    assert!(!output.success(), "{output}");
    cluster.loader(1).wait_killed(SOON);
    cluster.loader(1).start_again_to_live();
    let output = recover(&cluster, 1, 3);
    assert!(output.success(), "{output}");
    assert_eq!(output.json()["attempt"], saving.attempt(), "{output}");
    load_and_check(&cluster, 1, &url(3), &model);
    verify(&cluster, 1, 3);
}
