//! The write-back of each attempt, and what follows when it ends.

use std::sync::Arc;

use super::Engine;
use super::start::blocking;
use crate::attempt::{Attempt, record_durable};
use crate::writeback;

impl Engine {
    /// Starts the write-back of an attempt that has a rank here, once.
    pub(super) fn go_on(self: &Arc<Self>, attempt: &Arc<Attempt>) {
        if !attempt.begin_driving() {
            return;
        }
        let (engine, attempt) = (Arc::clone(self), Arc::clone(attempt));
        self.tasks.spawn(async move {
            if let Err(error) = writeback::run(Arc::clone(&attempt), &engine.parts).await {
                tracing::debug!(attempt = %attempt.id(), %error, "write-back ended");
            }
            attempt.end_driving();
            if engine.parts.token.is_cancelled() {
                return;
            }
            if attempt.state().committed {
                engine.trim(&attempt).await;
                // Nothing is left to be told of.
                attempt.token().cancel();
            }
        });
    }

    /// Waits for an attempt to end, however that comes, and tidies up behind it.
    pub(super) fn watch_end(self: &Arc<Self>, attempt: &Arc<Attempt>) {
        let (engine, attempt) = (Arc::clone(self), Arc::clone(attempt));
        self.tasks.spawn(async move {
            attempt.token().cancelled().await;
            if !engine.parts.token.is_cancelled() {
                engine.slabs.recheck();
                engine.clean_up(&attempt);
            }
        });
    }

    /// A call for an attempt whose write-back had stopped for a failure that may have gone away.
    pub(super) fn resume(self: &Arc<Self>, attempt: &Arc<Attempt>) {
        if attempt.take_suspended() {
            attempt.note("goes on after a failure, because it was asked for again");
            self.go_on(attempt);
        }
    }

    /// Removes the bytes of an attempt that was given up. Without effect on any other.
    pub(super) fn clean_up(&self, attempt: &Arc<Attempt>) {
        let state = attempt.state();
        if state.committed || !(state.cancelled || state.failed.is_some()) {
            return;
        }
        drop(state);
        let attempt = Arc::clone(attempt);
        let attempts = Arc::clone(&self.attempts);
        self.tasks.spawn(async move {
            let removed = blocking(move || {
                attempt.remove_objects();
                for forgotten in attempts.forgotten() {
                    attempts.remove(&forgotten.id());
                    forgotten.remove_folder();
                }
                Ok(())
            });
            if let Err(error) = removed.await {
                tracing::warn!(%error, "bytes of a save that was given up stay until the next start");
            }
        });
    }

    /// When all slabs of a rank are flushed: it is durable.
    pub(super) fn finish_rank(&self, attempt: &Arc<Attempt>, rank: u32) {
        if attempt.claim_durable(rank) {
            let attempt = Arc::clone(attempt);
            self.tasks.spawn_blocking(move || record_durable(&attempt, rank));
        }
    }
}
