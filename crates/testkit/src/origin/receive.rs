//! Bodies that come in: at the pace that was configured, and checked.

mod keep;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use longshore_types::{BlockChecksum, Checksummer};
use sha2::{Digest, Sha256};

use super::checksums::{Algorithm, Hasher, Stated};
use super::chunked::Decoder;
use super::counters::Ticket;
use super::faults::Misbehaviour;
use super::pace::Pacer;
use super::stores::Failure;
use crate::content::{Content, hex};

pub(super) use keep::Budget;
use keep::Keeper;

/// Largest body of a request that is no upload: a list of ten thousand parts.
const SMALL_BYTES_MAX: u64 = 16 << 20;
/// Largest upload in one request, as in S3.
const UPLOAD_BYTES_MAX: u64 = 5 << 30;

/// What to do with a body.
pub(super) struct Plan<'a> {
    /// It is the content of an object, or of a part of one.
    pub(super) is_content: bool,
    pub(super) len_bytes: Option<u64>,
    /// The checksum that it must have, or why that cannot be told.
    pub(super) stated: Result<Option<Stated>, Failure>,
    /// It comes in the coding `aws-chunked`.
    pub(super) is_chunked: bool,
    /// The checksum that is stated behind it.
    pub(super) trailer: Option<Algorithm>,
    /// The checksum that the store works out when none is stated.
    pub(super) keeps: Option<Algorithm>,
    /// Whether its SHA-256 is needed.
    pub(super) hashes: bool,
    pub(super) folder: Option<&'a Path>,
    pub(super) budget: &'a Arc<Budget>,
    pub(super) pacer: &'a Pacer,
    pub(super) bad: &'a Misbehaviour,
    pub(super) ticket: &'a Ticket,
}

/// A body that came in whole.
pub(super) struct Received {
    pub(super) content: Content,
    /// CRC-64/NVME of it.
    pub(super) checksum: BlockChecksum,
    /// What was stated of it; nothing that is wrong.
    pub(super) stated: Option<Stated>,
    /// In hex, when it was needed.
    pub(super) sha256: Option<String>,
}

impl Default for Received {
    /// An empty one.
    fn default() -> Self {
        Received { content: Content::default(), checksum: BlockChecksum::of(b""), stated: None, sha256: None }
    }
}

/// Why a body did not come in.
pub(super) enum Broken {
    /// The connection is to be closed, or was.
    Connection(io::Error),
    /// It came, and is refused.
    Refused(Failure),
}

/// Reads a body to its end, even when it is refused: a client that writes does not read answers.
pub(super) async fn receive(incoming: Incoming, plan: Plan<'_>) -> Result<Received, Broken> {
    let len_max = if plan.is_content { UPLOAD_BYTES_MAX } else { SMALL_BYTES_MAX };
    let mut keeper = Keeper::new(&plan);
    let mut refused = plan.stated.as_ref().err().or(keeper.as_ref().err()).cloned();
    let stated = plan.stated.ok().flatten();
    let mut decoder = plan.is_chunked.then(Decoder::new);
    let algorithm = stated.as_ref().map(|stated| stated.algorithm).or(plan.trailer).or(plan.keeps);
    if refused.is_none() && plan.len_bytes.is_some_and(|len| len > len_max) {
        refused = Some(too_large());
    }
    let mut summer = Checksummer::new();
    let mut hasher = algorithm.map(Algorithm::hasher);
    let mut sha256 = plan.hashes.then(Sha256::new);
    let mut incoming = incoming;
    let mut at = 0;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| Broken::Connection(io::Error::other(error)))?;
        let Ok(bytes) = frame.into_data() else { continue };
        let bytes = plan.bad.spoil(bytes, at);
        let (bytes, ends) = plan.bad.limit(bytes, at);
        at += bytes.len() as u64;
        plan.ticket.received(bytes.len() as u64);
        if let Some(rate) = plan.bad.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / rate as f64)).await;
        }
        if plan.is_content {
            plan.pacer.pass(bytes.len() as u64).await;
        }
        if ends {
            return Err(Broken::Connection(plan.bad.end().await));
        }
        if at > len_max {
            refused = Some(too_large());
        }
        if refused.is_some() {
            continue;
        }
        sha256.iter_mut().for_each(|hasher| hasher.update(&bytes));
        let mut rest = bytes;
        loop {
            let piece = match &mut decoder {
                Some(decoder) => decoder.next(&mut rest),
                None => Ok(Some(std::mem::take(&mut rest)).filter(|piece| !piece.is_empty())),
            };
            let kept = match (piece, &mut keeper) {
                (Ok(Some(piece)), Ok(keeper)) => {
                    summer.update(&piece);
                    hasher.iter_mut().for_each(|hasher| hasher.update(&piece));
                    keeper.keep(piece).await
                }
                (Ok(_), _) => break,
                (Err(failure), _) => Err(failure),
            };
            if let Err(failure) = kept {
                refused = Some(failure);
                break;
            }
        }
    }
    plan.ticket.received_whole();
    if let Some(failure) = refused {
        return Err(Broken::Refused(failure));
    }
    let stated = match (stated, &decoder) {
        (None, Some(decoder)) => behind(decoder, plan.trailer).map_err(Broken::Refused)?,
        (stated, _) => stated,
    };
    let raw = hasher.map(Hasher::finish);
    if let (Some(stated), Some(raw)) = (&stated, &raw)
        && Stated::of(stated.algorithm, raw) != *stated
    {
        return Err(Broken::Refused(super::checksums::mismatch(stated.algorithm)));
    }
    let kept = plan.keeps.zip(raw.as_ref()).map(|(algorithm, raw)| Stated::of(algorithm, raw));
    let stated = stated.or(kept);
    let content = match keeper {
        Ok(keeper) => keeper.finish().await.map_err(Broken::Refused)?,
        Err(failure) => return Err(Broken::Refused(failure)),
    };
    let content = plan.bad.flips_stored.iter().fold(content, |content, offset| content.flipped(*offset));
    let sha256 = sha256.map(|sha256| hex(&sha256.finalize()));
    Ok(Received { content, checksum: summer.finish(), stated, sha256 })
}

/// The checksum behind a body.
fn behind(decoder: &Decoder, algorithm: Option<Algorithm>) -> Result<Option<Stated>, Failure> {
    let Some(algorithm) = algorithm else { return decoder.trailer("").map(|_| None) };
    let text = decoder.trailer(algorithm.header())?.ok_or_else(|| {
        let message =
            "The request contained trailing data that was not well-formed or did not conform to our published schema.";
        Failure::new(400, "MalformedTrailerError", message)
    })?;
    Ok(Some(Stated { algorithm, text: text.to_owned() }))
}

fn too_large() -> Failure {
    Failure::new(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
}
