//! Chunks on their way in: every way brings the same bytes, and nothing that is wrong, cut or too slow is ever kept.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{BlockChecksum, ChunkKey, Code, Error, Result};
use longshore_wire::{
    ChunkReply, ChunkRequest, ChunkService, Endpoint, GrowingWriter, Incoming, Page, PutMode, PutRequest, PutStart,
    ServerOptions,
};
use parking_lot::Mutex;

use crate::support::*;

const LEN: usize = (2 << 20) + 12_345;

/// Keeps what it is given, in memory.
#[derive(Default)]
struct Shelf {
    chunks: Mutex<HashMap<ChunkKey, (Vec<BlockChecksum>, PutMode)>>,
    released: Mutex<Vec<AttemptId>>,
    /// Chunks that were begun.
    begun: Mutex<usize>,
    refusal: Mutex<Option<Code>>,
}

struct Keeper(Arc<Shelf>);
struct Taking(Arc<Shelf>, PutRequest, GrowingWriter);

impl ChunkService for Keeper {
    fn get(&self, _: &ChunkRequest) -> Result<ChunkReply> {
        Err(not_found())
    }

    fn put(&self, request: &PutRequest) -> Result<PutStart> {
        if let Some(code) = *self.0.refusal.lock() {
            return Err(Error::new(code, "not now"));
        }
        if self.0.chunks.lock().get(&request.key).is_some_and(|(sums, _)| sums[..] == request.checksums[..]) {
            return Ok(PutStart::There);
        }
        *self.0.begun.lock() += 1;
        let (writer, _) = growing(&request.key);
        Ok(PutStart::Take(Box::new(Taking(self.0.clone(), request.clone(), writer))))
    }

    fn release(&self, attempt: &AttemptId) -> Result<()> {
        self.0.released.lock().push(*attempt);
        Ok(())
    }

    fn page(&self, path: &str) -> Option<Page> {
        let body = b"ok\n".to_vec();
        (path == "/healthz").then(|| Page { status: 200, content_type: "text/plain".into(), body })
    }
}

impl Incoming for Taking {
    fn writer(&mut self) -> &mut GrowingWriter {
        &mut self.2
    }

    fn keep(self: Box<Self>) -> Result<()> {
        let Taking(shelf, request, writer) = *self;
        writer.finish()?;
        shelf.chunks.lock().insert(request.key, (request.checksums.to_vec(), request.mode));
        Ok(())
    }
}

fn keeper() -> (Arc<Shelf>, Arc<dyn ChunkService>) {
    let shelf = Arc::<Shelf>::default();
    (shelf.clone(), Arc::new(Keeper(shelf)))
}

fn hold() -> PutMode {
    PutMode::Hold { attempt: AttemptId::from_bytes([0xab; 16]) }
}

#[test]
fn all_ways_bring_the_same_chunk_and_only_once() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let blocks = BlockChecksum::of_blocks(&bytes);
    for mode in [PutMode::Cache, hold()] {
        let (shelf, service) = keeper();
        let server = start(ServerOptions::default(), service.clone());
        for endpoint in [server.tcp(), server.unix(), Endpoint::InProcess(service)] {
            shelf.chunks.lock().clear();
            for _ in 0..3 {
                client.put(&endpoint, &key, &bytes, &blocks, mode).unwrap();
            }
            assert_eq!(shelf.chunks.lock().get(&key), Some(&(blocks.clone(), mode)), "{endpoint}");
        }
        assert_eq!(*shelf.begun.lock(), 3, "what is there is not sent again");
        assert_eq!(server.stats().received_bytes, 2 * LEN as u64);
        assert_eq!((server.stats().puts, server.stats().accepted), (2, 2), "one connection each, kept open");
    }
    let stats = client.stats();
    assert_eq!((stats.puts, stats.puts_there, stats.put_failures), (6, 12, 0));
    assert_eq!(stats.put_bytes, 6 * LEN as u64);
}

#[test]
fn a_wrong_block_is_refused_where_it_lands_and_the_rest_is_not_taken() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let (shelf, service) = keeper();
    let server = start(ServerOptions::default(), service.clone());
    for endpoint in [server.tcp(), server.unix(), Endpoint::InProcess(service)] {
        let mut blocks = BlockChecksum::of_blocks(&bytes);
        blocks[1] = BlockChecksum(7);
        let error = client.put(&endpoint, &key, &bytes, &blocks, PutMode::Cache).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{error}");
        assert!(error.message().contains("block 1") && error.message().contains("m+1.safetensors"), "{error}");
        assert!(shelf.chunks.lock().is_empty());
        blocks.pop();
        let error = client.put(&endpoint, &key, &bytes, &blocks, PutMode::Cache).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        let error = client.put(&endpoint, &key, &bytes[1..], &BlockChecksum::of_blocks(&bytes), hold()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
}

#[test]
fn refusals_keep_their_code_and_the_connection_and_cost_no_body() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let blocks = BlockChecksum::of_blocks(&bytes);
    let (shelf, service) = keeper();
    let server = start(ServerOptions::default(), service);
    for code in [Code::Exhausted, Code::PermissionDenied, Code::Unavailable, Code::Unsupported] {
        *shelf.refusal.lock() = Some(code);
        for endpoint in server.endpoints() {
            let error = client.put(&endpoint, &key, &bytes, &blocks, PutMode::Cache).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(error.message().ends_with("not now"), "{error}");
        }
    }
    assert_eq!((server.stats().accepted, server.stats().received_bytes), (2, 0));
    let attempt = AttemptId::from_bytes([3; 16]);
    for endpoint in server.endpoints() {
        client.release(&endpoint, &attempt).unwrap();
    }
    assert_eq!(*shelf.released.lock(), [attempt, attempt]);
    // Who takes nothing says so.
    let server = start(ServerOptions::default(), Service::with(|_| Err(not_found())));
    let error = client.put(&server.tcp(), &key, &bytes, &blocks, PutMode::Cache).unwrap_err();
    assert_eq!(error.code(), Code::Unsupported, "{error}");
    assert_eq!(client.release(&server.tcp(), &attempt).unwrap_err().code(), Code::Unsupported);
}

/// The head of a PUT as a stranger writes it.
fn head(key: &ChunkKey, length: &str, sums: &[BlockChecksum], more: &str) -> String {
    let sums: Vec<String> = sums.iter().map(ToString::to_string).collect();
    let (size, index) = (key.artifact().size_bytes(), key.index());
    format!(
        "PUT /v1/chunk?url=s3://bucket/a%20folder/m%2B1.safetensors&version=etag:%22v%201%262%22&size={size}&index={index} \
         HTTP/1.1\r\nHost: x\r\n{length}Longshore-Checksums: {}\r\n{more}\r\n",
        sums.join(",")
    )
}

#[test]
fn strangers_may_put_with_or_without_asking_first() {
    let (bytes, key) = (content(LEN), key(LEN));
    let blocks = BlockChecksum::of_blocks(&bytes);
    let (shelf, service) = keeper();
    let server = start(ServerOptions::default(), service);
    let length = format!("Content-Length: {LEN}\r\n");
    let mut stream = server.connect();
    stream.write_all(head(&key, &length, &blocks, "").as_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 201 Created\r\n"));
    assert_eq!(shelf.chunks.lock().len(), 1);
    shelf.chunks.lock().clear();
    // On the same connection, as curl does it.
    stream.write_all(head(&key, &length, &blocks, "Expect: 100-continue\r\n").as_bytes()).unwrap();
    assert_eq!(read_head(&mut stream), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&bytes).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 201 Created\r\n"));
    // What is there is not taken; who may have begun to send is cut off, so that no body is read as a request.
    stream.write_all(head(&key, &length, &blocks, "Expect: 100-continue\r\n").as_bytes()).unwrap();
    let answer = read_head(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("Connection: close\r\n"), "{answer}");
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn malformed_puts_are_refused_before_anything_is_taken() {
    let (bytes, key) = (content(LEN), key(LEN));
    let blocks = BlockChecksum::of_blocks(&bytes);
    let (shelf, service) = keeper();
    let server = start(ServerOptions::default(), service);
    let length = format!("Content-Length: {LEN}\r\n");
    let cases = [
        (head(&key, "", &blocks, ""), "411"),
        (head(&key, "Content-Length: 1\r\n", &blocks, ""), "400"),
        (head(&key, "Content-Length: 99999999999999\r\n", &blocks, ""), "400"),
        (head(&key, "Content-Length: -5\r\n", &blocks, ""), "400"),
        (head(&key, &format!("{length}{length}"), &blocks, ""), "400"),
        (head(&key, "Transfer-Encoding: chunked\r\n", &blocks, ""), "400"),
        (head(&key, &length, &blocks[1..], ""), "400"),
        (head(&key, &length, &[BlockChecksum(1); 17], ""), "400"),
        (head(&key, &length, &blocks, "").replace("index=0", "index=0&hold=not-an-id"), "400"),
        (head(&key, &length, &blocks, "").replace("/v1/chunk", "/v1/other"), "405"),
        ("DELETE /v1/chunk HTTP/1.1\r\n\r\n".to_owned(), "405"),
        ("DELETE /v1/hold?attempt=xyz HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "400"),
        ("DELETE /v1/hold HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "400"),
    ];
    for (request, status) in cases {
        let answer = String::from_utf8(talk(server.connect(), request.as_bytes())).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.300}: {answer}");
    }
    assert_eq!(*shelf.begun.lock(), 0);
    assert_eq!(client().page(&server.tcp(), "/healthz", 10).unwrap(), b"ok\n");
}

#[test]
fn bodies_that_are_cut_or_slow_are_given_up_and_nothing_of_them_is_kept() {
    let (bytes, key) = (content(LEN), key(LEN));
    let blocks = BlockChecksum::of_blocks(&bytes);
    let length = format!("Content-Length: {LEN}\r\n");
    let short = Duration::from_millis(100);
    // Cut: the connection ends within the body.
    let (shelf, service) = keeper();
    let server = start(ServerOptions::default(), service.clone());
    let mut stream = server.connect();
    stream.write_all(head(&key, &length, &blocks, "").as_bytes()).unwrap();
    stream.write_all(&bytes[..LEN - 1]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    // Silent after some bytes.
    let server = start(ServerOptions { put_stall_timeout: short, ..ServerOptions::default() }, service.clone());
    let mut stream = server.connect();
    stream.write_all(head(&key, &length, &blocks, "").as_bytes()).unwrap();
    stream.write_all(&bytes[..5]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("too slowly"), "{answer}");

    // Drop by drop: never silent, never done.
    let server = start(ServerOptions { put_timeout: short, ..ServerOptions::default() }, service);
    let mut stream = server.connect();
    stream.write_all(head(&key, &length, &blocks, "").as_bytes()).unwrap();
    let mut dropping = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || while dropping.write_all(b"x").is_ok() {});
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        stream.shutdown(std::net::Shutdown::Both).ok();
        // Either the time was over, or the first block was whole before that, and wrong.
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 504 ") || answer.starts_with("HTTP/1.1 502 "), "{answer}");
    });
    until("it is gone", || server.stats().connections == 0);
    assert!(shelf.chunks.lock().is_empty());
}

#[test]
fn a_recheck_tells_what_the_blocks_must_be() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let blocks: Arc<[BlockChecksum]> = BlockChecksum::of_blocks(&bytes).into();
    let seen = Arc::new(Mutex::new(None));
    let service = Service::with({
        let (seen, body) = (seen.clone(), file_body(&bytes));
        move |request| {
            *seen.lock() = request.expected.clone();
            Ok(ChunkReply { tier: longshore_wire::Tier::Disk, body: body.clone() })
        }
    });
    let server = start(ServerOptions::default(), service);
    let mut request = ChunkRequest { expected: Some(blocks.clone()), ..ChunkRequest::whole(key.clone()) };
    let (_, fetched) = fetch(&client, &server.tcp(), &request).unwrap();
    assert_eq!((fetched.checksums, seen.lock().take()), (blocks.to_vec(), None), "not without a recheck");
    request.recheck = true;
    fetch(&client, &server.tcp(), &request).unwrap();
    assert_eq!(seen.lock().take(), Some(blocks.clone()));
    // Not one for each block: nothing is compared by halves.
    request.expected = Some(blocks[1..].into());
    assert_eq!(fetch(&client, &server.tcp(), &request).unwrap_err().code(), Code::InvalidArgument);
}
