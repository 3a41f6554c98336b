//! Writing to Azure through `object_store`. Blocks that are not made part of a blob are dropped by Azure after a week, and
//! it keeps no checksum over a blob of several blocks: such objects are verified by reading them back.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use longshore_types::{Code, Version};
use object_store::azure::MicrosoftAzure;
use object_store::multipart::{MultipartStore, PartId as BlockId};
use object_store::path::Path;
use object_store::{Error, ObjectStore, PutMode, PutOptions, UpdateVersion};

use super::explain::{Call, explain};
use super::version;
use super::watch::{Exchange, Main};
use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::lane::Lane;
use crate::stats::count;
use crate::write::{PartId, PutHow, PutOutcome, UploadId};

/// All uploads of Azure are the same one: blocks belong to the name of the blob.
const UPLOAD: &str = "azure";

/// The writing side of one container.
pub(super) struct AzureWriter {
    pub store: Arc<MicrosoftAzure>,
    pub lane: Arc<Lane>,
}

impl AzureWriter {
    pub async fn put(&self, call: &Call<'_>, path: &Path, body: &Body, how: &PutHow) -> Attempt<PutOutcome> {
        let mode = match how {
            PutHow::Overwrite => PutMode::Overwrite,
            PutHow::Create => PutMode::Create,
            PutHow::Replace(version) => match version::if_match(version) {
                Some(etag) => PutMode::Update(UpdateVersion { e_tag: Some(etag), version: None }),
                None => {
                    let text = format!("{} cannot be replaced at version {version}: it is of another kind", call.url);
                    return Err(Fault::fatal(Code::InvalidArgument, text));
                }
            },
        };
        let mut options = PutOptions { mode, ..PutOptions::default() };
        options.extensions.insert(Main);
        count(&self.lane.counters.put_requests, 1);
        let exchange = Exchange::default();
        let result = exchange.watch(self.store.put_opts(path, body.payload(), options)).await;
        match result {
            Ok(written) => match version::written(written.e_tag.as_deref(), None) {
                Some(version) => Ok(PutOutcome::Written(version)),
                None => Err(explain(call, no_etag(), &exchange)),
            },
            Err(_) if *how != PutHow::Overwrite && is_conflict(&exchange, how) => Ok(PutOutcome::Conflict),
            Err(error) => Err(explain(call, error, &exchange)),
        }
    }

    pub fn start(&self) -> UploadId {
        UploadId(UPLOAD.to_owned())
    }

    pub async fn part(&self, call: &Call<'_>, path: &Path, index: u32, body: &Body) -> Attempt<PartId> {
        count(&self.lane.counters.upload_requests, 1);
        let exchange = Exchange::default();
        let sent = exchange.watch(self.store.put_part(path, &String::new(), index as usize, body.payload())).await;
        let block = sent.map_err(|error| explain(call, error, &exchange))?;
        Ok(PartId(block.content_id))
    }

    /// `None` when blocks are not there: a completed attempt used them up, or they were dropped.
    pub async fn complete(&self, call: &Call<'_>, path: &Path, parts: &[PartId]) -> Attempt<Option<Version>> {
        count(&self.lane.counters.upload_requests, 1);
        let exchange = Exchange::default();
        let blocks = parts.iter().map(|part| BlockId { content_id: part.0.clone() }).collect();
        let result = exchange.watch(self.store.complete_multipart(path, &String::new(), blocks)).await;
        match result {
            Ok(written) => match version::written(written.e_tag.as_deref(), None) {
                Some(version) => Ok(Some(version)),
                None => Err(explain(call, no_etag(), &exchange)),
            },
            Err(_) if exchange.seen().store_code.as_deref() == Some("InvalidBlockList") => Ok(None),
            Err(error) => Err(explain(call, error, &exchange)),
        }
    }

    pub async fn delete(&self, call: &Call<'_>, path: &Path) -> Attempt<bool> {
        count(&self.lane.counters.delete_requests, 1);
        let exchange = Exchange::default();
        let one = stream::iter([Ok(path.clone())]).boxed();
        let deleted = exchange.watch(async { self.store.delete_stream(one).next().await }).await;
        match deleted {
            None | Some(Ok(_)) => Ok(true),
            // The answer to a batch is a success that tells of each of its deletions.
            Some(Err(Error::NotFound { .. })) => Ok(false),
            Some(Err(error)) => Err(explain(call, error, &exchange)),
        }
    }
}

fn is_conflict(exchange: &Exchange, how: &PutHow) -> bool {
    let seen = exchange.seen();
    match seen.status {
        Some(412) => true,
        Some(409) => seen.store_code.as_deref() == Some("BlobAlreadyExists"),
        Some(404) => matches!(how, PutHow::Replace(_)) && !seen.names_no_bucket(),
        _ => false,
    }
}

fn no_etag() -> Error {
    Error::Generic { store: "bucket", source: Box::new(std::io::Error::other("it has no ETag")) }
}
