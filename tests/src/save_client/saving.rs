//! One attempt to save a generated model, from the trainer's side.

use std::time::Duration;

use longshore_proto::v1;
use longshore_testkit::Content;
use longshore_testkit::modelgen::Model;
use longshore_types::Result;

use super::content::{items_of, plan_contents};
use super::{SaveClient, SlabClient};

/// Files up to this size come along with the start of the save.
const INLINE_BYTES_MAX: u64 = 64 << 10;
/// How long a slab is waited for.
const SLAB_WAIT: Duration = Duration::from_secs(60);

/// What the loader acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acks {
    /// All ranks of the node are copied.
    pub staged: bool,
    /// Synced on the node.
    pub local_durable: bool,
    /// In the origin.
    pub committed: bool,
}

impl Acks {
    /// Takes a status in.
    pub fn see(&mut self, status: &v1::SaveStatus) {
        let state = status.state();
        let is_good = matches!(state, v1::SaveState::Staged | v1::SaveState::LocalDurable | v1::SaveState::Committed);
        self.staged |= is_good;
        self.local_durable |= is_good && state != v1::SaveState::Staged;
        self.committed |= state == v1::SaveState::Committed;
    }
}

/// A plan and the bytes that belong into it.
#[derive(Debug, Clone)]
pub struct Saving {
    /// What all ranks agree on.
    pub plan: v1::SavePlan,
    contents: Vec<Content>,
}

impl Saving {
    /// Plans a save of the model by `world` ranks.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn plan(
        client: &mut SaveClient,
        (uri, step): (&str, u64),
        (model, world): (&Model, u32),
        options: v1::SaveOptions,
    ) -> Result<Saving> {
        let request = v1::PlanSaveRequest {
            uri: uri.to_owned(),
            step,
            world_size: world,
            ranks: items_of(model, world),
            options: Some(options),
            join_timeout_ms: 0,
        };
        let plan = client.plan(request)?;
        Saving::of(plan, model)
    }

    /// Of a plan that is there.
    ///
    /// # Errors
    /// As [`plan_contents`].
    pub fn of(plan: v1::SavePlan, model: &Model) -> Result<Saving> {
        let contents = plan_contents(&plan, model)?;
        Ok(Saving { plan, contents })
    }

    /// Its id.
    pub fn attempt(&self) -> &str {
        &self.plan.attempt
    }

    /// The bytes of a file of the plan.
    pub fn content(&self, file: u32) -> &Content {
        &self.contents[file as usize]
    }

    /// Files of a rank: index and size.
    pub fn files(&self, rank: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
        let files = (0u32..).zip(&self.plan.files);
        files.filter(move |(_, file)| file.rank == rank).map(|(index, file)| (index, file.size_bytes))
    }

    /// The small files of a rank, which come along.
    pub fn inline(&self, rank: u32) -> Vec<v1::InlineFile> {
        let small = self.files(rank).filter(|(index, _)| self.is_inline(*index));
        small.map(|(file, _)| v1::InlineFile { file, content: self.content(file).to_vec() }).collect()
    }

    fn is_inline(&self, file: u32) -> bool {
        self.plan.files[file as usize].size_bytes <= INLINE_BYTES_MAX
    }

    /// The slabs of a rank, in order.
    pub fn slabs(&self, rank: u32, slab_bytes: u64) -> Vec<v1::SlabKey> {
        let files = self.files(rank).filter(|(index, _)| !self.is_inline(*index));
        let keys = files.flat_map(|(file, size)| {
            let count = size.div_ceil(slab_bytes.max(1)) as u32;
            (0..count).map(move |slab_index| v1::SlabKey { attempt: String::new(), file, slab_index })
        });
        keys.map(|key| v1::SlabKey { attempt: self.plan.attempt.clone(), ..key }).collect()
    }

    /// Starts a rank and copies all of its slabs; the session stays open for the caller.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn stage(&self, client: &mut SaveClient, rank: u32) -> Result<SlabClient> {
        client.start(&self.plan, rank, self.inline(rank))?;
        let mut slabs = client.slabs()?;
        self.fill(&mut slabs, rank)?;
        Ok(slabs)
    }

    /// Copies every slab of a rank that is not sealed yet.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn fill(&self, slabs: &mut SlabClient, rank: u32) -> Result<()> {
        for key in self.slabs(rank, slabs.slab_bytes) {
            if !slabs.sealed.contains(&key) {
                self.fill_one(slabs, key)?;
            }
        }
        Ok(())
    }

    /// Copies one slab.
    ///
    /// # Errors
    /// Those of the loader.
    pub fn fill_one(&self, slabs: &mut SlabClient, key: v1::SlabKey) -> Result<bool> {
        let content = self.content(key.file).clone();
        slabs.stage(key, &content, SLAB_WAIT)
    }
}
