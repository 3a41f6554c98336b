//! `save`, `saves` and `checkpoints`, with and without a daemon, into a folder and into an object store.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use longshore_testkit::origin::Verb;
use longshore_testkit::{FakeOrigin, Fault, FaultKind};
use serde_json::Value;

use crate::support::{Bench, Daemon, eventually, json_of, stderr};

/// The binary with a folder for saves of its own; no retry takes long.
fn command(bench: &Bench, origin: Option<&FakeOrigin>, args: &[&str]) -> Command {
    let mut command = bench.command(args);
    command.env("LONGSHORE_CHECKPOINT_DIR", bench.path("spool"));
    command.env("LONGSHORE_CHECKPOINT_SLAB_DIR", bench.path("slabs"));
    command.env("LONGSHORE_CHECKPOINT_MEMORY", "128MiB");
    if let Some(origin) = origin {
        command.envs(origin.client_env());
    }
    command
}

fn run(bench: &Bench, origin: Option<&FakeOrigin>, args: &[&str]) -> Output {
    command(bench, origin, args).output().unwrap()
}

fn json(bench: &Bench, origin: Option<&FakeOrigin>, args: &[&str]) -> Value {
    json_of(&run(bench, origin, &[args, &["--json"]].concat()))
}

fn steps(found: &Value) -> Vec<u64> {
    found["checkpoints"].as_array().unwrap().iter().map(|checkpoint| checkpoint["step"].as_u64().unwrap()).collect()
}

fn store() -> FakeOrigin {
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    origin
}

/// A loader that listens on its socket alone.
fn loader(bench: &Bench, origin: Option<&FakeOrigin>) -> Daemon {
    let arguments = ["loader", "--listen", "none", "--ops-listen", "none"];
    Daemon::start(command(bench, origin, &arguments), "loader is ready")
}

fn interrupt(pid: u32) {
    let killed = Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
}

fn same_files(left: &Path, right: &Path, names: &[&str]) {
    for name in names {
        assert!(std::fs::read(left.join(name)).unwrap() == std::fs::read(right.join(name)).unwrap(), "{name} differs");
    }
}

#[test]
fn a_folder_is_saved_listed_shown_and_deleted() {
    let bench = Bench::new();
    let saved = json(&bench, None, &["save", "model", "run", "--metadata", "loss=0.25"]);
    assert_eq!((&saved["state"], &saved["step"]), (&"committed".into(), &0.into()), "{saved}");
    assert_eq!((&saved["loader"], &saved["left_to_do"]), (&"embedded".into(), &Value::Null));
    assert!(saved["committed_seconds"].as_f64() >= saved["local_durable_seconds"].as_f64(), "{saved}");
    // What is saved is the files, byte for byte: in a folder they can be read as they are.
    assert!(bench.path("run/step-0/_CKPT.json").is_file());
    same_files(&bench.path("model"), &bench.path("run/step-0"), &["config.json"]);

    assert_eq!(json(&bench, None, &["save", "model/config.json", "run"])["step"], 1);
    assert_eq!(json(&bench, None, &["save", "model", "run", "--step", "90"])["step"], 90);
    let found = json(&bench, None, &["checkpoints", "run"]);
    assert_eq!((steps(&found), &found["latest"]), (vec![0, 1, 90], &90.into()), "{found}");
    let first = json(&bench, None, &["checkpoints", "run", "--step", "0"]);
    assert_eq!((&first["metadata"]["loss"], first["files"].as_array().unwrap().len()), (&"0.25".into(), 2), "{first}");
    assert_eq!(first["attempt"], saved["attempt"]);
    assert_eq!(json(&bench, None, &["checkpoints", "run", "--latest"])["step"], 90);
    let text = run(&bench, None, &["checkpoints", "run"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.starts_with("STEP") && text.lines().count() == 4, "{text}");

    let asked = run(&bench, None, &["checkpoints", "run", "--delete", "1"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(stderr(&asked).contains("--yes"), "{}", stderr(&asked));
    let deleted = json(&bench, None, &["checkpoints", "run", "--delete", "1", "--yes"]);
    assert!(deleted["objects_deleted"].as_u64() >= Some(1), "{deleted}");
    assert_eq!(steps(&json(&bench, None, &["checkpoints", "run"])), [0, 90]);

    // Retention, by the next save.
    json(&bench, None, &["save", "model/config.json", "run", "--keep", "1"]);
    assert_eq!(steps(&json(&bench, None, &["checkpoints", "run"])), [91]);
    assert!(!bench.path("run/step-0/_CKPT.json").exists());
}

#[test]
fn what_cannot_be_done_has_a_code_and_names_what() {
    let bench = Bench::new();
    json(&bench, None, &["save", "model/config.json", "run", "--step", "3"]);
    let cases: [(&[&str], i32, &str); 7] = [
        (&["save", "nothing", "run"], 3, "nothing"),
        (&["save", "model", "run", "--step", "3"], 6, "step-3"),
        (&["save", "model", "ftp://host/x"], 2, "ftp"),
        (&["save", "model", "run", "--keep", "0"], 2, "--keep"),
        (&["checkpoints", "run", "--step", "4"], 3, "step-4"),
        (&["checkpoints", "run", "--delete", "4", "--yes"], 3, "step-4"),
        (&["saves", "--cancel", "0b8f4a52-3a4e-4c1e-9d52-0f4e5a6b7c8d"], 3, "0b8f4a52"),
    ];
    for (args, code, named) in cases {
        let output = run(&bench, None, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(steps(&json(&bench, None, &["checkpoints", "run"])), [3]);
}

#[test]
fn a_bucket_is_verified_and_a_flipped_byte_is_named() {
    let bench = Bench::new();
    let origin = store();
    let run_url = "s3://bucket/run";
    let saved = json(&bench, Some(&origin), &["save", "model", run_url]);
    assert_eq!(saved["state"], "committed", "{saved}");
    assert!(saved["bytes_uploaded"].as_u64() >= Some(20 << 20), "{saved}");
    let verified = json(&bench, Some(&origin), &["checkpoints", run_url, "--verify"]);
    assert_eq!((&verified["problem_count"], &verified["bytes"]), (&0.into(), &saved["bytes"]), "{verified}");

    let paths = origin.paths("bucket/run/step-0/");
    let object = paths.iter().find(|path| path.contains("model")).unwrap();
    assert!(origin.flip_byte(object, 12 << 20), "{paths:?}");
    let broken = run(&bench, Some(&origin), &["checkpoints", run_url, "--verify", "--step", "0", "--json"]);
    assert_eq!(broken.status.code(), Some(7), "{}", stderr(&broken));
    let line = String::from_utf8_lossy(&broken.stdout).lines().next().unwrap().to_owned();
    let found: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(found["problems"][0]["code"], "corrupt", "{found}");
    assert!(found["problems"][0]["object"].as_str().unwrap().contains("model"), "{found}");
}

#[test]
fn the_loader_saves_and_says_how_far_it_is() {
    let bench = Bench::new();
    let origin = store();
    let daemon = loader(&bench, Some(&origin));
    let saved = json(&bench, Some(&origin), &["save", "model", "s3://bucket/run", "--step", "5"]);
    assert!(saved["loader"].as_str().unwrap().starts_with("unix://"), "{saved}");
    assert_eq!(saved["state"], "committed");
    let saves = json(&bench, Some(&origin), &["saves"]);
    assert_eq!(saves["saves"][0]["attempt"], saved["attempt"], "{saves}");
    let status = json(&bench, Some(&origin), &["status"]);
    let checkpoints = &status["loader"]["checkpoints"];
    assert_eq!(
        (&checkpoints["open"], &checkpoints["saves"][0]["state"]),
        (&true.into(), &"committed".into()),
        "{status}"
    );
    assert_eq!(checkpoints["slabs_socket"], bench.path("run/slabs.sock").to_str().unwrap());
    assert_eq!(steps(&json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run"])), [5]);
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!bench.path("run/slabs.sock").exists());
}

#[test]
fn a_save_that_is_only_local_is_finished_by_the_next_command() {
    let bench = Bench::new();
    let origin = store();
    // The store takes no part of an object for now.
    for verb in [Verb::Put, Verb::CreateUpload, Verb::UploadPart] {
        origin.fault(Fault::new(FaultKind::Status(503)).on("bucket/run/*").verb(verb));
    }
    let saved = json(&bench, Some(&origin), &["save", "model", "s3://bucket/run", "--wait", "local"]);
    assert_eq!(saved["state"], "local_durable", "{saved}");
    let left = saved["left_to_do"].as_str().unwrap();
    assert!(left.contains("longshore saves --wait") && left.contains("spool"), "{left}");
    // The files may go: what was said durable does not need them.
    std::fs::remove_dir_all(bench.path("model")).unwrap();
    assert_eq!(steps(&json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run"])), [0u64; 0]);

    origin.clear_faults();
    let told = run(&bench, Some(&origin), &["--json", "saves", "--wait", "-v"]);
    let lines = stderr(&told);
    assert!(lines.contains("step-0: local_durable, ") && lines.contains("step-0: committed, "), "{lines}");
    assert!(lines.trim_end().ends_with("1 of 1 saves committed"), "{lines}");
    let waited: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(waited["saves"][0]["attempt"], saved["attempt"], "{waited}");
    assert_eq!(waited["saves"][0]["state"], "committed", "{waited}");
    let nothing = run(&bench, Some(&origin), &["saves", "--wait", "-v"]);
    assert!(stderr(&nothing).contains("no save is going on"), "{}", stderr(&nothing));
    let quiet = run(&bench, Some(&origin), &["saves", "--wait"]);
    assert!(!stderr(&quiet).contains("no save"), "{}", stderr(&quiet));
    assert_eq!(steps(&json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run"])), [0]);
    let verified = json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run", "--verify"]);
    assert_eq!(verified["problem_count"], 0, "{verified}");
}

#[test]
fn a_loader_that_is_restarted_goes_on_with_its_saves() {
    let bench = Bench::new();
    let origin = store();
    origin.fault(Fault::new(FaultKind::Hang).on("bucket/run/*").verb(Verb::Put));
    let first = loader(&bench, Some(&origin));
    let saved = json(&bench, Some(&origin), &["save", "model", "s3://bucket/run", "--wait", "local"]);
    assert!(saved["left_to_do"].as_str().unwrap().contains("the loader at unix://"), "{saved}");
    let state = json(&bench, Some(&origin), &["saves"]);
    assert_eq!(state["saves"][0]["state"], "local_durable", "{state}");
    // It does not wait for a store that hangs.
    assert_eq!(first.terminate(), Some(0));

    origin.clear_faults();
    let second = loader(&bench, Some(&origin));
    let waited = json(&bench, Some(&origin), &["saves", "--wait"]);
    assert!(waited["loader"].as_str().unwrap().starts_with("unix://"), "{waited}");
    eventually("the commit", || {
        let found = json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run", "--latest"]);
        found["attempt"] == saved["attempt"]
    });
    let status = run(&bench, Some(&origin), &["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("slabs ") && text.contains("spool ") && text.contains("committed, "), "{text}");
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn the_first_interruption_cancels_and_nothing_is_visible() {
    let bench = Bench::new();
    let origin = store();
    origin.fault(Fault::new(FaultKind::Hang).on("bucket/run/*").verb(Verb::UploadPart));
    let mut save = command(&bench, Some(&origin), &["save", "model", "s3://bucket/run"]);
    save.args(["--checkpoint-part-bytes", "8MiB"]);
    let mut child = save.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    eventually("the upload", || !origin.uploads().is_empty());
    interrupt(child.id());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(11), "{said}");
    assert!(said.contains("cancelling the save of step 0") && said.contains("nothing of it is visible"), "{said}");
    origin.clear_faults();
    assert_eq!(steps(&json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run"])), [0u64; 0]);
    let waited = json(&bench, Some(&origin), &["saves", "--wait"]);
    assert_eq!(waited["saves"], serde_json::json!([]), "nothing goes on: {waited}");
}

#[test]
fn what_dead_attempts_left_is_swept() {
    let bench = Bench::new();
    let origin = store();
    json(&bench, Some(&origin), &["save", "model/config.json", "s3://bucket/run", "--step", "1"]);
    let stray = "bucket/run/step-9/model-0b8f4a52-3a4e-4c1e-9d52-0f4e5a6b7c8d-00001-of-00001.safetensors";
    origin.put(stray, vec![1u8; 1000]);
    let kept = json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run", "--sweep"]);
    assert_eq!(kept["objects_deleted"], 0, "younger than a day: {kept}");
    eventually("an age", || {
        let swept = json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run", "--sweep", "--older-than", "1s"]);
        swept["objects_deleted"] == 1
    });
    assert!(!origin.paths("bucket/run/").contains(&stray.to_owned()));
    assert_eq!(steps(&json(&bench, Some(&origin), &["checkpoints", "s3://bucket/run"])), [1]);
}
