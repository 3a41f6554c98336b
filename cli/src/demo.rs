//! `longshore demo`: what the cache does, shown on this machine alone, with no network and nothing left behind.
//!
//! A made-up model lies behind an HTTP server in this process (the origin, which counts what it serves). A private
//! loader, another process, loads it four times: from the origin, from the cache, and twice from its own memory. Then
//! this process attaches to that memory and compares it with what was made up, byte for byte.

mod model;
mod origin;

use std::fmt::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use longshore_loader::LoadRequest;
use longshore_proto::status::from_status;
use longshore_proto::v1;
use longshore_runtime::env;
use longshore_types::{Code, Error, Result, format_bytes};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::DemoArgs;
use crate::attach::{Attached, attach};
use crate::connect::{LoaderAddress, LoaderConnection, connect_loader};
use crate::daemon::start;
use crate::files::file_error;
use crate::load::through_daemon;
use crate::output::{Output, row, seconds, table};
use crate::report::LoadOutput;
use origin::Origin;

/// Bytes that are compared at once.
const COMPARE_BYTES: usize = 1 << 20;

/// Runs the command.
///
/// # Errors
/// Those of the parts; [`Code::Corrupt`] when the attached memory is not the model.
pub async fn run(args: DemoArgs, output: Output, token: CancellationToken) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("longshore-demo-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).map_err(|error| file_error("make", &folder, error))?;
    let shown = token.run_until_cancelled(show(&folder, args, output)).await;
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        tracing::warn!(%error, "cannot remove {}", folder.display());
    }
    shown.unwrap_or_else(|| Err(Error::new(Code::Cancelled, "the demo was interrupted")))
}

async fn show(folder: &Path, args: DemoArgs, output: Output) -> Result<()> {
    let size_bytes = args.size.0;
    let model = tokio::task::spawn_blocking(move || model::make(size_bytes)).await;
    let model = Bytes::from(model.map_err(|error| Error::new(Code::Internal, format!("no model: {error}")))??);
    let origin = Origin::start(model.clone()).await?;
    let variables = [(env::CACHE_DIR.to_owned(), folder.join("cache").into_os_string())];
    let mut loader = start::start(&variables).await?;
    let connection = connect_loader(LoaderAddress::Unix(loader.loader_socket.clone())).await?;
    let shown = steps(&connection, &origin, &model, output).await;
    // With the last lease gone the loader ends by itself, and with it its hold on the cache folder.
    if shown.is_err() {
        loader.terminate();
    }
    let ended = loader.process.wait().await;
    ended.map_err(|error| Error::new(Code::Internal, format!("the private loader is lost: {error}")))?;
    shown
}

/// One row of the table.
struct Step {
    name: &'static str,
    seconds: f64,
    from: String,
    origin_bytes: u64,
}

async fn steps(connection: &LoaderConnection, origin: &Origin, model: &Bytes, output: Output) -> Result<()> {
    let mut steps = Vec::new();
    let cold = load(connection, origin, "load, cold", &mut steps).await?;
    unload(connection, &cold.model_id).await?;
    let cached = load(connection, origin, "load, cached", &mut steps).await?;
    load(connection, origin, "load again", &mut steps).await?;

    let (start, before) = (Instant::now(), origin.served_bytes());
    let attached = tokio::task::spawn_blocking(move || attach(Path::new(&cached.attach_socket), &cached.model_id));
    let attached = attached.await.map_err(|error| Error::new(Code::Internal, format!("no attach: {error}")))??;
    let took = start.elapsed().as_secs_f64();
    let from = format!("{} shared, no copy", format_bytes(attached.model.size_bytes));
    steps.push(Step { name: "attach", seconds: took, from, origin_bytes: origin.served_bytes() - before });

    let (start, expected) = (Instant::now(), model.clone());
    let compared = tokio::task::spawn_blocking(move || compare(&attached, &expected));
    let tensors = compared.await.map_err(|error| Error::new(Code::Internal, format!("no comparison: {error}")))??;
    let from = format!("{tensors} tensors are equal");
    steps.push(Step { name: "compare", seconds: start.elapsed().as_secs_f64(), from, origin_bytes: 0 });
    print(&steps, origin, model.len() as u64, output)
}

async fn load(
    connection: &LoaderConnection,
    origin: &Origin,
    name: &'static str,
    steps: &mut Vec<Step>,
) -> Result<v1::LoadedModel> {
    let (start, before) = (Instant::now(), origin.served_bytes());
    let model = through_daemon(connection.clone(), &LoadRequest::new(origin.url()), Output { json: true }).await?;
    let took = start.elapsed().as_secs_f64();
    let report = LoadOutput::new(&model, took, String::new());
    let tiers = report.bytes_by_tier.iter().filter(|(_, bytes)| **bytes > 0);
    let from: Vec<String> = tiers.map(|(tier, bytes)| format!("{tier} {}", format_bytes(*bytes))).collect();
    let from = if model.reattached { "in memory already".to_owned() } else { from.join(", ") };
    steps.push(Step { name, seconds: took, from, origin_bytes: origin.served_bytes() - before });
    Ok(model)
}

async fn unload(connection: &LoaderConnection, model_id: &str) -> Result<()> {
    let request = v1::UnloadModelRequest { model_id: model_id.to_owned(), uri: String::new() };
    connection.client.clone().unload_model(request).await.map_err(|status| from_status(&status))?;
    Ok(())
}

/// Compares every tensor in the attached memory with the model's file; gives the number of tensors.
fn compare(attached: &Attached, model: &Bytes) -> Result<usize> {
    let region = attached.memory.first().ok_or_else(|| Error::new(Code::Internal, "no memory was handed over"))?;
    let mut buffer = vec![0; COMPARE_BYTES];
    for tensor in &attached.model.tensors {
        let expected = model::bytes_of(model, &tensor.name)?;
        if expected.len() as u64 != tensor.length_bytes {
            return Err(Error::new(Code::Corrupt, format!("tensor {} has another length in memory", tensor.name)));
        }
        for (piece, number) in expected.chunks(COMPARE_BYTES).zip(0u64..) {
            let found = &mut buffer[..piece.len()];
            let at = tensor.offset_bytes + number * COMPARE_BYTES as u64;
            region
                .read_exact_at(found, at)
                .map_err(|error| Error::new(Code::Internal, format!("cannot read the attached memory: {error}")))?;
            if found != piece {
                return Err(Error::new(Code::Corrupt, format!("tensor {} differs in memory", tensor.name)));
            }
        }
    }
    Ok(attached.model.tensors.len())
}

fn print(steps: &[Step], origin: &Origin, model_bytes: u64, output: Output) -> Result<()> {
    let step_json = |step: &Step| json!({"step": step.name, "seconds": step.seconds, "from": step.from, "origin_bytes": step.origin_bytes});
    let ratio = origin.served_bytes() as f64 / model_bytes as f64;
    let value = json!({
        "model_bytes": model_bytes,
        "steps": steps.iter().map(step_json).collect::<Vec<_>>(),
        "origin_requests": origin.requests(),
        "origin_bytes": origin.served_bytes(),
    });
    output.result(&value, |text| {
        let head = row(["STEP", "TIME", "FROM", "ORIGIN SERVED"]);
        let rows = steps
            .iter()
            .map(|step| row([step.name, &seconds(step.seconds), &step.from, &format_bytes(step.origin_bytes)]));
        text.push_str(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
        let (size, requests) = (format_bytes(model_bytes), origin.requests());
        let _ = writeln!(text, "\na model of {size}; the origin served {ratio:.2} x its bytes in {requests} requests");
    })
}
