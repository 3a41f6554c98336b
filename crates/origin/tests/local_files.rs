//! Local folders as they come: Hugging Face caches full of links, links that lead nowhere or in a circle, files that
//! change while they are read.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use longshore_origin::{OriginOptions, Origins, PutHow, PutOutcome};
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

/// A writer that is killed leaves its unfinished files; they are no objects, and are found to be swept.
#[tokio::test]
async fn unfinished_writes_are_no_objects() {
    let folder = tempfile::tempdir().unwrap();
    let origins = Origins::new(OriginOptions::default()).unwrap();
    let url = origins.canonical_url(folder.path().join("run").to_str().unwrap()).unwrap();
    std::fs::create_dir_all(folder.path().join("run/step-1")).unwrap();
    let left = folder.path().join("run/step-1").join(format!(".x.json.{}.tmp", "0a".repeat(16)));
    std::fs::write(&left, "half").unwrap();
    origins.upload_start(&format!("{url}/step-1/big")).await.unwrap();

    assert_eq!(origins.list_below(&url).await.unwrap(), []);
    assert_eq!(origins.list_folders(&url).await.unwrap(), Vec::<String>::new());
    assert_eq!(origins.resolve(&url).await.unwrap_err().code(), Code::NotFound);
    let mut open = origins.open_uploads(&url).await.unwrap().unwrap();
    open.sort_unstable_by(|a, b| a.url.cmp(&b.url));
    let names: Vec<_> = open.iter().map(|upload| upload.url.strip_prefix(&url).unwrap()).collect();
    assert_eq!(names, ["/step-1/big", "/step-1/x.json"]);
    for upload in &open {
        origins.upload_abort(&upload.url, &upload.id).await.unwrap();
    }
    assert!(!folder.path().join("run/step-1").exists(), "a folder goes with the last of its files");
    let error =
        origins.put(&format!("{url}/.x.{}.tmp", "0a".repeat(16)), "x".into(), PutHow::Create).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

#[tokio::test]
async fn what_is_in_the_way_of_a_write_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let origins = Origins::new(OriginOptions::default()).unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    for name in ["folder", "file/x", "file/x/y"] {
        let path = folder.path().join(name);
        let put = origins.put(path.to_str().unwrap(), "x".into(), PutHow::Overwrite).await.unwrap_err();
        assert_eq!(put.code(), Code::FailedPrecondition, "{put}");
        assert!(put.message().contains(folder.path().join("f").to_str().unwrap()), "{put}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
}

/// Eight writers that each raise a counter ten times by compare-and-swap: none of the turns is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replacing_is_a_compare_and_swap() {
    let folder = tempfile::tempdir().unwrap();
    let origins = Origins::new(OriginOptions::default()).unwrap();
    let url = origins.canonical_url(folder.path().join("counter").to_str().unwrap()).unwrap();
    origins.put(&url, "0".into(), PutHow::Create).await.unwrap();
    let raise = async |origins: &Origins| {
        loop {
            let (artifact, bytes) = origins.read_small(&url, 100).await.unwrap();
            let count: u32 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
            let how = PutHow::Replace(artifact.version().clone());
            if origins.put(&url, (count + 1).to_string().into(), how).await.unwrap() != PutOutcome::Conflict {
                return;
            }
        }
    };
    let writers = (0..8).map(|_| async {
        for _ in 0..10 {
            raise(&origins).await;
        }
    });
    futures::future::join_all(writers).await;
    assert_eq!(origins.read_small(&url, 100).await.unwrap().1, "80");
}
