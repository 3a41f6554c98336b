//! From records to the status that is watched.

use tokio::sync::watch;

use super::open::flushed_bytes;
use super::staging::slab_sizes;
use super::{Attempt, AttemptState, FlushedSlab, Record};
use crate::SLAB_BYTES;
use crate::status::SaveState;

impl Attempt {
    /// Contiguous bytes from the start of an object that are flushed: parts up to here can be read and sent.
    pub fn flushed(&self, object: u32) -> watch::Receiver<u64> {
        let state = self.state();
        let mut flushed = self.flushed.lock();
        let sender = flushed.entry(object).or_insert_with(|| watch::Sender::new(self.prefix(&state, object)));
        sender.subscribe()
    }

    fn prefix(&self, state: &AttemptState, object: u32) -> u64 {
        let Some(file) = self.plan().files.get(object as usize) else {
            let pack = state.packs.get(&self.rank_of_object(object));
            let chunks = pack.map_or(0, |pack| (0u32..).zip(pack.keys()).take_while(|(at, key)| at == *key).count());
            return chunks as u64 * longshore_types::CHUNK_BYTES;
        };
        let Some(flushed) = state.files.get(&object) else { return 0 };
        let slabs = (0u32..).zip(flushed.slabs.keys()).take_while(|(at, key)| at == *key).count();
        (slabs as u64 * SLAB_BYTES).min(file.size_bytes)
    }

    /// Brings watchers up to records that have just been applied.
    pub(super) fn show(&self, state: &AttemptState, records: &[Record]) {
        for record in records {
            match record {
                Record::Started { rank, inline } => {
                    let size = self.size_of(*rank);
                    self.update(|status| {
                        status.rank_mut(*rank);
                        status.bytes_total += size.bytes;
                    });
                    for slab in inline {
                        self.show_inline(*rank, slab);
                        self.show_flushed(state, slab);
                    }
                }
                Record::Flushed(slab) => self.show_flushed(state, slab),
                Record::UploadDropped { object } => self.drop_uploaded(*object),
                Record::RankDurable { rank } => self.show_durable(state, *rank),
                Record::PeerDurable { rank } => {
                    let seconds = self.seconds();
                    let held = state.ranks.iter().filter(|(_, known)| known.peer_durable);
                    let bytes = held.map(|(rank, _)| self.size_of(*rank).bytes).sum();
                    self.update(|status| {
                        status.rank_mut(*rank).peer_durable = true;
                        status.bytes_peer = bytes;
                        if status.ranks.iter().all(|rank| rank.peer_durable) {
                            status.peer_durable_seconds = seconds;
                        }
                    });
                }
                Record::Committed => self.show_end(SaveState::Committed, state),
                Record::Cancelled => self.show_end(SaveState::Cancelled, state),
                Record::Failed { .. } => self.show_end(SaveState::Failed, state),
                _ => {}
            }
        }
    }

    /// What came with the call is staged with it.
    fn show_inline(&self, rank: u32, slab: &FlushedSlab) {
        let bytes = self.plan().files.get(slab.file as usize).map_or(0, |file| slab_sizes(slab, file.size_bytes).0);
        let mut staging = self.staging.lock();
        if staging.sealed.insert((slab.file, slab.slab_index)) {
            *staging.by_rank.entry(rank).or_default() += 1;
            self.update(|status| status.bytes_staged += bytes);
        }
    }

    fn show_flushed(&self, state: &AttemptState, slab: &FlushedSlab) {
        let Some(file) = self.plan().files.get(slab.file as usize) else { return };
        let (bytes, unchanged) = slab_sizes(slab, file.size_bytes);
        self.metrics.flushed_bytes.inc_by(bytes - unchanged);
        self.metrics.unchanged_bytes.inc_by(unchanged);
        self.update(|status| {
            status.bytes_durable += bytes;
            status.bytes_unchanged += unchanged;
        });
        let object = if slab.chunks.is_some() { self.pack_object(file.rank) } else { slab.file };
        if let Some(sender) = self.flushed.lock().get(&object) {
            let prefix = self.prefix(state, object);
            sender.send_if_modified(|sent| std::mem::replace(sent, prefix) != prefix);
        }
    }

    fn show_durable(&self, state: &AttemptState, rank: u32) {
        let seconds = self.seconds();
        let all = state.is_local_durable();
        self.update(|status| {
            status.rank_mut(rank).local_durable = true;
            if all && matches!(status.state, SaveState::Staging | SaveState::Staged) {
                status.state = SaveState::LocalDurable;
                status.local_durable_seconds = seconds;
                if status.staged_seconds == 0.0 {
                    status.staged_seconds = seconds;
                }
                self.metrics.durable_seconds.observe(seconds);
            }
        });
    }

    fn show_end(&self, end: SaveState, state: &AttemptState) {
        let seconds = self.seconds();
        self.metrics.saves.with_label_values(&[end.label()]).inc();
        self.update(|status| {
            status.state = end;
            status.waiting_for.clear();
            status.error = state.failed.clone();
            if end == SaveState::Committed {
                status.committed_seconds = seconds;
                self.metrics.committed_seconds.observe(seconds);
            }
        });
    }

    /// The status of a replayed attempt. Times of before are not known any more.
    pub(super) fn show_replayed(&self) {
        let state = self.state().clone();
        let ranks: Vec<u32> = state.ranks.keys().copied().collect();
        {
            let mut staging = self.staging.lock();
            for (file, flushed) in &state.files {
                let Some(planned) = self.plan().files.get(*file as usize) else { continue };
                staging.sealed.extend(flushed.slabs.keys().map(|slab| (*file, *slab)));
                *staging.by_rank.entry(planned.rank).or_default() += flushed.slabs.len() as u64;
            }
        }
        self.update(|status| {
            for rank in ranks {
                let (bytes, unchanged) = flushed_bytes(&state, self.plan(), rank);
                status.bytes_total += self.size_of(rank).bytes;
                status.bytes_staged += bytes;
                status.bytes_durable += bytes;
                status.bytes_unchanged += unchanged;
                let known = state.ranks[&rank];
                let shown = status.rank_mut(rank);
                shown.staged = known.flushed_slabs >= self.size_of(rank).slabs;
                (shown.local_durable, shown.peer_durable) = (known.durable, known.peer_durable);
            }
        });
        drop(state);
        self.show_state();
    }

    /// Sets the status's state from what is known.
    pub(super) fn show_state(&self) {
        let state = self.state().clone();
        self.update(|status| {
            status.error = state.failed.clone();
            let all_staged = !status.ranks.is_empty() && status.ranks.iter().all(|rank| rank.staged);
            status.state = match &state {
                state if state.committed => SaveState::Committed,
                state if state.cancelled => SaveState::Cancelled,
                state if state.failed.is_some() => SaveState::Failed,
                state if state.is_local_durable() => SaveState::LocalDurable,
                _ if all_staged => SaveState::Staged,
                _ => SaveState::Staging,
            };
        });
    }
}
