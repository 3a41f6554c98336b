//! How sessions get pieces: on threads that may block, reserved before they are made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::slabs::{PieceName, SLAB_PIECE_BYTES_MAX, SessionFolder, SlabPiece};
use longshore_types::{Code, Result};

use super::key::SessionId;
use super::shared::{Shared, closing};
use super::table::{Client, Tables, Use};

/// Slabs of the first piece: it should be there soon.
const FIRST_SLABS: u64 = 4;
/// How long one slab's memory is waited for, in the arena's line.
const RESERVE_WAIT: Duration = Duration::from_millis(500);
/// How long nothing is tried after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// What to make next.
struct Step {
    folder: Arc<SessionFolder>,
    index: u32,
    slabs: u64,
}

/// Begins to make pieces for the session, unless that is being done.
pub(super) fn start(shared: &Arc<Shared>, tables: &mut Tables, id: SessionId) {
    let may_start = tables.sessions.get(&id).is_some_and(|held| {
        let is_pausing = held.growth.error.as_ref().is_some_and(|(_, until)| Instant::now() < *until);
        !held.growth.is_running && !is_pausing
    });
    if shared.is_closing() || !may_start {
        return;
    }
    let Some(step) = next(shared, tables, id) else { return };
    if let Some(held) = tables.sessions.get_mut(&id) {
        held.growth.is_running = true;
        let growing = Growing { shared: shared.clone(), id };
        shared.runtime.spawn_blocking(move || growing.run(step));
    }
}

/// Somebody who makes pieces for a session. Dropping it says that nobody does any more.
struct Growing {
    shared: Arc<Shared>,
    id: SessionId,
}

impl Growing {
    fn run(self, first: Step) {
        let mut step = Some(first);
        while let Some(now) = step {
            let made = self.make(&now);
            let mut tables = self.shared.tables.lock();
            let Some(held) = tables.sessions.get_mut(&self.id) else { return };
            held.growth.slabs = 0;
            match made {
                Ok(piece) => {
                    held.growth.error = None;
                    held.add_piece(Arc::new(piece), self.shared.slab_bytes);
                }
                Err(error) => {
                    tracing::warn!(session = %self.id, %error, "a session's shared memory does not grow");
                    held.growth.error = Some((error, Instant::now() + PAUSE));
                    return;
                }
            }
            held.changed.notify_waiters();
            step = next(&self.shared, &mut tables, self.id);
        }
    }

    /// A piece of what was asked, or of as much as there is room for.
    fn make(&self, step: &Step) -> Result<SlabPiece> {
        let mut slabs = step.slabs;
        loop {
            match self.try_make(step, slabs) {
                Err(error) if error.code() == Code::Exhausted && slabs > 1 => slabs /= 2,
                other => return other,
            }
        }
    }

    fn try_make(&self, step: &Step, slabs: u64) -> Result<SlabPiece> {
        if self.shared.is_closing() {
            return Err(closing());
        }
        let bytes = slabs * self.shared.slab_bytes;
        // Only the last attempt waits.
        let wait = if slabs == 1 { RESERVE_WAIT } else { Duration::ZERO };
        let reservation = self.shared.memory.wait_reserve(bytes, wait)?;
        let name = PieceName { index: step.index, len_bytes: bytes };
        SlabPiece::create(&step.folder, name, reservation)
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if let Some(held) = self.shared.tables.lock().sessions.get_mut(&self.id) {
            held.growth.is_running = false;
            held.growth.slabs = 0;
            held.changed.notify_waiters();
        }
        self.shared.grown.notify_all();
        // It may have ended meanwhile.
        self.shared.settle(self.id);
    }
}

/// The next piece of a session, which counts from now on; `None` when it needs none or may have none.
fn next(shared: &Shared, tables: &mut Tables, id: SessionId) -> Option<Step> {
    let held = tables.sessions.get(&id).filter(|held| held.client == Client::Here && !held.is_closed_to_grants)?;
    let own = held.slabs.len() as u64;
    let is_used_up = held.slabs.iter().all(|slab| slab.used != Use::Free);
    let ahead = held.expected_slabs.saturating_sub(own);
    // Without a word about what will come: two, to copy into one while the other is flushed; then they double.
    let wanted = match ahead {
        0 if is_used_up => own.max(2),
        ahead => ahead,
    };
    let first = if own == 0 { FIRST_SLABS } else { u64::MAX };
    let piece_max = (SLAB_PIECE_BYTES_MAX / shared.slab_bytes).max(1);
    let slabs = wanted.min(first).min(piece_max).min(shared.room(tables, id));
    let index = u32::try_from(held.pieces.len()).ok()?;
    let step = (slabs > 0).then(|| Step { folder: held.folder.clone(), index, slabs })?;
    if let Some(held) = tables.sessions.get_mut(&id) {
        held.growth.slabs = slabs;
    }
    Some(step)
}
