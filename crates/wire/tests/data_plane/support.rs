//! A service made of a closure, servers in temporary folders, and memory to fetch into.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::{Arena, Buffer, Landing};
use longshore_types::{Artifact, BlockChecksum, ChunkKey, Code, Error, Result, Version};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, ClientOptions, DataClient, DataServer, Endpoint, GrowingChunk,
    GrowingWriter, Page, ServerHandle, ServerOptions, ServerStats, Tier,
};
use tokio_util::sync::CancellationToken;

/// Long enough for any machine; a test that needs it all has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Get = dyn Fn(&ChunkRequest) -> Result<ChunkReply> + Send + Sync;

pub struct Service(Box<Get>);

impl Service {
    pub fn with(get: impl Fn(&ChunkRequest) -> Result<ChunkReply> + Send + Sync + 'static) -> Arc<dyn ChunkService> {
        Arc::new(Service(Box::new(get)))
    }

    /// Always the same answer.
    pub fn of(body: ChunkBody) -> Arc<dyn ChunkService> {
        Service::with(move |_| Ok(ChunkReply { tier: Tier::Disk, body: body.clone() }))
    }
}

impl ChunkService for Service {
    fn get(&self, request: &ChunkRequest) -> Result<ChunkReply> {
        (self.0)(request)
    }

    fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/healthz" => Some(Page { status: 200, content_type: "text/plain".into(), body: b"ok\n".to_vec() }),
            "/broken" => Some(Page { status: 503, content_type: "text/plain".into(), body: b"not yet".to_vec() }),
            "/big" => Some(Page { status: 200, content_type: "text/plain".into(), body: vec![b'x'; 100_000] }),
            "/panic" => panic!("a defect in the service"),
            _ => None,
        }
    }
}

/// A running server; dropping it drains it.
pub struct Running {
    pub token: CancellationToken,
    pub tcp: String,
    pub unix: PathBuf,
    handle: Option<ServerHandle>,
    _folder: tempfile::TempDir,
}

pub fn start(options: ServerOptions, service: Arc<dyn ChunkService>) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let unix = folder.path().join("data.sock");
    let options = ServerOptions { tcp: Some("127.0.0.1:0".parse().unwrap()), unix: Some(unix.clone()), ..options };
    let server = DataServer::bind(options, service).unwrap();
    let (token, tcp) = (CancellationToken::new(), server.tcp_addr().unwrap().to_string());
    let handle = Some(server.spawn(token.clone()).unwrap());
    Running { token, tcp, unix, handle, _folder: folder }
}

impl Running {
    pub fn stats(&self) -> ServerStats {
        self.handle.as_ref().unwrap().stats()
    }

    pub fn endpoints(&self) -> [Endpoint; 2] {
        [self.tcp(), self.unix()]
    }

    pub fn tcp(&self) -> Endpoint {
        Endpoint::Tcp(self.tcp.clone())
    }

    pub fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.unix.clone())
    }

    /// A plain socket, as anybody may open one.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn join(mut self) {
        self.token.cancel();
        self.handle.take().unwrap().join();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.token.cancel();
        if let Some(handle) = self.handle.take() {
            handle.join();
        }
    }
}

/// Bytes that repeat nowhere near a block.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// The first chunk of an object of `len` bytes.
pub fn key(len: usize) -> ChunkKey {
    let version = Version::new("etag:\"v 1&2\"").unwrap();
    let artifact = Artifact::new("s3://bucket/a folder/m+1.safetensors", version, len as u64).unwrap();
    ChunkKey::new(Arc::new(artifact), 0).unwrap()
}

/// A file with something before and after the chunk.
pub fn file_body(bytes: &[u8]) -> ChunkBody {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[0xaa; 4096], 0).unwrap();
    file.write_all_at(bytes, 4096).unwrap();
    file.write_all_at(b"trailer", 4096 + bytes.len() as u64).unwrap();
    ChunkBody::File { file: Arc::new(file), offset_bytes: 4096, checksums: BlockChecksum::of_blocks(bytes).into() }
}

pub fn file_of(body: &ChunkBody) -> &File {
    match body {
        ChunkBody::File { file, .. } => file,
        ChunkBody::Memory(_) => panic!("not a file"),
    }
}

pub fn buffer(len: usize) -> Buffer {
    Arena::new(64 << 20).try_buffer(len).unwrap()
}

/// A chunk that has not begun to fill.
pub fn growing(key: &ChunkKey) -> (GrowingWriter, Arc<GrowingChunk>) {
    GrowingChunk::begin(key.clone(), buffer(key.len_bytes() as usize)).unwrap()
}

pub fn memory_body(key: &ChunkKey, bytes: &[u8]) -> ChunkBody {
    let (mut writer, chunk) = growing(key);
    writer.write(bytes).unwrap();
    writer.finish().unwrap();
    ChunkBody::Memory(chunk)
}

/// Fetches into fresh memory, cut in odd places, and gives what landed.
pub fn fetch(
    client: &DataClient,
    endpoint: &Endpoint,
    request: &ChunkRequest,
) -> Result<(Vec<u8>, longshore_wire::Fetched)> {
    let len = (request.range.end - request.range.start) as usize;
    let cut = len / 3;
    let buffer = buffer(len + 7);
    let mut landing = Landing::builder().buffer(buffer, vec![0..cut, cut + 7..len + 7]).build().unwrap();
    let fetched = client.fetch(endpoint, request, &mut landing)?;
    let bytes = landing.into_buffers().remove(0);
    Ok(([&bytes[..cut], &bytes[cut + 7..]].concat(), fetched))
}

pub fn client() -> DataClient {
    DataClient::new(ClientOptions { stall_timeout: PATIENCE, ..ClientOptions::default() })
}

/// Waits for a condition of another thread.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::yield_now();
    }
}

/// The head of a chunk request as a stranger writes it.
pub fn plain_request(key: &ChunkKey, headers: &str) -> String {
    let (size, index) = (key.artifact().size_bytes(), key.index());
    format!(
        "GET /v1/chunk?url=s3://bucket/a%20folder/m%2B1.safetensors&version=etag:%22v%201%262%22&size={size}&index={index} \
         HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
    )
}

/// Sends bytes and reads all that comes until the other side closes.
pub fn talk(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// Reads exactly one head, byte by byte, and gives it as text.
pub fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

pub fn not_found() -> Error {
    Error::new(Code::NotFound, "no such object")
}
