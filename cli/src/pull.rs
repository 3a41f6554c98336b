//! `longshore pull`: a model's files into a folder, chunk by chunk through the cache, never whole in memory.

mod target;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use longshore_types::{ChunkKey, Code, Error, Manifest, Result, Selection, format_bytes, redact_url};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::PullArgs;
use crate::chunks::{CHUNKS_IN_FLIGHT, ChunkReader};
use crate::node::Node;
use crate::output::{Output, seconds};
use crate::progress::Progress;
use target::{Pending, Target};

/// Files that are open at once: a model of many small files must not exhaust the descriptors.
const FILES_IN_FLIGHT: usize = 4;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Runs the command.
///
/// # Errors
/// Those of the origin and of the file system; files that are complete stay, no other is left behind.
pub async fn run(args: PullArgs, output: Output, token: CancellationToken) -> Result<()> {
    let start = Instant::now();
    let node = Node::open(&args.node, &token).await?;
    let url = node.origins.canonical_url(&args.uri)?;
    let selection = Selection::new(args.include)?;
    let (manifest, _) = node.cluster.manifest(&url, &selection, args.revalidate).await?;
    let pull = Arc::new(Pull {
        target: Target::open(&args.folder)?,
        reader: ChunkReader::new(node.cluster.clone(), node.origins.clone()),
        done_bytes: AtomicU64::new(0),
    });

    let mut progress = Progress::new(output);
    let written = pull.write_all(&manifest);
    tokio::pin!(written);
    let result = loop {
        tokio::select! {
            result = &mut written => break result,
            () = token.cancelled() => break Err(Error::new(Code::Cancelled, "the pull was interrupted")),
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                progress.update("pull", pull.done_bytes.load(Ordering::Relaxed), manifest.size_bytes());
            }
        }
    };
    progress.finish();
    if let Err(error) = result {
        // Other threads may still wait for bytes of theirs; this process does not wait for them.
        pull.target.abandon();
        return Err(error);
    }
    let folder = std::path::absolute(&args.folder).unwrap_or(args.folder);
    let printed = pull.print(&manifest, &folder, start.elapsed().as_secs_f64(), &node, output);
    node.close().await;
    printed
}

struct Pull {
    target: Target,
    reader: ChunkReader,
    done_bytes: AtomicU64,
}

impl Pull {
    async fn write_all(self: &Arc<Self>, manifest: &Manifest) -> Result<()> {
        let files = manifest.files.iter().map(|file| {
            let (pull, name, artifact) = (self.clone(), file.name.clone(), file.artifact.clone());
            async move {
                let (opener, size_bytes) = (pull.clone(), artifact.size_bytes());
                let pending = Arc::new(blocking(move || opener.target.begin(&name, size_bytes)).await?);
                let chunks = ChunkKey::all(&artifact).map(|key| pull.clone().write_chunk(key, pending.clone()));
                let mut chunks = stream::iter(chunks).buffer_unordered(CHUNKS_IN_FLIGHT);
                while chunks.try_next().await?.is_some() {}
                drop(chunks);
                let pending = Arc::into_inner(pending)
                    .ok_or_else(|| Error::new(Code::Internal, "a file is still being written after its last chunk"))?;
                blocking(move || pending.commit()).await
            }
        });
        stream::iter(files).buffer_unordered(FILES_IN_FLIGHT).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    async fn write_chunk(self: Arc<Self>, key: ChunkKey, pending: Arc<Pending>) -> Result<()> {
        blocking(move || {
            let bytes = self.reader.read(&key)?;
            pending.write_at(&bytes, key.range().start)?;
            self.done_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    fn print(
        &self,
        manifest: &Manifest,
        folder: &std::path::Path,
        took: f64,
        node: &Node,
        output: Output,
    ) -> Result<()> {
        let counts = self.reader.counts();
        let skipped: Vec<_> =
            manifest.skipped.iter().map(|(name, reason)| json!({"name": name, "reason": reason})).collect();
        let warnings: Vec<&String> = manifest.warnings.iter().chain(&node.warnings).collect();
        let value = json!({
            "uri": redact_url(&manifest.url),
            "revision": manifest.revision,
            "folder": folder,
            "files": manifest.files.len(),
            "bytes": manifest.size_bytes(),
            "seconds": took,
            "bytes_by_tier": counts.bytes_by_tier(),
            "retries": counts.retries(),
            "checksum_mismatches": counts.checksum_mismatches(),
            "fallbacks": [
                {"kind": "worker_avoided", "count": counts.worker_avoided()},
                {"kind": "origin_direct", "count": counts.origin_direct()},
            ],
            "skipped": skipped,
            "warnings": warnings,
        });
        output.result(&value, |text| {
            let (size, folder) = (format_bytes(manifest.size_bytes()), folder.display());
            let _ = writeln!(text, "wrote {} files, {size}, to {folder} in {}", manifest.files.len(), seconds(took));
            for (tier, bytes) in counts.bytes_by_tier() {
                let _ = writeln!(text, "from      {tier} {}", format_bytes(bytes));
            }
            for warning in warnings {
                let _ = writeln!(text, "warning   {warning}");
            }
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Code::Internal, format!("a thread of the pull broke off: {error}"))),
    }
}
