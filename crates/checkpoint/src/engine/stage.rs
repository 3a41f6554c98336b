//! Slabs, sessions and time limits: from the first byte to STAGED.

use std::sync::Arc;
use std::time::Duration;

use longshore_types::{Code, Error};
use tokio::sync::mpsc;

use super::Engine;
use crate::attempt::{Attempt, Sealed};
use crate::failpoint;
use crate::flush::Job;
use crate::slabs::{SealedSlab, SlabEvent};

/// Ranks that a session works for; beyond that, those of saves that ended are forgotten.
const TOUCHED_MAX: usize = 64;

impl Engine {
    /// Takes what happens to slabs until the engine closes.
    pub(super) async fn take_events(self: Arc<Self>, mut events: mpsc::Receiver<SlabEvent>) {
        loop {
            let event = tokio::select! {
                () = self.parts.token.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Some(SlabEvent::Sealed(slab)) => self.sealed(slab),
                Some(SlabEvent::SessionClosed { session, lost }) => {
                    let mut touched = self.sessions.lock().remove(&session).unwrap_or_default();
                    for key in lost {
                        let attempt = self.attempts.find(&key.attempt);
                        let file = attempt.as_ref().and_then(|attempt| attempt.plan().files.get(key.file as usize));
                        touched.extend(file.map(|file| (key.attempt, file.rank)));
                    }
                    touched.into_iter().for_each(|(attempt, rank)| {
                        if let Some(attempt) = self.attempts.find(&attempt) {
                            self.client_left(&attempt, rank);
                        }
                    });
                }
                None => return,
            }
        }
    }

    /// A slab is complete: count it, flush it.
    pub(super) fn sealed(self: &Arc<Self>, slab: SealedSlab) {
        let key = *slab.key();
        failpoint::hit("slab_sealed");
        // Dropping the slab frees it: the attempt is gone, or has these bytes.
        let Some(attempt) = self.attempts.find(&key.attempt) else { return };
        if attempt.state().is_ended() {
            return;
        }
        if let Some(file) = attempt.plan().files.get(key.file as usize) {
            let mut sessions = self.sessions.lock();
            let touched = sessions.entry(slab.session()).or_default();
            if touched.insert((key.attempt, file.rank)) && touched.len() > TOUCHED_MAX {
                touched
                    .retain(|(attempt, _)| self.attempts.find(attempt).is_some_and(|known| !known.state().is_ended()));
            }
        }
        match attempt.sealed(key.file, key.slab_index) {
            Ok(Sealed::New) => self.flusher.push(Job { attempt, slab }),
            Ok(Sealed::Again) => {}
            Err(error) => attempt.note(format!("a slab was discarded: {error}")),
        }
    }

    /// A training process is gone. What it did not seal can never come.
    fn client_left(&self, attempt: &Arc<Attempt>, rank: u32) {
        if attempt.state().is_ended() || attempt.is_staged(rank) {
            return;
        }
        let (file, missing) = attempt.missing(rank);
        let file = file.map(|file| format!(", {file} among them")).unwrap_or_default();
        attempt.fail(Error::new(
            Code::Unavailable,
            format!(
                "rank {rank} went away before its part of {} was copied: {missing} of {} slabs are missing{file}; \
                     earlier checkpoints are untouched",
                attempt.url(),
                attempt.size_of(rank).slabs
            ),
        ));
    }

    /// Fails the attempt when not all ranks of this node are staged in time.
    pub(super) fn watch_stage(self: &Arc<Self>, attempt: &Arc<Attempt>, limit: Duration) {
        let (engine, attempt) = (Arc::clone(self), Arc::clone(attempt));
        self.tasks.spawn(async move {
            tokio::select! {
                () = attempt.token().cancelled() => return,
                () = engine.parts.token.cancelled() => return,
                () = tokio::time::sleep(limit) => {}
            }
            let unstaged = attempt.unstaged();
            if unstaged.is_empty() && !attempt.ranks().is_empty() {
                return;
            }
            let ranks: Vec<String> = unstaged.iter().map(|rank| format!("rank {rank}")).collect();
            let who = match ranks.as_slice() {
                [] => "no rank of this node".to_owned(),
                ranks if ranks.len() > 16 => format!("{} and {} more", ranks[..16].join(", "), ranks.len() - 16),
                ranks => ranks.join(", "),
            };
            let what = if ranks.is_empty() { "was started" } else { "did not copy all of its bytes" };
            let message = format!("{who} {what} within {limit:?}: {} is given up", attempt.url());
            attempt.fail(Error::new(Code::Timeout, message));
        });
    }
}
