//! Local folders as they come: Hugging Face caches full of links, links that lead nowhere or in a circle, files that
//! change while they are read.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use longshore_origin::{OriginOptions, Origins};
use longshore_types::{Artifact, Code};

fn origins() -> Origins {
    Origins::new(OriginOptions::default()).unwrap()
}

async fn names(folder: &Path) -> Vec<String> {
    let resolved = origins().resolve(folder.to_str().unwrap()).await.unwrap();
    resolved.files.into_iter().map(|file| file.name).collect()
}

async fn read(origins: &Origins, artifact: &Arc<Artifact>) -> Vec<u8> {
    let pieces: Vec<_> = origins.read(artifact, 0..artifact.size_bytes()).try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn a_hugging_face_cache_is_a_model() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--org--name");
    let snapshot = repo.join("snapshots/0a1b2c");
    fs::create_dir_all(repo.join("blobs")).unwrap();
    fs::create_dir_all(snapshot.join("onnx")).unwrap();
    fs::write(repo.join("blobs/b1"), "weights").unwrap();
    fs::write(repo.join("blobs/b2"), "graph").unwrap();
    symlink("../../blobs/b1", snapshot.join("model.safetensors")).unwrap();
    symlink("../../../blobs/b2", snapshot.join("onnx/model.onnx")).unwrap();

    let origins = origins();
    let resolved = origins.resolve(snapshot.to_str().unwrap()).await.unwrap();
    let found: Vec<_> = resolved.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(found, ["model.safetensors", "onnx/model.onnx"]);
    assert_eq!(read(&origins, &resolved.files[0].artifact).await, b"weights");
    assert_eq!(Origins::local_path(resolved.files[0].artifact.url()), Some(snapshot.join("model.safetensors")));
    // The link now leads to another blob: another inode, so another version.
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    symlink("../../blobs/b2", snapshot.join("model.safetensors")).unwrap();
    let result: Result<Vec<_>, _> = origins.read(&resolved.files[0].artifact, 0..3).try_collect().await;
    assert_eq!(result.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn broken_and_circular_links() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    fs::write(base.join("a.bin"), "a").unwrap();
    symlink("gone/b.bin", base.join("b.bin")).unwrap();
    assert_eq!(names(base).await, ["a.bin"], "a link that leads nowhere is left out");
    let error = origins().stat(base.join("b.bin").to_str().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("symbolic link to gone/b.bin"), "{error}");

    fs::create_dir(base.join("sub")).unwrap();
    symlink("..", base.join("sub/up")).unwrap();
    let error = origins().resolve(base.to_str().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("sub/up"), "{error}");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_ends_in_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    fs::write(&path, vec![1u8; 8 << 20]).unwrap();
    let origins = origins();
    let artifact = Arc::new(origins.stat(path.to_str().unwrap()).await.unwrap());
    let mut stream = origins.read(&artifact, 0..artifact.size_bytes());
    stream.next().await.unwrap().unwrap();
    // Truncated under the open descriptor, as a careless writer does it.
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let mut last = Ok(());
    while let Some(piece) = stream.next().await {
        last = piece.map(|piece| assert!(piece.iter().all(|byte| *byte == 1)));
    }
    let error = last.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(artifact.version().as_str()), "{error}");
}

#[tokio::test]
async fn what_is_not_there_and_what_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    for (name, words) in [("nothing", "does not exist"), ("nothing.gguf", "does not exist"), ("", "without any file")] {
        let path = base.join(name);
        let error = origins().resolve(path.to_str().unwrap()).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
    let socket = base.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = origins().resolve(socket.to_str().unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    fs::write(base.join("model.bin"), "x").unwrap();
    assert_eq!(names(base).await, ["model.bin"], "sockets are not part of a model");
}

#[tokio::test]
async fn a_read_that_is_dropped_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bin");
    fs::write(&path, vec![7u8; 16 << 20]).unwrap();
    let origins = origins();
    let artifact = Arc::new(origins.stat(path.to_str().unwrap()).await.unwrap());
    for _ in 0..20 {
        let mut stream = origins.read(&artifact, 0..artifact.size_bytes());
        stream.next().await.unwrap().unwrap();
    }
    // All descriptors are closed once their last piece, in flight when the stream was dropped, has been read.
    assert_eq!(read(&origins, &artifact).await.len(), 16 << 20);
}
