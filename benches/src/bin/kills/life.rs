//! A trainer that saves while the loader may die at any time.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use longshore_proto::v1;
use longshore_testkit::modelgen::Model;
use longshore_tests::{Acks, SaveClient, Saving, SlabClient};
use longshore_types::{Code, Result};

const SOON: Duration = Duration::from_secs(120);

/// How far a save is, as its trainer knows.
pub const STATES: [&str; 7] = ["planning", "planned", "started", "copied", "staged", "local_durable", "committed"];

/// What the trainer has when it cannot go on.
#[derive(Default)]
pub struct Life {
    /// The plan, once there is one.
    pub saving: Option<Saving>,
    /// Whether StartSave was answered.
    pub is_started: bool,
    /// What the loader said.
    pub acks: Acks,
    /// The shared memory.
    pub slabs: Option<SlabClient>,
}

impl Life {
    /// Saves until the commit, or until the loader is gone. `state` is an index into [`STATES`].
    ///
    /// # Errors
    /// What kept it from the commit.
    pub fn live(&mut self, sockets: &Path, at: (&str, u64), model: &Model, state: &AtomicUsize) -> Result<()> {
        let mut client = SaveClient::connect(sockets)?;
        let options = v1::SaveOptions { keep: 2, hf_index: true, ..Default::default() };
        let saving = self.saving.insert(Saving::plan(&mut client, at, (model, 1), options)?);
        state.store(1, Ordering::Relaxed);
        client.start(&saving.plan, 0, saving.inline(0))?;
        self.is_started = true;
        state.store(2, Ordering::Relaxed);
        let slabs = self.slabs.insert(client.slabs()?);
        saving.fill(slabs, 0)?;
        state.store(3, Ordering::Relaxed);
        let acks = &mut self.acks;
        client.follow(saving.attempt(), SOON, |status| {
            acks.see(status);
            let seen = [(acks.committed, 6), (acks.local_durable, 5), (acks.staged, 4)];
            let seen = seen.into_iter().find(|(is_seen, _)| *is_seen).map_or(3, |(_, index)| index);
            state.store(seen, Ordering::Relaxed);
            status.state >= v1::SaveState::Committed as i32
        })?;
        Ok(())
    }

    /// Comes back to a loader that was started again, and copies what is missing.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn come_back(&mut self, sockets: &Path, client: &mut SaveClient) -> Result<()> {
        let Some(saving) = &self.saving else { return Ok(()) };
        client.start(&saving.plan, 0, saving.inline(0))?;
        self.is_started = true;
        let session = self.slabs.take().map(|slabs| slabs.session.clone()).unwrap_or_default();
        let slabs = match SlabClient::begin(sockets, &session) {
            Err(error) if error.code() == Code::NotFound => SlabClient::begin(sockets, "")?,
            other => other?,
        };
        saving.fill(self.slabs.insert(slabs), 0)
    }
}
