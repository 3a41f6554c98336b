//! The calls that write, list for maintenance and delete.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use longshore_types::{Artifact, BlockChecksum, Code, Error, Result, Version};

use super::Origins;
use crate::address::Address;
use crate::backend::Backend;
use crate::body::Body;
use crate::stats::count;
use crate::write::{
    ENTRIES_MAX, Entries, Listed, OpenUpload, PartId, PutHow, PutOutcome, UploadId, UploadLimits, Verified, Writes,
};
use crate::{probe, verify};

/// Objects that are deleted at a time.
const DELETES_AT_ONCE: usize = 16;
/// How often a small object may change between the question for its version and its bytes.
const CHANGES_MAX: u32 = 8;

/// An address with the backend that serves it.
struct Target {
    address: Address,
    backend: Arc<dyn Backend>,
}

impl Target {
    fn writer(&self) -> Result<&dyn Writes> {
        self.backend.writer().ok_or_else(|| {
            let text = format!(
                "cannot write to {}: only s3://, gs://, az:// and file:// can be written to, not this kind of origin",
                self.address
            );
            Error::new(Code::Unsupported, text)
        })
    }

    async fn delete(self) -> Result<bool> {
        let writer = self.writer()?;
        self.backend.lane().run(|| writer.delete(&self.address)).await
    }
}

impl Origins {
    /// Writes a whole object, repeated as reads are.
    ///
    /// # Errors
    /// As [`Origins::stat`]; `Exhausted` when the store or the disk is full, `Unsupported` for origins that are only
    /// read, `InvalidArgument` for a version of another kind of origin.
    pub async fn put(&self, url: &str, bytes: Bytes, how: PutHow) -> Result<PutOutcome> {
        self.put_body(url, bytes.into(), how).await
    }

    /// [`Origins::put`] of bytes that lie in pieces.
    ///
    /// # Errors
    /// As [`Origins::put`].
    pub async fn put_body(&self, url: &str, body: Body, how: PutHow) -> Result<PutOutcome> {
        let target = self.target(url)?;
        let writer = target.writer()?;
        let outcome = target.backend.lane().run(|| writer.put(&target.address, &body, &how)).await?;
        let counters = &target.backend.lane().counters;
        match outcome {
            PutOutcome::Written(_) => count(&counters.bytes_written, body.len_bytes()),
            PutOutcome::Conflict => count(&counters.conflicts, 1),
        }
        Ok(outcome)
    }

    /// Reads a whole object of at most `bytes_max` bytes, all of one version.
    ///
    /// # Errors
    /// As [`Origins::stat`]; `Exhausted` when it is larger; `FailedPrecondition` when it keeps changing.
    pub async fn read_small(&self, url: &str, bytes_max: u64) -> Result<(Arc<Artifact>, Bytes)> {
        for _ in 0..CHANGES_MAX {
            let artifact = Arc::new(self.stat(url).await?);
            let size = artifact.size_bytes();
            if size > bytes_max {
                let text = format!("{url} has {size} bytes, at most {bytes_max} were expected");
                return Err(Error::new(Code::Exhausted, text));
            }
            match self.collect(&artifact).await {
                Ok(bytes) => return Ok((artifact, bytes)),
                Err(error) if error.code() == Code::FailedPrecondition => continue,
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Code::FailedPrecondition, format!("{url} changed {CHANGES_MAX} times while it was read")))
    }

    async fn collect(&self, artifact: &Arc<Artifact>) -> Result<Bytes> {
        let mut all = BytesMut::new();
        let mut pieces = self.read(artifact, 0..artifact.size_bytes());
        while let Some(piece) = pieces.try_next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Everything below a folder, by relative name, sorted. A folder that is not there has nothing below it.
    ///
    /// # Errors
    /// As [`Origins::stat`]; `Exhausted` when there are millions of objects.
    pub async fn list_below(&self, url: &str) -> Result<Vec<Listed>> {
        let entries = self.entries(url, false).await?;
        let mut objects = entries.objects;
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// The names of the folders directly below a folder, sorted.
    ///
    /// # Errors
    /// As [`Origins::list_below`].
    pub async fn list_folders(&self, url: &str) -> Result<Vec<String>> {
        let mut folders = self.entries(url, true).await?.folders;
        folders.sort_unstable();
        folders.dedup();
        Ok(folders)
    }

    async fn entries(&self, url: &str, one_level: bool) -> Result<Entries> {
        let target = self.target(url)?;
        let writer = target.writer()?;
        let lane = target.backend.lane();
        let mut all = Entries { objects: Vec::new(), folders: Vec::new(), next: None };
        let mut token: Option<String> = None;
        loop {
            let page = lane.run(|| writer.entries(&target.address, one_level, token.as_deref())).await?;
            all.objects.extend(page.objects);
            all.folders.extend(page.folders);
            if all.objects.len() + all.folders.len() > ENTRIES_MAX {
                let text = format!("there are more than {ENTRIES_MAX} objects below {url}: name a smaller folder");
                return Err(Error::new(Code::Exhausted, text));
            }
            match page.next {
                // A server that gives the same page again would keep us here for ever.
                Some(next) if token.as_deref() == Some(next.as_str()) => {
                    return Err(Error::new(Code::Corrupt, format!("the listing of {url} does not come to an end")));
                }
                Some(next) => token = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Deletes objects and says how many were there, as far as the store tells (S3 does not: there all of them count).
    /// One that is missing is no error.
    ///
    /// # Errors
    /// As [`Origins::stat`]; what was deleted before stays deleted.
    pub async fn delete(&self, urls: &[String]) -> Result<u64> {
        // Nothing is borrowed in here, or the compiler does not believe that a task may run it.
        let targets = urls.iter().map(|url| self.target(url)).collect::<Result<Vec<Target>>>()?;
        let deletions = stream::iter(targets).map(Target::delete).buffer_unordered(DELETES_AT_ONCE);
        let mut deletions = std::pin::pin!(deletions);
        let mut deleted = 0;
        while let Some(was_there) = deletions.try_next().await? {
            deleted += u64::from(was_there);
        }
        Ok(deleted)
    }

    /// What the parts of an upload to this place may be like. Sends nothing.
    ///
    /// # Errors
    /// `Unsupported` for origins that are only read.
    pub fn upload_limits(&self, url: &str) -> Result<UploadLimits> {
        Ok(self.target(url)?.writer()?.upload_limits())
    }

    /// Begins a multipart upload. A lost answer leaves an upload behind that [`Origins::open_uploads`] finds.
    ///
    /// # Errors
    /// As [`Origins::put`].
    pub async fn upload_start(&self, url: &str) -> Result<UploadId> {
        let target = self.target(url)?;
        let writer = target.writer()?;
        target.backend.lane().run(|| writer.upload_start(&target.address)).await
    }

    /// Sends part `index` (from 0): [`Bytes`], or a [`Body`]. Parts may be sent in any order, several at once, and again.
    ///
    /// # Errors
    /// As [`Origins::put`]; `NotFound` when there is no such upload; `InvalidArgument` when the part is beyond the
    /// limits.
    pub async fn upload_part(
        &self,
        url: &str,
        id: &UploadId,
        index: u32,
        body: impl Into<Body> + Send,
    ) -> Result<PartId> {
        let body = body.into();
        let target = self.target(url)?;
        let writer = target.writer()?;
        check_part(url, &writer.upload_limits(), index, body.len_bytes())?;
        let part = target.backend.lane().run(|| writer.upload_part(&target.address, id, index, &body)).await?;
        count(&target.backend.lane().counters.bytes_written, body.len_bytes());
        Ok(part)
    }

    /// Makes the object of all parts, in order. `None` when there is no such upload any more: an attempt whose answer
    /// was lost may have completed it, or it was aborted; [`Origins::verify`] tells.
    ///
    /// # Errors
    /// As [`Origins::put`]; `InvalidArgument` when a part is not one of this upload.
    pub async fn upload_complete(&self, url: &str, id: &UploadId, parts: &[PartId]) -> Result<Option<Version>> {
        let target = self.target(url)?;
        let writer = target.writer()?;
        target.backend.lane().run(|| writer.upload_complete(&target.address, id, parts)).await
    }

    /// Ends an upload and drops its parts. An unknown one is no error.
    ///
    /// # Errors
    /// As [`Origins::put`].
    pub async fn upload_abort(&self, url: &str, id: &UploadId) -> Result<()> {
        let target = self.target(url)?;
        let writer = target.writer()?;
        target.backend.lane().run(|| writer.upload_abort(&target.address, id)).await
    }

    /// The uploads below a folder that were begun and neither completed nor aborted; `None` when this store cannot
    /// list them (Azure drops them by itself after a week; a lifecycle rule does so elsewhere).
    ///
    /// # Errors
    /// As [`Origins::stat`].
    pub async fn open_uploads(&self, folder_url: &str) -> Result<Option<Vec<OpenUpload>>> {
        let target = self.target(folder_url)?;
        let writer = target.writer()?;
        target.backend.lane().run(|| writer.open_uploads(&target.address)).await
    }

    /// Checks that an object has this size and these bytes: by the checksum that the store computed over all of it
    /// where there is one, else by reading it back.
    ///
    /// # Errors
    /// `Corrupt` when it is different, `NotFound` when there is none, otherwise as [`Origins::stat`].
    pub async fn verify(&self, url: &str, size_bytes: u64, checksum: BlockChecksum) -> Result<(Verified, Version)> {
        let target = self.target(url)?;
        let writer = target.writer()?;
        verify::verify(&target.backend, writer, &target.address, verify::Expected { size_bytes, checksum }).await
    }

    /// Finds out whether the store honours the conditions of [`Origins::put`], on an object that is deleted again. Asked
    /// once per bucket and process, all local folders counting as one, unless it fails.
    ///
    /// # Errors
    /// `Unsupported`, naming the store, when it overwrites in spite of a condition; otherwise as [`Origins::put`].
    pub async fn check_conditional_puts(&self, folder_url: &str) -> Result<()> {
        let target = self.target(folder_url)?;
        target.writer()?;
        let place = super::Place::of(&target.address);
        if self.shared.conditional.lock().contains(&place) {
            return Ok(());
        }
        probe::conditional_puts(self, &target.address).await?;
        let mut checked = self.shared.conditional.lock();
        if checked.len() >= super::OPEN_MAX {
            checked.clear();
        }
        checked.insert(place);
        Ok(())
    }

    fn target(&self, url: &str) -> Result<Target> {
        let address = Address::parse(url)?;
        let backend = self.backend(&address)?;
        Ok(Target { address, backend })
    }
}

fn check_part(url: &str, limits: &UploadLimits, index: u32, bytes: u64) -> Result<()> {
    if index >= limits.parts_max {
        let text = format!("part {index} of {url} is beyond the {} parts that an upload there has", limits.parts_max);
        return Err(Error::new(Code::InvalidArgument, text));
    }
    if bytes > limits.part_bytes_max {
        let text = format!("part {index} of {url} has {bytes} bytes, at most {} are allowed", limits.part_bytes_max);
        return Err(Error::new(Code::InvalidArgument, text));
    }
    Ok(())
}
