//! A loader, perhaps with a worker, as processes, driven over gRPC.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use longshore_proto::v1::load_model_response::Event;
use longshore_proto::v1::loader_client::LoaderClient;
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_proto::v1::{FreeRequest, LoadModelRequest, UnloadModelRequest};
use tonic::transport::{Channel, Endpoint};

use crate::Options;
use crate::limits::Sample;
use crate::system::{Daemon, free_address, program};

/// How the loader reaches its worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WorkerKind {
    /// By descriptors over a unix socket.
    UnixSocket,
    /// Over loopback TCP.
    TcpOnly,
}

struct Worker {
    daemon: Daemon,
    data: String,
    control: String,
}

/// One loader and at most one worker.
pub struct Node {
    loader: Daemon,
    worker: Option<Worker>,
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Node {
    /// Starts the processes and waits until they are ready.
    pub fn start(
        name: &str,
        worker: Option<WorkerKind>,
        origin: &str,
        options: &Options,
        work: &Path,
    ) -> anyhow::Result<Node> {
        let folder = work.join(name);
        std::fs::create_dir_all(&folder)?;
        let worker = worker.map(|kind| start_worker(kind, origin, options, &folder)).transpose()?;
        let (listen, ops) = (free_address()?, free_address()?);
        let mut command = longshore(origin)?;
        command.args(["loader", "--listen", &listen, "--ops-listen", &ops, "--memory", &budget(options)]);
        command.arg("--socket-dir").arg(folder.join("sockets"));
        if let Some(worker) = &worker {
            command.args(["--workers", &worker.data]);
        }
        let mut loader = Daemon::start(command, &folder.join("loader.log"))?;
        loader.wait_ready(&ops, "/readyz")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(Endpoint::new(format!("http://{listen}"))?.connect())?;
        Ok(Node { loader, worker, runtime, channel })
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let worker = self.worker.as_ref().map_or(Ok(0.0), |worker| worker.daemon.cpu_seconds())?;
        Ok(self.loader.cpu_seconds()? + worker)
    }

    /// Loads once, timed from the call to the last message, and unloads.
    pub fn load(&self, uri: &str) -> anyhow::Result<Sample> {
        let mut client = LoaderClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        let (cpu, start) = (self.cpu_seconds()?, Instant::now());
        let request = LoadModelRequest { uri: uri.to_owned(), device: "host".to_owned(), ..Default::default() };
        let model = self.runtime.block_on(async {
            let mut stream = client.load_model(request).await?.into_inner();
            let mut model = None;
            while let Some(message) = stream.message().await? {
                if let Some(Event::Model(loaded)) = message.event {
                    model = Some(loaded);
                }
            }
            model.context("the stream ended without a model")
        })?;
        let sample = Sample { seconds: start.elapsed().as_secs_f64(), cpu_seconds: self.cpu_seconds()? - cpu };
        let report = model.report.context("a model without a report")?;
        ensure!(!model.reattached, "{uri} was in memory already");
        ensure!(report.fallbacks.is_empty(), "{uri} was loaded with fallbacks: {:?}", report.fallbacks);
        let request = UnloadModelRequest { model_id: model.model_id, ..Default::default() };
        self.runtime.block_on(client.unload_model(request))?;
        Ok(sample)
    }

    /// Empties the worker's cache of a model.
    pub fn free(&self, uri: &str) -> anyhow::Result<()> {
        let Some(worker) = &self.worker else { return Ok(()) };
        self.runtime.block_on(async {
            let channel = Endpoint::new(format!("http://{}", worker.control))?.connect().await?;
            let request = FreeRequest { url: uri.to_owned(), local_only: true };
            WorkerClient::new(channel).free(request).await?;
            Ok(())
        })
    }
}

/// Room for the model, its padding and the bytes in flight.
fn budget(options: &Options) -> String {
    (options.size.0 + options.size.0 / 4 + (1 << 30)).to_string()
}

/// The binary with the origin's settings.
fn longshore(origin: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(program("longshore")?);
    command
        .env("AWS_ENDPOINT_URL", format!("http://{origin}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "bench")
        .env("AWS_SECRET_ACCESS_KEY", "bench")
        .env("AWS_REGION", "us-east-1")
        .env_remove("LONGSHORE_WORKERS")
        .env_remove("LONGSHORE_CONFIG");
    Ok(command)
}

fn start_worker(kind: WorkerKind, origin: &str, options: &Options, folder: &Path) -> anyhow::Result<Worker> {
    let (data, control, ops) = (free_address()?, free_address()?, free_address()?);
    let mut command = longshore(origin)?;
    command.args(["worker", "--data-listen", &data, "--control-listen", &control, "--ops-listen", &ops]);
    // A small memory tier: after the warm-up every read is served from the disk tier, which is resident.
    command.args(["--memory", "512MiB", "--disk", &budget(options), "--disk-free-floor", "1GiB"]);
    command.arg("--cache-dir").arg(folder.join("cache"));
    if kind == WorkerKind::UnixSocket {
        command.arg("--unix-socket").arg(folder.join("worker.sock"));
    }
    let mut daemon = Daemon::start(command, &folder.join("worker.log"))?;
    daemon.wait_ready(&ops, "/readyz")?;
    Ok(Worker { daemon, data, control })
}
