//! Warming: every chunk of a model is asked of its owner over the data plane, which fills it by that.
//!
//! Asked is the last block alone. A chunk fills in order, so when its last block is here the chunk is whole: what a
//! warm-up reports as done is there, not on its way.

use std::sync::Arc;

use futures::StreamExt;
use longshore_memory::Landing;
use longshore_types::chunk::chunk_count;
use longshore_types::{BLOCK_BYTES, ChunkKey, Code, Error, ModelFile, Result, Selection};
use longshore_wire::{ChunkRequest, Endpoint, Tier};
use tokio::sync::mpsc;

use crate::meta::Ask;
use crate::peers::endpoint;
use crate::worker::Worker;

/// Chunks asked for at once.
const ASKS_MAX: usize = 32;

/// How often one chunk is asked for while its fill is slow. Each attempt lasts as long as the owner is patient.
const ATTEMPTS_MAX: u32 = 10;

/// How far a warm-up is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmEvent {
    /// Bytes that are in the cache of their owners by now.
    pub bytes_done: u64,
    /// Bytes of the model.
    pub bytes_total: u64,
    /// Of those done, what was there before.
    pub bytes_cached: u64,
    /// The last event.
    pub done: bool,
    /// Set with `done`.
    pub revision: String,
}

impl Worker {
    /// Brings a model into the caches of its chunks' owners. Sends an event for each chunk; ends early when the
    /// receiver is gone.
    ///
    /// # Errors
    /// As [`Worker::manifest`], or what kept the first chunk from being filled.
    pub async fn warm(
        self: &Arc<Self>,
        url: &str,
        selection: &Selection,
        revalidate: bool,
        events: &mpsc::Sender<Result<WarmEvent>>,
    ) -> Result<WarmEvent> {
        let manifest = self.manifest(url, selection, Ask { revalidate, forwarded: false }).await?.value;
        let mut event = WarmEvent { bytes_total: manifest.size_bytes(), ..WarmEvent::default() };
        let keys = manifest.files.iter().map(keys_of).collect::<Result<Vec<_>>>()?;
        let keys = keys.into_iter().flatten();
        let asks = keys.map(|key| {
            let worker = self.clone();
            async move {
                let len_bytes = key.len_bytes();
                let asked = tokio::task::spawn_blocking(move || worker.warm_chunk(&key)).await;
                let tier = asked.map_err(|error| Error::new(Code::Internal, format!("warming ended: {error}")))??;
                Ok::<_, Error>((len_bytes, tier))
            }
        });
        let mut warmed = futures::stream::iter(asks).buffer_unordered(ASKS_MAX);
        while let Some(chunk) = warmed.next().await {
            let (len_bytes, tier) = chunk?;
            event.bytes_done += len_bytes;
            event.bytes_cached += if matches!(tier, Tier::Memory | Tier::Disk) { len_bytes } else { 0 };
            if events.send(Ok(event.clone())).await.is_err() {
                return Err(Error::new(Code::Cancelled, "whoever asked for the warm-up went away"));
            }
        }
        event.done = true;
        event.revision = manifest.revision.clone();
        // A receiver that leaves now has seen everything.
        let _ = events.send(Ok(event.clone())).await;
        Ok(event)
    }

    /// Makes all owners hold a chunk, the first owner first, and says where that one had it. Blocks.
    fn warm_chunk(self: &Arc<Self>, key: &ChunkKey) -> Result<Tier> {
        let owners = self.peers().owners(key.id().as_bytes());
        if owners.is_empty() {
            return self.touch_last_block(&Endpoint::InProcess(self.clone()), key);
        }
        let mut first = None;
        for owner in owners {
            let here = owner.id() == self.peers().me();
            let place = if here { Endpoint::InProcess(self.clone()) } else { endpoint(&owner) };
            let touched = self.touch_last_block(&place, key);
            if !here {
                self.peers().report(owner.id(), touched.as_ref().err().map(Error::code));
            }
            first.get_or_insert(touched);
        }
        first.unwrap_or_else(|| Err(Error::new(Code::Internal, "a chunk without owners")))
    }

    fn touch_last_block(&self, place: &Endpoint, key: &ChunkKey) -> Result<Tier> {
        let len_bytes = key.len_bytes();
        let start = (len_bytes - 1) / BLOCK_BYTES * BLOCK_BYTES;
        let block = (len_bytes - start) as usize;
        let range = start..len_bytes;
        let request = ChunkRequest { range, ..ChunkRequest::whole(key.clone()) };
        let mut landing = Landing::builder().scratch(block).build()?;
        let mut attempt = 1;
        loop {
            match self.client().fetch(place, &request, &mut landing) {
                Ok(fetched) => return Ok(fetched.tier),
                // A slow origin: the fill goes on, or waits for its turn. Asking again is joining it.
                Err(error) if attempt < ATTEMPTS_MAX && is_slow(&error) => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// The chunks that a file lies in. A file without an object of its own names chunks of others.
fn keys_of(file: &ModelFile) -> Result<Vec<ChunkKey>> {
    match &file.chunks {
        Some(chunks) => (0..chunk_count(file.artifact.size_bytes())).map(|index| chunks.key(index)).collect(),
        None => Ok(ChunkKey::all(&file.artifact).collect()),
    }
}

fn is_slow(error: &Error) -> bool {
    matches!(error.code(), Code::Timeout | Code::Exhausted)
}
