//! `longshore warm` and `longshore free`: into the cache, and out of it.

use std::fmt::Write;
use std::time::Instant;

use longshore_proto::status::from_status;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result, Selection, format_bytes, redact_url};
use longshore_worker::WarmEvent;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::{UriArgs, WarmArgs};
use crate::connect::find_loader;
use crate::node::Node;
use crate::output::{Output, seconds};
use crate::progress::Progress;

/// Runs `warm`.
///
/// # Errors
/// Those of the origin and of the owners of the chunks.
pub async fn warm(args: WarmArgs, output: Output, token: CancellationToken) -> Result<()> {
    let start = Instant::now();
    let node = Node::open(&args.node, &token).await?;
    let url = node.origins.canonical_url(&args.uri)?;
    let selection = Selection::new(args.include)?;
    let mut progress = Progress::new(output);
    let show = |event: &WarmEvent| progress.update("warm", event.bytes_done, event.bytes_total);
    let warming = node.control.warm(&url, &selection, args.revalidate, show);
    let warmed = token.run_until_cancelled(warming).await;
    progress.finish();
    let last = warmed.unwrap_or_else(|| Err(Error::new(Code::Cancelled, "the warm-up was interrupted")))?;
    let took = start.elapsed().as_secs_f64();
    let value = json!({
        "uri": redact_url(&url),
        "revision": last.revision,
        "bytes": last.bytes_total,
        "bytes_cached_before": last.bytes_cached,
        "seconds": took,
        "warnings": node.warnings,
    });
    output.result(&value, |text| {
        let (total, cached) = (format_bytes(last.bytes_total), format_bytes(last.bytes_cached));
        let _ =
            writeln!(text, "{} is in the cache: {total} in {}, {cached} were there", redact_url(&url), seconds(took));
        for warning in &node.warnings {
            let _ = writeln!(text, "warning   {warning}");
        }
    })?;
    node.close().await;
    Ok(())
}

/// Runs `free`: first the loader's memory, then the cache.
///
/// # Errors
/// Those of the loader and the workers.
pub async fn free(args: UriArgs, output: Output, token: CancellationToken) -> Result<()> {
    let node = Node::open(&args.node, &token).await?;
    let url = node.origins.canonical_url(&args.uri)?;
    let unloaded = match find_loader(&args.node).await? {
        Some(mut loader) => {
            unload(loader.client.unload_model(v1::UnloadModelRequest { uri: url.clone(), model_id: String::new() }))
                .await?
        }
        None => v1::UnloadModelResponse::default(),
    };
    let freed = node.control.free(&url).await?;
    let value = json!({
        "uri": redact_url(&url),
        "models_unloaded": unloaded.models,
        "memory_bytes_freed": unloaded.bytes_freed,
        "memory_bytes_leased": unloaded.bytes_leased,
        "cache_bytes_freed": freed.bytes,
        "cache_chunks_freed": freed.chunks,
        "unreachable": freed.unreachable,
    });
    output.result(&value, |text| {
        let _ = writeln!(text, "memory    {} freed, {} models", format_bytes(unloaded.bytes_freed), unloaded.models);
        if unloaded.bytes_leased > 0 {
            let _ = writeln!(text, "leased    {} stay until clients let go", format_bytes(unloaded.bytes_leased));
        }
        let _ = writeln!(text, "cache     {} freed, {} chunks", format_bytes(freed.bytes), freed.chunks);
        for member in &freed.unreachable {
            let _ = writeln!(text, "warning   {member} was not reached: its copies stay until they are evicted");
        }
    })?;
    node.close().await;
    Ok(())
}

/// Nothing in memory is no failure here.
async fn unload(
    call: impl Future<Output = Result<tonic::Response<v1::UnloadModelResponse>, tonic::Status>>,
) -> Result<v1::UnloadModelResponse> {
    match call.await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => match from_status(&status) {
            error if error.code() == Code::NotFound => Ok(v1::UnloadModelResponse::default()),
            error => Err(error),
        },
    }
}
