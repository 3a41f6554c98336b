//! `/v1/holds` and `/v1/holds/<attempt>` on the data plane: which checkpoints this worker holds copies of, and which chunks of
//! their objects. `/v1/holds/<attempt>/records` is the same for the records alone that make a save of the copies again. The
//! chunks are fetched like any other.

use longshore_types::checkpoint::{AttemptId, parse_held_record_name};
use longshore_wire::Page;
use serde::Serialize;

use crate::store::hold::Holds;

const PATH: &str = "/v1/holds";
const RECORDS: &str = "/records";
/// Most objects of an answer; how many there are beyond is told.
const OBJECTS_MAX: usize = 100_000;

#[derive(Serialize)]
struct Attempts {
    attempts: Vec<Attempt>,
}

#[derive(Serialize)]
struct Attempt {
    attempt: String,
    bytes: u64,
    chunks: u64,
    /// Since the last chunk of it came.
    idle_seconds: f64,
}

#[derive(Serialize)]
struct Objects {
    attempt: String,
    objects: Vec<Object>,
    objects_left_out: usize,
}

#[derive(Serialize)]
struct Object {
    url: String,
    version: String,
    size_bytes: u64,
    /// Indices of the chunks that are held.
    chunks: Vec<u32>,
}

/// The page, when it is one of these. Blocks.
pub(super) fn page(holds: &Holds, path: &str) -> Option<Page> {
    let body = match path.strip_prefix(PATH)? {
        "" => serde_json::to_vec(&attempts(holds)),
        rest => {
            let rest = rest.strip_prefix('/')?;
            let (attempt, only_records) = match rest.strip_suffix(RECORDS) {
                Some(attempt) => (attempt, true),
                None => (rest, false),
            };
            serde_json::to_vec(&objects(holds, AttemptId::parse(attempt).ok()?, only_records)?)
        }
    };
    Some(Page { status: 200, content_type: "application/json".to_owned(), body: body.ok()? })
}

fn attempts(holds: &Holds) -> Attempts {
    let attempts = holds.list().into_iter().map(|held| Attempt {
        attempt: held.attempt.to_string(),
        bytes: held.bytes,
        chunks: held.chunks,
        idle_seconds: held.idle.as_secs_f64(),
    });
    Attempts { attempts: attempts.collect() }
}

fn objects(holds: &Holds, attempt: AttemptId, only_records: bool) -> Option<Objects> {
    let mut held = holds.objects(&attempt)?;
    held.retain(|object| !only_records || is_record(object.artifact.url()));
    let objects_left_out = held.len().saturating_sub(OBJECTS_MAX);
    held.truncate(OBJECTS_MAX);
    let objects = held.into_iter().map(|object| Object {
        url: object.artifact.url().to_owned(),
        version: object.artifact.version().as_str().to_owned(),
        size_bytes: object.artifact.size_bytes(),
        chunks: object.chunks,
    });
    Some(Objects { attempt: attempt.to_string(), objects: objects.collect(), objects_left_out })
}

fn is_record(url: &str) -> bool {
    url.rsplit_once('/').is_some_and(|(_, name)| parse_held_record_name(name).is_some())
}
