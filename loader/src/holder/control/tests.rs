//! The sockets of a holder process, spoken to well and badly.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Stream;
use std::path::PathBuf;
use std::time::Duration;

use longshore_device::MemoryKeeper;
use longshore_memory::fdpass::{recv_with_fds, send_with_fds};
use prost::Message;

use super::*;
use crate::holder::memory::Memory;
use crate::holder::{HolderHandle, Removed, attach};
use crate::sockets;

const CARD: &str = "GPU-1";

/// A holder process but for the process. Its card makes 40 segments of everything.
struct Fixture {
    folder: tempfile::TempDir,
    holder: Arc<Holder>,
    token: CancellationToken,
    _files: Vec<crate::sockets::SocketGuard>,
}

fn file(len_bytes: u64) -> OwnedSegment {
    OwnedSegment { fd: tempfile::tempfile().unwrap().into(), len_bytes }
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let make = |_: &str, size_bytes: u64| -> Result<Box<dyn Memory>> {
            Ok(Box::new((0..40).map(|_| file(size_bytes / 40)).collect::<Vec<_>>()))
        };
        let holder = Holder::new(Box::new(make));
        let control = sockets::bind(folder.path(), "holder.sock", 0o600).unwrap();
        let clients = sockets::bind(folder.path(), "attach.sock", 0o600).unwrap();
        let path: Arc<Path> = Arc::from(clients.guard.path());
        let token = CancellationToken::new();
        tokio::spawn(serve(control.listener, holder.clone(), path.clone(), token.clone()));
        tokio::spawn(attach::serve(clients.listener, holder.clone(), path, 100, token.clone()));
        Fixture { folder, holder, token, _files: vec![control.guard, clients.guard] }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("holder.sock")
    }

    async fn connect(&self) -> HolderHandle {
        let path = self.path();
        blocking(move || HolderHandle::connect(&path).unwrap()).await
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn publication(id: &str, regions: Vec<Part>) -> Publication {
    Publication { id: id.to_owned(), description: vec![0x0a, 1, b'a'], record: vec![5; 100_000], regions }
}

fn attach_to(folder: &Path, id: &str) -> (Stream, v1::AttachResponse, Vec<OwnedFd>) {
    let mut stream = Stream::connect(folder.join("attach.sock")).unwrap();
    let request = frame::encode(&v1::AttachRequest { model_id: id.to_owned() }, 100).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    let answer = v1::AttachResponse::decode(answer.as_slice()).unwrap();
    let mut fds = Vec::new();
    while fds.len() < answer.fd_count as usize {
        recv_with_fds(stream.as_fd(), &mut [0; 1], &mut fds).unwrap();
    }
    (stream, answer, fds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_comes_goes_and_comes_back() {
    let fixture = Fixture::new();
    let handle = fixture.connect().await;
    let first = handle.clone();
    blocking(move || {
        assert_eq!(first.create("l-a", CARD, 40 << 20).unwrap().len(), 40);
        assert_eq!(first.used_bytes(CARD), 40 << 20, "known with the answer");
        first.create("l-b", CARD, 40 << 20).unwrap();
        first.release("l-b");
        first.create("l-c", CARD, 40 << 20).unwrap();
        assert_eq!(first.create("l-c", CARD, 1).err().unwrap().code(), Code::Internal);
        let regions = vec![Part::Made("l-a".into()), Part::Host((0..100).map(|_| file(3)).collect())];
        first.publish(publication("a", regions)).unwrap();
        assert_eq!(first.publish(publication("b", vec![Part::Made("x".into())])).unwrap_err().code(), Code::NotFound);
    })
    .await;
    let folder = fixture.folder.path().to_owned();
    let (lease, answer, fds) = blocking(move || attach_to(&folder, "a")).await;
    let model = answer.model.unwrap();
    assert_eq!((model.model_id.as_str(), model.leases, fds.len()), ("a", 0, 140));
    assert!(model.attach_socket.ends_with("attach.sock"));
    eventually("the lease is heard of", || handle.uses().leases("a") == 1).await;
    assert_eq!(*handle.attached().borrow(), 1);
    drop(handle);
    eventually("what was not published is freed", || fixture.holder.used_bytes(CARD) == 40 << 20).await;

    let handle = fixture.connect().await;
    let again = handle.clone();
    blocking(move || {
        let summary = again.list().unwrap();
        assert_eq!((summary.len(), summary[0].bytes[1].1), (1, 300));
        let adopted = again.adopt("a").unwrap();
        assert_eq!((adopted.record.len(), adopted.regions[1].1.len()), (100_000, 100));
        assert_eq!(adopted.regions[0].0, CARD);
        assert_eq!(again.adopt("x").err().unwrap().code(), Code::NotFound);
        assert_eq!(again.remove("a", Remove::IfUnleased).unwrap(), Removed::Leased);
        assert_eq!(again.remove("x", Remove::Forget).unwrap(), Removed::NotFound);
        assert_eq!(again.remove("a", Remove::Forget).unwrap(), Removed::Leased);
    })
    .await;
    drop(lease);
    eventually("the memory is free", || handle.used_bytes(CARD) == 0).await;
    assert!(handle.uses().models.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_loader_is_refused_and_the_end_of_the_holder_is_noticed() {
    let fixture = Fixture::new();
    let handle = fixture.connect().await;
    let path = fixture.path();
    let refused = blocking(move || HolderHandle::connect(&path).err().unwrap()).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&format!("process id {}", std::process::id())), "{refused}");
    let mut state = handle.link().unwrap().state();
    assert!(state.borrow().is_up);
    // A connection that breaks is the end of the link, for every request.
    handle.link().unwrap().cut();
    state.wait_for(|state| !state.is_up).await.unwrap();
    let asked = handle.clone();
    let error = blocking(move || asked.create("l", CARD, 1).err().unwrap()).await;
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("longshore holder"), "{error}");
    let again = handle.clone();
    blocking(move || again.link().unwrap().connect().unwrap()).await;
    assert!(state.borrow().is_up && state.borrow().epoch == 2);
    let asked = handle.clone();
    blocking(move || asked.create("l", CARD, 400).unwrap()).await;
    assert_eq!(fixture.holder.used_bytes(CARD), 400);
    drop(handle);
}

/// Sends bytes, and gives what comes back before the connection is closed.
fn say(path: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = Stream::connect(path).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn request(request: Request, fd_count: u32) -> Vec<u8> {
    frame::encode(&v1::HolderRequest { fd_count, request: Some(request) }, CONTROL_BYTES_MAX).unwrap()
}

fn hello() -> Vec<u8> {
    let hello = v1::HolderHello { protocol: PROTOCOL, role: v1::HolderRole::Loader.into(), version: "x".into() };
    request(Request::Hello(hello), 0)
}

/// The codes of the answers in a run of bytes.
fn codes(mut bytes: &[u8]) -> Vec<String> {
    let mut codes = Vec::new();
    while bytes.len() >= 4 {
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        let response = v1::HolderResponse::decode(&bytes[4..4 + length]).unwrap();
        codes.push(response.error_code);
        bytes = &bytes[4 + length..];
    }
    codes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_its_connection_and_nothing_else() {
    let fixture = Fixture::new();
    let path = fixture.path();
    blocking(move || {
        assert!(say(&path, b"").is_empty());
        assert!(say(&path, &u32::MAX.to_le_bytes()).is_empty(), "nothing is allocated for a length");
        assert!(say(&path, b"\x05\0\0\0\xff\xff\xff\xff\xff").is_empty());
        assert!(say(&path, b"\xff\x0f\0\0half").is_empty());
        let create = |label: &str| v1::CreateMemory { label: label.into(), device_uuid: CARD.into(), size_bytes: 400 };
        // Not greeted first.
        assert_eq!(codes(&say(&path, &request(Request::Create(create("l")), 0))), ["internal"]);
        let role = v1::HolderHello { protocol: PROTOCOL, role: 77, version: String::new() };
        assert_eq!(codes(&say(&path, &request(Request::Hello(role), 0))), ["internal"]);
        // Each of these comes after a right greeting, and after it another loader is let in.
        let rest: [(&[u8], &[&str]); 5] = [
            (&hello(), &["", "internal"]),
            (&(CONTROL_BYTES_MAX as u32 + 1).to_le_bytes(), &[""]),
            (&request(Request::Look(v1::LookAtHeld {}), u32::MAX), &[""]),
            (&request(Request::Look(v1::LookAtHeld {}), 1), &[""]),
            (&[0, 0, 0, 0], &[""]),
        ];
        for (bytes, expected) in rest {
            assert_eq!(codes(&say(&path, &[&hello()[..], bytes].concat())), expected);
        }
        // Descriptors that are announced and do not come with the byte that should have them.
        let publish = v1::PublishHeld {
            model_id: "a".into(),
            regions: vec![v1::PublishedRegion { label: String::new(), segment_bytes: vec![1] }],
            ..Default::default()
        };
        let bytes = [&hello()[..], &request(Request::Publish(publish.clone()), 1), &[0]].concat();
        assert_eq!(codes(&say(&path, &bytes)), [""]);
        // None announced, although its regions have one.
        let bytes = [&hello()[..], &request(Request::Publish(publish), 0)].concat();
        assert_eq!(codes(&say(&path, &bytes)), ["", "internal"]);
        // Descriptors with a request that has no use for them.
        let mut stream = Stream::connect(&path).unwrap();
        stream.write_all(&hello()).unwrap();
        stream.write_all(&request(Request::Create(create("m")), 1)).unwrap();
        let stray = file(1);
        send_with_fds(stream.as_fd(), &[0], &[stray.fd.as_fd()]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(codes(&answer), ["", "internal"]);
    })
    .await;
    assert!(fixture.holder.list().is_empty());
    let handle = fixture.connect().await;
    let asked = handle.clone();
    blocking(move || asked.create("l", CARD, 400).unwrap()).await;
    assert_eq!(fixture.holder.used_bytes(CARD), 400);
    drop(handle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_do_not_keep_a_loader_out() {
    let fixture = Fixture::new();
    let path = fixture.path();
    // As many as there may be: they are closed in time, and a loader that comes then is let in.
    let silent =
        blocking(move || (0..CONNECTIONS_MAX - 2).map(|_| Stream::connect(&path).unwrap()).collect::<Vec<_>>());
    let silent = silent.await;
    let handle = fixture.connect().await;
    let asked = handle.clone();
    blocking(move || asked.create("l", CARD, 400).unwrap()).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_takes_milliseconds_and_copies_nothing_of_the_model() {
    let fixture = Fixture::new();
    let handle = fixture.connect().await;
    let tensor = |n: u64| v1::PlacedTensor {
        name: format!("model.layers.{n}.mlp.gate_up_proj.weight"),
        dtype: "BF16".into(),
        shape: vec![8192, 57344],
        region: 0,
        offset_bytes: n << 20,
        length_bytes: 1 << 20,
        piece: None,
    };
    let model = v1::LoadedModel { tensors: (0..1000).map(tensor).collect(), ..Default::default() };
    let description = model.encode_to_vec();
    let folder = fixture.folder.path().to_owned();
    let mut times = blocking(move || {
        handle.create("l", CARD, 40 << 30).unwrap();
        let regions = vec![Part::Made("l".into())];
        handle.publish(Publication { id: "a".into(), description, record: vec![], regions }).unwrap();
        let attach = || {
            let begun = std::time::Instant::now();
            let (lease, answer, fds) = attach_to(&folder, "a");
            let taken = begun.elapsed();
            assert_eq!((answer.model.unwrap().tensors.len(), fds.len()), (1000, 40));
            drop(lease);
            taken
        };
        (0..200).map(|_| attach()).collect::<Vec<_>>()
    })
    .await;
    times.sort();
    let (median, p99) = (times[100], times[197]);
    // Far above what is measured, and far below what a copy of anything would take.
    assert!(p99 < Duration::from_millis(50), "median {median:?}, p99 {p99:?}");
    println!("attach: median {median:?}, p99 {p99:?}");
}
