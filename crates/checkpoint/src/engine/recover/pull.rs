//! Recovering a save: its chunks on to this node's disk, and from there into the attempts that go on.
//!
//! Everything lies under `recovering/` until every byte is synced; then it is an attempt by one rename, or its files are moved
//! to those of an attempt that has other ranks here, before the record that speaks of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::TryStreamExt;
use longshore_types::checkpoint::{object_url, step_folder};
use longshore_types::{
    Artifact, BLOCKS_PER_CHUNK, BlockChecksum, ChunkKey, Code, Error, Result, Version, format_bytes,
};
use tokio::sync::watch;

use super::copies::{Found, RecoveryProgress};
use super::scratch::{Scratch, make, objects};
use crate::attempt::{Attempt, FlushedSlab, Record, Room};
use crate::commit::{Run, object_path};
use crate::engine::Engine;
use crate::engine::start::blocking;
use crate::failpoint;
use crate::plan::SavePlan;
use crate::spool::{Reserved, disk_error, sync_folder};

/// Chunks that are fetched at once.
const FETCHES_MAX: usize = 8;

/// The slabs of each rank.
pub(super) type Copies = BTreeMap<u32, Vec<FlushedSlab>>;

/// A chunk and where it goes.
struct Piece {
    key: ChunkKey,
    blocks: Vec<BlockChecksum>,
    path: Arc<PathBuf>,
}

impl Engine {
    /// Brings the ranks here and goes on with the attempt. Gives the bytes.
    pub(super) async fn bring(
        self: &Arc<Self>,
        run: &Run,
        found: Found,
        epoch: u64,
        progress: &watch::Sender<RecoveryProgress>,
    ) -> Result<u64> {
        let Found { local, plan, base, ranks, .. } = found;
        let parent = match (&base, &local) {
            (None, _) => None,
            (Some(_), Some(local)) => local.parent_commit(),
            (Some(base), None) => {
                let commit = run.commit(base.step).await?.filter(|commit| commit.attempt == base.attempt);
                Some(Arc::new(commit.ok_or_else(|| lost_parent(&plan, base.step))?))
            }
        };
        let mut records = vec![Record::Planned { plan: Box::new(plan.as_ref().clone()) }, Record::Delta { base }];
        records.push(Record::IntentWritten { epoch });
        records.extend(records_of(&ranks));
        let around = self.parts.surroundings();
        let numbers: Vec<u32> = ranks.keys().copied().collect();
        let of = numbers.clone();
        let scratch = blocking(move || make(&around, &plan, parent.as_deref(), records, &of)).await?;
        let mut rooms = self.rooms(&scratch.attempt, &numbers).await?;
        let bytes = rooms.iter().map(|(rank, _)| scratch.attempt.kept_bytes(*rank)).fold(0, u64::saturating_add);
        progress.send_replace(RecoveryProgress { bytes_done: 0, bytes_total: bytes });
        tokio::select! {
            pulled = self.pull(run, &scratch.attempt, &numbers, progress) => pulled?,
            () = self.parts.token.cancelled() => {
                return Err(Error::new(Code::Unavailable, "the loader is shutting down; recover again when it is back"));
            }
        }
        rooms.iter_mut().for_each(|(_, reserved)| reserved.written(u64::MAX));
        // Whole, or not at all: not given up with whoever asked for it.
        let engine = Arc::clone(self);
        let published = self.tasks.spawn(async move { engine.publish(scratch, rooms, ranks).await });
        published.await.map_err(|error| Error::new(Code::Internal, format!("a recovery broke off: {error}")))??;
        Ok(bytes)
    }

    /// Sets room aside for each rank, making some by removing committed checkpoints.
    async fn rooms(&self, scratch: &Arc<Attempt>, ranks: &[u32]) -> Result<Vec<(u32, Reserved)>> {
        let mut rooms = Vec::with_capacity(ranks.len());
        for rank in ranks {
            let bytes = scratch.kept_bytes(*rank);
            loop {
                let spool = Arc::clone(&self.parts.spool);
                if let Some(reserved) = blocking(move || spool.try_reserve(bytes)).await? {
                    rooms.push((*rank, reserved));
                    break;
                }
                if self.evict_one(scratch).await {
                    continue;
                }
                return Err(Error::new(
                    Code::Exhausted,
                    format!(
                        "no room for {} of rank {rank} of {} in {}: {}; then recover again",
                        format_bytes(bytes),
                        scratch.url(),
                        self.parts.spool.folder().display(),
                        self.parts.spool.shortage(bytes)
                    ),
                ));
            }
        }
        Ok(rooms)
    }

    /// Fetches every chunk, compares it and writes it; all is synced when this returns.
    async fn pull(
        &self,
        run: &Run,
        scratch: &Arc<Attempt>,
        ranks: &[u32],
        progress: &watch::Sender<RecoveryProgress>,
    ) -> Result<()> {
        let (attempt, url, of) = (Arc::clone(scratch), run.url.clone(), ranks.to_vec());
        let pieces = blocking(move || pieces(&attempt, &url, &of)).await?;
        futures::stream::iter(pieces.into_iter().map(Ok))
            .try_for_each_concurrent(FETCHES_MAX, |piece| async {
                let bytes = piece.key.len_bytes();
                let fetched = self.fetch(piece).await;
                let result = if fetched.is_ok() { "recovered" } else { "recovery_failed" };
                self.parts.metrics.sink_chunks.with_label_values(&[result]).inc();
                fetched?;
                progress.send_modify(|progress| progress.bytes_done += bytes);
                Ok::<_, Error>(())
            })
            .await?;
        let (attempt, of) = (Arc::clone(scratch), ranks.to_vec());
        blocking(move || sync(&attempt, &of)).await
    }

    async fn fetch(&self, piece: Piece) -> Result<()> {
        let _memory = self.parts.uploads.reserve(piece.key.len_bytes()).await?;
        let bytes = self.parts.cache.fetch(&piece.key, Some(&piece.blocks)).await?;
        blocking(move || {
            if BlockChecksum::of_blocks(&bytes) != piece.blocks {
                let (index, url) = (piece.key.index(), piece.key.artifact().url());
                return Err(Error::new(Code::Corrupt, format!("the copy of chunk {index} of {url} has other bytes")));
            }
            let file = File::options().write(true).open(piece.path.as_ref());
            let written = file.and_then(|file| file.write_all_at(&bytes, piece.key.range().start));
            written.map_err(|error| disk_error("write", &piece.path, &error))
        })
        .await
    }

    /// From a recovery to an attempt that goes on.
    async fn publish(self: &Arc<Self>, scratch: Scratch, rooms: Vec<(u32, Reserved)>, ranks: Copies) -> Result<()> {
        let id = scratch.attempt.id();
        let starting = self.starting.lock().await;
        if self.parts.token.is_cancelled() {
            return Err(Error::new(Code::Unavailable, "the loader is shutting down; recover again when it is back"));
        }
        if let Some(known) = self.attempts.find(&id) {
            drop(starting);
            return self.join(known, scratch, rooms, ranks).await;
        }
        let around = self.parts.surroundings();
        let (from, spool) = (scratch.folder.clone(), Arc::clone(&self.parts.spool));
        let attempt = blocking(move || {
            let folder = spool.attempt_folder(&id);
            failpoint::hit("recovery_synced");
            std::fs::rename(&from, &folder).map_err(|error| disk_error("make an attempt of", &from, &error))?;
            sync_folder(spool.attempts_folder())?;
            failpoint::hit("recovery_renamed");
            let opened = Attempt::open(&around, &folder)?;
            opened.ok_or_else(|| Error::new(Code::Internal, format!("{} lost its journal", folder.display())))
        })
        .await?;
        for (rank, reserved) in rooms {
            attempt.set_room(rank, Room { reserved });
        }
        self.parts.metrics.recovered.with_label_values(&["from_peers"]).inc();
        self.attempts.insert(Arc::clone(&attempt));
        drop(starting);
        attempt.note(told(&ranks));
        self.watch_end(&attempt);
        attempt.show_staged();
        self.go_on(&attempt);
        Ok(())
    }

    /// Ranks for an attempt that has others here.
    async fn join(
        self: &Arc<Self>,
        attempt: Arc<Attempt>,
        scratch: Scratch,
        rooms: Vec<(u32, Reserved)>,
        mut ranks: Copies,
    ) -> Result<()> {
        let one = attempt.starting().lock().await;
        if attempt.state().is_ended() {
            return if attempt.state().committed { Ok(()) } else { Err(attempt.why_stopped()) };
        }
        if **attempt.plan() != **scratch.attempt.plan() || attempt.state().delta != scratch.attempt.state().delta {
            let message = format!("attempt {} was started here with another plan or parent meanwhile", attempt.id());
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        let here = attempt.ranks();
        ranks.retain(|rank, _| !here.contains(rank));
        for (rank, reserved) in rooms.into_iter().filter(|(rank, _)| ranks.contains_key(rank)) {
            attempt.set_room(rank, Room { reserved });
        }
        let note = told(&ranks);
        let (moving, from) = (Arc::clone(&attempt), Arc::clone(&scratch.attempt));
        blocking(move || {
            for object in ranks.keys().flat_map(|rank| objects(&from, *rank)) {
                let path = moving.object_path(object);
                let moved = std::fs::rename(from.object_path(object), &path);
                moved.map_err(|error| disk_error("move a recovered object to", &path, &error))?;
            }
            moving.sync_objects()?;
            failpoint::hit("recovery_moved");
            moving.record_all(records_of(&ranks).collect())
        })
        .await?;
        drop(one);
        self.parts.metrics.recovered.with_label_values(&["from_peers"]).inc();
        attempt.note(note);
        attempt.show_staged();
        self.resume(&attempt);
        self.go_on(&attempt);
        Ok(())
    }
}

fn pieces(attempt: &Attempt, run_url: &str, ranks: &[u32]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for object in ranks.iter().flat_map(|rank| objects(attempt, *rank)) {
        let (_, size_bytes) = attempt.object_total(object)?;
        let url = object_url(run_url, &object_path(attempt, object));
        let artifact = Artifact::new(url, Version::new(format!("attempt:{}", attempt.id()))?, size_bytes)?;
        let (artifact, path) = (Arc::new(artifact), Arc::new(attempt.object_path(object)));
        let blocks = attempt.object_blocks(object)?;
        for (key, blocks) in ChunkKey::all(&artifact).zip(blocks.chunks(BLOCKS_PER_CHUNK)) {
            pieces.push(Piece { key, blocks: blocks.to_vec(), path: Arc::clone(&path) });
        }
    }
    Ok(pieces)
}

/// Every file, then the folders that name them. Blocks the thread.
fn sync(attempt: &Attempt, ranks: &[u32]) -> Result<()> {
    for object in ranks.iter().flat_map(|rank| objects(attempt, *rank)) {
        let path = attempt.object_path(object);
        let synced = File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(|error| disk_error("sync", &path, &error))?;
    }
    attempt.sync_objects()?;
    sync_folder(attempt.folder())
}

/// What the journal says of ranks that came from peers: that they were durable, and held.
fn records_of(ranks: &Copies) -> impl Iterator<Item = Record> + '_ {
    ranks.iter().flat_map(|(rank, slabs)| {
        let rank = *rank;
        [Record::Started { rank, inline: slabs.clone() }, Record::RankDurable { rank }, Record::PeerDurable { rank }]
    })
}

fn told(ranks: &Copies) -> String {
    let ranks: Vec<String> = ranks.keys().take(16).map(u32::to_string).collect();
    format!("recovered from copies that peers held: rank {}", ranks.join(", "))
}

fn lost_parent(plan: &SavePlan, step: u64) -> Error {
    Error::new(
        Code::FailedPrecondition,
        format!(
            "{} is a delta of step {step}, which is not committed any more: it cannot be recovered",
            object_url(&plan.uri, &step_folder(plan.step))
        ),
    )
}
