//! Saving files of this node: copied into the spool with their checksums, then as any other save.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};

use super::Engine;
use super::start::blocking;
use crate::attempt::{Attempt, Record};
use crate::flush::{Writer, finish_ranks};
use crate::folder::{self, SourceFile};
use crate::plan::SaveOptions;
use crate::spool::disk_error;
use crate::{SLAB_BYTES, failpoint, slab_count};

/// The rank that files of this node are saved as.
const RANK: u32 = 0;
/// How long a copy waits for its buffer.
const BUFFER_TIMEOUT: Duration = Duration::from_secs(600);
/// Slabs of small files that share a record.
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_MAX: usize = 256;

impl Engine {
    /// Saves a folder, or a file, of this node as one checkpoint; goes on after this returns (see [`Engine::watch`]). The files
    /// must not change until the save is staged: one that does fails it.
    ///
    /// # Errors
    /// `InvalidArgument` naming what cannot be saved, and as [`Engine::start`].
    pub async fn save_folder(
        self: &Arc<Self>,
        uri: String,
        step: u64,
        path: PathBuf,
        options: SaveOptions,
    ) -> Result<AttemptId> {
        let uri = self.parts.origins.canonical_url(&uri)?;
        let planned = move || folder::scan(&path).and_then(|sources| folder::plan(&uri, step, options, sources));
        let (plan, sources, notes) = blocking(planned).await?;
        let id = plan.attempt;
        self.start(plan, RANK, Vec::new()).await?;
        let attempt = self.attempts.get(&id)?;
        notes.into_iter().for_each(|note| attempt.note(note));
        let engine = Arc::clone(self);
        self.tasks.spawn_blocking(move || {
            if let Err(error) = copy_all(&engine, &attempt, &sources) {
                // A loader that ends here fails the save: the source may be another one when it is back.
                attempt.fail(error);
            }
        });
        Ok(id)
    }
}

fn copy_all(engine: &Engine, attempt: &Arc<Attempt>, sources: &[SourceFile]) -> Result<()> {
    let mut copy = Copy {
        attempt,
        writer: Writer::new(&engine.parts.uploads, BUFFER_TIMEOUT)?,
        unrecorded: Vec::new(),
        unrecorded_bytes: 0,
    };
    for (file, source) in (0u32..).zip(sources) {
        copy.file(file, source)?;
    }
    copy.record()?;
    finish_ranks(attempt);
    Ok(())
}

struct Copy<'a> {
    attempt: &'a Arc<Attempt>,
    writer: Writer,
    unrecorded: Vec<Record>,
    unrecorded_bytes: u64,
}

impl Copy<'_> {
    fn file(&mut self, file: u32, source: &SourceFile) -> Result<()> {
        let from = source.open()?;
        let cloned = self.clone_whole(file, source, &from)?;
        for slab in 0..slab_count(source.seen.size_bytes) {
            if self.attempt.token().is_cancelled() || self.attempt.is_failing() {
                return Err(self.attempt.why_stopped());
            }
            let start = u64::from(slab) * SLAB_BYTES;
            let mut read = |at: u64, into: &mut [u8]| {
                // Of the clone, when there is one: nobody writes that.
                let read = cloned.as_ref().unwrap_or(&from).read_exact_at(into, start + at);
                read.map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => Error::new(
                        Code::FailedPrecondition,
                        format!("{} became shorter while it was saved", source.path.display()),
                    ),
                    _ => disk_error("read", &source.path, &error),
                })
            };
            let flushed = match &cloned {
                Some(_) => self.writer.slab_in_place(self.attempt, file, slab, &mut read)?,
                None => self.writer.slab(self.attempt, file, slab, &mut read)?,
            };
            // Said to be staged when its bytes are here: from then on the source is not needed.
            source.check(&from)?;
            self.attempt.sealed(file, slab)?;
            self.unrecorded_bytes += self.attempt.slab_bytes(file, slab)?;
            self.unrecorded.push(Record::Flushed(flushed));
            if self.unrecorded_bytes >= BATCH_BYTES || self.unrecorded.len() >= BATCH_MAX {
                self.record()?;
            }
        }
        Ok(())
    }

    /// A copy that shares its blocks with the source, where the file system can do that. Not for a delta: it takes chunks.
    fn clone_whole(&mut self, file: u32, source: &SourceFile, from: &File) -> Result<Option<File>> {
        if self.attempt.is_chunked(file) || source.seen.size_bytes == 0 {
            return Ok(None);
        }
        let object = self.writer.object(self.attempt, file)?;
        if rustix::fs::ioctl_ficlone(&*object, from).is_err() {
            // Another disk, or a file system without shared blocks: the bytes are copied.
            return Ok(None);
        }
        source.check(from)?;
        let path = self.attempt.object_path(file);
        File::open(&path).map(Some).map_err(|error| disk_error("open", &path, &error))
    }

    fn record(&mut self) -> Result<()> {
        self.writer.sync(self.attempt)?;
        failpoint::hit("before_flushed_record");
        self.attempt.record_all(std::mem::take(&mut self.unrecorded))?;
        failpoint::hit("after_flushed_record");
        self.unrecorded_bytes = 0;
        Ok(())
    }
}
