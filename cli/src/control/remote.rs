//! Control calls over gRPC, to the owner of a URL or to the next worker on the ring that can be reached.

use std::sync::Arc;

use longshore_cluster::Membership;
use longshore_proto::convert::artifact_from_proto;
use longshore_proto::status::from_status;
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::manifest::FILES_MAX;
use longshore_types::{Artifact, Code, Error, ResolvedFile, Result, Selection, names};
use longshore_worker::WarmEvent;
use tonic::transport::Channel;

use super::{FreeOutcome, Listing, Tier, WorkerState, nobody};
use crate::connect::worker_channel;

type Client = WorkerClient<Channel>;

fn failed(status: tonic::Status) -> Error {
    from_status(&status)
}

async fn client(control_address: &str) -> Result<Client> {
    Ok(WorkerClient::new(worker_channel(control_address).await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The owner of a URL, or the next worker that can be reached: it will ask the owner, or the origin.
async fn client_for(membership: &dyn Membership, url: &str) -> Result<Client> {
    let ring = membership.ring();
    let mut last = nobody();
    for owner in ring.owners(url.as_bytes(), ring.members().len()) {
        match client(&owner.identity.control).await {
            Ok(client) => return Ok(client),
            Err(error) => {
                tracing::warn!(%error, "asking the next worker");
                last = error;
            }
        }
    }
    Err(last)
}

pub(super) async fn stat(membership: &dyn Membership, url: &str, revalidate: bool) -> Result<(Artifact, bool)> {
    let request = v1::StatRequest { url: url.to_owned(), revalidate, forwarded: false };
    let answer = client_for(membership, url).await?.stat(request).await.map_err(failed)?.into_inner();
    Ok((artifact_from_proto(answer.artifact)?, answer.cached))
}

pub(super) async fn list(membership: &dyn Membership, url: &str, revalidate: bool) -> Result<Listing> {
    let mut client = client_for(membership, url).await?;
    let mut listing = Listing { revision: String::new(), files: Vec::new(), is_cached: true };
    let mut page_token = String::new();
    loop {
        let request = v1::ListRequest {
            url: url.to_owned(),
            revalidate: revalidate && page_token.is_empty(),
            forwarded: false,
            page_size: 0,
            page_token,
        };
        let page = client.list(request).await.map_err(failed)?.into_inner();
        for file in page.files {
            names::check_relative(&file.name, url)?;
            let artifact = Arc::new(artifact_from_proto(file.artifact)?);
            listing.files.push(ResolvedFile { name: file.name, artifact });
        }
        listing.revision = page.revision;
        listing.is_cached &= page.cached;
        if page.next_page_token.is_empty() {
            return Ok(listing);
        }
        if listing.files.len() > FILES_MAX {
            return Err(Error::new(Code::Exhausted, format!("the listing has more than {FILES_MAX} files")));
        }
        page_token = page.next_page_token;
    }
}

pub(super) async fn warm(
    membership: &dyn Membership,
    url: &str,
    selection: &Selection,
    revalidate: bool,
    mut progress: impl FnMut(&WarmEvent),
) -> Result<WarmEvent> {
    let request = v1::WarmRequest { url: url.to_owned(), include: selection.include.clone(), revalidate };
    let mut stream = client_for(membership, url).await?.warm(request).await.map_err(failed)?.into_inner();
    while let Some(message) = stream.message().await.map_err(failed)? {
        let v1::WarmProgress { bytes_done, bytes_total, bytes_cached, done, revision } = message;
        let event = WarmEvent { bytes_done, bytes_total, bytes_cached, done, revision };
        progress(&event);
        if event.done {
            return Ok(event);
        }
    }
    Err(Error::new(Code::Unavailable, "the worker ended before the model was in the cache"))
}

pub(super) async fn free(membership: &dyn Membership, url: &str) -> Result<FreeOutcome> {
    let request = v1::FreeRequest { url: url.to_owned(), local_only: false };
    let answer = client_for(membership, url).await?.free(request).await.map_err(failed)?.into_inner();
    Ok(FreeOutcome { bytes: answer.bytes_freed, chunks: answer.chunks_freed, unreachable: answer.unreachable })
}

pub(super) async fn states(membership: &dyn Membership) -> Vec<(String, Result<WorkerState>)> {
    let view = membership.view();
    let asked = view.members.iter().map(async |member| {
        let answer = match client(&member.identity.control).await {
            Ok(mut client) => client.get_status(v1::GetWorkerStatusRequest {}).await.map_err(failed),
            Err(error) => Err(error),
        };
        (member.address.clone(), answer.map(|status| status.into_inner().into()))
    });
    futures::future::join_all(asked).await
}

impl From<v1::WorkerStatus> for WorkerState {
    fn from(status: v1::WorkerStatus) -> Self {
        let tier = |tier: v1::TierStatus| Tier {
            capacity_bytes: tier.capacity_bytes,
            used_bytes: tier.used_bytes,
            chunks: tier.chunks,
        };
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        WorkerState {
            id: status.id,
            version: status.version,
            cache_dir: text(status.cache_dir).map(Into::into),
            memory: tier(status.memory.unwrap_or_default()),
            disk: status.disk.map(tier),
            disk_error: text(status.disk_error),
            notes: status.notes,
            fills_in_flight: status.fills_in_flight,
            served_bytes: status.served_bytes,
            origin_bytes: status.origin_bytes,
            checksum_mismatches: status.checksum_mismatches,
            uptime_seconds: status.uptime_seconds,
        }
    }
}
