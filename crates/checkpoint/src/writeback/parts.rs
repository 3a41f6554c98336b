//! A large object in parts: each is sent once its bytes are on this node's disk, and recorded when the origin has it.

use std::ops::Range;
use std::sync::Arc;

use futures::FutureExt;
use longshore_origin::{PartId, UploadId};
use longshore_types::{BlockChecksum, Code, Error, Result};

use super::Writeback;
use super::objects::{Total, Tried, all_of, lost_when_corrupt};
use super::pieces::body_of;
use crate::attempt::{Arrived, Record};
use crate::failpoint;

/// Bytes of this node's disk that are read at a time to be checked.
const CHECKED_BYTES: u64 = 16 << 20;

impl Writeback {
    /// A large object in parts.
    pub(super) async fn put_parts(
        self: &Arc<Self>,
        object: u32,
        url: &str,
        size_bytes: u64,
        part_bytes: u64,
    ) -> Result<Tried> {
        let known = self.attempt.state().uploads.get(&object).cloned().unwrap_or_default();
        if known.complete_sent {
            // The answer was lost, perhaps: what is there decides.
            let total = self.total(object).await?;
            match self.verify(url, total).await {
                Err(error) if error.code() == Code::NotFound => {}
                verified => return lost_when_corrupt(verified),
            }
        }
        let id = match known.id {
            Some(id) => id,
            None => self.begin(object, url).await?,
        };
        let count = size_bytes.div_ceil(part_bytes);
        let parts = (0..count).map(|index| {
            let range = index * part_bytes..((index + 1) * part_bytes).min(size_bytes);
            let (this, id, url) = (Arc::clone(self), id.clone(), url.to_owned());
            async move { this.part(object, size_bytes, &url, &id, index as u32, range).await }.boxed()
        });
        match all_of(parts, self.uploads.count).await {
            Err(error) if error.code() == Code::NotFound => {
                return Ok(Tried::Lost(error));
            }
            sent => sent?,
        }
        self.complete(object, url, &id, count, part_bytes).await
    }

    async fn begin(&self, object: u32, url: &str) -> Result<UploadId> {
        let what = format!("the origin to begin {url}");
        let id = self.retry.run(&what, || self.run.origins.upload_start(url)).await?;
        failpoint::hit("upload_created");
        self.attempt.record(Record::UploadStarted { object, id: id.clone() }).await?;
        Ok(id)
    }

    async fn part(
        &self,
        object: u32,
        size_bytes: u64,
        url: &str,
        id: &UploadId,
        index: u32,
        range: Range<u64>,
    ) -> Result<()> {
        let length = range.end - range.start;
        let arrived = Arrived::Part { at: range.start, bytes: length };
        let is_there =
            self.attempt.state().uploads.get(&object).is_some_and(|upload| upload.parts.contains_key(&index));
        if is_there {
            self.attempt.add_uploaded(object, arrived);
            return Ok(());
        }
        self.flushed(object, range.end).await?;
        let permit = self.uploads.permit().await?;
        let pieces = self.pieces(object, range).await?;
        let (body, checksum) = body_of(&pieces);
        let what = format!("the origin to take part {index} of {url}");
        let part_id = self
            .retry
            .run_but(&what, &[Code::NotFound], || self.run.origins.upload_part(url, id, index, body.clone()))
            .await?;
        failpoint::hit("part_done");
        self.attempt.record(Record::PartDone { object, index, part_id, checksum }).await?;
        self.attempt.add_uploaded(object, arrived);
        self.count_uploaded(length);
        drop((permit, body));
        self.cache_pieces(object, size_bytes, pieces).await;
        Ok(())
    }

    async fn complete(&self, object: u32, url: &str, id: &UploadId, count: u64, part_bytes: u64) -> Result<Tried> {
        let total = self.total(object).await?;
        let parts = {
            let state = self.attempt.state();
            state.uploads.get(&object).map(|upload| upload.parts.clone()).unwrap_or_default()
        };
        let mut left = total.size_bytes;
        let mut sum = BlockChecksum::of(&[]);
        let mut ids: Vec<PartId> = Vec::with_capacity(parts.len());
        for (part_id, checksum) in parts.into_values() {
            let length = left.min(part_bytes);
            left -= length;
            sum = sum.combine(checksum, length);
            ids.push(part_id);
        }
        if ids.len() as u64 != count || left != 0 || sum != total.checksum {
            // Parts of another size, from before a change of options; or this disk gives other bytes than it was given.
            self.check_object(object, total).await?;
            return Ok(Tried::Lost(Error::new(Code::Corrupt, "parts that were sent before do not fit".to_owned())));
        }
        failpoint::hit("before_complete");
        self.attempt.record(Record::CompleteSent { object }).await?;
        let what = format!("the origin to complete {url}");
        let handed_back = [Code::NotFound, Code::InvalidArgument];
        let completed =
            self.retry.run_but(&what, &handed_back, || self.run.origins.upload_complete(url, id, &ids)).await;
        failpoint::hit("complete_sent");
        match completed {
            Ok(_) => match self.verify(url, total).await {
                Err(error) if error.code() == Code::NotFound => Ok(Tried::Lost(error)),
                verified => lost_when_corrupt(verified),
            },
            Err(error) if handed_back.contains(&error.code()) => Ok(Tried::Lost(error)),
            Err(error) => Err(error),
        }
    }

    /// Whether this node's disk still has the bytes whose checksums were taken when they came.
    async fn check_object(&self, object: u32, total: Total) -> Result<()> {
        let mut sum = BlockChecksum::of(&[]);
        let mut at = 0;
        while at < total.size_bytes {
            let end = (at + CHECKED_BYTES).min(total.size_bytes);
            let _slot = self.uploads.slot(end - at).await?;
            let (_, checksum) = self.read(object, at..end).await?;
            sum = sum.combine(checksum, end - at);
            at = end;
        }
        self.check_local(object, sum, total)
    }
}
