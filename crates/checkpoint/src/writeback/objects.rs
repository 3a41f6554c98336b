//! One object after the other to the origin: parts as soon as they are on the disk, completion, verification.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use longshore_origin::{Body, PutHow, PutOutcome, Verified};
use longshore_types::{BlockChecksum, Code, Error, Result, Version};

use super::Writeback;
use super::pieces::body_of;
use crate::attempt::{Arrived, Record, StoredHow};
use crate::failpoint;
use crate::plan::PLAIN_FILE_BYTES_MAX;

/// How often an upload is begun afresh because the origin lost it or has other bytes.
const RESTARTS_MAX: u32 = 4;

/// What an object must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Total {
    pub(super) checksum: BlockChecksum,
    pub(super) size_bytes: u64,
}

/// How one try to bring an object over ended.
pub(super) enum Tried {
    Stored(Version, Verified),
    /// The origin does not have the upload any more, or has other bytes: begin afresh.
    Lost(Error),
}

impl Writeback {
    /// All objects of a rank; each is verified when this returns, and offered to the caches.
    pub(super) async fn carry_objects(self: &Arc<Self>, rank: u32) -> Result<()> {
        let objects = self.attempt.objects_of(rank);
        let uploads = objects.into_iter().map(|object| {
            let this = Arc::clone(self);
            async move { this.carry_object(object).await }.boxed()
        });
        all_of(uploads, self.uploads.count).await
    }

    async fn carry_object(self: &Arc<Self>, object: u32) -> Result<()> {
        let attempt = &self.attempt;
        let is_verified = attempt.state().uploads.get(&object).is_some_and(|upload| upload.verified.is_some());
        let size_bytes = self.size_of(object).await?;
        let is_pack = object as usize >= attempt.plan().files.len();
        if is_pack && size_bytes == 0 {
            return Ok(());
        }
        if is_verified {
            attempt.add_uploaded(object, Arrived::Whole);
            return Ok(());
        }
        let url = self.object_url(object);
        let limits = self.run.origins.upload_limits(&url)?;
        let part_bytes = limits.part_bytes(size_bytes, self.uploads.part_bytes);
        let is_plain = attempt.plan().files.get(object as usize).is_some_and(|file| !file.is_tensors());
        let in_one = size_bytes <= part_bytes || (is_plain && size_bytes <= PLAIN_FILE_BYTES_MAX);
        for _ in 0..RESTARTS_MAX {
            let tried = if in_one {
                self.put_whole(object, &url, is_plain).await?
            } else {
                self.put_parts(object, &url, size_bytes, part_bytes).await?
            };
            match tried {
                Tried::Stored(version, how) => return self.stored(object, size_bytes, version, how).await,
                Tried::Lost(error) => {
                    attempt.note(format!("{url} is uploaded again: {error}"));
                    if attempt.state().uploads.contains_key(&object) {
                        attempt.record(Record::UploadDropped { object }).await?;
                    }
                }
            }
        }
        Err(Error::new(
            Code::Unavailable,
            format!("{url} was uploaded {RESTARTS_MAX} times and never had the right bytes: see the notes of the save"),
        ))
    }

    async fn stored(&self, object: u32, size_bytes: u64, version: Version, how: Verified) -> Result<()> {
        let attempt = &self.attempt;
        let how = match how {
            Verified::ByStore => StoredHow::ByStore,
            Verified::ReadBack => {
                if size_bytes > 0 {
                    attempt.note("the store keeps no checksums of whole objects: they are read back");
                }
                StoredHow::ReadBack
            }
        };
        failpoint::hit("before_verified_record");
        attempt.record(Record::Verified { object, version: version.as_str().to_owned(), how }).await?;
        attempt.add_uploaded(object, Arrived::Whole);
        self.cache(object).await;
        Ok(())
    }

    /// Size of an object; that of a pack once its rank is durable.
    async fn size_of(&self, object: u32) -> Result<u64> {
        if let Some(file) = self.attempt.plan().files.get(object as usize) {
            return Ok(file.size_bytes);
        }
        let rank = self.attempt.rank_of_object(object);
        self.attempt.until(|state| state.ranks.get(&rank).is_some_and(|rank| rank.durable)).await?;
        self.attempt
            .object_bytes(object)
            .ok_or_else(|| Error::new(Code::Internal, format!("the size of {} is not known", self.object_url(object))))
    }

    /// Waits until an object is flushed up to `end`.
    pub(super) async fn flushed(&self, object: u32, end: u64) -> Result<()> {
        let mut flushed = self.attempt.flushed(object);
        tokio::select! {
            () = self.attempt.token().cancelled() => Err(self.attempt.why_stopped()),
            waited = flushed.wait_for(|flushed| *flushed >= end) => match waited {
                Ok(_) => Ok(()),
                Err(_) => Err(Error::new(Code::Internal, "an attempt ended while it was uploaded".to_owned())),
            },
        }
    }

    pub(super) async fn total(&self, object: u32) -> Result<Total> {
        let attempt = Arc::clone(&self.attempt);
        let (checksum, size_bytes) = blocking(move || attempt.object_total(object)).await?;
        Ok(Total { checksum, size_bytes })
    }

    pub(super) async fn read(&self, object: u32, range: Range<u64>) -> Result<(Bytes, BlockChecksum)> {
        let attempt = Arc::clone(&self.attempt);
        blocking(move || {
            let bytes = attempt.read(object, range)?;
            let checksum = BlockChecksum::of(&bytes);
            Ok((bytes, checksum))
        })
        .await
    }

    /// A small object by one request. Under a name of the attempt it may overwrite: nobody else writes there.
    async fn put_whole(&self, object: u32, url: &str, is_plain: bool) -> Result<Tried> {
        let size_bytes = self.size_of(object).await?;
        self.flushed(object, size_bytes).await?;
        let total = self.total(object).await?;
        let permit = self.uploads.permit().await?;
        let pieces = self.pieces(object, 0..size_bytes).await?;
        let (body, checksum) = body_of(&pieces);
        self.check_local(object, checksum, total)?;
        let tried = self.put_checked(url, body, total.checksum, is_plain).await?;
        if matches!(tried, Tried::Stored(..)) {
            self.count_uploaded(size_bytes);
            drop(permit);
            self.cache_pieces(object, size_bytes, pieces).await;
        }
        Ok(tried)
    }

    /// Puts bytes and verifies them. A plain name is created; what has that name is replaced only while the intent is ours.
    async fn put_checked(&self, url: &str, body: Body, checksum: BlockChecksum, is_plain: bool) -> Result<Tried> {
        let what = format!("the origin to take {url}");
        let size_bytes = body.len_bytes();
        let verified = self
            .retry
            .run_but(&what, &[Code::Corrupt], || async {
                let how = if is_plain { PutHow::Create } else { PutHow::Overwrite };
                if let PutOutcome::Written(_) = self.run.origins.put_body(url, body.clone(), how).await? {
                    return self.run.origins.verify(url, size_bytes, checksum).await;
                }
                match self.run.origins.verify(url, size_bytes, checksum).await {
                    Err(error) if error.code() == Code::Corrupt => {}
                    same => return same,
                }
                self.run.check_claim(self.attempt.plan()).await?;
                let found = self.run.origins.stat(url).await?;
                let how = PutHow::Replace(found.version().clone());
                if self.run.origins.put_body(url, body.clone(), how).await? == PutOutcome::Conflict {
                    return Err(Error::new(Code::Unavailable, format!("{url} is being written by somebody else")));
                }
                self.run.origins.verify(url, size_bytes, checksum).await
            })
            .await;
        match verified {
            Ok((how, version)) => Ok(Tried::Stored(version, how)),
            Err(error) if error.code() == Code::Corrupt => Ok(Tried::Lost(error)),
            Err(error) => Err(error),
        }
    }

    /// Puts a small file that was made here and gives its version.
    pub(super) async fn put_made(&self, url: &str, bytes: Bytes) -> Result<Version> {
        let checksum = BlockChecksum::of(&bytes);
        for _ in 0..RESTARTS_MAX {
            match self.put_checked(url, bytes.clone().into(), checksum, true).await? {
                Tried::Stored(version, _) => return Ok(version),
                Tried::Lost(error) => self.attempt.note(format!("{url} is written again: {error}")),
            }
        }
        Err(Error::new(Code::Unavailable, format!("{url} never had the right bytes")))
    }

    pub(super) async fn verify(&self, url: &str, total: Total) -> Result<(Verified, Version)> {
        let what = format!("the origin to verify {url}");
        let handed_back = [Code::NotFound, Code::Corrupt];
        self.retry.run_but(&what, &handed_back, || self.run.origins.verify(url, total.size_bytes, total.checksum)).await
    }

    pub(super) fn check_local(&self, object: u32, found: BlockChecksum, total: Total) -> Result<()> {
        if found == total.checksum {
            return Ok(());
        }
        let path = self.attempt.object_path(object);
        Err(Error::new(
            Code::Corrupt,
            format!(
                "{} is damaged: its checksum is {found} and was {} when it was written; check this node's disk",
                path.display(),
                total.checksum
            ),
        ))
    }
}

/// Runs all of them, so many at a time; the first error ends the rest.
pub(super) async fn all_of(
    work: impl Iterator<Item = BoxFuture<'static, Result<()>>> + Send,
    at_once: usize,
) -> Result<()> {
    let mut work = work.fuse();
    let mut running: FuturesUnordered<BoxFuture<'static, Result<()>>> = work.by_ref().take(at_once).collect();
    while let Some(done) = running.next().await {
        done?;
        running.extend(work.next());
    }
    Ok(())
}

pub(super) fn lost_when_corrupt(verified: Result<(Verified, Version)>) -> Result<Tried> {
    match verified {
        Ok((how, version)) => Ok(Tried::Stored(version, how)),
        Err(error) if error.code() == Code::Corrupt => Ok(Tried::Lost(error)),
        Err(error) => Err(error),
    }
}

/// Runs what blocks away from the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Code::Internal, format!("a thread of the write-back ended: {error}")))?
}
