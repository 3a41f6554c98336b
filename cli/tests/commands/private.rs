//! `exec`, and the private loader that it and the Python client start.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use serde_json::Value;

use crate::support::{Bench, eventually, is_empty, json_of, stderr};

#[test]
fn exec_becomes_the_program_and_the_loader_ends_with_it() {
    let bench = Bench::new();
    // The program sees the model, and asks the loader it was given about its own lease.
    let script = r#"echo "$LONGSHORE_MODEL_URI $LONGSHORE_DEVICE $LONGSHORE_REVISION"; "$0" status --json; exit 7"#;
    let binary = env!("CARGO_BIN_EXE_longshore");
    let output = bench.run(&["exec", "--model", "model", "--", "sh", "-c", script, binary]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let (first, status) = text.split_once('\n').unwrap();
    assert!(first.starts_with(&format!("file://{} host ", bench.path("model").display())), "{first}");
    let status: Value = serde_json::from_str(status).unwrap();
    let model = &status["loader"]["models"][0];
    assert_eq!(model["leases"], 1, "{status}");
    assert!(first.ends_with(model["revision"].as_str().unwrap()), "{first}");
    eventually("the end of the private loader", || is_empty(&bench.path("tmp")));
}

#[test]
fn exec_passes_its_flags_on_to_the_private_loader() {
    let bench = Bench::new();
    let script = r#""$0" status --json"#;
    let binary = env!("CARGO_BIN_EXE_longshore");
    let output = bench.run(&["exec", "--model", "model", "--memory", "128MiB", "--", "sh", "-c", script, binary]);
    assert_eq!(json_of(&output)["loader"]["arena_capacity_bytes"], 128 << 20);
}

#[test]
fn exec_fails_without_a_model_or_a_program_and_leaves_no_loader() {
    let bench = Bench::new();
    assert_eq!(bench.run(&["exec", "--model", "nothing", "--", "true"]).status.code(), Some(3));
    let output = bench.run(&["exec", "--model", "model", "--", "/nonexistent/program"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("/nonexistent/program"), "{}", stderr(&output));
    eventually("the end of the private loaders", || is_empty(&bench.path("tmp")));
}

#[test]
fn a_private_loader_says_where_it_is_and_a_second_process_shares_the_cache_folder() {
    let bench = Bench::new();
    let sockets = bench.path("tmp/private");
    let mut command = bench.command(&["loader", "--private", "--socket-dir", sockets.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["pid"], child.id());
    assert_eq!(ready["attach_socket"], sockets.join("attach.sock").to_str().unwrap());
    assert_eq!(ready["slabs_socket"], sockets.join("slabs.sock").to_str().unwrap());
    let address = format!("unix://{}", ready["loader_socket"].as_str().unwrap());

    let through_it = bench.json(&["load", "model", "--json", "--loader", &address]);
    assert_eq!(through_it["loader"], address.as_str());
    // Another process over the same cache folder works, and says that it went without.
    let beside_it = bench.json(&["load", "model", "--json"]);
    assert_eq!(beside_it["loader"], "embedded");
    assert!(beside_it["warnings"][0].as_str().unwrap().contains("cache"), "{beside_it}");

    child.kill().unwrap();
    child.wait().unwrap();
}

/// Several times as long as one lingers that has nothing to do.
const WELL_BEYOND_LINGERING: Duration = Duration::from_secs(3);

#[test]
fn a_private_loader_stays_until_what_was_saved_through_it_is_in_the_origin() {
    let bench = Bench::new();
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    origin.fault(Fault::new(FaultKind::Status(503)).any_verb().on("bucket/run/*"));
    // The program saves through the loader that it was given, and ends when its bytes are on the disk. To files: the loader
    // has the same standard error, and goes on.
    let script =
        r#"echo "$LONGSHORE_LOADER" > address; "$0" save model s3://bucket/run --step 1 --wait local --json > saved"#;
    let mut command = bench.command(&["exec", "--model", "model", "--", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_longshore")).envs(origin.client_env());
    for (name, value) in [("DIR", "spool"), ("SLAB_DIR", "slabs")] {
        command.env(format!("LONGSHORE_CHECKPOINT_{name}"), bench.path(value));
    }
    command.env("LONGSHORE_CHECKPOINT_MEMORY", "128MiB");
    let ended = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(ended.success(), "{ended}");
    let saved: Value = serde_json::from_slice(&std::fs::read(bench.path("saved")).unwrap()).unwrap();
    assert_eq!((&saved["state"], &saved["step"]), (&"local_durable".into(), &1.into()), "{saved}");
    let address = std::fs::read_to_string(bench.path("address")).unwrap().trim().to_owned();

    // Its client and all leases are gone; it answers, and goes on trying.
    let left = Instant::now();
    let mut asked = origin.counters().total();
    while left.elapsed() < WELL_BEYOND_LINGERING {
        eventually("a further try", || origin.counters().total() > asked);
        asked = origin.counters().total();
        let state = bench.json(&["saves", "--loader", &address, "--json"]);
        assert_eq!(state["saves"][0]["attempt"], saved["attempt"], "{state}");
        assert_eq!(state["saves"][0]["state"], "local_durable", "{state}");
    }
    assert!(!is_empty(&bench.path("tmp")));

    origin.clear_faults();
    eventually("the commit", || !origin.paths("bucket/run/step-1/_CKPT.json").is_empty());
    eventually("the end of the private loader", || is_empty(&bench.path("tmp")));
}
