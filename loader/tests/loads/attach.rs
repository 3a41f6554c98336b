//! Another process attaches: it gets descriptors, reads the model from them, cannot write, and its end ends the lease.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use longshore_memory::fdpass::recv_with_fds;
use longshore_proto::v1;
use longshore_testkit::modelgen::ModelSpec;
use prost::Message;

use crate::daemon::Daemon;
use crate::fixture::{Setup, assert_equal, assert_loaded, eventually};

const SOCKET: &str = "ATTACH_TEST_SOCKET";
const MODEL: &str = "ATTACH_TEST_MODEL";
const OUT: &str = "ATTACH_TEST_OUT";

/// Sends an attach request and receives the answer with its descriptors.
pub fn attach(socket: &Path, model_id: &str) -> (UnixStream, v1::AttachResponse, Vec<OwnedFd>) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = v1::AttachRequest { model_id: model_id.to_owned() }.encode_to_vec();
    stream.write_all(&(request.len() as u32).to_le_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    let answer = v1::AttachResponse::decode(answer.as_slice()).unwrap();
    let mut fds = Vec::new();
    while fds.len() < answer.fd_count as usize {
        let mut data = [0; 1];
        assert_eq!(recv_with_fds(stream.as_fd(), &mut data, &mut fds).unwrap(), 1);
    }
    (stream, answer, fds)
}

/// The other process: run by the test below, and nothing by itself.
#[test]
fn child() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let (_lease, answer, mut fds) = attach(Path::new(&socket), &std::env::var(MODEL).unwrap());
    assert_eq!((answer.error_code.as_str(), fds.len()), ("", 1));
    let model = answer.model.unwrap();
    let region = std::fs::File::from(fds.remove(0));
    let mut bytes = vec![0; model.regions[0].size_bytes as usize];
    region.read_exact_at(&mut bytes, 0).unwrap();
    assert!(region.write_at(b"x", 0).is_err(), "a client cannot write to the model");
    assert!(region.set_len(0).is_err(), "nor truncate it");
    std::fs::write(std::env::var_os(OUT).unwrap(), bytes).unwrap();
    // The lease lasts until the parent closes our standard input.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_reads_the_model_and_its_end_ends_the_lease() {
    let daemon = Daemon::start(Setup::default()).await;
    let model = ModelSpec::sized(1, 40 << 20, 20).shards(2).build();
    let loaded = daemon.fixture.load(daemon.fixture.put("m", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    let out = daemon.folder.path().join("bytes");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "attach::child", "--nocapture"])
        .env(SOCKET, &daemon.attach_socket)
        .env(MODEL, loaded.id.as_str())
        .env(OUT, &out)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let loader = daemon.fixture.loader.clone();
    eventually("the child attached", || *loader.attached().borrow() == 1).await;
    let size = loaded.regions[0].size_bytes();
    eventually("the child copied the model", || out.metadata().is_ok_and(|metadata| metadata.len() == size)).await;
    let id = loaded.id.clone();
    assert_equal(loaded.model(), &std::fs::read(&out).unwrap(), &model);
    drop(loaded);
    assert_eq!(loader.list()[0].leases, 1);

    // Forgotten, but the child keeps the memory.
    let unloaded = loader.unload(&id).await.unwrap();
    assert_eq!((unloaded.bytes_freed, unloaded.bytes_leased), (0, size));
    assert!(daemon.fixture.arena.used_bytes() >= size);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let arena = daemon.fixture.arena.clone();
    eventually("the memory is free", || arena.used_bytes() == 0).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_model_and_a_broken_request_are_answered() {
    let daemon = Daemon::start(Setup::default()).await;
    let socket = daemon.attach_socket.clone();
    tokio::task::spawn_blocking(move || {
        let (_stream, answer, fds) = attach(&socket, "nonsense");
        assert_eq!((answer.error_code.as_str(), fds.len()), ("not_found", 0));
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "the connection is closed, nothing is allocated");
    })
    .await
    .unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    let mut setup = Setup::default();
    setup.options.attach_connections_max = 1;
    let daemon = Daemon::start(setup).await;
    let model = ModelSpec::small(1).build();
    let loaded = daemon.fixture.load(daemon.fixture.put("m", &model)).await.unwrap();
    let (socket, id) = (daemon.attach_socket.clone(), Arc::new(loaded.id.to_string()));
    let attach_now = || {
        let (socket, id) = (socket.clone(), id.clone());
        tokio::task::spawn_blocking(move || attach(&socket, &id))
    };
    let (first, answer, _fds) = attach_now().await.unwrap();
    assert_eq!(answer.error_code, "");
    let (_second, answer, _) = attach_now().await.unwrap();
    assert_eq!(answer.error_code, "exhausted");
    drop(first);
    let loader = daemon.fixture.loader.clone();
    eventually("the first left", || *loader.attached().borrow() == 0).await;
    // The slot is free a moment after the count: the guard of the count is dropped first.
    let mut refused = true;
    while refused {
        refused = attach_now().await.unwrap().1.error_code == "exhausted";
    }
    daemon.stop().await;
}
