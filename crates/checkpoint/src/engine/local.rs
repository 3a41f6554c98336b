//! Checkpoints whose bytes are on this node: for loads without the origin, and which of them stay.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use longshore_types::checkpoint::{
    ChunkRun, Commit, FilePlace, Parent, RankFile, RankRecord, StoredFile, StoredObject,
};
use longshore_types::{Code, Error, Result};

use super::Engine;
use super::start::blocking;
use crate::attempt::{Attempt, ChunkPlace};
use crate::commit::{assemble, object_path};
use crate::status::SaveState;

/// A checkpoint that can be read on this node.
#[derive(Debug, Clone)]
pub struct LocalCheckpoint {
    /// What it is; of an uncommitted one, what the commit will be but for the versions of objects and files that are made at
    /// the end.
    pub commit: Arc<Commit>,
    /// URL of the run.
    pub run_url: String,
    /// Where each object of the commit lies here; `None` for one that does not.
    pub objects: Vec<Option<PathBuf>>,
}

impl Engine {
    /// The checkpoint at `url` (`run/step-N`), when its bytes are here: committed, or, when asked for, staged and flushed.
    /// Blocks the thread the first time.
    pub fn local(&self, url: &str, uncommitted: bool) -> Option<LocalCheckpoint> {
        let attempt = self.newest_at(url, uncommitted)?;
        self.local_of(&attempt)
    }

    /// [`Engine::local`] for a checkpoint that is at least staged: waits until its bytes are flushed. `None` when no such
    /// checkpoint is here, or it failed meanwhile.
    pub async fn local_when_durable(self: &Arc<Self>, url: &str) -> Option<LocalCheckpoint> {
        let attempt = self.newest_at(url, true)?;
        attempt.until(|state| state.committed || state.is_local_durable()).await.ok()?;
        let engine = Arc::clone(self);
        blocking(move || Ok(engine.local_of(&attempt))).await.ok().flatten()
    }

    fn newest_at(&self, url: &str, uncommitted: bool) -> Option<Arc<Attempt>> {
        let url = self.parts.origins.canonical_url(url).unwrap_or_else(|_| url.trim_end_matches('/').to_owned());
        let is_there = |attempt: &Arc<Attempt>| {
            let here = self.parts.origins.canonical_url(&attempt.url()).unwrap_or_else(|_| attempt.url());
            let state = attempt.status().state;
            let is_good = state == SaveState::Committed
                || (uncommitted && matches!(state, SaveState::Staged | SaveState::LocalDurable));
            is_good && here == url && attempt.has_objects()
        };
        // A step is committed once; of those that are not, the newest counts.
        let all = self.attempts.all();
        let committed = all.iter().find(|attempt| is_there(attempt) && attempt.state().committed);
        committed.or_else(|| all.iter().rev().find(|attempt| is_there(attempt))).cloned()
    }

    fn local_of(&self, attempt: &Arc<Attempt>) -> Option<LocalCheckpoint> {
        let commit = match commit_of(attempt) {
            Ok(commit) => commit,
            Err(error) => {
                tracing::debug!(attempt = %attempt.id(), %error, "not served from this node");
                return None;
            }
        };
        let mut folders: HashMap<_, Option<Arc<Attempt>>> = HashMap::new();
        let objects = commit.objects.iter().map(|object| {
            let of = folders.entry(object.attempt).or_insert_with(|| self.attempts.find(&object.attempt));
            let path = of.as_ref()?.path_of(&object.path)?;
            path.is_file().then_some(path)
        });
        let objects = objects.collect();
        Some(LocalCheckpoint { run_url: attempt.plan().uri.clone(), commit, objects })
    }

    /// After a commit: of this run only so many checkpoints keep their bytes here.
    pub(super) async fn trim(&self, attempt: &Arc<Attempt>) {
        let committed = self.parts.committed_here(&attempt.plan().uri);
        // What retention deleted in the origin does not stay here either.
        let kept = |keep: u32| if keep == 0 { usize::MAX } else { keep as usize };
        let keep = (self.parts.options.keep_local as usize).min(kept(attempt.plan().options.keep));
        for (at, old) in committed.iter().enumerate().filter(|(at, _)| *at >= keep) {
            // The newest keeps its commit: the next delta is made from it.
            self.evict(old, at > 0, "trimmed").await;
        }
    }

    /// Makes room by removing the bytes of the oldest checkpoint that is in the origin. False when there is none: what is not
    /// in the origin is never removed.
    pub(super) async fn evict_one(&self, wanted_by: &Arc<Attempt>) -> bool {
        let parent = wanted_by.state().delta.as_ref().map(|base| base.attempt);
        let all = self.attempts.all();
        let oldest = all.iter().find(|attempt| attempt.state().committed && attempt.has_objects());
        let Some(oldest) = oldest else { return false };
        oldest.note("its bytes were removed from this node early, to make room for another checkpoint");
        self.evict(oldest, Some(oldest.id()) != parent, "room").await;
        true
    }

    /// A checkpoint that was deleted in the origin is not served from here either.
    pub(crate) async fn forget_step(&self, run_url: &str, step: u64) {
        for attempt in self.parts.committed_here(run_url) {
            if attempt.plan().step == step {
                self.evict(&attempt, true, "deleted").await;
            }
        }
    }

    async fn evict(&self, attempt: &Arc<Attempt>, with_journal: bool, why: &str) {
        let (had_objects, attempts) = (attempt.has_objects(), Arc::clone(&self.attempts));
        let removed = Arc::clone(attempt);
        let outcome = blocking(move || {
            removed.remove_objects();
            if with_journal && !removed.has_objects() {
                // The status is told as long as this process lives: only the folder goes.
                removed.remove_folder();
            }
            for forgotten in attempts.forgotten() {
                attempts.remove(&forgotten.id());
                forgotten.remove_folder();
            }
            Ok(())
        });
        match outcome.await {
            Ok(()) if had_objects => self.parts.metrics.evicted.with_label_values(&[why]).inc(),
            Ok(()) => {}
            Err(error) => tracing::warn!(attempt = %attempt.id(), %error, "a committed checkpoint stays on this node"),
        }
    }
}

/// The commit as it was kept, or as it will be.
fn commit_of(attempt: &Arc<Attempt>) -> Result<Arc<Commit>> {
    if let Some(commit) = attempt.cached_commit() {
        return Ok(commit);
    }
    let commit = if attempt.state().committed {
        attempt.kept_commit()?
    } else {
        let records: Vec<RankRecord> =
            attempt.ranks().into_iter().map(|rank| record_of(attempt, rank)).collect::<Result<_>>()?;
        let epoch = attempt.state().epoch.max(1);
        assemble(attempt.plan(), epoch, &records, &[])?
    };
    Ok(attempt.cache_commit(Arc::new(commit)))
}

/// What the record of a rank will be, from what is flushed here.
fn record_of(attempt: &Attempt, rank: u32) -> Result<RankRecord> {
    let mut objects: Vec<StoredObject> = Vec::new();
    let mut by_object: HashMap<String, u32> = HashMap::new();
    let mut add = |object: StoredObject| -> u32 {
        *by_object.entry(object.path.clone()).or_insert_with(|| {
            objects.push(object);
            objects.len() as u32 - 1
        })
    };
    let own = |object: u32| -> Result<StoredObject> {
        let (checksum, size_bytes) = attempt.object_total(object)?;
        let (path, version) = (object_path(attempt, object), "local".to_owned());
        Ok(StoredObject { path, size_bytes, version, checksum, attempt: attempt.id() })
    };
    let pack = match attempt.objects_of(rank).contains(&attempt.pack_object(rank)) {
        true => Some(own(attempt.pack_object(rank))?),
        false => None,
    };
    let lost = || Error::new(Code::Internal, format!("{} has lost its parent", attempt.url()));
    let mut files = Vec::new();
    for index in attempt.plan().files_of(rank) {
        let (file, planned) = (index as u32, &attempt.plan().files[index]);
        let place = match attempt.file_chunks(file)? {
            None => FilePlace::Object(add(own(file)?)),
            Some(chunks) => {
                let parent = attempt.parent_commit().ok_or_else(lost)?;
                let theirs =
                    attempt.parent_file(file).and_then(|file| parent.files.get(file as usize)).ok_or_else(lost)?;
                let theirs = chunks_of(theirs);
                let mut runs = Vec::new();
                for (place, chunk) in chunks.iter().zip(theirs) {
                    let (object, at) = match place {
                        ChunkPlace::Pack(at) => (add(pack.clone().ok_or_else(lost)?), *at),
                        ChunkPlace::Parent => {
                            let object = parent.objects.get(chunk.0 as usize).ok_or_else(lost)?;
                            (add(object.clone()), chunk.1)
                        }
                    };
                    runs.push(ChunkRun { object, first_chunk: at, count: 1 });
                }
                FilePlace::Chunks(runs)
            }
        };
        let totals = attempt.file_totals(file)?;
        let stored = StoredFile {
            name: planned.name.clone(),
            size_bytes: planned.size_bytes,
            checksum: totals.checksum,
            blocks: totals.blocks,
            place,
        };
        files.push(RankFile { file, stored, tensors: totals.tensors });
    }
    let delta = attempt.state().delta.clone();
    Ok(RankRecord {
        attempt: attempt.id(),
        step: attempt.plan().step,
        rank,
        objects,
        files,
        parent: delta.as_ref().map(|base| Parent { step: base.step, attempt: base.attempt }),
        delta_depth: delta.map_or(0, |base| base.depth),
    })
}

/// Object and chunk of each chunk of a stored file.
fn chunks_of(file: &StoredFile) -> Vec<(u32, u32)> {
    match &file.place {
        FilePlace::Object(object) => {
            let count = longshore_types::chunk::chunk_count(file.size_bytes);
            (0..u32::try_from(count).unwrap_or(u32::MAX)).map(|chunk| (*object, chunk)).collect()
        }
        FilePlace::Chunks(runs) => {
            let chunks = |run: &ChunkRun| {
                let (object, first) = (run.object, run.first_chunk);
                (0..run.count).map(move |chunk| (object, first.saturating_add(chunk)))
            };
            runs.iter().flat_map(chunks).collect()
        }
    }
}
