//! One block for a reader that comes back for more: the file it lies in, when the other side hands that over, else its bytes.

use std::fs::File;
use std::sync::Arc;

use longshore_memory::{Buffer, Landing};
use longshore_types::{BlockChecksum, Code, Error, Result};
use tokio_util::sync::CancellationToken;

use super::{ask, checksums, land, take_file};
use crate::client::connection::violation;
use crate::client::{DataClient, Endpoint, local};
use crate::http::request::Accept;
use crate::http::response::{Framing, HandedOver};
use crate::http::{request, target};
use crate::service::{ChunkBody, ChunkRequest};

/// What came of one block.
pub(crate) enum Opened {
    /// The file with the chunk from `offset_bytes` on. Nothing of it was read yet.
    File {
        file: Arc<File>,
        offset_bytes: u64,
        /// What the block must be.
        checksum: BlockChecksum,
    },
    /// The block, verified.
    Bytes(Buffer, BlockChecksum),
}

impl DataClient {
    /// Asks for the one block of `request`. `room` makes the memory for it, and is called only when it is needed.
    ///
    /// # Errors
    /// As [`DataClient::fetch`], and what `room` says.
    pub(crate) fn open(
        &self,
        endpoint: &Endpoint,
        request: &ChunkRequest,
        room: impl FnOnce(usize) -> Result<Buffer>,
    ) -> Result<Opened> {
        let len = (request.range.end - request.range.start) as usize;
        let landing = || {
            let buffer = room(len)?;
            Landing::builder().buffer(buffer, std::iter::once(0..len).collect()).build()
        };
        let opened = match endpoint {
            Endpoint::InProcess(service) => match service.get(request)?.body {
                ChunkBody::File { file, offset_bytes, checksums } => one(checksums
                    .get(request.blocks())
                    .unwrap_or_default())
                .map(|checksum| Opened::File { file, offset_bytes, checksum }),
                // It is there now: to ask again costs a look-up.
                ChunkBody::Memory(_) => self.land_local(service.as_ref(), request, landing()?),
            },
            _ => self.open_remote(endpoint, request, landing),
        };
        opened.map_err(|error| error.context(format_args!("{request} from {endpoint}")))
    }

    fn land_local(
        &self,
        service: &dyn crate::service::ChunkService,
        request: &ChunkRequest,
        mut landing: Landing,
    ) -> Result<Opened> {
        let fetched = local::fetch(service, request, &mut landing, &self.patience(&CancellationToken::new()))?;
        bytes(landing, &fetched.checksums)
    }

    fn open_remote(
        &self,
        endpoint: &Endpoint,
        request: &ChunkRequest,
        landing: impl FnOnce() -> Result<Landing>,
    ) -> Result<Opened> {
        let patience = self.patience(&CancellationToken::new());
        let target = target::encode(request);
        let (pool, counters) = (&self.inner.pool, &self.inner.counters);
        let (mut lease, head) = ask(pool, counters, endpoint, &patience, |host, unix| {
            // Memory is lent for one reading, and this file is kept.
            let accept = if unix { Accept::File } else { Accept::Bytes };
            request::encode_chunk(&target, host, request, accept)
        })?;
        let keep_alive = head.keep_alive;
        let opened = match head.handed_over {
            Some(HandedOver { offset_bytes, is_memory }) => {
                let file = take_file(lease.connection()?)?;
                if head.framing != Framing::Length(0) || is_memory {
                    return Err(violation("a file that was not asked for, or a body beside it"));
                }
                let checksum = one(checksums(&head, request)?)?;
                Opened::File { file: Arc::new(file), offset_bytes, checksum }
            }
            None => {
                let mut landing = landing()?;
                let fetched = land(lease.connection()?, head, request, &mut landing)?;
                bytes(landing, &fetched.checksums)?
            }
        };
        if keep_alive {
            lease.give_back();
        }
        Ok(opened)
    }
}

fn bytes(landing: Landing, checksums: &[BlockChecksum]) -> Result<Opened> {
    let checksum = one(checksums)?;
    let buffer = landing.into_buffers().pop();
    buffer
        .map(|buffer| Opened::Bytes(buffer, checksum))
        .ok_or_else(|| Error::new(Code::Internal, "a landing lost its buffer"))
}

fn one(checksums: &[BlockChecksum]) -> Result<BlockChecksum> {
    match checksums {
        [checksum] => Ok(*checksum),
        _ => Err(Error::new(Code::Internal, format!("{} checksums came with one block", checksums.len()))),
    }
}
