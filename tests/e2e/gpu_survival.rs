//! Who may die: daemons, copiers and clients. Models that are loaded stay, readers go on reading, and nothing is moved twice.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::fake_cuda::Role;
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{FakeCudaOptions, FakeOrigin};
use longshore_tests::{Attached, Loaded};

use crate::common::{check, wait_until};
use crate::gpu::{MIB, Node, NodeSpec};

/// From the start of a process to a loader that answers for what its holder keeps, which does not wait for memory to be
/// locked: the fastest of a few, in a debug build beside other tests.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(1);

/// How often the daemon is killed; `LONGSHORE_TEST_KILLS` makes it more.
fn kills() -> u32 {
    std::env::var("LONGSHORE_TEST_KILLS").map_or(4, |text| text.parse().unwrap())
}

fn model(seed: u64, mib: u64) -> Model {
    ModelSpec::sized(seed, mib * MIB, 4).side_file("notes.txt", b"read me".to_vec()).build()
}

/// Copies to cards that were asked for so far.
fn copies(node: &Node) -> u64 {
    let calls = node.cuda.calls(Role::All);
    ["cuMemcpyHtoDAsync_v2", "cuMemcpy2DAsync_v2"].map(|name| calls.get(name).copied().unwrap_or(0)).iter().sum()
}

/// Waits until the loader lists so many models; how long that took.
fn wait_for_models(node: &Node, count: usize) -> Duration {
    let began = Instant::now();
    wait_until("a loader that has its models again", || {
        let client = longshore_tests::Client::connect(&node.socket());
        client.is_ok_and(|mut client| client.models().is_ok_and(|models| models.len() == count))
    });
    began.elapsed()
}

#[test]
fn a_killed_daemon_is_replaced_under_clients_that_go_on_reading() {
    let origin = FakeOrigin::start();
    let (big, small) = (model(1, 60), model(2, 10));
    big.put_into(&origin, "bucket/big");
    small.put_into(&origin, "bucket/small");
    let cluster = Cluster::start(ClusterSpec::new(1, 0).origin(&origin));
    let mut node = Node::start(NodeSpec::new().workers(&cluster).envs(origin.client_env()));
    let (loaded, lease) = node.load_and_check("s3://bucket/big", "cuda:0", &big);
    let (on_host, host_lease) = node.load_and_check("s3://bucket/small", "host", &small);
    let moved = |node: &Node| (copies(node), cluster.worker_metric("longshore_worker_served_bytes_total"));
    let moved_before = moved(&node);
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let took = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !over.load(SeqCst) {
                lease.check(&big).unwrap();
                host_lease.check(&small).unwrap();
                rounds.fetch_add(1, SeqCst);
            }
        });
        let mut took = Vec::new();
        for _ in 0..kills() {
            node.loader.kill();
            // Nobody needs a daemon to attach to what is there.
            check(&loaded, &big);
            let began = Instant::now();
            node.loader.spawn();
            wait_for_models(&node, 2);
            took.push(began.elapsed());
            let holder = node.status().holder.unwrap();
            assert!(holder.process && holder.models_adopted == 2, "{holder:?}");
            let (again, _) = node.load_and_check("s3://bucket/big", "cuda:0", &big);
            assert!(again.model.reattached && again.model.model_id == loaded.model.model_id);
        }
        let before = rounds.load(SeqCst);
        wait_until("a reader that goes on", || rounds.load(SeqCst) > before || reader.is_finished());
        over.store(true, SeqCst);
        took
    });
    eprintln!("taken over after {took:?}");
    assert_eq!(moved(&node), moved_before, "copies to cards and bytes of chunks");
    assert!(took.iter().min().is_some_and(|least| *least <= TAKEN_OVER_WITHIN), "{took:?}");
    check(&on_host, &small);
    // What was taken over is budgeted, and can be given up like any other model.
    let used = node.cuda.used_bytes(0);
    assert_eq!(node.card(0).used_bytes, used);
    drop(lease);
    node.client().unload("s3://bucket/big").unwrap();
    node.cuda.wait_used_bytes(0, 0);
}

#[test]
fn memory_of_a_load_that_its_daemon_did_not_survive_is_free_again() {
    let origin = FakeOrigin::start();
    let (kept, lost) = (model(1, 10), model(2, 100));
    kept.put_into(&origin, "bucket/kept");
    lost.put_into(&origin, "bucket/lost");
    let cards = FakeCudaOptions { devices: 2, memory_mib: 256, h2d_gbps: 0.05, ..FakeCudaOptions::default() };
    let mut node = Node::start(NodeSpec::new().cards(cards).envs(origin.client_env()));
    node.load_and_check("s3://bucket/kept", "cuda:0", &kept);
    let (used, socket) = (node.cuda.used_bytes(0), node.socket());
    let copies_before = copies(&node);
    let load = std::thread::spawn(move || {
        let request = longshore_proto::v1::LoadModelRequest {
            uri: "s3://bucket/lost".to_owned(),
            device: "cuda:0".to_owned(),
            ..Default::default()
        };
        longshore_tests::Client::connect(&socket).unwrap().load_with(request)
    });
    wait_until("a load that is under way", || copies(&node) > copies_before + 1);
    assert!(node.cuda.used_bytes(0) > used);
    node.loader.kill();
    assert!(load.join().unwrap().is_err());
    node.cuda.wait_used_bytes(0, used);
    node.loader.start_again();
    wait_for_models(&node, 1);
    node.load_and_check("s3://bucket/lost", "cuda:0", &lost);
}

#[test]
fn an_upgrade_takes_over_what_is_there() {
    let origin = FakeOrigin::start();
    let model = model(1, 40);
    model.put_into(&origin, "bucket/m");
    let mut node = Node::start(NodeSpec::new().envs(origin.client_env()));
    let (loaded, lease) = node.load_and_check("s3://bucket/m", "cuda:1", &model);
    let copies_before = copies(&node);
    let ended = node.loader.terminate(Duration::from_secs(30)).expect("a loader that ends when asked");
    assert!(ended.success(), "{ended}");
    wait_until("the end of the copiers, which go with their loader", || node.copiers().is_empty());
    lease.check(&model).unwrap();
    node.loader.start_again();
    wait_for_models(&node, 1);
    let (again, _) = node.load_and_check("s3://bucket/m", "cuda:1", &model);
    assert!(again.model.reattached && again.model.model_id == loaded.model.model_id);
    assert_eq!(copies(&node), copies_before);
}

#[test]
fn models_of_a_loader_without_a_holder_end_with_it() {
    let origin = FakeOrigin::start();
    let model = model(1, 20);
    model.put_into(&origin, "bucket/m");
    let mut node = Node::start(NodeSpec::new().without_holder().envs(origin.client_env()));
    let (_, lease) = node.load_and_check("s3://bucket/m", "cuda:0", &model);
    assert!(!node.status().holder.unwrap().process);
    node.loader.kill();
    lease.check(&model).unwrap();
    drop(lease);
    node.cuda.wait_used_bytes(0, 0);
    node.loader.start_again();
    let (again, _) = node.load_and_check("s3://bucket/m", "cuda:0", &model);
    assert!(!again.model.reattached);
}

#[test]
fn a_dead_client_holds_nothing() {
    let origin = FakeOrigin::start();
    let (first, second) = (model(1, 60), model(2, 60));
    first.put_into(&origin, "bucket/first");
    second.put_into(&origin, "bucket/second");
    let spec = NodeSpec::new().env("LONGSHORE_LOADER_GPU_MEMORY", "100MiB").envs(origin.client_env());
    let node = Node::start(spec);
    let loaded = node.load("s3://bucket/first", "cuda:0").unwrap();
    let mut client = client_process(&loaded, node.cuda.env());
    let leases = || node.client().models().unwrap().iter().map(|model| model.leases).sum::<u32>();
    wait_until("a client that is attached", || leases() == 1);
    assert!(node.load("s3://bucket/second", "cuda:0").is_err(), "the first is in use");
    client.kill().unwrap();
    assert_eq!(client.wait().unwrap().signal(), Some(9));
    let began = Instant::now();
    wait_until("a lease that ends", || leases() == 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    node.load_and_check("s3://bucket/second", "cuda:0", &second);
}

const HOLD: &str = "LONGSHORE_TEST_HOLD";

/// A process that attaches and waits for its end.
fn client_process(loaded: &Loaded, env: Vec<(String, String)>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "gpu_survival::holds_a_lease", "--nocapture"]).envs(env);
    command.env(HOLD, format!("{}\n{}", loaded.model.attach_socket, loaded.model.model_id)).spawn().unwrap()
}

/// Not a test of its own: without the variable it has nothing to do.
#[test]
fn holds_a_lease() {
    let Ok(what) = std::env::var(HOLD) else { return };
    let (socket, id) = what.split_once('\n').unwrap();
    let _attached = Attached::attach(Path::new(socket), id).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn an_error_that_ends_a_context_ends_a_copier_and_nothing_else() {
    let origin = FakeOrigin::start();
    let (before, during, after) = (model(1, 20), model(2, 60), model(3, 20));
    for (name, model) in [("before", &before), ("during", &during), ("after", &after)] {
        model.put_into(&origin, &format!("bucket/{name}"));
    }
    let node = Node::start(NodeSpec::new().envs(origin.client_env()));
    let (_, lease) = node.load_and_check("s3://bucket/before", "cuda:0", &before);
    let (loader, holder) = (node.loader.pid(), node.holder().pid());
    node.cuda.reset_calls();
    node.cuda.arm("copier/cuMemcpyHtoDAsync_v2~2=214");
    node.load_and_check("s3://bucket/during", "cuda:0", &during);
    assert_eq!(node.cuda.fired().len(), 1);
    assert_eq!(node.card(0).restarts, 1, "{:?}", node.card(0));
    assert_eq!(node.card(1).restarts, 0, "the other card had nothing to do with it");
    lease.check(&before).unwrap();
    node.load_and_check("s3://bucket/after", "cuda:0", &after);
    assert_eq!((node.loader.pid(), node.holder().pid()), (loader, holder));
    assert!(node.loader.is_running() && node.holder().is_running());
}

#[test]
fn a_copier_that_is_killed_is_replaced() {
    let origin = FakeOrigin::start();
    let model = model(1, 80);
    model.put_into(&origin, "bucket/m");
    let cards = FakeCudaOptions { devices: 1, memory_mib: 256, h2d_gbps: 0.1, ..FakeCudaOptions::default() };
    let node = Node::start(NodeSpec::new().cards(cards).envs(origin.client_env()));
    let copier = node.copiers().pop().expect("a copier").pid;
    let copies_before = copies(&node);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| node.load_and_check("s3://bucket/m", "cuda:0", &model));
        wait_until("a load that is under way", || copies(&node) > copies_before + 1 || load.is_finished());
        kill(copier);
    });
    assert_eq!(node.card(0).restarts, 1);
    wait_until("the old copier's end", || !PathBuf::from(format!("/proc/{copier}/fd")).exists() || is_zombie(copier));
    node.client().unload("s3://bucket/m").unwrap();
    node.load_and_check("s3://bucket/m", "cuda:0", &model);
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
