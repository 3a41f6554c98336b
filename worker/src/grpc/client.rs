//! Calls to other workers: one channel each, opened on first use.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longshore_cluster::Member;
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_proto::{MESSAGE_BYTES_MAX, convert, status, v1};
use longshore_types::{Artifact, Code, Error, Manifest, Resolved, ResolvedFile, Result, Selection, names};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::meta::{Answer, Forward};
use crate::store::Freed;

/// For a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a peer is pinged while it works on a call, and the time it has to answer before its connection is given
/// up: a peer that is gone would otherwise hold a call for its whole time. Short of that, a machine whose processors
/// are all taken answers late and is not gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// For one call: the owner may have to list a slow origin.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Channels that are kept; the table starts afresh beyond it.
const CHANNELS_MAX: usize = 1024;
/// Entries of a listing that are asked for at a time.
const PAGE_ENTRIES: u32 = 10_000;

/// The control services of other workers, by address.
#[derive(Default)]
pub struct Control {
    channels: Mutex<HashMap<String, WorkerClient<Channel>>>,
}

impl Control {
    fn client(&self, member: &Member) -> Result<WorkerClient<Channel>> {
        let address = &member.identity.control;
        let mut channels = self.channels.lock();
        if let Some(client) = channels.get(address) {
            return Ok(client.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
            Error::new(Code::Unavailable, format!("worker {} names a bad control address: {error}", member.address))
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .timeout(CALL_TIMEOUT)
            .connect_lazy();
        let client = WorkerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(address.clone(), client.clone());
        Ok(client)
    }

    /// Frees a URL on one other worker.
    pub async fn free(&self, member: &Member, url: &str) -> Result<Freed> {
        let request = v1::FreeRequest { url: url.to_owned(), local_only: true };
        let freed = unpack(self.client(member)?.free(request).await)?;
        Ok(Freed { bytes: freed.bytes_freed, chunks: freed.chunks_freed })
    }
}

#[async_trait]
impl Forward for Control {
    async fn stat(&self, owner: &Member, url: &str, revalidate: bool) -> Result<Answer<Artifact>> {
        let request = v1::StatRequest { url: url.to_owned(), revalidate, forwarded: true };
        let response = unpack(self.client(owner)?.stat(request).await)?;
        Ok(Answer { value: convert::artifact_from_proto(response.artifact)?, cached: response.cached })
    }

    async fn list(&self, owner: &Member, url: &str, revalidate: bool) -> Result<Answer<Arc<Resolved>>> {
        let mut client = self.client(owner)?;
        let mut request = v1::ListRequest {
            url: url.to_owned(),
            revalidate,
            forwarded: true,
            page_size: PAGE_ENTRIES,
            page_token: String::new(),
        };
        let (mut files, mut cached) = (Vec::new(), true);
        loop {
            let page = unpack(client.list(request.clone()).await)?;
            if files.len() + page.files.len() > longshore_types::manifest::FILES_MAX {
                return Err(Error::new(Code::InvalidArgument, format!("{url} holds too many files")));
            }
            for file in page.files {
                names::check_relative(&file.name, url)?;
                let artifact = Arc::new(convert::artifact_from_proto(file.artifact)?);
                files.push(ResolvedFile { name: file.name, artifact });
            }
            cached &= page.cached;
            if page.next_page_token.is_empty() || page.next_page_token == request.page_token {
                let value = Arc::new(Resolved { url: url.to_owned(), revision: page.revision, files });
                return Ok(Answer { value, cached });
            }
            // The pages that follow belong to the listing that this call has made fresh.
            request.revalidate = false;
            request.page_token = page.next_page_token;
        }
    }

    async fn manifest(
        &self,
        owner: &Member,
        url: &str,
        selection: &Selection,
        revalidate: bool,
    ) -> Result<Answer<Arc<Manifest>>> {
        let include = selection.include.clone();
        let request = v1::GetManifestRequest { url: url.to_owned(), include, revalidate, forwarded: true };
        let response = unpack(self.client(owner)?.get_manifest(request).await)?;
        let manifest = response
            .manifest
            .ok_or_else(|| Error::new(Code::Internal, format!("{} answered without a manifest", owner.address)))?;
        Ok(Answer { value: Arc::new(convert::manifest_from_proto(manifest)?), cached: response.cached })
    }
}

fn unpack<T>(answer: std::result::Result<Response<T>, Status>) -> Result<T> {
    answer.map(Response::into_inner).map_err(|error| status::from_status(&error))
}
