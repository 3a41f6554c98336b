//! Every call to the driver fails in turn, in each process: a load then ends with an error that says so or is repeated with
//! success, in bounded time; nothing is leaked; the next load works.
//!
//! What a load calls is read from a load without faults, so that the matrix follows the code. Of calls that are made often
//! the first, the second and the last are taken.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use longshore_testkit::fake_cuda::Role;
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{FakeCudaOptions, FakeOrigin};
use longshore_types::{Code, Error};

use crate::common::{check, wait_until};
use crate::gpu::{MIB, Node, NodeSpec};

/// The longest that a load may take to end, one way or another, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Out of memory, and a code that no header has.
const CODES: [u32; 2] = [2, 9999];
/// An illegal address: the context is of no use any more.
const STICKY: u32 = 700;
/// Calls that give something back. What the driver does not take back stays with the process until its end.
const RELEASES: [&str; 5] =
    ["cuMemRelease", "cuMemUnmap", "cuMemAddressFree", "cuStreamDestroy_v2", "cuEventDestroy_v2"];
/// A loader starts no more copiers than this in a minute, so after as many it is started again.
const RESTARTS: u64 = 2;

/// A node, a model that stays on the card, and one that is loaded again and again.
struct Matrix {
    // The lease goes before the node, which looks whether all memory is free when it goes.
    kept_lease: longshore_tests::Attached,
    kept: Model,
    node: Node,
    model: Model,
    used_bytes: u64,
    runs: u32,
    refused: u32,
    fired: usize,
    _origin: FakeOrigin,
}

const MODEL_MIB: u64 = 36;
const URI: &str = "s3://bucket/again";

impl Matrix {
    fn start() -> Matrix {
        let origin = FakeOrigin::start();
        let kept = ModelSpec::sized(1, 4 * MIB, 2).build();
        let model = ModelSpec::sized(2, MODEL_MIB * MIB, 3).side_file("notes.txt", b"read me".to_vec()).build();
        kept.put_into(&origin, "bucket/kept");
        model.put_into(&origin, "bucket/again");
        let cards = FakeCudaOptions { devices: 1, memory_mib: 512, ..FakeCudaOptions::default() };
        let node = Node::start(NodeSpec::new().cards(cards).envs(origin.client_env()));
        let (_, kept_lease) = node.load_and_check("s3://bucket/kept", "cuda:0", &kept);
        let used_bytes = node.cuda.used_bytes(0);
        Matrix { node, kept, kept_lease, model, used_bytes, runs: 0, refused: 0, fired: 0, _origin: origin }
    }

    /// The calls of a load and of what frees it again: role, name, which.
    fn calls(&self, roles: &[Role]) -> Vec<(Role, &'static str, u64)> {
        self.load_and_free().unwrap();
        self.node.cuda.reset_calls();
        self.load_and_free().unwrap();
        let mut calls = Vec::new();
        for &role in roles {
            for (name, count) in self.node.cuda.calls(role) {
                let which = BTreeSet::from([1, 2.min(count), count]);
                calls.extend(which.into_iter().map(|nth| (role, name, nth)));
            }
        }
        calls
    }

    fn load_and_free(&self) -> Result<(), Error> {
        let began = Instant::now();
        let loaded = self.node.load(URI, "cuda:0");
        assert!(began.elapsed() < PATIENCE, "a load took {:?}", began.elapsed());
        loaded.map(|loaded| {
            check(&loaded, &self.model);
            self.node.client().unload(URI).unwrap();
        })
    }

    /// One load with a fault, and one without.
    fn run(&mut self, fault: &str) {
        self.node.cuda.reset_calls();
        self.node.cuda.arm(fault);
        if let Err(error) = self.load_and_free() {
            self.refused += 1;
            let expected = [Code::Exhausted, Code::Unavailable, Code::Internal, Code::Unsupported];
            assert!(expected.contains(&error.code()), "{fault}: {}: {error}", error.code());
            assert!(!error.to_string().is_empty(), "{fault}");
        }
        self.fired += self.node.cuda.fired().len();
        self.node.cuda.disarm();
        if let Err(error) = self.load_and_free() {
            self.node.fail(&format!("the load after {fault}: {error}"));
        }
        self.settle(fault);
        self.runs += 1;
    }

    /// Nothing is left of what was loaded, and what should stay is there.
    fn settle(&mut self, fault: &str) {
        let is_release = RELEASES.iter().any(|name| fault.contains(name));
        if is_release && fault.starts_with("holder") {
            // What it could not give back is with the holder for good; it is no more than what was to be given back.
            let lost = self.node.cuda.used_bytes(0) - self.used_bytes;
            assert!(lost <= MODEL_MIB * MIB + (2 << 20), "{lost} bytes are lost after {fault}");
            self.used_bytes += lost;
        }
        if is_release || self.node.card(0).restarts >= RESTARTS {
            self.node.loader.kill();
            self.node.loader.start_again();
            wait_until("a loader that has its model again", || self.node.status().models.len() == 1);
        }
        let free = || self.node.cuda.used_bytes(0) == self.used_bytes;
        wait_until(&format!("memory that is free again after {fault}"), free);
        let copiers = || self.node.copiers();
        let clean = || copiers().iter().all(|usage| (usage.handles, usage.mappings, usage.reservations) == (0, 0, 0));
        wait_until(&format!("a copier that has nothing mapped after {fault}: {:?}", copiers()), clean);
        self.kept_lease.check(&self.kept).unwrap();
    }

    fn over(self, least_runs: u32) {
        eprintln!("{} faults, {} happened, {} loads were refused", self.runs, self.fired, self.refused);
        // A load may do with fewer calls than the one that was counted: copies that come together are one.
        assert!(self.fired * 10 >= self.runs as usize * 9 && self.runs >= least_runs);
        assert!(self.node.loader.is_running() && self.node.holder().is_running());
    }
}

#[test]
fn every_call_of_a_load_fails_in_the_holder() {
    let mut matrix = Matrix::start();
    for (role, name, nth) in matrix.calls(&[Role::Holder]) {
        for code in CODES {
            matrix.run(&format!("{}/{name}@{nth}={code}", role.name()));
        }
    }
    matrix.over(6);
}

#[test]
fn every_call_of_a_load_fails_in_the_copier() {
    let mut matrix = Matrix::start();
    for (role, name, nth) in matrix.calls(&[Role::Copier, Role::Loader]) {
        for code in CODES {
            matrix.run(&format!("{}/{name}@{nth}={code}", role.name()));
        }
    }
    matrix.over(20);
}

#[test]
fn every_call_of_a_load_ends_the_context_of_the_copier() {
    let mut matrix = Matrix::start();
    for (role, name, nth) in matrix.calls(&[Role::Copier]) {
        matrix.run(&format!("{}/{name}~{nth}={STICKY}", role.name()));
    }
    matrix.over(10);
}

#[test]
fn a_card_without_memory_is_told_from_one_that_fails() {
    let mut matrix = Matrix::start();
    let refused = |matrix: &Matrix, code: u32| {
        matrix.node.cuda.reset_calls();
        // However often it is tried.
        let faults: Vec<String> = (1..=30).map(|nth| format!("holder/cuMemCreate@{nth}={code}")).collect();
        matrix.node.cuda.arm(&faults.join(","));
        let error = matrix.load_and_free().unwrap_err();
        matrix.node.cuda.disarm();
        error
    };
    let error = refused(&matrix, 2);
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    let error = refused(&matrix, 9999);
    assert!(error.code() != Code::Exhausted && error.to_string().contains("9999"), "{error}");
    assert!(error.to_string().contains("cuMemCreate"), "{error}");
    matrix.load_and_free().unwrap();
    matrix.settle("what the holder said");
}

/// Faults while a loader and its copiers start: it says which card it does not use, or ends and says why; it does not hang.
#[test]
fn every_call_of_a_start_fails() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::small(1).build();
    model.put_into(&origin, "bucket/m");
    let cards = FakeCudaOptions { devices: 1, memory_mib: 128, ..FakeCudaOptions::default() };
    let spec = NodeSpec::new().cards(cards).env("LONGSHORE_LOADER_PINNED_MEMORY", "96MiB");
    let mut node = Node::start(spec.envs(origin.client_env()));
    stop(&mut node);
    node.cuda.reset_calls();
    node.loader.start_again();
    let calls = [Role::Loader, Role::Copier].map(|role| (role, node.cuda.calls(role)));
    let (mut runs, mut fired) = (0, 0);
    for (role, names) in calls {
        for name in names.into_keys() {
            stop(&mut node);
            node.cuda.reset_calls();
            node.cuda.arm(&format!("{}/{name}@1=9999", role.name()));
            let began = Instant::now();
            node.loader.spawn();
            let ended = || node.loader.exit_status().is_some();
            wait_until("a start that ends well or badly", || ended() || node.loader.is_ready());
            assert!(began.elapsed() < PATIENCE, "{name}: {:?}", began.elapsed());
            if !ended() {
                // It goes on without what failed, or has tried again.
                match node.load("s3://bucket/m", "cuda:0") {
                    Ok(loaded) => drop(check(&loaded, &model)),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
            fired += node.cuda.fired().len();
            node.cuda.disarm();
            runs += 1;
        }
    }
    node.loader.kill();
    node.loader.start_again();
    node.load_and_check("s3://bucket/m", "cuda:0", &model);
    assert!(runs >= 8 && fired == runs, "{fired} of {runs} calls failed");
}

/// Ends the loader; its copiers give back what they have when they see that.
fn stop(node: &mut Node) {
    node.loader.kill();
    wait_until("the end of the copiers", || node.copiers().is_empty());
}
