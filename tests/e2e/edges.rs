//! Names, folders and files as they are met outside of tests.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::{Content, Dialect, FakeOrigin};
use longshore_tests::Client;
use serde_json::Value;

use crate::common::{Embedded, check, load, load_and_check};

const MIB: u64 = 1 << 20;

#[test]
fn a_local_folder_of_links_as_the_hub_s_cache_has_it() {
    let model = ModelSpec::sized(1, 20 * MIB, 8).shards(2).build();
    let folder = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshots/abc"));
    std::fs::create_dir_all(&snapshot).unwrap();
    for (number, (name, content)) in model.files.iter().enumerate() {
        content.write_file(&blobs.join(number.to_string())).unwrap();
        symlink(Path::new("../../blobs").join(number.to_string()), snapshot.join(name)).unwrap();
    }
    Embedded::new().exec_and_check(snapshot.to_str().unwrap(), &model);
}

#[test]
fn a_local_folder_with_what_is_no_file() {
    let model = ModelSpec::small(2).build();
    let folder = tempfile::tempdir().unwrap();
    model.write_to(folder.path()).unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    symlink("/no/such/target", folder.path().join("dangling")).unwrap();
    symlink(folder.path(), folder.path().join("loop")).unwrap();
    let embedded = Embedded::new();
    let start = Instant::now();
    let output = embedded.run(&["load", folder.path().to_str().unwrap(), "--device", "host", "--json"]);
    assert!(start.elapsed() < Duration::from_secs(20), "it hangs: {output}");
    // Either it passes over them, or it says which one is in the way.
    match output.success() {
        true => assert_eq!(output.json()["tensors"], model.tensors.len(), "{output}"),
        false => assert!(["pipe", "dangling", "loop"].iter().any(|name| output.stderr.contains(name)), "{output}"),
    }
    for name in ["pipe", "dangling", "loop"] {
        let path = folder.path().join(name);
        let output = embedded.run(&["load", path.to_str().unwrap(), "--device", "host", "--include", "*.json"]);
        println!("{name}: {output}");
        assert!(!output.stderr.contains("panicked"), "{output}");
    }
}

#[test]
fn a_local_file_that_changes_is_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(ClusterSpec::new(1, 1));
    let mut client = Client::connect(&cluster.loader_socket(0)).unwrap();
    for seed in 1..4 {
        let model = ModelSpec::small(seed).build();
        model.write_to(folder.path()).unwrap();
        let request = longshore_proto::v1::LoadModelRequest {
            uri: folder.path().to_str().unwrap().to_owned(),
            device: "host".to_owned(),
            revalidate: true,
            ..Default::default()
        };
        check(&client.load_with(request).unwrap(), &model);
    }
}

#[test]
fn names_with_characters_that_hurt() {
    let names = [
        "plain.txt",
        "with space.txt",
        "plus+and&amp;.txt",
        "ümlaut-日本語.txt",
        "quote'\"<>.txt",
        "deep/er/and/deeper.txt",
        "..dots..txt",
        "tilde~colon:at@.txt",
    ];
    pull_names(&names);
}

#[test]
fn names_with_a_percent_sign() {
    pull_names(&["percent%20and%2F.txt", "100%.txt"]);
}

#[test]
fn names_with_what_ends_the_path_of_a_url() {
    pull_names(&["hash#question?.txt"]);
}

#[test]
fn commands_tell_such_names_and_take_what_they_tell() {
    for dialect in [Dialect::S3, Dialect::Gcs, Dialect::Hub, Dialect::Http] {
        let origin = FakeOrigin::speaking(dialect);
        let content = Content::generated(1, 20 * MIB + 1);
        origin.put_content("org/name/why?/no#1%3F.gguf", content.clone());
        origin.put_content("org/name/why/no.txt", Content::generated(2, 10));
        let embedded = Embedded::with(&origin);
        let run = |args: &[&str]| {
            let output = embedded.cli(args).args(["--json"]).run();
            assert!(output.success(), "{dialect:?}: {output}");
            output.json()
        };
        let url = origin.model_url("org/name");
        let listed = run(&["ls", &url]);
        let names: Vec<&Value> = listed["files"].as_array().unwrap().iter().map(|file| &file["name"]).collect();
        assert_eq!(names, ["why/no.txt", "why?/no#1%3F.gguf"], "{listed}");

        let file = format!("{url}/why%3F/no%231%253F.gguf");
        let told = run(&["stat", &file])["uri"].as_str().unwrap().to_owned();
        assert!(told.ends_with("/why%3F/no%231%253F.gguf"), "{told}");
        assert_eq!(run(&["stat", &told])["bytes"], content.len_bytes());
        let ring = run(&["ring", &told, "--chunks"]);
        assert_eq!(ring["chunks"].as_array().unwrap().len(), 2, "{ring}");
        let folder = embedded.folder.path().join("one");
        let pulled = run(&["pull", &told, folder.to_str().unwrap()]);
        assert_eq!(pulled["files"], 1, "{pulled}");
        assert!(content.equals(&std::fs::read(folder.join("no#1%3F.gguf")).unwrap()));

        let typed = embedded.run(&["ls", &format!("{url}/why?/no")]);
        assert!(!typed.success() && typed.stderr.contains("written %3F"), "{typed}");
    }
}

#[test]
fn local_names_with_what_ends_the_path_of_a_url() {
    let model = ModelSpec::small(8).build();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("why?#1%3F");
    model.write_to(&path).unwrap();
    Embedded::new().exec_and_check(path.to_str().unwrap(), &model);
}

fn pull_names(names: &[&str]) {
    for dialect in [Dialect::S3, Dialect::Gcs, Dialect::Hub] {
        let origin = FakeOrigin::speaking(dialect);
        let files =
            names.iter().zip(1..).map(|(name, seed)| ((*name).to_owned(), Content::generated(seed, 100 + seed)));
        let model = Model { files: files.collect(), tensors: Vec::new() };
        model.put_into(&origin, "org/name");
        let embedded = Embedded::with(&origin);
        let folder = embedded.folder.path().join("out");
        let pulled = embedded.run(&["pull", &origin.model_url("org/name"), folder.to_str().unwrap()]);
        assert!(pulled.success(), "{dialect:?}: {pulled}");
        for (name, content) in &model.files {
            let bytes = std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{dialect:?} {name}: {error}"));
            assert!(content.equals(&bytes), "{dialect:?} {name} differs");
        }
    }
}

#[test]
fn folder_markers_and_whole_buckets() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::small(3).build();
    model.put_into(&origin, "bucket/folder/model");
    // As web consoles make them.
    origin.put("bucket/folder/", Vec::new());
    origin.put("bucket/folder/model/", Vec::new());
    let embedded = Embedded::with(&origin);
    embedded.exec_and_check("s3://bucket/folder/model", &model);
    model.put_into(&origin, "whole");
    embedded.exec_and_check("s3://whole", &model);
    embedded.exec_and_check("s3://whole/", &model);
}

#[test]
fn one_model_under_several_spellings_is_one_model() {
    let origin = FakeOrigin::start();
    ModelSpec::small(4).build().put_into(&origin, "bucket/model");
    let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    let first = load(&cluster, 0, "s3://bucket/model").unwrap().model;
    for spelling in ["s3://bucket/model/", "S3://bucket/model", "s3://bucket//model"] {
        match load(&cluster, 0, spelling) {
            Ok(loaded) => assert_eq!(loaded.model.model_id, first.model_id, "{spelling}"),
            Err(error) => println!("{spelling}: {error}"),
        }
    }
    let hub = FakeOrigin::speaking(Dialect::Hub);
    let model = ModelSpec::small(5).build();
    model.put_into(&hub, "org/name");
    let commit = hub.hub_commit("org/name").unwrap();
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&hub));
    for uri in ["hf://org/name".to_owned(), "hf://org/name@main".to_owned(), format!("hf://org/name@{commit}")] {
        let loaded = load_and_check(&cluster, 0, &uri, &model);
        assert_eq!(loaded.model.revision, commit, "{uri}");
    }
    // A branch and its commit are one thing to the cache.
    assert_eq!(hub.counters().bytes, model.size_bytes());
}

#[test]
fn models_in_folders_of_one_repository() {
    let origin = FakeOrigin::start();
    let (unet, vae) = (ModelSpec::small(6).build(), ModelSpec::small(7).shards(2).build());
    unet.put_into(&origin, "bucket/pipeline/unet");
    vae.put_into(&origin, "bucket/pipeline/vae");
    origin.put("bucket/pipeline/model_index.json", b"{}".to_vec());
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let loaded = load(&cluster, 0, "s3://bucket/pipeline").unwrap();
    let mut both = Model::default();
    for (folder, part) in [("unet", unet), ("vae", vae)] {
        both.files.extend(part.files.into_iter().map(|(name, content)| (format!("{folder}/{name}"), content)));
        let tensors = part.tensors.into_iter();
        both.tensors.extend(tensors.map(|mut tensor| {
            tensor.name = format!("{folder}/{}", tensor.name);
            tensor
        }));
    }
    check(&loaded, &both);
}

#[test]
fn what_was_loaded_by_a_branch_is_freed_by_it() {
    let hub = FakeOrigin::speaking(Dialect::Hub);
    let model = ModelSpec::small(9).build();
    model.put_into(&hub, "org/name");
    let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&hub));
    load_and_check(&cluster, 0, "hf://org/name", &model);
    let freed = cluster.cli(0).args(["free", "hf://org/name@main", "--json"]).run();
    assert!(freed.success() && freed.json()["cache_bytes_freed"].as_u64().unwrap() >= model.size_bytes(), "{freed}");
}
