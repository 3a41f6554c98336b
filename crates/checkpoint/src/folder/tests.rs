//! What can be saved from a disk, and what is refused by name.

use std::os::unix::fs::symlink;

use super::*;

fn names(files: &[SourceFile]) -> Vec<&str> {
    files.iter().map(|file| file.name.as_str()).collect()
}

fn safetensors(tensors: &str, data: usize) -> Vec<u8> {
    let mut header = tensors.as_bytes().to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(&header);
    bytes.extend(vec![1; data]);
    bytes
}

#[test]
fn folders_links_and_single_files_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("src/deep")).unwrap();
    std::fs::create_dir(at("blobs")).unwrap();
    std::fs::write(at("blobs/x"), b"linked").unwrap();
    std::fs::write(at("src/deep/b"), b"bb").unwrap();
    std::fs::write(at("src/empty"), b"").unwrap();
    symlink("../blobs/x", at("src/link")).unwrap();
    symlink(at("blobs"), at("src/others")).unwrap();
    let found = scan(&at("src")).unwrap();
    assert_eq!(names(&found), ["deep/b", "empty", "link", "others/x"]);
    assert_eq!(found[2].seen.size_bytes, 6);
    assert_eq!(names(&scan(&at("src/link")).unwrap()), ["link"]);
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path, word: &str| {
        let error = scan(path).unwrap_err();
        assert!(error.message().contains(word), "{error}");
        error.code()
    };
    assert_eq!(refused(folder.path(), "nothing to save"), Code::InvalidArgument);
    assert_eq!(refused(Path::new("relative"), "absolute"), Code::InvalidArgument);
    assert_eq!(refused(&folder.path().join("no"), "no"), Code::NotFound);
    assert_eq!(refused(Path::new("/dev/null"), "/dev/null"), Code::InvalidArgument);
    let inside = |name: &str| folder.path().join(name);
    symlink(folder.path(), inside("up")).unwrap();
    refused(folder.path(), "link back");
    std::fs::remove_file(inside("up")).unwrap();
    symlink(inside("gone"), inside("dangling")).unwrap();
    refused(folder.path(), "dangling");
    std::fs::remove_file(inside("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(inside("socket")).unwrap();
    refused(folder.path(), "socket");
}

#[test]
fn a_file_that_changes_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    std::fs::write(&path, b"one").unwrap();
    let source = scan(&path).unwrap().remove(0);
    source.open().unwrap();
    std::fs::write(&path, b"longer").unwrap();
    let error = source.open().unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn models_are_planned_with_their_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("model.safetensors", &safetensors(r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4));
    write(INDEX_NAME, b"{}");
    write("config.json", b"{}");
    write("broken.safetensors", b"not one at all");
    let sources = scan(folder.path()).unwrap();
    let (plan, sources, notes) = plan("file:///run/", 3, SaveOptions::default(), sources).unwrap();
    plan.check().unwrap();
    assert_eq!(plan.uri, "file:///run");
    assert!(plan.options.hf_index);
    let names: Vec<&str> = plan.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["broken.safetensors", "config.json", "model.safetensors"]);
    assert_eq!(sources.len(), 3);
    assert_eq!(plan.files[2].tensors[0].tensor.name, "w");
    assert!(!plan.files[0].is_tensors());
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn tensors_that_are_there_twice_leave_plain_files() {
    let folder = tempfile::tempdir().unwrap();
    let model = safetensors(r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4);
    std::fs::write(folder.path().join("a.safetensors"), &model).unwrap();
    std::fs::write(folder.path().join("b.safetensors"), &model).unwrap();
    let (plan, _, notes) = plan("/run", 3, SaveOptions::default(), scan(folder.path()).unwrap()).unwrap();
    assert!(plan.files.iter().all(|file| !file.is_tensors()));
    assert!(notes[0].contains("byte for byte"), "{notes:?}");
}
