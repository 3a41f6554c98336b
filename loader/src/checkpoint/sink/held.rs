//! What workers hold, asked of all of them: the records of a step, and chunks back.
//!
//! Where a copy went is known to nobody but the worker that has it: who was on the ring then may be gone. So every worker is
//! asked, those first to whom a copy would go now, and those that do not answer last.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use longshore_checkpoint::{HeldRecord, HeldRecords};
use longshore_memory::{Arena, Buffer, Landing};
use longshore_types::checkpoint::{AttemptId, parse_held_record_name};
use longshore_types::chunk::chunk_count;
use longshore_types::{Artifact, BlockChecksum, CHUNK_BYTES, ChunkKey, Code, Error, Result, Version, redact_url};
use longshore_wire::{ChunkRequest, DataClient, Endpoint, Mode};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::ClusterSink;
use crate::cluster::Source;

/// Workers that are asked at once what they hold.
const ASKED_AT_ONCE: usize = 16;
/// Most bytes of a worker's answer.
const PAGE_BYTES_MAX: usize = 64 << 20;
/// Refusals that a message tells.
const TOLD_MAX: usize = 8;

#[derive(Deserialize)]
struct Attempts {
    attempts: Vec<Attempt>,
}

#[derive(Deserialize)]
struct Attempt {
    attempt: String,
}

#[derive(Deserialize)]
struct Objects {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    url: String,
    version: String,
    size_bytes: u64,
    chunks: Vec<u32>,
}

/// A record by attempt, rank and size.
type RecordId = (AttemptId, u32, u64);
/// The chunks of each record that somebody has.
type Parts = BTreeMap<RecordId, BTreeSet<u32>>;

impl ClusterSink {
    pub(super) async fn held_of(&self, step_url: &str) -> Result<HeldRecords> {
        let members = self.cluster.everyone();
        if members.is_empty() {
            let why = if self.cluster.has_workers() {
                "no worker answers at present"
            } else {
                "no workers are known: start the loader with --workers"
            };
            let message = format!("copies of {} cannot be looked for: {why}", redact_url(step_url));
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        let asked = members.into_iter().map(|member| async move {
            let (client, endpoint, url) = (self.client.clone(), member.endpoint.clone(), step_url.to_owned());
            let ask = tokio::task::spawn_blocking(move || ask(&client, &endpoint, &url)).await;
            let answer = ask.unwrap_or_else(|error| Err(broke_off(&error)));
            (member.label, answer)
        });
        let answers: Vec<_> = futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await;
        let (mut parts, mut held) = (Parts::new(), HeldRecords::default());
        for (label, answer) in answers {
            match answer {
                Ok(found) => {
                    found.into_iter().for_each(|(record, chunks)| parts.entry(record).or_default().extend(chunks))
                }
                Err(error) => held.unanswered.push(format!("{label} ({error})")),
            }
        }
        for ((attempt, rank, size_bytes), chunks) in parts {
            if chunks.len() as u64 != chunk_count(size_bytes) {
                tracing::warn!(%attempt, rank, "the record of held copies is not whole: those who hold the rest do not answer");
                continue;
            }
            let name = longshore_types::checkpoint::held_record_name(&attempt, rank);
            let version = Version::new(format!("attempt:{attempt}"))?;
            let artifact = Arc::new(Artifact::new(format!("{step_url}/{name}"), version, size_bytes)?);
            held.records.push(HeldRecord { artifact, attempt, rank });
        }
        held.unanswered.sort_unstable();
        Ok(held)
    }

    pub(super) async fn fetch_held(&self, key: &ChunkKey, blocks: Option<&[BlockChecksum]>) -> Result<Bytes> {
        let expected: Option<Arc<[BlockChecksum]>> = blocks.map(Into::into);
        let mut refusals: Vec<(String, Error)> = Vec::new();
        let mut asked = 0;
        for source in self.may_have(key) {
            asked += 1;
            match self.take(&source, key, expected.clone()).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) => {
                    tracing::warn!(worker = source.label, %error, "a held copy cannot be used; the next worker is asked");
                    refusals.push((source.label, error));
                }
            }
        }
        let name = format!("chunk {} of {}", key.index(), redact_url(key.artifact().url()));
        // A bad copy says more than a worker that does not answer: that one may have none.
        let worst = refusals.iter().find(|(_, error)| error.code() == Code::Corrupt).or(refusals.first());
        let Some((_, worst)) = worst else {
            return Err(Error::new(Code::NotFound, format!("none of {asked} workers has a copy of {name}")));
        };
        let code = worst.code();
        let told: Vec<String> =
            refusals.iter().take(TOLD_MAX).map(|(label, error)| format!("{label}: {error}")).collect();
        Err(Error::new(code, format!("none of {asked} workers gives a good copy of {name}: {}", told.join("; "))))
    }

    /// Every worker once, in the order to ask.
    fn may_have(&self, key: &ChunkKey) -> Vec<Source> {
        let states = self.cluster.members();
        let silent: HashSet<&str> =
            states.iter().filter(|state| !state.is_reachable).map(|state| state.id.as_str()).collect();
        let mut seen = HashSet::new();
        let likely = self.cluster.holders(key).into_iter().map(|holder| holder.source);
        let mut sources: Vec<Source> = likely.chain(self.cluster.everyone()).collect();
        sources.retain(|source| source.member.is_none_or(|member| seen.insert(member)));
        sources.sort_by_key(|source| source.member.is_some_and(|member| silent.contains(member.to_string().as_str())));
        sources
    }

    /// The chunk from one worker. A copy that is bad is dropped there, and its next one asked for.
    async fn take(&self, from: &Source, key: &ChunkKey, expected: Option<Arc<[BlockChecksum]>>) -> Result<Bytes> {
        let stop = CancellationToken::new();
        let _stopped_with_the_caller = stop.clone().drop_guard();
        let (client, endpoint, key) = (self.client.clone(), from.endpoint.clone(), key.clone());
        let take = move || {
            let take = |recheck| take(&client, &endpoint, &key, expected.clone(), recheck, &stop);
            match take(false) {
                Err(error) if error.code() == Code::Corrupt => match take(true) {
                    // Dropped: what was wrong with it says more.
                    Err(gone) if gone.code() == Code::NotFound => Err(error),
                    again => again,
                },
                taken => taken,
            }
        };
        let taken = tokio::task::spawn_blocking(take).await.unwrap_or_else(|error| Err(broke_off(&error)));
        let is_well = !taken.as_ref().is_err_and(|error| matches!(error.code(), Code::Unavailable | Code::Timeout));
        self.cluster.report(from, is_well);
        taken
    }
}

/// Memory that a chunk landed in; the caller has reserved it.
struct Landed {
    buffer: Buffer,
    len: usize,
}

impl AsRef<[u8]> for Landed {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

fn take(
    client: &DataClient,
    endpoint: &Endpoint,
    key: &ChunkKey,
    expected: Option<Arc<[BlockChecksum]>>,
    recheck: bool,
    stop: &CancellationToken,
) -> Result<Bytes> {
    let len = key.len_bytes() as usize;
    let buffer = Arena::new(CHUNK_BYTES)
        .try_buffer(len)
        .ok_or_else(|| Error::new(Code::Exhausted, format!("there is no memory for a chunk of {len} bytes")))?;
    let whole = 0..len;
    let mut landing = Landing::builder().buffer(buffer, vec![whole]).build()?;
    let request = ChunkRequest {
        mode: Mode::OnlyIfCached,
        recheck,
        expected: expected.clone(),
        ..ChunkRequest::whole(key.clone())
    };
    let fetched = client.fetch_until(endpoint, &request, &mut landing, stop)?;
    if expected.is_some_and(|expected| *fetched.checksums != *expected) {
        let why = format!("{request} from {endpoint} is whole and has other bytes than were saved");
        return Err(Error::new(Code::Corrupt, why));
    }
    let buffer = landing.into_buffers().pop();
    let buffer = buffer.ok_or_else(|| Error::new(Code::Internal, "a landing lost the buffer that it was given"))?;
    Ok(Bytes::from_owner(Landed { buffer, len }))
}

/// The records of a step that one worker holds, and which of their chunks. Blocks.
fn ask(client: &DataClient, endpoint: &Endpoint, step_url: &str) -> Result<Vec<(RecordId, Vec<u32>)>> {
    let not_read = |error: serde_json::Error| {
        Error::new(Code::Unavailable, format!("{endpoint} does not say what it holds: {error}"))
    };
    let page = match client.page(endpoint, "/v1/holds", PAGE_BYTES_MAX) {
        // A worker that keeps its cache in memory only holds nothing.
        Err(error) if error.code() == Code::NotFound => return Ok(Vec::new()),
        page => page?,
    };
    let attempts: Attempts = serde_json::from_slice(&page).map_err(not_read)?;
    let mut found = Vec::new();
    for attempt in attempts.attempts.iter().filter_map(|held| AttemptId::parse(&held.attempt).ok()) {
        let page = match client.page(endpoint, &format!("/v1/holds/{attempt}/records"), PAGE_BYTES_MAX) {
            // Released meanwhile.
            Err(error) if error.code() == Code::NotFound => continue,
            page => page?,
        };
        let objects: Objects = serde_json::from_slice(&page).map_err(not_read)?;
        found.extend(objects.objects.into_iter().filter_map(|object| record(object, &attempt, step_url)));
    }
    Ok(found)
}

/// What an object is the record of, when it is that of a rank of this step.
fn record(object: Object, attempt: &AttemptId, step_url: &str) -> Option<(RecordId, Vec<u32>)> {
    let name = object.url.strip_prefix(step_url)?.strip_prefix('/')?;
    let (of, rank) = parse_held_record_name(name)?;
    let is_ours = of == *attempt && object.version == format!("attempt:{attempt}");
    let count = chunk_count(object.size_bytes);
    let is_sound = object.chunks.iter().all(|chunk| u64::from(*chunk) < count);
    (is_ours && is_sound && count > 0).then_some(((of, rank, object.size_bytes), object.chunks))
}

fn broke_off(error: &tokio::task::JoinError) -> Error {
    Error::new(Code::Internal, format!("a call to a worker broke off: {error}"))
}
