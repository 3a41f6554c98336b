//! `longshore pull`: a model's files into a folder, chunk by chunk through the cache, never whole in memory.

mod target;

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use longshore_types::chunk::chunk_count;
use longshore_types::{
    BLOCKS_PER_CHUNK, CHUNK_BYTES, ChunkKey, Code, Error, Manifest, ModelFile, Result, Selection, format_bytes, names,
    redact_url,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::args::PullArgs;
use crate::chunks::{CHUNKS_IN_FLIGHT, ChunkReader};
use crate::node::Node;
use crate::output::{Output, seconds};
use crate::progress::Progress;
use target::Target;

/// Files of several chunks that are open at once.
const FILES_IN_FLIGHT: usize = 4;
/// Files of one chunk that are fetched at once, each by a thread: a cloud store answers slowly, whatever the cores.
const SMALL_FILES_IN_FLIGHT: usize = 32;
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
    /// Writes all files. Those that are complete when it fails have their names.
    async fn write_all(self: &Arc<Self>, manifest: &Manifest) -> Result<()> {
        let (small, large): (Vec<_>, Vec<_>) =
            manifest.files.iter().cloned().partition(|file| file.artifact.size_bytes() <= CHUNK_BYTES);
        let written = futures::future::try_join(self.write_small(small), self.write_large(large)).await;
        let pull = self.clone();
        let finished = blocking(move || pull.target.finish()).await;
        written.and(finished)
    }

    async fn write_large(self: &Arc<Self>, files: Vec<ModelFile>) -> Result<()> {
        let files = files.into_iter().map(|file| self.clone().write_file(file));
        stream::iter(files).buffer_unordered(FILES_IN_FLIGHT).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    /// A file of several chunks, each on its own.
    async fn write_file(self: Arc<Self>, file: ModelFile) -> Result<()> {
        let keys = keys_of(&file)?;
        let (opener, file) = (self.clone(), Arc::new(file));
        let begun = file.clone();
        let pending = blocking(move || opener.target.begin(&name_of(&begun), begun.artifact.size_bytes())).await?;
        let pending = Arc::new(pending);
        let chunks = keys.into_iter().enumerate().map(|(index, key)| {
            let (pull, pending, file) = (self.clone(), pending.clone(), file.clone());
            blocking(move || pull.read(&file, index, &key, |bytes| pending.write_at(bytes, index as u64 * CHUNK_BYTES)))
        });
        let mut chunks = stream::iter(chunks).buffer_unordered(CHUNKS_IN_FLIGHT);
        while chunks.try_next().await?.is_some() {}
        drop(chunks);
        let pending = Arc::into_inner(pending)
            .ok_or_else(|| Error::new(Code::Internal, "a file is still being written after its last chunk"))?;
        blocking(move || pending.commit()).await
    }

    /// Files of one chunk, or empty: a few threads take one after the other, and none of them hands anything over.
    async fn write_small(self: &Arc<Self>, files: Vec<ModelFile>) -> Result<()> {
        let threads = SMALL_FILES_IN_FLIGHT.min(files.len());
        let shared = Arc::new((files, AtomicUsize::new(0)));
        let work = (0..threads).map(|_| {
            let (pull, shared) = (self.clone(), shared.clone());
            blocking(move || {
                let (files, next) = &*shared;
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // One that fails is the last one of all.
                    pull.write_whole(file).inspect_err(|_| next.store(files.len(), Ordering::Relaxed))?;
                }
                Ok(())
            })
        });
        let ended = futures::future::join_all(work).await;
        ended.into_iter().collect()
    }

    fn write_whole(&self, file: &ModelFile) -> Result<()> {
        let Some(key) = keys_of(file)?.pop() else { return self.target.write_small(&name_of(file), &[]) };
        self.read(file, 0, &key, |bytes| self.target.write_small(&name_of(file), bytes))
    }

    /// Reads chunk `index` of a file, which is the beginning of `key`, and writes it when it is what it must be.
    fn read(
        &self,
        file: &ModelFile,
        index: usize,
        key: &ChunkKey,
        write: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let url = key.artifact().url();
        let check = |bytes: &[u8]| file.check_blocks(index * BLOCKS_PER_CHUNK, of_file(file, index, bytes)?, url);
        let chunk = self.reader.read(key, &check)?;
        let bytes = of_file(file, index, &chunk)?;
        write(bytes)?;
        self.done_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
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

/// Where a file goes in the folder. Tensors of a checkpoint that are an object go by the object's name, which has the
/// attempt in it: the checkpoint's index names it so. Other files have their own names, also where their objects do not.
fn name_of(file: &ModelFile) -> Cow<'_, str> {
    let (folder, object) = (names::folder_of(&file.name), names::base_of(file.artifact.url()));
    let is_committed_object = file.checksums.is_some() && file.chunks.is_none();
    // Escaped it is not the name itself, and no index has it.
    if !is_committed_object || !object.ends_with(".safetensors") || object.contains('%') {
        Cow::Borrowed(&file.name)
    } else if folder.is_empty() {
        Cow::Borrowed(object)
    } else {
        Cow::Owned(format!("{folder}/{object}"))
    }
}

/// The chunks that a file lies in, in order. A file without an object of its own names chunks of others.
fn keys_of(file: &ModelFile) -> Result<Vec<ChunkKey>> {
    match &file.chunks {
        Some(chunks) => (0..chunk_count(file.artifact.size_bytes())).map(|index| chunks.key(index)).collect(),
        None => Ok(ChunkKey::all(&file.artifact).collect()),
    }
}

/// What of a chunk is the file's: it may go on behind the file's end, but not end before.
fn of_file<'a>(file: &ModelFile, index: usize, chunk: &'a [u8]) -> Result<&'a [u8]> {
    let len = CHUNK_BYTES.min(file.artifact.size_bytes().saturating_sub(index as u64 * CHUNK_BYTES)) as usize;
    chunk.get(..len).ok_or_else(|| {
        let why = format!("chunk {index} of {} has {} bytes, should have {len}", file.name, chunk.len());
        Error::new(Code::Corrupt, why)
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Code::Internal, format!("a thread of the pull broke off: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::{Artifact, Version};

    use super::*;

    #[test]
    fn tensors_of_a_checkpoint_are_called_as_its_index_calls_them() {
        let named = |name: &str, url: &str, is_committed: bool| {
            let artifact = Artifact::new(url, Version::new("attempt:a1").unwrap(), 5).unwrap();
            let mut file = ModelFile::plain(name, Arc::new(artifact), true);
            file.checksums = is_committed.then(|| Arc::from([]));
            name_of(&file).into_owned()
        };
        let run = "s3://b/run/step-1";
        for (name, object, wanted) in [
            ("model-1-of-1.safetensors", "model-a1-1-of-1.safetensors", "model-a1-1-of-1.safetensors"),
            (
                "optim/optim-1-of-1.safetensors",
                "optim/optim-a1-1-of-1.safetensors",
                "optim/optim-a1-1-of-1.safetensors",
            ),
            ("tokenizer.bin", "tokenizer.bin.a1", "tokenizer.bin"),
            ("part.safetensors", "part.safetensors.a1", "part.safetensors"),
            ("a b.safetensors", "a%20b.safetensors", "a b.safetensors"),
        ] {
            assert_eq!(named(name, &format!("{run}/{object}"), true), wanted);
        }
        assert_eq!(named("x.safetensors", "hf://o/m/y.safetensors", false), "x.safetensors");
    }

    #[test]
    fn a_chunk_may_go_on_behind_the_file() {
        let artifact = Artifact::new("s3://b/f", Version::new("attempt:a1").unwrap(), CHUNK_BYTES + 3).unwrap();
        let file = ModelFile::plain("f", Arc::new(artifact), false);
        assert_eq!(of_file(&file, 1, b"abcde").unwrap(), b"abc");
        assert_eq!(of_file(&file, 1, b"ab").unwrap_err().code(), Code::Corrupt);
        assert_eq!(of_file(&file, 2, b"ab").unwrap(), b"");
    }
}
