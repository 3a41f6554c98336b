//! The gRPC control service. A handler converts, calls, converts; generated types go no further than this module.

mod client;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use longshore_proto::v1::worker_server::Worker as WorkerService;
use longshore_proto::{convert, status, v1};
use longshore_types::{Code, Error, Resolved, Selection};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::meta::Ask;
use crate::store::hold::HeldAttempt;
use crate::warm::WarmEvent;
use crate::worker::{TierUsage, Worker};
pub use client::Control;

/// Entries of a page when the caller does not say.
const PAGE_ENTRIES_DEFAULT: usize = 1_000;
/// Most entries of a page.
const PAGE_ENTRIES_MAX: usize = 10_000;
/// Progress messages of a warm-up that may wait for a slow client.
const PROGRESS_QUEUE: usize = 16;

/// The service over a worker.
pub struct Grpc {
    worker: Arc<Worker>,
}

impl Grpc {
    /// Serves `worker`.
    pub fn new(worker: Arc<Worker>) -> Self {
        Grpc { worker }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn failed(error: Error) -> Status {
    status::to_status(&error)
}

#[tonic::async_trait]
impl WorkerService for Grpc {
    async fn stat(&self, request: Request<v1::StatRequest>) -> Answer<v1::StatResponse> {
        let request = request.into_inner();
        let ask = Ask { revalidate: request.revalidate, forwarded: request.forwarded };
        let answer = self.worker.stat(&request.url, ask).await.map_err(failed)?;
        let artifact = Some(convert::artifact_to_proto(&answer.value));
        Ok(Response::new(v1::StatResponse { artifact, cached: answer.cached }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        let request = request.into_inner();
        let ask = Ask { revalidate: request.revalidate, forwarded: request.forwarded };
        let answer = self.worker.list(&request.url, ask).await.map_err(failed)?;
        let page = list_page(&answer.value, request.page_size, &request.page_token, answer.cached);
        page.map(Response::new).map_err(failed)
    }

    async fn get_manifest(&self, request: Request<v1::GetManifestRequest>) -> Answer<v1::GetManifestResponse> {
        let request = request.into_inner();
        let ask = Ask { revalidate: request.revalidate, forwarded: request.forwarded };
        let selection = Selection::new(request.include).map_err(failed)?;
        let answer = self.worker.manifest(&request.url, &selection, ask).await.map_err(failed)?;
        let manifest = Some(convert::manifest_to_proto(&answer.value));
        Ok(Response::new(v1::GetManifestResponse { manifest, cached: answer.cached }))
    }

    type WarmStream = Pin<Box<dyn Stream<Item = Result<v1::WarmProgress, Status>> + Send>>;

    async fn warm(&self, request: Request<v1::WarmRequest>) -> Answer<Self::WarmStream> {
        let request = request.into_inner();
        let selection = Selection::new(request.include).map_err(failed)?;
        let (sender, events) = mpsc::channel(PROGRESS_QUEUE);
        let worker = self.worker.clone();
        tokio::spawn(async move {
            let ended = worker.warm(&request.url, &selection, request.revalidate, &sender).await;
            if let Err(error) = ended {
                // A client that left does not hear of it.
                let _ = sender.send(Err(error)).await;
            }
        });
        let messages = ReceiverStream::new(events).map(|event| event.map(warm_progress).map_err(failed));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn free(&self, request: Request<v1::FreeRequest>) -> Answer<v1::FreeResponse> {
        let request = request.into_inner();
        let (freed, unreachable) = self.worker.free(&request.url, request.local_only).await.map_err(failed)?;
        Ok(Response::new(v1::FreeResponse { bytes_freed: freed.bytes, chunks_freed: freed.chunks, unreachable }))
    }

    async fn get_status(&self, _: Request<v1::GetWorkerStatusRequest>) -> Answer<v1::WorkerStatus> {
        let status = self.worker.status();
        let members = status.members.into_iter().map(|(member, reachable)| v1::MemberStatus {
            id: member.id().to_string(),
            weight: member.weight(),
            address: member.address,
            reachable,
        });
        Ok(Response::new(v1::WorkerStatus {
            id: status.id.to_string(),
            version: status.version,
            data_address: status.data_address,
            cache_dir: status.cache_dir.map(|path| path.display().to_string()).unwrap_or_default(),
            memory: Some(tier(status.memory)),
            disk: status.disk.map(tier),
            fills_in_flight: status.fills_in_flight,
            served_bytes: status.served_bytes,
            origin_bytes: status.origin_bytes,
            checksum_mismatches: status.checksum_mismatches,
            disk_error: status.disk_error.unwrap_or_default(),
            members: members.collect(),
            uptime_seconds: status.uptime.as_secs_f64(),
            held: status.held.map(tier),
            holds: status.holds.iter().map(held).collect(),
            notes: status.notes,
        }))
    }
}

fn tier(usage: TierUsage) -> v1::TierStatus {
    v1::TierStatus { capacity_bytes: usage.capacity_bytes, used_bytes: usage.used_bytes, chunks: usage.chunks }
}

fn held(held: &HeldAttempt) -> v1::HoldStatus {
    v1::HoldStatus {
        attempt: held.attempt.to_string(),
        bytes: held.bytes,
        chunks: held.chunks,
        idle_seconds: held.idle.as_secs_f64(),
    }
}

fn warm_progress(event: WarmEvent) -> v1::WarmProgress {
    v1::WarmProgress {
        bytes_done: event.bytes_done,
        bytes_total: event.bytes_total,
        bytes_cached: event.bytes_cached,
        done: event.done,
        revision: event.revision,
    }
}

/// One page of a listing. The token carries the revision: pages of two revisions are never put together.
fn list_page(list: &Resolved, size: u32, token: &str, cached: bool) -> Result<v1::ListResponse, Error> {
    let start = match token.split_once(':') {
        None if token.is_empty() => 0,
        Some((start, revision)) if revision == list.revision => start.parse().map_err(|_| bad_token())?,
        Some(_) => {
            return Err(Error::new(
                Code::FailedPrecondition,
                "the listing changed between two pages; list again from the start",
            ));
        }
        None => return Err(bad_token()),
    };
    let size = match size as usize {
        0 => PAGE_ENTRIES_DEFAULT,
        size => size.min(PAGE_ENTRIES_MAX),
    };
    let rest = list.files.get(start..).ok_or_else(bad_token)?;
    let files = rest.iter().take(size).map(|file| v1::ListedFile {
        name: file.name.clone(),
        artifact: Some(convert::artifact_to_proto(&file.artifact)),
    });
    let next = start + rest.len().min(size);
    let more = next < list.files.len();
    let next_page_token = if more { format!("{next}:{}", list.revision) } else { String::new() };
    Ok(v1::ListResponse { revision: list.revision.clone(), files: files.collect(), next_page_token, cached })
}

fn bad_token() -> Error {
    Error::new(Code::InvalidArgument, "the page token is not one of this service")
}

#[cfg(test)]
mod tests {
    use longshore_types::{Artifact, ResolvedFile, Version};

    use super::*;

    fn list(count: usize) -> Resolved {
        let file = |number: usize| ResolvedFile {
            name: format!("{number:04}"),
            artifact: Arc::new(
                Artifact::new(format!("s3://b/{number}"), Version::new("etag:\"1\"").unwrap(), 1).unwrap(),
            ),
        };
        Resolved { url: "s3://b".to_owned(), revision: "r:1".to_owned(), files: (0..count).map(file).collect() }
    }

    #[test]
    fn pages_tile_the_listing() {
        let list = list(25);
        let (mut token, mut names) = (String::new(), Vec::new());
        loop {
            let page = list_page(&list, 10, &token, true).unwrap();
            names.extend(page.files.into_iter().map(|file| file.name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(names, list.files.iter().map(|file| file.name.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn tokens_of_another_revision_and_nonsense_are_refused() {
        let list = list(3);
        assert_eq!(list_page(&list, 1, "1:r:0", true).unwrap_err().code(), Code::FailedPrecondition);
        for bad in ["x", "x:r:1", "4:r:1", "99999999999999999999:r:1", "-1:r:1"] {
            assert_eq!(list_page(&list, 1, bad, true).unwrap_err().code(), Code::InvalidArgument, "{bad}");
        }
    }
}
