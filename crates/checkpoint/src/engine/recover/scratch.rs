//! The folder of a recovery that has not become an attempt yet: a journal, and files of the right sizes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_types::checkpoint::Commit;
use longshore_types::{Code, Error, Result};

use crate::attempt::{Attempt, Record, Surroundings, keep_parent};
use crate::held;
use crate::journal::Journal;
use crate::plan::SavePlan;
use crate::spool::disk_error;

/// A recovery that has not become an attempt yet. Its folder goes when it is dropped.
pub(super) struct Scratch {
    /// Knows sizes, names and checksums; nobody else sees it.
    pub(super) attempt: Arc<Attempt>,
    pub(super) folder: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        let remove = move || remove(&folder);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Removes the folder of a recovery and the one that it lies alone in.
fn remove(folder: &Path) {
    if let Some(own) = folder.parent()
        && let Err(error) = std::fs::remove_dir_all(own)
    {
        tracing::debug!(folder = %own.display(), %error, "what a recovery left goes at the next start");
    }
}

/// The folder, the journal and the empty files of a recovery. Blocks the thread.
pub(super) fn make(
    around: &Surroundings,
    plan: &SavePlan,
    parent: Option<&Commit>,
    records: Vec<Record>,
    ranks: &[u32],
) -> Result<Scratch> {
    let folder = around.spool.new_recovery(&plan.attempt)?;
    let made = || {
        if let Some(parent) = parent {
            keep_parent(&folder, parent)?;
        }
        Journal::create(&folder)?.append(records, &|_| {}, &|| false)?;
        let attempt = Attempt::open(around, &folder)?;
        let attempt = attempt.ok_or_else(|| Error::new(Code::Internal, "a journal that was just written is empty"))?;
        attempt.make_objects()?;
        for rank in ranks {
            held::check_whole(&attempt, *rank)?;
            for object in objects(&attempt, *rank) {
                let path = attempt.object_path(object);
                let size = attempt.object_bytes(object).unwrap_or(0);
                let sized = File::create_new(&path).and_then(|file| file.set_len(size));
                sized.map_err(|error| disk_error("create", &path, &error))?;
            }
        }
        Ok(attempt)
    };
    match made() {
        Ok(attempt) => Ok(Scratch { attempt, folder }),
        Err(error) => {
            remove(&folder);
            Err(error)
        }
    }
}

/// The objects that lie on the disk for a rank: a pack that is empty is none.
pub(super) fn objects(attempt: &Attempt, rank: u32) -> Vec<u32> {
    let files = attempt.plan().files.len();
    let mut objects = attempt.objects_of(rank);
    objects.retain(|object| (*object as usize) < files || attempt.object_bytes(*object) != Some(0));
    objects
}
