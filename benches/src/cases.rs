//! The cases: daemons as processes, one load a round each, beside the limits of the same work.

mod node;

use std::path::Path;

use anyhow::Context;
use longshore_testkit::modelgen::{Model, ModelSpec, TensorSpec};
use longshore_testkit::{FakeOrigin, OriginConfig};

use self::node::{Node, WorkerKind};
use crate::Options;
use crate::limits::{self, Sample};
use crate::report::{Report, RowSpec};
use crate::system::{Daemon, free_address};

/// Bucket and folder of the model at the origin.
const KEY: &str = "bench/model";
/// Weights of the model: one file, so that the plain limits read the same bytes.
const WEIGHTS: &str = "model.safetensors";

/// A model of about `size_bytes` with the shapes of a decoder: large matrices, and small vectors between them.
pub fn model(size_bytes: u64) -> Model {
    let (hidden, inner) = (2048u64, 5632u64);
    let mut tensors = Vec::new();
    let (mut total, mut layer) = (0, 0);
    while total < size_bytes {
        let prefix = format!("model.layers.{layer}");
        let shapes: [(&str, Vec<u64>); 9] = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![hidden / 8, hidden]),
            ("self_attn.v_proj", vec![hidden / 8, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        for (name, shape) in shapes {
            let tensor = TensorSpec::new(format!("{prefix}.{name}.weight"), "BF16", shape);
            total += tensor.len_bytes();
            tensors.push(tensor);
        }
        layer += 1;
    }
    ModelSpec::of(1, tensors).build()
}

/// Serves the model as an S3 origin until it is killed: what the hidden flag `--serve-origin` runs.
pub fn serve_origin(size_bytes: u64, listen: std::net::SocketAddr) -> anyhow::Result<()> {
    let origin = FakeOrigin::try_with(OriginConfig { listen, ..OriginConfig::default() })?;
    for (name, content) in &model(size_bytes).files {
        origin.put(&format!("{KEY}/{name}"), content.clone());
    }
    loop {
        std::thread::park();
    }
}

/// All samples of one row.
#[derive(Default)]
struct Series(Vec<Sample>);

impl Series {
    fn push(&mut self, sample: Sample, counted: bool) {
        if counted {
            self.0.push(sample);
        }
    }
}

#[derive(Default)]
struct Measured {
    memcpy: Series,
    read: Series,
    read_warm: Series,
    read_shared: Series,
    tcp: Series,
    get: Series,
    local: Series,
    same_host: Series,
    over_tcp: Series,
    origin_direct: Series,
    empty_cache: Series,
}

/// Runs everything.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let work = tempfile::Builder::new().prefix("longshore-bench-").tempdir()?;
    let model = model(options.size.0);
    let folder = work.path().join("model");
    model.write_to(&folder).context("write the model")?;
    let weights = folder.join(WEIGHTS);
    let weights_bytes = weights.metadata()?.len();

    let origin_address = free_address()?;
    let origin = start_origin(options, &origin_address, work.path())?;
    let uri = format!("s3://{KEY}");
    let bare = Node::start("bare", None, &origin_address, options, work.path())?;
    let same_host = Node::start("same-host", Some(WorkerKind::UnixSocket), &origin_address, options, work.path())?;
    let tcp = Node::start("tcp", Some(WorkerKind::TcpOnly), &origin_address, options, work.path())?;
    let cold = Node::start("cold", Some(WorkerKind::TcpOnly), &origin_address, options, work.path())?;

    let mut measured = Measured::default();
    for round in 0..=options.rounds {
        let counted = round > 0;
        eprintln!("round {round} of {}{}", options.rounds, if counted { "" } else { " (warm-up, not counted)" });
        let threads = options.threads;
        measured.memcpy.push(limits::memcpy(weights_bytes)?, counted);
        measured.read.push(limits::read_file(&weights, threads)?, counted);
        measured.read_shared.push(limits::read_file_shared(&weights, threads)?, counted);
        measured.local.push(bare.load(&folder.to_string_lossy())?, counted);
        measured.read_warm.push(limits::read_file_warm(&weights, threads)?, counted);
        measured.same_host.push(same_host.load(&uri)?, counted);
        measured.tcp.push(limits::raw_tcp(&weights, threads)?, counted);
        measured.over_tcp.push(tcp.load(&uri)?, counted);
        let key = format!("/{KEY}/{WEIGHTS}");
        measured.get.push(limits::raw_get(&origin_address, &key, weights_bytes, threads)?, counted);
        measured.origin_direct.push(bare.load(&uri)?, counted);
        measured.empty_cache.push(cold.load(&uri)?, counted);
        cold.free(&uri)?;
    }
    drop(origin);
    Ok(rows(weights_bytes, &measured, options))
}

fn start_origin(options: &Options, address: &str, work: &Path) -> anyhow::Result<Daemon> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["--serve-origin", address, "--size", &options.size.to_string()]);
    let mut origin = Daemon::start(command, &work.join("origin.log"))?;
    origin.wait_ready(address, "/_counters")?;
    Ok(origin)
}

fn rows(weights_bytes: u64, measured: &Measured, options: &Options) -> Report {
    let command =
        format!("speed-report --size {} --rounds {} --threads {}", options.size, options.rounds, options.threads);
    let mut report = Report::new(weights_bytes);
    let mut add = |case, subject, series: &Series, limit: Option<&Series>, cache_state, note| {
        let spec = RowSpec { case, subject, cache_state, note };
        report.add(&spec, &series.0, limit.map(|limit| limit.0.as_slice()), &command);
    };
    let m = measured;
    let note = "one thread copies between two 64 MiB buffers touched before";
    add("limit/memcpy", "memcpy", &m.memcpy, None, "warm", note);
    let note = "threads read the file, each into one 16 MiB buffer over and over";
    add("limit/read-warm", "pread", &m.read_warm, None, "resident", note);
    let note = "threads read the file into fresh private memory with huge pages";
    add("limit/read", "pread", &m.read, None, "resident", note);
    let note =
        "threads read the file into a fresh memfd: what any program must do that hands the memory to another process";
    add("limit/read-shared", "pread", &m.read_shared, None, "resident", note);
    let note = "loopback, one connection a thread, into one 16 MiB buffer over and over";
    add("limit/tcp", "sendfile to recv", &m.tcp, None, "resident", note);
    let note = "parallel ranged GETs of 16 MiB over blocking sockets, each thread into one buffer over and over";
    add("limit/get", "raw GET", &m.get, None, "in the origin's memory", note);
    let note = "a loader reads the file itself; against limit/read-shared";
    add("local/resident", "longshore", &m.local, Some(&m.read_shared), "resident", note);
    let note = "a loader reads through descriptors of a worker on the node; against limit/read-shared";
    add("worker/same-host", "longshore", &m.same_host, Some(&m.read_shared), "on the worker's disk, resident", note);
    let note = "a loader and a worker over loopback TCP; against limit/tcp, which pays for no fresh memory";
    add("worker/tcp", "longshore", &m.over_tcp, Some(&m.tcp), "on the worker's disk, resident", note);
    let note = "a loader without workers; against limit/get, which pays for no fresh memory";
    add("origin/direct", "longshore", &m.origin_direct, Some(&m.get), "no cache", note);
    let note = "a loader and a worker that fills from the origin; against limit/get";
    add("origin/empty-cache", "longshore", &m.empty_cache, Some(&m.get), "empty cache", note);
    report
}
