//! What is kept beside the journal: the commit of a delta's parent, the index that was made, and the attempt's own commit.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use longshore_types::checkpoint::Commit;
use longshore_types::{Code, Error, Result};

use super::{Attempt, DeltaChoice, Record};
use crate::plan::INDEX_NAME;
use crate::spool::{disk_error, sync_folder};

const PARENT_NAME: &str = "parent.json";
const COMMIT_NAME: &str = "commit.json";

impl Attempt {
    /// Settles what the save is made from, once and for all: a restart goes on with the same parent.
    pub(crate) fn settle_delta(&self, choice: Option<DeltaChoice>) -> Result<()> {
        let base = match choice {
            Some(choice) => {
                write_synced(self.folder(), PARENT_NAME, &choice.commit.to_bytes())?;
                *self.delta.write() = Some(choice.commit);
                Some(choice.base)
            }
            None => None,
        };
        self.record_blocking(Record::Delta { base })
    }

    /// The commit of the parent, when this is a delta.
    pub fn parent_commit(&self) -> Option<Arc<Commit>> {
        self.delta.read().clone()
    }

    /// The parent's file with the layout of this one, an index into the files of [`Attempt::parent_commit`].
    pub fn parent_file(&self, file: u32) -> Option<u32> {
        let state = self.state();
        let files = &state.delta.as_ref()?.files;
        files.binary_search_by_key(&file, |pair| pair.0).ok().map(|at| files[at].1)
    }

    /// Reads the parent's commit again after a restart.
    pub(super) fn load_parent(&self) -> Result<()> {
        if self.state().delta.is_some() {
            *self.delta.write() = Some(Arc::new(read_commit(&self.folder().join(PARENT_NAME))?));
        }
        Ok(())
    }

    /// Keeps the commit on this node: loads and later deltas find it without the origin. Blocks the thread.
    ///
    /// # Errors
    /// What writing reports.
    pub fn keep_commit(&self, commit: &Commit) -> Result<()> {
        write_synced(self.folder(), COMMIT_NAME, &commit.to_bytes())
    }

    /// Keeps the index that was made for the bucket: loads of this node find it without the origin. Blocks the thread.
    ///
    /// # Errors
    /// What writing reports.
    pub(crate) fn keep_index(&self, index: &[u8]) -> Result<()> {
        write_synced(self.folder(), INDEX_NAME, index)
    }

    /// The commit that was put together or read here before.
    pub(crate) fn cached_commit(&self) -> Option<Arc<Commit>> {
        let (commit, of_committed) = self.commit.lock().clone()?;
        (of_committed == self.state().committed).then_some(commit)
    }

    pub(crate) fn cache_commit(&self, commit: Arc<Commit>) -> Arc<Commit> {
        let is_committed = self.state().committed;
        *self.commit.lock() = Some((Arc::clone(&commit), is_committed));
        commit
    }

    /// The commit that was kept. Blocks the thread.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Corrupt` when it is damaged.
    pub fn kept_commit(&self) -> Result<Commit> {
        read_commit(&self.folder().join(COMMIT_NAME))
    }
}

/// Puts the parent's commit beside a journal that is not open yet.
pub(crate) fn keep_parent(folder: &Path, commit: &Commit) -> Result<()> {
    write_synced(folder, PARENT_NAME, &commit.to_bytes())
}

fn read_commit(path: &Path) -> Result<Commit> {
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(Code::NotFound, format!("there is no {}", path.display())),
        _ => disk_error("read", path, &error),
    })?;
    Commit::parse(&bytes, &path.display().to_string())
}

/// Writes a file whole or not at all, and syncs it and its folder.
fn write_synced(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, temporary) = (folder.join(name), folder.join(format!("{name}.tmp")));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, &path));
    written.map_err(|error| disk_error("write", &path, &error))?;
    sync_folder(folder)
}
