//! What the worker's tests share: an origin that counts, workers in this process, and a client that compares bytes.
#![allow(dead_code)] // each test file uses its part

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::{Arena, Landing};
use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::cluster::{free_port, http_get};
use longshore_testkit::{Content, FakeOrigin};
use longshore_types::chunk::block_aligned;
use longshore_types::{ByteSize, CHUNK_BYTES, ChunkKey, Error, Result};
use longshore_wire::{ChunkRequest, ClientOptions, DataClient, Endpoint, Mode, Tier};
use longshore_worker::{Ask, Worker, WorkerOptions};
use tokio_util::sync::CancellationToken;

/// Long enough for any machine; a test that works never waits for it to pass.
pub const LONG: Duration = Duration::from_secs(60);

/// A runtime as the daemon has it.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Origins that reach the fake one.
pub fn origins(origin: &FakeOrigin) -> Origins {
    let options = OriginOptions {
        s3_endpoint: Some(origin.url()),
        s3_skip_signature: true,
        store_options: vec!["aws_allow_http=true".parse().unwrap()],
        attempts_max: 3,
        retry_pause_ms: 5,
        ..OriginOptions::default()
    };
    Origins::new(options).unwrap()
}

/// Options of a small worker over `folder`.
pub fn options(folder: &Path) -> WorkerOptions {
    WorkerOptions {
        cache_dir: Some(folder.to_owned()),
        memory_bytes: Some(ByteSize(512 << 20)),
        disk_bytes: Some(ByteSize(4 << 30)),
        disk_free_floor: Some(ByteSize(0)),
        disk_wait_ms: 60_000,
        ..WorkerOptions::default()
    }
}

/// A worker inside this process, with the runtime its fills run on.
pub struct Local {
    pub worker: Arc<Worker>,
    pub runtime: tokio::runtime::Runtime,
}

impl Local {
    pub fn open(options: WorkerOptions, origin: &FakeOrigin) -> Local {
        Local::try_open(options, origin).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_open(options: WorkerOptions, origin: &FakeOrigin) -> Result<Local> {
        let runtime = runtime();
        let entered = runtime.enter();
        let worker = Worker::open(options, origins(origin), None)?;
        drop(entered);
        Ok(Local { worker, runtime })
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::InProcess(self.worker.clone())
    }

    pub fn chunks(&self, url: &str) -> Vec<ChunkKey> {
        let answer = self.runtime.block_on(self.worker.stat(url, Ask::default())).unwrap();
        ChunkKey::all(&Arc::new(answer.value)).collect()
    }

    /// The value of a metric, labels as they are printed.
    pub fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.worker.render_metrics().unwrap()).unwrap();
        metric_of(&text, name)
    }
}

pub fn metric_of(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

pub fn client() -> DataClient {
    DataClient::new(ClientOptions::default())
}

/// Fetches a range, widened to blocks, and says which tier it came from.
pub fn fetch(endpoint: &Endpoint, request: &ChunkRequest) -> Result<(Vec<u8>, Tier)> {
    let len = (request.range.end - request.range.start) as usize;
    let buffer = Arena::new(CHUNK_BYTES).try_buffer(len).unwrap();
    let whole = 0..len;
    let mut landing = Landing::builder().buffer(buffer, vec![whole]).build()?;
    let fetched = client().fetch(endpoint, request, &mut landing)?;
    Ok((landing.into_buffers()[0].to_vec(), fetched.tier))
}

pub fn request(key: &ChunkKey, mode: Mode, recheck: bool) -> ChunkRequest {
    let range = block_aligned(0..key.len_bytes(), key.len_bytes());
    ChunkRequest { key: key.clone(), range, mode, recheck, expected: None, prefers_file: false }
}

/// Fetches a whole chunk, compares it with what the origin holds, and says which tier it came from.
pub fn fetch_whole(endpoint: &Endpoint, key: &ChunkKey, content: &Content) -> Result<Tier, Error> {
    let (bytes, tier) = fetch(endpoint, &request(key, Mode::Fill, false))?;
    assert_eq!(content.first_difference(key.range().start, &bytes), None, "chunk {}", key.index());
    Ok(tier)
}

/// A worker as the daemon runs it, in this process.
pub struct Served {
    pub data: String,
    pub control: String,
    pub ops: String,
    token: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
    served: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl Served {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Tcp(self.data.clone())
    }

    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = http_get(&self.ops, "/metrics").unwrap();
        assert_eq!(status, 200);
        metric_of(&text, name)
    }

    pub fn ready(&self) -> bool {
        http_get(&self.ops, "/readyz").is_ok_and(|(status, _)| status == 200)
    }

    /// What SIGTERM does.
    pub fn terminate(&self) {
        self.token.cancel();
    }

    /// Waits until the daemon has ended.
    pub fn ended(&mut self) -> Result<()> {
        let served = self.served.take().unwrap();
        self.runtime.as_ref().unwrap().block_on(served).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.token.cancel();
        if let (Some(runtime), Some(served)) = (self.runtime.take(), self.served.take()) {
            // How it ended is `ended`'s to check.
            let _ = runtime.block_on(async { tokio::time::timeout(LONG, served).await });
            runtime.shutdown_background();
        }
    }
}

/// Starts `count` workers that know each other, each with a folder under `folder`, and waits until all are ready.
pub fn serve(
    count: usize,
    folder: &Path,
    origin: &FakeOrigin,
    adjust: impl Fn(usize, WorkerOptions) -> WorkerOptions,
) -> Vec<Served> {
    let ports: Vec<[u16; 3]> = (0..count).map(|_| [free_port(), free_port(), free_port()]).collect();
    let address = |port: u16| format!("127.0.0.1:{port}");
    let all: Vec<String> = ports.iter().map(|ports| address(ports[0])).collect();
    let start = |(index, ports): (usize, &[u16; 3])| {
        let options = WorkerOptions {
            data_listen: address(ports[0]).parse().unwrap(),
            control_listen: address(ports[1]).parse().unwrap(),
            ops_listen: address(ports[2]).parse().unwrap(),
            workers: if count > 1 { all.clone() } else { Vec::new() },
            weight: Some(100),
            ..options(&folder.join(format!("worker-{index}")))
        };
        let (runtime, token) = (runtime(), CancellationToken::new());
        let served = runtime.spawn(longshore_worker::serve(adjust(index, options), origins(origin), token.clone()));
        Served {
            data: address(ports[0]),
            control: address(ports[1]),
            ops: address(ports[2]),
            token,
            runtime: Some(runtime),
            served: Some(served),
        }
    };
    let mut workers: Vec<Served> = ports.iter().enumerate().map(start).collect();
    for worker in &mut workers {
        until("a worker is ready", || {
            assert!(!worker.served.as_ref().unwrap().is_finished(), "a worker ended: {:?}", worker.ended());
            worker.ready()
        });
    }
    workers
}

/// Asks again until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
