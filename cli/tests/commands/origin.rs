//! With no daemon, over an object store that counts and misbehaves.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use longshore_testkit::{FakeOrigin, Fault, FaultKind};

use crate::support::{Bench, eventually, json_of, stderr};

/// A store with the bench's model in it.
fn store(bench: &Bench) -> FakeOrigin {
    let origin = FakeOrigin::start();
    origin.put_folder("bucket/model", &bench.path("model")).unwrap();
    origin
}

fn command(bench: &Bench, origin: &FakeOrigin, args: &[&str]) -> Command {
    let mut command = bench.command(args);
    command.envs(origin.client_env());
    command
}

fn assert_same_files(left: &Path, right: &Path) {
    for name in ["model.safetensors", "config.json"] {
        let same = std::fs::read(left.join(name)).unwrap() == std::fs::read(right.join(name)).unwrap();
        assert!(same, "{name} differs");
    }
}

#[test]
fn the_cache_folder_serves_the_next_process() {
    let bench = Bench::new();
    let origin = store(&bench);
    let first = json_of(&command(&bench, &origin, &["load", "s3://bucket/model", "--json"]).output().unwrap());
    assert_eq!(origin.counters().list, 1);
    // Also the chunk with the header: the manifest has brought it here, but from the origin.
    for tier in ["memory", "disk", "peer"] {
        assert_eq!(first["bytes_by_tier"][tier], 0, "{first}");
    }

    origin.reset_counters();
    let second = json_of(&command(&bench, &origin, &["load", "s3://bucket/model", "--json"]).output().unwrap());
    assert!(second["bytes_by_tier"]["disk"].as_u64() >= Some(20 << 20), "{second}");
    assert_eq!(second["bytes_by_tier"]["origin"], 0, "{second}");
    let pull = ["pull", "s3://bucket/model", "out", "--json"];
    let pulled = json_of(&command(&bench, &origin, &pull).output().unwrap());
    assert_eq!(pulled["bytes_by_tier"]["disk"], pulled["bytes"], "{pulled}");
    // Each process asks once whether the model has changed, and reads nothing.
    assert_eq!((origin.counters().get, origin.counters().list), (0, 2));
    assert_same_files(&bench.path("model"), &bench.path("out"));
}

/// The largest file of the cache, which holds a whole chunk.
fn chunk_file(folder: &Path) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    let mut largest = (0, PathBuf::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                largest = largest.max((metadata.len(), entry.path()));
            }
        }
    }
    largest.1
}

#[test]
fn a_flipped_bit_in_the_cache_is_found_counted_and_read_anew() {
    let bench = Bench::new();
    let origin = store(&bench);
    json_of(&command(&bench, &origin, &["warm", "s3://bucket/model", "--json"]).output().unwrap());
    let flip = || {
        let path = chunk_file(&bench.path("cache/chunks"));
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.seek(SeekFrom::Start(5_000_000)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(5_000_000)).unwrap();
        file.write_all(&[byte[0] ^ 1]).unwrap();
    };
    flip();
    let pull = ["pull", "s3://bucket/model", "out", "--json"];
    let pulled = json_of(&command(&bench, &origin, &pull).output().unwrap());
    assert_same_files(&bench.path("model"), &bench.path("out"));
    assert_eq!((pulled["checksum_mismatches"].as_u64(), pulled["retries"].as_u64()), (Some(1), Some(1)), "{pulled}");

    flip();
    let loaded = json_of(&command(&bench, &origin, &["load", "s3://bucket/model", "--json"]).output().unwrap());
    assert!(loaded["checksum_mismatches"].as_u64() >= Some(1), "{loaded}");
}

#[test]
fn an_interrupted_pull_leaves_nothing_unfinished() {
    let bench = Bench::new();
    let origin = store(&bench);
    // The header is read well, then the body of the file never comes.
    origin.fault(Fault::new(FaultKind::HangAfter(1 << 20)).on("bucket/model/*.safetensors").skip(1));
    let mut pull = command(&bench, &origin, &["pull", "s3://bucket/model", "out"]);
    let mut child = pull.stderr(Stdio::piped()).spawn().unwrap();
    let out = bench.path("out");
    let parts = || -> Vec<String> {
        let names = std::fs::read_dir(&out).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".part")).collect()
    };
    eventually("the first part", || !parts().is_empty());
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(11));
    assert_eq!(parts(), Vec::<String>::new());
}

#[test]
fn an_object_that_changes_under_a_pull_is_an_error_and_no_file() {
    let bench = Bench::new();
    let origin = store(&bench);
    // The listing is answered well, the first read meets another version.
    origin.fault(Fault::new(FaultKind::Replace).on("bucket/model/config.json").times(1));
    let pull = ["pull", "s3://bucket/model", "out", "--include", "config.json"];
    let output = command(&bench, &origin, &pull).output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    assert!(stderr(&output).contains("config.json"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(bench.path("out")).unwrap().count(), 0);
}

#[test]
fn wrong_credentials_and_unknown_buckets_say_so() {
    let bench = Bench::new();
    let origin = store(&bench);
    let output = command(&bench, &origin, &["ls", "s3://nobody/model"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    origin.fault(Fault::new(FaultKind::Status(403)).any_verb());
    let output = command(&bench, &origin, &["load", "s3://bucket/other", "--json"]).output().unwrap();
    assert!(matches!(output.status.code(), Some(4 | 5)), "{}", stderr(&output));
    assert!(!stderr(&output).contains("test-secret"), "{}", stderr(&output));
}
